"""What a release holds: the sdist with all that its tests need, the wheel with all that runs, and files that parse."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bayesprune import __version__

ROOT = Path(__file__).parent.parent
KEPT = ("src", "tests", "docs", "examples", "benchmarks", ".ci")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist and a wheel of a copy of the tree, without a network."""
    pytest.importorskip("setuptools")
    root = tmp_path_factory.mktemp("release")
    tree = root / "tree"
    for name in KEPT:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    for path in (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"):
        shutil.copy(path, tree)
    code = (
        "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def test_property_sdist_holds_tests_docs_examples_and_changelog(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "docs", "examples", "benchmarks"):
        held = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")}
        assert not held - names, sorted(held - names)[:5]
    assert {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "constraints.txt"} <= names


def test_property_wheel_holds_the_package_and_nothing_else(built):
    (path,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(path).namelist())
    package = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "bayesprune").rglob("*.py")}
    assert package <= names and {"bayesprune/py.typed", "bayesprune/samplers/native.c"} <= names
    assert {name.partition("/")[0] for name in names} == {"bayesprune", f"bayesprune-{__version__}.dist-info"}


def test_property_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE).group(1) == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_property_hosted_files_parse_and_name_what_exists():
    yaml = pytest.importorskip("yaml")
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]
    if not (ROOT / ".github").exists():
        pytest.skip("a source distribution has no .github")
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"\.\[([\w,]+)\]", text):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), extra
