"""What whole files cost: saving and loading now, and by another checkout of the library, in turns in one run.

    python -m benchmarks.save_load --before PATH/TO/OTHER/CHECKOUT [--json FILE] [--rounds 15]

Every round asks both processes in turns, so that what else the machine does falls on both. A time is the median over the rounds, by
the clock and of the processor's work in all threads; a quotient is the median of the rounds' quotients. A sample is loaded into the
model, a checkpoint and a model are read and every tensor of theirs is used once: a file that is only mapped into memory costs nothing
until it is used. "first" is a file that this process has not checked yet and that the system holds in memory; "from the disk" one that
the system was told to forget (posix_fadvise); "again" one that was checked and has not changed since.
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


Deed = tuple[Callable[[], Any], Callable[[], Any]]


def deeds(width: int, folder: Path) -> dict[str, Deed]:
    """What is timed, by name, with the library that this process imports: what comes before it, and itself."""
    import torch

    from bayesprune import SampleStore, load, save
    from bayesprune.train.tree import load_tree, save_tree
    from bayesprune.vision import resnet20

    def fresh() -> None:
        """Forget which files were checked already, where the library remembers."""
        if "bayesprune.common.tensors" in sys.modules:
            getattr(sys.modules["bayesprune.common.tensors"], "_checked", {}).clear()

    def cold() -> None:
        """Have the system forget the files too."""
        fresh()
        for path in (path for path in folder.rglob("*") if path.is_file()):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)

    def aged() -> None:
        """Check the sample once, when it is older than the clock of files is coarse."""
        if not remembered:
            time.sleep(2.5)
            remembered.append(SampleStore(folder / "samples").load_(0, model))

    def sample() -> Any:
        return SampleStore(folder / "samples").load_(0, model)

    def checkpoint() -> Any:
        return model.load_state_dict(load_tree(folder / "state")["model"])

    torch.manual_seed(0)
    model = resnet20(num_classes=10, width=width).eval()
    remembered: list[Any] = []
    state = {"model": dict(model.state_dict()), "step": 3}
    example = torch.zeros(2, 3, 32, 32)
    store = SampleStore(folder / "samples")
    store.collect(model)
    save_tree(folder / "state", state)
    found: dict[str, Deed] = {
        "collect a sample": (lambda: store.truncate(0), lambda: store.collect(model)),
        "load a sample, first": (fresh, sample),
        "load a sample, from the disk": (cold, sample),
        "load a sample, again": (aged, sample),
        "save a checkpoint": (fresh, lambda: save_tree(folder / "state", state)),
        "load a checkpoint, first": (fresh, checkpoint),
        "load a checkpoint, from the disk": (cold, checkpoint),
    }
    if width <= 64:
        save(model, folder / "model", example_input=example)
        found["save a model"] = (fresh, lambda: save(model, folder / "model", example_input=example))
        found["load a model, first"] = (
            fresh, lambda: [tensor.sum() for tensor in load(folder / "model").state_dict().values()],
        )  # fmt: skip
    return found


def worker() -> None:
    """Answer "WIDTH NAME" on standard input with the seconds of clock and work on standard output."""
    import torch

    torch.set_num_threads(1)
    known: dict[int, dict[str, Deed]] = {}
    home = Path(tempfile.mkdtemp(prefix="save-load-"))
    try:
        for line in sys.stdin:
            width, name = int(line.split()[0]), line.strip().partition(" ")[2]
            if width not in known:
                (home / str(width)).mkdir()
                known[width] = deeds(width, home / str(width))
            if name == "names":
                print(*known[width], sep=";", flush=True)
                continue
            before, act = known[width][name]
            before()
            begun, worked = time.perf_counter(), time.process_time()
            act()
            print(time.perf_counter() - begun, time.process_time() - worked, flush=True)
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


HEAD = "| size | what | before ms | now ms | quotient | before: work ms | now: work ms | quotient of work |"


def _line(row: dict[str, Any]) -> str:
    cells = [row["size"], row["what"]]
    for kind in ("clock", "work"):
        cells += [f"{row[f'{kind}_before_ms']:.1f}", f"{row[f'{kind}_now_ms']:.1f}", f"{row[f'{kind}_quotient']:.2f}"]
    return f"| {' | '.join(cells)} |"


def table(result: dict[str, Any]) -> str:
    """The result as a table in Markdown."""
    lines = [HEAD, "|---|---|" + "---|" * 6, *map(_line, result["rows"])]
    return "\n".join(lines) + f"\n\nMedians of {result['rounds']} rounds; before: commit {result['before']}."


def compare(before: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of median seconds and quotients."""
    old, new = Process(before), Process(HERE)
    rows = []
    try:
        for size, width in WIDTHS.items():
            for name in new.ask(width, "names").split(";"):
                old.ask(width, "names")
                times = []
                for number in range(rounds + 2):
                    pair = (old, new) if number % 2 else (new, old)
                    found = {process: [*map(float, process.ask(width, name).split())] for process in pair}
                    times.append((found[old], found[new]))
                times = times[2:]  # the first touch disks and caches for both
                row: dict[str, Any] = {"what": name, "size": size}
                for place, kind in enumerate(("clock", "work")):
                    before, after = ([each[side][place] for each in times] for side in (0, 1))
                    row[f"{kind}_before_ms"], row[f"{kind}_now_ms"] = (
                        1e3 * statistics.median(each) for each in (before, after)
                    )
                    row[f"{kind}_quotient"] = statistics.median(y / x for x, y in zip(before, after))
                rows.append(row)
                print(_line(row), flush=True)
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
