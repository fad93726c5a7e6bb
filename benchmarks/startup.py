"""How long the command line and the library take to start: wall time of fresh processes, the median of several.

    python -m benchmarks.startup [--repeats 9]

The first start of each command is left out: it compiles and reads from disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bayesprune.train.folder import environment
from benchmarks.tables import RESULTS

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


def seconds(words: list[str], repeats: int) -> list[float]:
    """Wall times of fresh processes."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return times[1:]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", default=str(RESULTS / "startup.json"))
    arguments = parser.parse_args(argv)
    rows = []
    for name, words in COMMANDS.items():
        times = seconds(words, arguments.repeats)
        rows.append({"command": name, "median": statistics.median(times), "least": min(times), "most": max(times)})
        print(
            f"{name:<26} {rows[-1]['median']:6.3f} s  ({rows[-1]['least']:.3f} to {rows[-1]['most']:.3f})", flush=True
        )
    about = {"load": os.getloadavg()[0], "repeats": arguments.repeats, "environment": environment("cpu")}
    Path(arguments.out).write_text(json.dumps({"rows": rows, **about}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
