"""The house's own rules: layers, docstrings, no pickle, no machine's paths."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import bayesprune

ROOT = Path(bayesprune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
HOUSE = ROOT.parents[1]
PAPER = sorted(path for path in (HOUSE / "paper").rglob("*.py") if "tests" not in path.parts)  # stands on the library
LAYERS = {
    "common": set(),
    "samplers": set(),
    "graph": set(),
    "sparsity": {"samplers", "graph"},
    "compaction": {"samplers", "graph", "sparsity"},
    "posterior": {"samplers", "sparsity"},
    "vision": {"samplers", "sparsity", "posterior"},
    "deploy": {"samplers", "graph", "sparsity", "compaction", "posterior"},
    "baselines": {"samplers", "sparsity", "posterior"},
    "tabular": {"samplers", "sparsity", "posterior"},
    "train": {"samplers", "sparsity", "compaction", "posterior", "baselines", "vision", "tabular"},
    "report": set(),
    "integrations": {"samplers", "graph", "sparsity", "compaction", "posterior"},
}
for below in LAYERS.values():
    below.add("common")
EXTRAS = {
    "lightning_fabric",
    "tqdm",
    "tensorboard",
    "sklearn",
    "PIL",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pyarrow",
    "jinja2",
    "markupsafe",
    "shtab",
    "arviz",
    "lightning",
    "transformers",
}


# Built on scikit-learn's classes, and imported only when asked for (see tabular.__getattr__).
LAZY = {"estimators.py", "estimator_base.py", "parameters.py", "training_data.py"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_property_imports_point_downwards(path):
    layer = path.relative_to(ROOT).parts[0]
    if layer not in LAYERS:
        return  # the command line and the demo stand on top of all
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "bayesprune" and len(parts) > 1 and parts[1] != "_version":
            assert parts[1] == layer or parts[1] in LAYERS[layer], f"{path}: {layer} must not import {name}"
    if path.name == "metrics.py" and layer == "posterior":
        assert not any(name.startswith("bayesprune") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_property_extras_are_imported_where_they_are_used(path):
    if path.name in LAZY:
        return
    for name in imports(path, top_level_only=True):
        assert name.split(".")[0] not in EXTRAS, f"{path}: import {name} inside the function that needs it"


def modules() -> dict[str, Path]:
    """Every module of the library and of the paper by its name; a folder's __init__ is the folder's name."""
    places = [(path.relative_to(ROOT.parent), path) for path in FILES] + [
        (path.relative_to(HOUSE), path) for path in PAPER
    ]
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in places}


def needed(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports, under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("bayesprune.", "paper.")):
            place = node.module or ""
            found |= {f"{place}.{alias.name}" if f"{place}.{alias.name}" in known else place for alias in node.names}
    return found


def test_property_the_library_knows_nothing_of_what_stands_on_it():
    """Neither the paper's runs nor the benchmarks; and the wheel, made of src, holds the library alone."""
    for path in FILES:
        assert not {name.split(".")[0] for name in imports(path)} & {"paper", "benchmarks", "tests"}, path
    assert len(PAPER) > 20
    assert {path.parts[len(ROOT.parent.parts)] for path in ROOT.parent.rglob("*.py")} == {"bayesprune"}
    assert '[tool.setuptools.packages.find]\nwhere = ["src"]\n' in (HOUSE / "pyproject.toml").read_text()


def test_property_no_import_circle():
    known = modules()
    below = {name: needed(path, known) for name, path in known.items()}
    reach = {name: set(direct) for name, direct in below.items()}
    while True:  # transitive closure
        grown = {
            name: far | {further for step in far for further in reach.get(step, ())} for name, far in reach.items()
        }
        if grown == reach:
            break
        reach = grown
    found = {
        frozenset({name} | {other for other in far if name in reach.get(other, ())})
        for name, far in reach.items()
        if name in far
    }
    assert not found


def public_objects():
    for module in (
        "",
        "samplers",
        "sparsity",
        "compaction",
        "posterior",
        "baselines",
        "vision",
        "deploy",
        "tabular",
        "train",
        "report",
        "integrations",
    ):
        package = importlib.import_module("bayesprune" + (f".{module}" if module else ""))
        assert package.__all__ and len(set(package.__all__)) == len(package.__all__)
        for name in package.__all__:
            thing = getattr(package, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield pytest.param(thing, id=f"{module}.{name}")


@pytest.mark.parametrize("thing", list(public_objects()))
def test_property_public_names_are_documented(thing):
    assert inspect.getdoc(thing), f"{thing} has no docstring"
    documented = inspect.getdoc(thing)
    assert len(documented.splitlines()[0]) > 15


def test_property_no_pickle_but_the_guarded_reader():
    for path in FILES + PAPER:
        used = {name.split(".")[0] for name in imports(path)} & {"pickle", "dill", "cloudpickle", "joblib"}
        assert not used or path.name == "unpickle.py", path
        assert not re.search(r"torch\.(save|load)\(", path.read_text()), path


def test_property_files_stay_short():
    for path in FILES + PAPER:
        assert len(path.read_text().splitlines()) <= 400, path
