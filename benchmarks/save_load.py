"""What whole files cost: saving and loading now, and by another checkout of the library, in turns in one run.

    python -m benchmarks.save_load --before PATH/TO/OTHER/CHECKOUT [--json FILE] [--rounds 15]

Every round asks both processes in turns, so that what else the machine does falls on both. A time is the median over the rounds; the
quotient is the median of the rounds' quotients. A sample is loaded into the model, a checkpoint and a model are read and every tensor of
theirs is touched once: a file that is only mapped into memory costs nothing until it is used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "save_load.json"
HERE = Path(__file__).resolve().parent.parent
WIDTHS = {"1 MB": 16, "17 MB": 64, "69 MB": 128}
LIMIT = 1.2


def deeds(width: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is timed, by name, with the library that this process imports."""
    import torch

    from bayesprune import SampleStore, load, save
    from bayesprune.train.tree import load_tree, save_tree
    from bayesprune.vision import resnet20

    def fresh() -> None:
        """Forget which files were checked already, where the library remembers."""
        if "bayesprune.common.tensors" in sys.modules:
            sys.modules["bayesprune.common.tensors"]._checked.clear()

    torch.manual_seed(0)
    model = resnet20(num_classes=10, width=width).eval()
    state = {"model": dict(model.state_dict()), "step": 3}
    example = torch.zeros(2, 3, 32, 32)
    store = SampleStore(folder / "samples")
    store.collect(model)
    save_tree(folder / "state", state)
    found: dict[str, Callable[[], Any]] = {
        "collect a sample": lambda: (store.truncate(0), store.collect(model)),
        "load a sample": lambda: (fresh(), SampleStore(folder / "samples").load_(0, model)),
        "load it again": lambda: SampleStore(folder / "samples").load_(0, model),
        "save a checkpoint": lambda: save_tree(folder / "state", state),
        "load a checkpoint": lambda: (fresh(), model.load_state_dict(load_tree(folder / "state")["model"])),
    }
    if width <= 64:
        save(model, folder / "model", example_input=example)
        found["save a model"] = lambda: save(model, folder / "model", example_input=example)
        found["load a model"] = lambda: (
            fresh() or [tensor.sum() for tensor in load(folder / "model").state_dict().values()]
        )
    return found


def worker() -> None:
    """Answer "WIDTH NAME" on standard input with seconds on standard output."""
    import torch

    torch.set_num_threads(1)
    known: dict[int, dict[str, Callable[[], Any]]] = {}
    home = Path(tempfile.mkdtemp(prefix="save-load-"))
    try:
        for line in sys.stdin:
            width, name = int(line.split()[0]), line.strip().partition(" ")[2]
            if width not in known:
                (home / str(width)).mkdir()
                known[width] = deeds(width, home / str(width))
            if name == "names":
                print(*known[width], sep=",", flush=True)
                continue
            begun = time.perf_counter()
            known[width][name]()
            print(time.perf_counter() - begun, flush=True)
    finally:
        shutil.rmtree(home)


class Process:
    """A checkout of the library in a process of its own."""

    def __init__(self, root: Path, module: str = "benchmarks.save_load") -> None:
        places = os.pathsep.join([str(root / "src"), str(HERE)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE, env=os.environ | {"PYTHONPATH": places},
        )  # fmt: skip

    def ask(self, number: int, name: str) -> str:
        """The answer to one line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(number, name, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(before: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of median seconds and quotients."""
    old, new = Process(before), Process(HERE)
    rows = []
    try:
        for size, width in WIDTHS.items():
            for name in new.ask(width, "names").split(","):
                old.ask(width, "names")
                times = []
                for number in range(rounds + 2):
                    pair = (old, new) if number % 2 else (new, old)
                    seconds = {process: float(process.ask(width, name)) for process in pair}
                    times.append((seconds[old], seconds[new]))
                times = times[2:]  # the first touch disks and caches for both
                quotient = statistics.median(after / first for first, after in times)
                first, after = (statistics.median(column) for column in zip(*times))
                fastest = min(each[1] for each in times) / min(each[0] for each in times)
                row = {"what": name, "size": size, "before_ms": 1e3 * first, "now_ms": 1e3 * after}
                rows.append({**row, "quotient": quotient, "quotient_of_fastest": fastest})
                shown = f"{1e3 * first:>10.2f} ms{1e3 * after:>10.2f} ms{quotient:>8.2f}{fastest:>8.2f}"
                print(f"{name:<20}{size:>8}{shown}", flush=True)
    finally:
        old.close()
        new.close()
    return rows


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout of the library")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help=f"file to write, for example {RESULTS}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker()
        return
    from bayesprune.train.folder import environment, write_json

    git = ["git", "-C", str(arguments.before), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    rows = compare(arguments.before.resolve(), arguments.rounds)
    if arguments.json:
        write_json(
            arguments.json,
            {"before": commit, "rounds": arguments.rounds, "rows": rows, "environment": environment("cpu")},
        )


if __name__ == "__main__":
    main()
