"""From the wheel to a trained, pruned and saved network in an environment that holds nothing else: how long it takes.

    python -m benchmarks.bare_install [--wheel FILE] [--require "torch==2.4.*"] [--constraints constraints.txt]

A virtual environment of this interpreter is made in a temporary folder, the wheel is built (or taken) and installed with its
`train` extra, and README's first snippet and the first tutorial are run there. The installer's cache is used as it is found.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "examples" / "prune_my_model.py"


def timed(what: str, words: list[str], folder: Path) -> float:
    """Run a command to its end, print its time."""
    started = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(words, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    print(f"{what:<34} {seconds:7.1f} s", flush=True)
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="default: one built from this tree")
    parser.add_argument("--require", nargs="+", default=[], help="installed before the wheel, such as torch==2.4.*")
    parser.add_argument("--constraints", type=Path, help="a constraints file for pip")
    arguments = parser.parse_args(argv)
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert snippet
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if arguments.constraints:
            pip += ["-c", str(arguments.constraints.resolve())]
        total = 0.0
        if not arguments.wheel:
            build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
            total += timed("wheel", [*build, "-w", str(folder)], folder)
        wheel = arguments.wheel or next(folder.glob("*.whl"))
        total += timed(
            "install [train]", [*pip, *arguments.require, f"bayesprune[train] @ {wheel.resolve().as_uri()}"], folder
        )
        (folder / "readme.py").write_text(snippet.group(1), encoding="utf-8")
        total += timed("README's first snippet", [str(python), "readme.py"], folder)
        total += timed("first tutorial", [str(python), str(TUTORIAL)], folder)
        print(f"{'all':<34} {total:7.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
