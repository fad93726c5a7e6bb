"""Public names that are imported when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

EXTRAS = {  # top-level module: its package, and the extra that brings it
    "sklearn": ("scikit-learn", "train"),
    "lightning_fabric": ("Lightning Fabric", "train"),
    "tqdm": ("tqdm", "train"),
    "tensorboard": ("TensorBoard", "train"),
    "PIL": ("Pillow", "train"),
    "matplotlib": ("Matplotlib", "train"),
    "jinja2": ("Jinja2", "train"),
    "pandas": ("pandas", "tabular"),
    "pyarrow": ("pyarrow", "tabular"),
    "onnx": ("onnx", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "onnxscript": ("onnxscript", "export"),
    "arviz": ("ArviZ", "integrations"),
    "lightning": ("Lightning", "integrations"),
    "transformers": ("transformers", "integrations"),
    "shtab": ("shtab", "completion"),
}


def missing(error: ImportError, what: str, extra: str | None = None) -> ImportError:
    """An import's failure told by what needed the package and the line that installs it."""
    root = (error.name or "").split(".")[0]
    if root not in EXTRAS:
        return error
    package, usual = EXTRAS[root]
    return ImportError(f'{what} needs {package}: pip install "bayesprune[{extra or usual}]"', name=error.name)


def lazy(
    package: str, places: Mapping[str, str], rooms: Iterable[str] = (), extra: str | None = None
) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose public names are imported on first use."""
    where = {name: module for module, names in places.items() for name in names.split()}

    def find(name: str) -> Any:
        if name in where:
            try:
                value = getattr(importlib.import_module(where[name]), name)
            except ModuleNotFoundError as error:
                raise missing(error, f"{package}.{name}", extra) from error
        elif name in rooms:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return find


def later(module: str, name: str) -> Callable[..., Any]:
    """A function that calls a module's function or class, importing the module then."""

    def call(*words: Any, **settings: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*words, **settings)

    return call
