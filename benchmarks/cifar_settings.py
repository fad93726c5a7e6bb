"""Settings of the methods on whitened networks, compared on 5,000 images held out of CIFAR's training images.

    python -m benchmarks.cifar_settings --data-dir DATA [--device cuda --jobs 15] [--only PATTERN …] [--budget-minutes M]

Each line of `TRIED` is one change from a recipe as it is now; the recipe itself stands beside it. Rows: results/cifar_settings.jsonl,
of each the accuracy and NLL of the last weights and of the average on the held-out images. Test images are not looked at.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayesprune.train import NonFiniteLoss, evaluate, recipe, train
from bayesprune.train.folder import environment
from bayesprune.train.settings import as_dict
from benchmarks.cifar_methods import where
from paper.cells import Cell
from paper.jobs import Job, Outcome, run_jobs
from paper.ledger import Ledger
from paper.published import chosen

RESULTS = Path(__file__).parent / "results" / "cifar_settings.jsonl"
HELD_OUT = ("validation_size=5000", "test_views=none", "threads=1")
TRIED: dict[str, tuple[str, ...]] = {
    "cifar10-94-cvadam": (
        "", "sample_every=0.5", "samples_per_cycle=16", "lr_floor=0.05 samples_per_cycle=16 sample_every=0.125",
        *(f"lr_floor=0.03 {change}" for change in (
            "", "lr=3", "lr=1.5", "temperature=2e-4", "temperature=2e-3", "temperature=1e-2", "weight_decay=0.0008",
            "weight_decay=0.0025", "label_smoothing=0.02", "label_smoothing=0.05", "batch_size=512",
            "preconditioner=rms lr=0.003", "preconditioner=none",
        )),
    ),
    "cifar10-94-dfp-90": (
        "", "lr=3", "lr_floor=0.1", "lr_floor=0.03", "prune_until=0.6", "sample_every=0.125", "spike_decay=0.00133",
        "prune_from=0.0 prune_until=0.6",
    ),
    "cifar10-94-dfp-channel-70": ("", "scope=global", "prune_until=0.6", "lr=3", "lr_floor=0.1"),
    "cifar10-94-channel-gmp-70": ("", "scope=global", "prune_until=0.6", "lr=1"),
    "cifar10-94-dpf-90": ("", "lr_floor=0.03", "feedback=dense_copy", "feedback=dense_copy lr_floor=0.02"),
    "cifar10-94-gmp-90": ("", "lr=2", "prune_until=0.6", "lr_floor=0.03"),
    "cifar10-94-sgd": ("", "lr_floor=0.1", "label_smoothing=0.1", "lr=2", "batch_size=512", "sample_every=0.5"),
    "cifar10-94-rigl-90": ("", "lr=1", "every=50"),
    "cifar10-94-dpf-channel-70": ("", "lr_floor=0.03", "scope=global"),
    "cifar10-94-swag": ("", "lr_floor=0.1"),
    "cifar10-94-csghmc": ("", "lr=1", "cycles=2 samples_per_cycle=4"),
    "cifar10-94-sparse-momentum-90": ("", "lr=1"),
    "cifar10-94-dsr-90": ("", "lr=1"),
    "cifar10-94-dpf-sgd-90": ("", "lr=0.5"),
    "cifar100-72-sgd": ("", "width=96", "label_smoothing=0.1", "lr=1"),
    "cifar100-72-cvadam": ("", "width=96", "lr=1.5"),
}  # fmt: skip


def tried(only: list[str], seeds: list[int], settings: Sequence[str] = ()) -> list[Cell]:
    """Return what is to be run: one seed of everything before the next."""
    return [
        Cell(name, seed, (*settings, *change.split()))
        for seed in seeds for name in chosen(list(TRIED), only) for change in TRIED[name]
    ]  # fmt: skip


def held_out(job: dict[str, Any]) -> dict[str, Any]:
    """Train one cell beside its held-out images; return its row."""
    cell, begin = job["cell"], time.time()
    config = recipe(cell.recipe, [*HELD_OUT, *cell.settings, f"seed={cell.seed}", f"device={job['device']}"])
    row = {"name": cell.name, "recipe": cell.recipe, "seed": cell.seed, "changes": list(cell.changes)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(config, Path(folder) / "run", data_dir=job["data_dir"], quiet=True)
        except NonFiniteLoss as error:
            return row | {"status": "failed", "reason": str(error)}
        scores = evaluate(Path(folder) / "run", data_dir=job["data_dir"], split="validation", device=job["device"])
    return row | {
        "status": "done", "single": scores["single"], "average": scores["average"], "members": scores["num_samples"],
        "seconds": round(time.time() - begin, 1), "environment": environment(job["device"]), "config": as_dict(config),
    }  # fmt: skip


def run(cells: list[Cell], rows: Path, data_dir: str, *, device: str, jobs: int, minutes: float | None) -> None:
    """Run what is missing; every finished cell is a row."""
    ledger = Ledger(rows)
    have = ledger.rows()

    def finished(job: Job, outcome: Outcome) -> None:
        row = outcome.value
        if row is None:
            print(f"{job.argument['cell'].name}: {outcome.reason}", flush=True)
            return
        ledger.append(row)
        print(f"{row['name']}: {_said([row]) if row['status'] == 'done' else row['reason']}", flush=True)

    common = {"data_dir": data_dir, "device": device}
    work = [Job(held_out, {"cell": cell, **common}) for cell in cells if cell.name not in have]
    run_jobs(work, jobs, finished, start_until=None if minutes is None else 60 * minutes)


def _said(rows: list[dict[str, Any]]) -> str:
    """Return the means over seeds: percent and NLL, of the last weights and of the average."""
    means = [
        statistics.mean(row[of][key] for row in rows) for of in ("single", "average") for key in ("accuracy", "nll")
    ]
    single, nll, average, averaged_nll = means
    return f"| {100 * single:.2f} | {100 * average:.2f} | {nll:.4f} | {averaged_nll:.4f} | {len(rows)} |"


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line a setting."""
    lines = ["| recipe | change | single % | averaged % | NLL, single | NLL, averaged | n |", "|---" * 7 + "|"]
    rows = [row for row in rows if row["status"] == "done"]
    if not rows:
        return "Not measured yet."
    for key in sorted({(row["recipe"], tuple(row["changes"])) for row in rows}):  # the recipe itself first
        own = [row for row in rows if (row["recipe"], tuple(row["changes"])) == key]
        lines.append(f"| `{key[0]}` | {' '.join(key[1]) or 'none'} {_said(own)}")
    places = {(where(row["environment"]), row["environment"]["torch"]) for row in rows}
    said = "; ".join(f"{place}, torch {version}" for place, version in sorted(places))
    return "\n".join(lines) + f"\n\n5,000 held-out training images. {said}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="recipes or patterns")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget-minutes", type=float)
    parser.add_argument("--rows", type=Path, default=RESULTS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every cell, to try it small")
    given = parser.parse_args()
    cells = tried(given.only, given.seeds, given.set)
    run(cells, given.rows, given.data_dir, device=given.device, jobs=given.jobs, minutes=given.budget_minutes)
    print(table(list(Ledger(given.rows).rows().values())))


if __name__ == "__main__":
    main()
