"""What `bayesprune train` is pointed at: a recipe's name, a TOML file of settings, or a Python file of one's own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from bayesprune.train.build import as_data, own_config
from bayesprune.train.config import RunConfig
from bayesprune.train.idle import refuse_idle
from bayesprune.train.recipes import names, recipe, registered
from bayesprune.train.settings import as_settings, merged, override

_OWN = ("model", "data", "task")


@dataclass(frozen=True)
class Chosen:
    """A configuration, and what a file of one's own gives beside it: the arguments model, data and task of `train`."""

    config: RunConfig
    own: dict[str, Any] = field(default_factory=dict)


def choose(what: str, settings: Iterable[str] = (), config_file: str | os.PathLike[str] | None = None) -> Chosen:
    """Return what a recipe's name or a file stands for, with keys overridden; keys that change nothing are refused."""
    path, _, name = what.partition(".py:")
    own: dict[str, Any] = {}
    given: dict[str, Any] = {}
    if what.endswith(".py") or name:
        config, own = _from_python(Path(path + ".py" if name else what), name)
    elif what.endswith(".toml"):
        given = read_settings(what)
        base = given.pop("recipe", None)
        config = RunConfig(recipe=Path(what).stem) if base is None else recipe(str(base))
    else:
        config = recipe(what)
    if config_file is not None:
        given = merged(given, {key: value for key, value in read_settings(config_file).items() if key != "recipe"})
    given = merged(given, as_settings(settings))
    config = override(config, given)
    config = own_config(config, own.get("model"), None if own.get("data") is None else as_data(own["data"]))
    for key in given:
        refuse_idle(config, key)
    return Chosen(config, own)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the keys of a TOML file and their values: at the top, or in the tables of their sections."""
    try:
        import tomllib as reader
    except ImportError:
        try:
            import tomli as reader  # type: ignore[no-redef]
        except ImportError as error:
            raise ImportError("reading TOML on Python 3.10 needs tomli: pip install tomli") from error
    try:
        values = reader.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: name a TOML file of settings, for example `lr = 0.1`.") from None
    except (reader.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _from_python(path: Path, name: str) -> tuple[RunConfig, dict[str, Any]]:
    """Return the recipe that a file registers, and its model, data and task."""
    module = _import(path)
    own = {part: _given(module, part) for part in _OWN if not isinstance(getattr(module, part, module), ModuleType)}
    found = [each for each in names() if registered(each).__module__ == module.__name__]
    if name and name not in found:
        raise ValueError(f"{path}:{name}: the file registers {', '.join(found) or 'no recipe'}.")
    if not name and len(found) != 1:
        if not found:
            raise ValueError(f"{path} registers no recipe: decorate a function that returns a RunConfig with @recipe.")
        raise ValueError(f"{path} registers {', '.join(found)}; choose one: {path}:{found[0]}.")
    chosen = name or found[0]
    return replace(recipe(chosen), recipe=chosen), own


def _given(module: ModuleType, part: str) -> Any:
    """Return what a file gives; data may be a function that returns them."""
    value = getattr(module, part)
    return value() if part == "data" and isinstance(value, FunctionType) else value


def _import(path: Path) -> ModuleType:
    """Import a file by its path; what stands beside it can be imported by it."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: name a Python file that registers a recipe.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # worker processes look their data set up by it
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module
