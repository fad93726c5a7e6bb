"""From the wheel to a trained, pruned and saved network in an environment that holds nothing else: how long it takes.

    python -m benchmarks.bare_install [--wheel FILE] [--require "torch==2.10.*"] [--constraints constraints.txt]

A virtual environment of this interpreter is made in a temporary folder, the wheel is built (or taken) and installed with its
`train` extra, and README's first snippet and the first tutorial are run there. The installer's cache is used as it is found.
A row for each pair of Python and torch is kept in `results/bare_install.json`: seconds by the clock and of the processor; beside other work
the latter are the ones to read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, ROOT
from benchmarks.tables import table as markdown

STEPS = ("install [train]", "README's first snippet", "first tutorial")
TUTORIAL = ROOT / "examples" / "prune_my_model.py"


def timed(what: str, words: list[str], folder: Path) -> dict[str, float]:
    """Run a command to its end, print its times."""
    started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(words, check=True, cwd=folder, env=inherited, stdout=subprocess.DEVNULL)
    seconds, now = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    print(f"{what:<34} {seconds:7.1f} s, {processor:7.1f} s of the processor", flush=True)
    return {"wall": seconds, "processor": processor}


def environment(python: Path, argv: list[str]) -> dict[str, Any]:
    """Versions and hardware as the installed library tells them, with the commit of this tree: no torch is needed out here."""
    code = "import json; from bayesprune.train.folder import environment; print(json.dumps(environment('cpu')))"
    told = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, cwd=python.parent)
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    command = " ".join(["bare_install.py", *(Path(word).name if word.startswith("/") else word for word in argv)])
    return json.loads(told.stdout) | {"commit": git.stdout.strip() or None, "command": command}


def table(result: dict[str, Any]) -> str:
    """A row an environment: seconds by the clock, and of the processor."""
    rows = []
    for row in result["rows"]:
        steps = [*(row["seconds"][step] for step in STEPS), row["all"]]
        times = (f"{step['wall']:.0f} ({step['processor']:.0f})" for step in steps)
        rows.append([row["environment"]["python"], row["environment"]["torch"], *times, f"{row['load']:.1f}"])
    head = ["Python", "torch", *STEPS, "all", "load"]
    return markdown(head, rows) + "\n\nSeconds by the clock, in brackets of the processor."


def kept(path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result file, with this one in the place of an earlier one of the same versions."""

    def key(each: dict[str, Any]) -> tuple[str, str]:
        return each["environment"]["python"], each["environment"]["torch"]

    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return sorted([*(each for each in rows if key(each) != key(row)), row], key=key)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="default: one built from this tree")
    parser.add_argument("--require", nargs="+", default=[], help="installed before the wheel, such as torch==2.10.*")
    parser.add_argument("--constraints", type=Path, help="a constraints file for pip")
    parser.add_argument("--out", type=Path, default=RESULTS / "bare_install.json")
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
        if not arguments.wheel:
            build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(ROOT)]
            timed("wheel", [*build, "-w", str(folder)], folder)
        wheel = arguments.wheel or next(folder.glob("*.whl"))
        (folder / "readme.py").write_text(snippet.group(1), encoding="utf-8")
        commands = (
            [*pip, *arguments.require, f"bayesprune[train] @ {wheel.resolve().as_uri()}"],
            [str(python), "readme.py"],
            [str(python), str(TUTORIAL)],
        )
        seconds = {step: timed(step, words, folder) for step, words in zip(STEPS, commands)}
        total = {kind: sum(step[kind] for step in seconds.values()) for kind in ("wall", "processor")}
        row = {"seconds": seconds, "all": total, "load": os.getloadavg()[0]}
        row["environment"] = environment(python, sys.argv[1:] if argv is None else argv)
    print(f"{'all':<34} {total['wall']:7.1f} s, {total['processor']:7.1f} s of the processor")
    result = {"rows": kept(arguments.out, row), "environment": row["environment"]}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
