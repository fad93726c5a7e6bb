"""How long the command line and the library take to start: wall and processor time of fresh processes, medians of several.

    python -m benchmarks.startup [--repeats 9]

The first start of each command is left out: it compiles and reads from disk. Beside other work the processor time is the one to read.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bayesprune.train.folder import environment
from benchmarks.tables import RESULTS
from benchmarks.tables import table as markdown

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import bayesprune": ["-c", "import bayesprune"],
    "import torch": ["-c", "import torch"],
    "bayesprune.CVAdam": ["-c", "import bayesprune; bayesprune.CVAdam"],
    "bayesprune --version": ["-m", "bayesprune", "--version"],
    "bayesprune --help": ["-m", "bayesprune", "--help"],
    "bayesprune train --help": ["-m", "bayesprune", "train", "--help"],
    "bayesprune select --help": ["-m", "bayesprune", "select", "--help"],
    "bayesprune recipes": ["-m", "bayesprune", "recipes"],
}


def seconds(words: list[str], repeats: int) -> tuple[list[float], list[float]]:
    """Wall and processor times of fresh processes."""
    wall, processor = [], []
    for _ in range(repeats + 1):
        started, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - started)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
    return wall[1:], processor[1:]


def table(result: dict[str, Any]) -> str:
    """A row a command, in seconds."""
    rows = [[f"`{row['command']}`", f"{row['wall']:.2f}", f"{row['processor']:.2f}"] for row in result["rows"]]
    note = f"Medians of {result['repeats']} fresh processes each; load of the machine at the end {result['load']:.1f}."
    return f"{markdown(['command', 'by the clock, s', 'processor, s'], rows)}\n\n{note}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", default=str(RESULTS / "startup.json"))
    arguments = parser.parse_args(argv)
    rows = []
    print(f"{'':<26} {'wall s':>8} {'processor s':>12}")
    for name, words in COMMANDS.items():
        wall, processor = seconds(words, arguments.repeats)
        rows.append({"command": name, "wall": statistics.median(wall), "processor": statistics.median(processor)})
        print(f"{name:<26} {rows[-1]['wall']:8.3f} {rows[-1]['processor']:12.3f}", flush=True)
    about = {"load": os.getloadavg()[0], "repeats": arguments.repeats, "environment": environment("cpu")}
    Path(arguments.out).write_text(json.dumps({"rows": rows, **about}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
