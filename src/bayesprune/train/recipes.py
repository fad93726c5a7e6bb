"""Recipes: named, complete settings. A recipe is a function that returns a frozen `RunConfig`."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import overload

from bayesprune.train.config import RunConfig
from bayesprune.train.registry import method
from bayesprune.train.settings import override

Maker = Callable[[], RunConfig]
_RECIPES: dict[str, Maker] = {}
_BUILT_IN = ("image_recipes", "cifar_recipes")


def _known() -> dict[str, Maker]:
    """The recipes by name; those of this package register themselves when they are first asked for."""
    for name in _BUILT_IN:
        importlib.import_module(f"bayesprune.train.{name}")
    return _RECIPES


def register_recipe(name: str, make: Maker, text: str | None = None) -> None:
    """Add a recipe under a name; `@recipe` does it for one function."""
    if text is not None:
        make.__doc__ = text
    _RECIPES[name] = make


def names(pattern: str = "*") -> dict[str, str]:
    """Return the recipes' names, sorted, and their one-line descriptions.

    Args:
        pattern: Only those whose name it matches, with * and ?; a plain word matches anywhere in the name.

    Example:
        >>> "digits-cvadam" in names(), list(names("digits-rank1*"))
        (True, ['digits-rank1', 'digits-rank1-cauchy'])
    """
    glob = pattern if re.search(r"[*?\[]", pattern) else f"*{pattern}*"
    found = sorted(name for name in _known() if fnmatch.fnmatchcase(name, glob))
    return {name: ((_RECIPES[name].__doc__ or "").strip().splitlines() or [""])[0] for name in found}


@overload
def recipe(name: str, settings: Iterable[str] = ()) -> RunConfig: ...


@overload
def recipe(name: Maker) -> Maker: ...


def recipe(name: str | Maker, settings: Iterable[str] = ()) -> RunConfig | Maker:
    """Return a recipe's configuration, with keys overridden; as a decorator, add the function to the recipes.

    Args:
        name: One of `names()`; behind that of a pruned run may stand another target sparsity in percent, "-80". Or, as a
            decorator, a function without arguments that returns a `RunConfig`: its name, with - for _, is the recipe's,
            and the first line of its docstring describes it in lists.
        settings: "key=value" strings.

    Returns:
        The configuration; the function itself where one was given.

    Raises:
        ValueError: An unknown recipe or key; the message gives the nearest one.

    Example:
        >>> recipe("cifar10-resnet20-sgd", ["epochs=3"]).schedule.epochs
        3
        >>> recipe("cifar10-resnet20-emmcmc-80").pruning.target_sparsity
        0.8
        >>> @recipe
        ... def doctest_short() -> RunConfig:
        ...     "Three epochs."
        ...     return recipe("digits-sgd", ["epochs=3"])
        >>> recipe("doctest-short").recipe, names("doctest-*")
        ('doctest-short', {'doctest-short': 'Three epochs.'})
        >>> forget_recipe("doctest-short")
    """
    if callable(name):
        register_recipe(name.__name__.replace("_", "-"), name)
        return name
    known = _known()
    base, _, percent = name.rpartition("-")
    if name not in known and base in known and re.fullmatch(r"\d\d", percent):
        config = known[base]()
        if "target_sparsity" in method(config.sampler.method).keys:
            config = replace(config, pruning=replace(config.pruning, target_sparsity=int(percent) / 100))
            return override(replace(config, recipe=name), settings)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown recipe {name!r}: {hint}`bayesprune recipes` lists them.")
    return override(replace(known[name](), recipe=name), settings)


def registered(name: str) -> Maker:
    """Return the function that makes a recipe."""
    return _known()[name]


def forget_recipe(name: str) -> None:
    """Take a recipe off the list, as a test does that added one."""
    _RECIPES.pop(name, None)
