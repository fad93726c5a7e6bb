"""SIGKILL at random instants, in fresh interpreters: every end equals the uninterrupted one, or is a whole earlier state.

    python -m benchmarks.kills [--kills 200] [--minutes 60] [--only WORK …] [--seed 0] [--out FILE]

Five kinds of work, in turns: `train` (a pruning, sampling run, resumed after each kill, three kills a run), `select` (the
command, begun again), `reproduce` (a small Table 4, resumed), `save` (a model written over another one, again and again) and
`collect` (samples into a store). A piece of work is run once whole; then processes are started and killed after a random
share of its time, and after the last kill it is run to its end and compared bit for bit, times apart. What a killed
process left must be gone after the next start. `--minutes` ends early; what was done by then is the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bayesprune.train.folder import environment, write_json

RESULT = Path(__file__).parent / "results" / "kills.json"
SMALL = [
    "train_size=96", "epochs=4", "batch_size=16", "width=4", "cycles=2", "samples_per_cycle=2", "sample_every=0.5",
    "prune_from=0.1", "prune_until=0.5", "threads=1", "device=cpu", "evaluate_every=2", "checkpoint_minutes=0.0005",
]  # fmt: skip
TIMES = ("seconds", "environment", "commands", "started", "time")
SAMPLES = 40


# ---- the work, done by a process that may be killed at any moment ---------------------------------------------------------


def train(folder: Path) -> None:
    """Train or resume one run."""
    from bayesprune.train import recipe
    from bayesprune.train import train as run

    run(recipe("digits-emmcmc", SMALL), folder / "run", resume=True, quiet=True)


def select(folder: Path) -> None:
    """Select variables of a table with the command."""
    from bayesprune.cli import main

    table = folder / "table.csv"
    if not table.exists():
        x = np.random.default_rng(0).standard_normal((60, 3))
        rows = [",".join(f"{value:.6f}" for value in (*row, row[0] - row[1])) for row in x]
        temporary = table.with_suffix(".new")
        temporary.write_text("\n".join(["a,b,c,y", *rows]) + "\n")
        os.replace(temporary, table)
    if main(["select", str(table), "--target", "y", "--out", str(folder / "out"), "--quiet"]):
        sys.exit(1)


def reproduce(folder: Path) -> None:
    """Run or resume a small Table 4."""
    from paper.table4 import run_table4

    run_table4(
        folder / "table4.json", examples=[1], repetitions=2, methods=["lasso"], jobs=1, quiet=True,
        sizes={"n_train": 60, "n_validation": 20, "n_test": 20, "p": 8},
    )  # fmt: skip


def _model(seed: int) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).eval()


def save(folder: Path) -> None:
    """Write one model over the other, twenty times; it ends with the second."""
    import bayesprune as bp

    for turn in range(20):
        bp.save(_model(turn % 2), folder / "model", example_input=torch.ones(2, 6))


def collect(folder: Path) -> None:
    """Add samples to a store up to their number."""
    import bayesprune as bp

    store = bp.SampleStore(folder / "samples")
    while len(store) < SAMPLES:
        store.collect(_model(len(store)), step=len(store))


WORK: dict[str, Callable[[Path], None]] = {
    "train": train, "select": select, "reproduce": reproduce, "save": save, "collect": collect,
}  # fmt: skip


# ---- what is compared -----------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    """Return all that the work left, by path: tensors as they are, JSON without times and hashes of it, the rest as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_file(str(path)).items()}
        elif path.suffix == ".json" and path.name not in ("environment.json", "manifest.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix not in (".json", ".html", ".csv"):  # they show times, or hashes of such files
            found[name] = path.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _timeless(each) for key, each in value.items() if not any(word in key for word in (*TIMES, "sha256"))
        }
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def halfway(work: str, folder: Path) -> str:
    """Return what is wrong with the state that a kill left, "" for nothing: what is readable must be whole."""
    import bayesprune as bp

    if work == "save" and (folder / "model").exists():
        loaded, x = bp.load(folder / "model"), torch.ones(2, 6)
        if not any(torch.equal(loaded(x), _model(seed)(x)) for seed in (0, 1)):
            return "the model is neither the old one nor the new one"
    if work == "collect" and (folder / "samples").exists():
        store = bp.SampleStore(folder / "samples")
        for number in range(len(store)):
            wanted = _model(number).state_dict()
            if any(not torch.equal(tensor, wanted[name]) for name, tensor in store[number].items()):
                return f"sample {number} of {len(store)} is another one"
    return ""


# ---- the kills ------------------------------------------------------------------------------------------------------------


def started(work: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the work in a fresh interpreter, a process group of its own."""
    command = [sys.executable, "-m", "benchmarks.kills", "--work", work, "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finished(work: str, folder: Path) -> str:
    """Run the work to its end; return its error, "" for none."""
    child = started(work, folder)
    error = child.communicate(timeout=900)[1]
    return "" if child.returncode == 0 else error.decode(errors="replace")[-2000:]


def series(
    work: str, kills: int, base: Path, whole: dict[str, Any], seconds: float, dice: random.Random
) -> dict[str, Any]:
    """Kill a piece of work so many times, finish it, compare."""
    folder = Path(tempfile.mkdtemp(dir=base))
    landed, wrong = 0, []
    for _ in range(kills):
        child = started(work, folder)
        try:
            child.wait(timeout=dice.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            landed += 1
        child.communicate()
        try:
            problem = halfway(work, folder)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        wrong += [problem] if problem else []
    error = finished(work, folder)
    end = {} if error else content(folder)
    differ = sorted(name for name in {*end, *whole} if end.get(name) != whole.get(name)) if not error else []
    return {"work": work, "kills": landed, "halfway": wrong, "error": error, "differ": differ}


def run(kills: int, minutes: float, works: list[str], seed: int) -> dict[str, Any]:
    """Kill in turns until the number or the time is reached."""
    begun, dice, rows = time.monotonic(), random.Random(seed), []
    record = environment("cpu")
    with tempfile.TemporaryDirectory() as place:
        base, references = Path(place), {}
        for work in works:
            folder = base / f"whole-{work}"
            folder.mkdir()
            start = time.monotonic()
            if error := finished(work, folder):
                raise RuntimeError(f"{work} failed uninterrupted: {error}")
            references[work] = content(folder), time.monotonic() - start
        landed = turn = 0
        while landed < kills and time.monotonic() - begun < 60 * minutes:
            work = works[turn % len(works)]
            turn += 1
            rows.append(series(work, min(3, kills - landed), base, *references[work], dice))
            landed += rows[-1]["kills"]
            row = rows[-1]
            print(f"{landed} kills; {work}: {row['error'] or row['differ'] or row['halfway'] or 'equal'}", flush=True)
    bad = [row for row in rows if row["error"] or row["differ"] or row["halfway"]]
    by_work = {work: sum(row["kills"] for row in rows if row["work"] == work) for work in works}
    return {
        "kills": landed, "asked": kills, "by_work": by_work, "series": len(rows), "failed": bad, "seed": seed,
        "minutes": round((time.monotonic() - begun) / 60, 1), "environment": record,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--work", choices=list(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.work:
        WORK[arguments.work](arguments.folder)
        return 0
    result = run(arguments.kills, arguments.minutes, arguments.only, arguments.seed)
    write_json(arguments.out, result)
    print(f"{result['kills']} kills, {len(result['failed'])} of {result['series']} series failed")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
