"""SIGKILL at random instants, in fresh interpreters: every end equals the uninterrupted one, or is a whole earlier state.

    python -m benchmarks.kills [--kills 200] [--minutes 60] [--only WORK …] [--seed 0] [--out FILE]

Five kinds of work, the one that is furthest behind its share first: `train` (a pruning, sampling run, resumed), `reproduce` (a small
Table 4, resumed), `collect` (samples into a store, up to their number), `select` (the command, begun again) and `save` (a
model written over another one, again and again). A piece of work is run once whole. Then it is started in a fresh
interpreter and killed, up to ten times one after the other; a kill's instant is drawn over the time from where the
interpreter has imported what it needs, as nothing is written before. What the killed process left must be whole; after the
last kill the work is run to its end and compared bit for bit, times apart, and nothing else may lie there.

Runs add up: every series is appended to the file's rows, and a later run goes on from there until the number is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bayesprune.cli.doctor import examine
from bayesprune.train.folder import environment, write_json

RESULT = Path(__file__).parent / "results" / "kills.json"
SMALL = [
    "train_size=96", "epochs=4", "batch_size=16", "width=4", "cycles=2", "samples_per_cycle=2", "sample_every=0.5",
    "prune_from=0.1", "prune_until=0.5", "threads=1", "device=cpu", "evaluate_every=2", "checkpoint_minutes=0.0005",
]  # fmt: skip
TINY = ["n_chains=1", "candidates=1", "search_steps=20", "evidence_steps=20", "fit_steps=20"]
TIMES = ("seconds", "environment", "commands", "started", "time")
SAMPLES = 40
SERIES = 10
"""Kills before the work is run to its end."""
SHARES = {"train": 0.4, "reproduce": 0.6, "collect": 0.3, "select": 1.0, "save": 1.0}
"""Kills fall within this share of a whole piece's time: work that goes on where it was needs less for each of ten."""
WEIGHTS = {"train": 2, "select": 1, "reproduce": 2, "save": 3, "collect": 3}
"""How the kills are shared out: a start of the heavier work costs several of the lighter."""
READY = b"ready\n"


# ---- the work, done by a process that may be killed at any moment ---------------------------------------------------------


def ready() -> None:
    """Tell the parent that everything is imported and the work begins; alone, print it."""
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()


def train(folder: Path) -> None:
    """Train or resume one run."""
    import lightning_fabric  # noqa: F401 - what the run imports by itself
    import sklearn.datasets  # noqa: F401

    from bayesprune.train import recipe
    from bayesprune.train import train as run

    ready()
    run(recipe("digits-emmcmc", SMALL), folder / "run", resume=True, quiet=True)


def select(folder: Path) -> None:
    """Select variables of a table with the command."""
    import bayesprune.report.html
    import bayesprune.select
    import bayesprune.tabular.estimators  # noqa: F401
    from bayesprune.cli import main

    ready()
    table = folder / "table.csv"
    if not table.exists():
        x = np.random.default_rng(0).standard_normal((60, 3))
        rows = [",".join(f"{value:.6f}" for value in (*row, row[0] - row[1])) for row in x]
        temporary = table.with_suffix(".new")
        temporary.write_text("\n".join(["a,b,c,y", *rows]) + "\n")
        os.replace(temporary, table)
    out = ["--out", str(folder / "out"), "--force", "--quiet"]
    if main(["select", str(table), "--target", "y", *out, "--set", *TINY]):
        sys.exit(1)


def reproduce(folder: Path) -> None:
    """Run or resume a small Table 4."""
    from paper.table4 import run_table4

    ready()
    run_table4(
        folder / "table4.jsonl", examples=[1], repetitions=12, methods=["lasso"], jobs=1, quiet=True,
        sizes={"n_train": 60, "n_validation": 20, "n_test": 20, "p": 8},
    )  # fmt: skip


def _model(seed: int) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).eval()


def save(folder: Path) -> None:
    """Write one model over the other, twenty times; it ends with the second."""
    import bayesprune as bp

    save_model = bp.save
    ready()
    for turn in range(20):
        save_model(_model(turn % 2), folder / "model", example_input=torch.ones(2, 6))


def collect(folder: Path) -> None:
    """Add samples to a store up to their number."""
    import bayesprune as bp

    begin = bp.SampleStore
    ready()
    store = begin(folder / "samples")
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
        elif path.suffix == ".jsonl":
            from paper.table4 import read_table4

            found[name] = _timeless(read_table4(path)["rows"])
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

    wrong = [told for told in examine(folder)[1] if "was left by a writer that was killed" not in told]
    if wrong:
        return "; ".join(wrong)
    if work == "save" and (folder / "model").exists():
        loaded, x = bp.load(folder / "model"), torch.ones(2, 6)
        if not any(torch.equal(loaded(x), _model(seed)(x)) for seed in (0, 1)):
            return "the model is neither the old one nor the new one"
    if work == "select" and (folder / "out").exists():
        if sorted(path.name for path in (folder / "out").iterdir()) != SELECTION:
            return f"the selection holds {sorted(path.name for path in (folder / 'out').iterdir())}"
        bp.tabular.load(folder / "out" / "model")
    if work == "collect" and (folder / "samples").exists():
        store = bp.SampleStore(folder / "samples")
        for number in range(len(store)):
            wanted = _model(number).state_dict()
            if any(not torch.equal(tensor, wanted[name]) for name, tensor in store[number].items()):
                return f"sample {number} of {len(store)} is another one"
    return ""


SELECTION = ["model", "report.html", "result.json", "selected.csv"]


# ---- the kills ------------------------------------------------------------------------------------------------------------


def started(work: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the work in a fresh interpreter, a process group of its own; return when all is imported."""
    command = [sys.executable, "-m", "benchmarks.kills", "--work", work, "--folder", str(folder)]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        assert child.stdout is not None
        if child.stdout.readline() != READY:
            child.wait()
            errors.seek(0)
            raise RuntimeError(f"{work} did not begin: {errors.read().decode(errors='replace')[-2000:]}")
    return child


def finished(work: str, folder: Path) -> tuple[str, float]:
    """Run the work to its end; return its error, "" for none, and the seconds from where all is imported."""
    command = [sys.executable, "-m", "benchmarks.kills", "--work", work, "--folder", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    begun = time.monotonic()
    error = child.communicate(timeout=900)[1]
    seconds = time.monotonic() - begun
    return "" if child.returncode == 0 else error.decode(errors="replace")[-2000:], seconds


def series(work: str, kills: int, base: Path, whole: dict[str, Any], seconds: float, seed: str) -> dict[str, Any]:
    """Kill a piece of work up to so many times, finish it, compare."""
    folder, dice = Path(tempfile.mkdtemp(dir=base)), random.Random(seed)
    instants, wrong = [], []
    for _ in range(kills):
        child = started(work, folder)
        begun = time.monotonic()
        try:
            child.wait(timeout=dice.uniform(0.0, SHARES[work]) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            instants.append(round(time.monotonic() - begun, 3))
        ended = child.wait() >= 0
        assert child.stdout is not None
        child.stdout.close()
        try:
            problem = halfway(work, folder)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        wrong += [problem] if problem else []
        if ended and work in ("train", "reproduce", "collect"):  # another start finds it done
            break
    error, _ = finished(work, folder)
    end = {} if error else content(folder)
    differ = sorted(name for name in {*end, *whole} if end.get(name) != whole.get(name)) if not error else []
    return {
        "work": work, "kills": len(instants), "seconds": instants, "whole_seconds": round(seconds, 3), "halfway": wrong,
        "error": error, "differ": differ, "seed": seed,
    }  # fmt: skip


def run(
    kills: int, minutes: float, works: list[str], seed: int, rows: list[dict[str, Any]], keep: Callable[[], None]
) -> None:
    """Append series to the rows, the work furthest behind its share first, until the number or the time is reached."""
    begun, record = time.monotonic(), environment("cpu")
    references: dict[str, tuple[dict[str, Any], float]] = {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        while time.monotonic() - begun < 60 * minutes:
            landed = {work: sum(row["kills"] for row in rows if row["work"] == work) for work in works}
            left = kills - sum(row["kills"] for row in rows)
            if left <= 0:
                break
            work = min(works, key=lambda name: landed[name] / WEIGHTS[name])
            if work not in references:
                folder = base / f"whole-{work}"
                folder.mkdir()
                error, seconds = finished(work, folder)
                if error:
                    raise RuntimeError(f"{work} failed uninterrupted: {error}")
                references[work] = content(folder), seconds
            found = series(work, min(SERIES, left), base, *references[work], f"{seed} {len(rows)} {work}")
            rows.append(
                {**found, "commit": record["commit"], "ended": datetime.now(timezone.utc).isoformat("T", "seconds")}
            )
            keep()
            told = found["error"] or found["differ"] or found["halfway"] or "equal"
            print(f"{kills - left + found['kills']} kills; {work}: {found['kills']}, {told}", flush=True)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the rows amount to."""
    return {
        "kills": sum(row["kills"] for row in rows), "series": len(rows),
        "by_work": {work: sum(row["kills"] for row in rows if row["work"] == work) for work in WORK},
        "failed": [row for row in rows if row["error"] or row["differ"] or row["halfway"]],
        "commits": sorted({row["commit"] for row in rows}),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as a table in Markdown, one row a kind of work."""
    lines = [
        "| work | kills | runs to the end | equal bit for bit | a kill fell (median, s after the start) |",
        "|---|---|---|---|---|",
    ]
    for work in [*WORK, "all"]:
        rows = [row for row in result["rows"] if work in (row["work"], "all")]
        equal = sum(not (row["error"] or row["differ"] or row["halfway"]) for row in rows)
        instants = [each for row in rows for each in row["seconds"]]
        middle = f"{statistics.median(instants):.1f}" if instants else ""
        shown = work if work == "all" else f"`{work}`"
        lines.append(f"| {shown} | {sum(row['kills'] for row in rows)} | {len(rows)} | {equal} | {middle} |")
    return "\n".join(lines) + f"\n\nCommits {', '.join(result['commits'])}."


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
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    record = environment("cpu")

    def keep() -> None:
        write_json(arguments.out, {**summary(rows), "rows": rows, "environment": record})

    run(arguments.kills, arguments.minutes, arguments.only, arguments.seed, rows, keep)
    found = summary(rows)
    print(f"{found['kills']} kills {found['by_work']}; {len(found['failed'])} of {found['series']} series failed")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
