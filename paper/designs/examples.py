"""The paper's three simulated examples, and every design by name: which inputs a network must find among many null columns.

The functions spell out what is their own; `Drawing` lists what they share. The true inputs are the first columns: a
method that breaks ties by column number is favoured, so permute the columns where ties matter.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from paper.designs.dataset import Drawing, SimulatedData, simulate
from paper.designs.inputs import equicorrelated
from paper.designs.responses import (
    FORMULAS,
    example1_response,
    example2_response,
    example3_response,
)
from paper.designs.variants import b1, c1, d1, k1, n0

if TYPE_CHECKING:
    from typing_extensions import Unpack


def example1(
    formula: str = "paper", n: int = 10000, p: int = 1000, *, correlation: float = 0.5, **drawing: Unpack[Drawing]
) -> SimulatedData:
    """Draw Example 1: y = tanh(2·tanh(2x₁ − x₂)) + 2·tanh(tanh(x₃ − 2x₄) − tanh(2x₅)) + ε.

    Args:
        formula: "paper" (above, Var y = 3.23), "authors-code" (the released generator, 3.75) or "sun"; see
            `example1_response`.
        n: training rows.
        p: columns.
        correlation: correlation of every pair of columns, in [0, 1).
        **drawing: the other arguments of a draw, see `Drawing`.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range, or an unknown formula.

    Example:
        >>> example1(n=100, p=20).y_train.shape
        (100,)

    Reference:
        Example 1 of the paper's variable selection study.
    """
    settings: dict[str, Any] = {"formula": formula, "n": n, "p": p, "correlation": correlation}
    if formula not in FORMULAS:
        raise ValueError(f"formula={formula!r} is not known: use one of {', '.join(map(repr, FORMULAS))}")
    inputs = partial(equicorrelated, p=p, correlation=correlation)
    response = partial(example1_response, formula=formula)
    return simulate("example1", "regression", inputs, response, 5, n=n, p=p, settings=settings, **drawing)


def example2(n: int = 10000, p: int = 2000, *, correlation: float = 0.5, **drawing: Unpack[Drawing]) -> SimulatedData:
    """Draw Example 2: y = 5x₂/(1 + x₁²) + 5·sin(x₃x₄) + 2x₅ + ε, Var y = 26.3.

    Args:
        n: training rows.
        p: columns.
        correlation: correlation of every pair of columns, in [0, 1).
        **drawing: the other arguments of a draw, see `Drawing`.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> example2(n=100, p=20).X_train.shape
        (100, 20)

    Reference:
        Example 2 of the paper's variable selection study.
    """
    settings: dict[str, Any] = {"n": n, "p": p, "correlation": correlation}
    inputs = partial(equicorrelated, p=p, correlation=correlation)
    return simulate("example2", "regression", inputs, example2_response, 5, n=n, p=p, settings=settings, **drawing)


def example3(n: int = 10000, p: int = 1000, *, correlation: float = 0.5, **drawing: Unpack[Drawing]) -> SimulatedData:
    """Draw Example 3: the label is [e^x₁ + x₂² + 5·sin(x₃x₄) − 3 > 0], without label noise.

    Args:
        n: training rows.
        p: columns: 1000 as in the released code (the paper's text says 2000).
        correlation: correlation of every pair of columns, in [0, 1).
        **drawing: the other arguments of a draw, see `Drawing`; `strength` and `noise` are refused.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> sorted(set(example3(n=100, p=20).y_train.tolist()))
        [0, 1]

    Reference:
        Example 3 of the paper's variable selection study.
    """
    settings: dict[str, Any] = {"n": n, "p": p, "correlation": correlation}
    inputs = partial(equicorrelated, p=p, correlation=correlation)
    return simulate("example3", "classification", inputs, example3_response, 4, n=n, p=p, settings=settings, **drawing)


def small_n(n: int = 500, p: int = 500, *, example: str = "example2", **options: Any) -> SimulatedData:
    """Draw one of the three examples with few rows: n = 500, 1000 or 2000 at p = 500.

    Args:
        n: training rows.
        p: columns.
        example: "example1", "example2" or "example3".
        **options: other arguments of the example.

    Returns:
        The data set.

    Raises:
        ValueError: an unknown example, or an argument outside its range.
        TypeError: an argument that the example does not take.

    Example:
        >>> data = small_n(n=500, seed=1)
        >>> data.X_train.shape, data.X_validation.shape
        ((500, 500), (100, 500))
    """
    known: dict[str, Callable[..., SimulatedData]] = {
        "example1": example1,
        "example2": example2,
        "example3": example3,
    }
    if example not in known:
        raise ValueError(f"example={example!r} is not known: use one of {', '.join(map(repr, known))}")
    data = known[example](n=n, p=p, **options)
    return dataclasses.replace(data, name="small_n", settings={"example": example} | data.settings)


_DESIGNS: dict[str, Callable[..., SimulatedData]] = {
    "example1": example1,
    "example2": example2,
    "example3": example3,
    "small_n": small_n,
    "N0": n0,
    "K1": k1,
    "C1": c1,
    "B1": b1,
    "D1": d1,
}


def designs() -> list[str]:
    """Return the names `design` knows.

    Returns:
        The names in the order of this file.

    Example:
        >>> designs()[:3]
        ['example1', 'example2', 'example3']
    """
    return list(_DESIGNS)


def design(name: str, **settings: Any) -> SimulatedData:
    """Draw a design by its name.

    Args:
        name: one of `designs()`; case, hyphens and underscores do not matter.
        **settings: arguments of the design's function; the `settings` of a data set draw it again.

    Returns:
        The data set.

    Raises:
        ValueError: an unknown name, with the nearest one, or an argument outside its range.
        TypeError: an argument that the design does not take; the message gives those it does.

    Example:
        >>> data = design("C1", n=100, p=50, seed=4)
        >>> bool((design(data.name, **data.settings).y_test == data.y_test).all())
        True
    """
    plain = {_plain(known): function for known, function in _DESIGNS.items()}
    if _plain(name) not in plain:
        shown = {_plain(known): known for known in _DESIGNS}
        nearest = shown[difflib.get_close_matches(_plain(name), shown, n=1, cutoff=0.0)[0]]
        raise ValueError(f"name={name!r} is no design: did you mean {nearest!r}? Known: {', '.join(designs())}")
    function = plain[_plain(name)]
    own = [key for key in inspect.signature(function).parameters if key not in ("drawing", "options")]
    known = [*own, *(key for key in Drawing.__annotations__ if key not in own)]
    if function is small_n:  # passes the rest on to its example
        known += ["formula", "correlation"]
    for key in settings:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise TypeError(f"{name} takes no {key!r}: did you mean {nearest!r}? It takes {', '.join(known)}")
    return function(**settings)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
