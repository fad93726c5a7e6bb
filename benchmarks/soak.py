"""One process that trains, prunes, samples, saves, loads and predicts for an hour: what it holds must not grow.

    python -m benchmarks.soak [--minutes 60] [--warmup 0.4] [--out FILE]

A round is a run of the training loop into a folder of its own (EM-MCMC with channel pruning on the digits, samples,
evaluation, result), a loop of a user's own (CV-Adam, `ForwardPruning`, a sample store, `predict`), the model compacted,
saved and loaded, and a small variable selection that predicts; every round has a seed of its own. After each, resident
memory is read, once as it is and once after the allocator has given back what it holds for nothing (`malloc_trim`),
beside open files and threads. The slope is the least-squares line through the readings after the warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import bayesprune as bp
from bayesprune.train import folder as names
from bayesprune.train import recipe, train
from bayesprune.vision import digits_resnet, load_digits

RESULT = Path(__file__).parent / "results" / "soak.json"
LIMIT = 1.0
"""Megabytes an hour."""
_RUN = [
    "train_size=256", "epochs=2", "batch_size=32", "width=8", "cycles=1", "samples_per_cycle=2", "sample_every=0.25",
    "prune_from=0.1", "prune_until=0.5", "groups=channel", "target_sparsity=0.5", "threads=1", "device=cpu",
]  # fmt: skip


def looped(seed: int, folder: Path) -> None:
    """Train, prune, sample, compact, save, load and predict in a loop of a user's own."""
    digits = load_digits()
    x = (digits.train_images[:256].float() / digits.scale - digits.mean[0]) / digits.std[0]
    labels = digits.train_labels[:256]
    torch.manual_seed(seed)
    model = digits_resnet(num_classes=10, width=8)
    clock = bp.CycleClock(16, cycles=1, samples_per_cycle=2, sample_every=4)
    optimizer = bp.CVAdam(model.parameters(), lr=1e-3, num_data=len(x), temperature=0.1, seed=seed)
    pruner = bp.ForwardPruning(model, optimizer, sparsity=0.5, clock=clock, example_input=x[:2])
    samples = bp.SampleStore(folder / "samples")
    for step in range(clock.total_steps):
        rows = torch.arange(32) + 32 * (step % 8)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), labels[rows]).backward()
        optimizer.step()
        if clock.collect(step):
            samples.collect(model, optimizer, step=step)
    pruner.finish_()
    bp.predict(model, samples, x[:64])
    small = bp.compact(model, pruner, example_input=x[:2])
    bp.save(small.model, folder / "model", example_input=x[:2])
    loaded: Any = bp.load(folder / "model")
    loaded(x[:64])


def selected(seed: int) -> None:
    """Select variables of a small table and predict with the model."""
    from bayesprune.tabular import SparseBNNRegressor

    generator = np.random.default_rng(seed)
    x = generator.standard_normal((80, 5))
    model = SparseBNNRegressor(
        n_chains=2, candidates=2, search_steps=40, evidence_steps=40, fit_steps=60, random_state=seed
    )
    model.fit(x, x[:, 0] - x[:, 1]).predict(x)


def trained(seed: int, folder: Path) -> None:
    """Run the training loop into a folder."""
    train(recipe("digits-emmcmc", [*_RUN, f"seed={seed}"]), folder / "run", quiet=True)


def reading() -> dict[str, float]:
    """Return resident megabytes, before and after the allocator gives back what is free, open files and threads."""
    gc.collect()
    raw = _resident()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    found = {"rss_mb": raw, "held_mb": _resident(), "threads": float(threading.active_count())}
    return {**found, "files": float(len(os.listdir("/proc/self/fd")))}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def line(rows: list[dict[str, float]], name: str) -> tuple[float, float]:
    """Return the slope of the least-squares line through readings, an hour, and its standard error."""
    hours, values = (np.array([row[key] for row in rows]) for key in ("minutes", name))
    hours = hours / 60
    (slope, _), residual, *_ = np.polyfit(hours, values, 1, full=True)
    spread = float(residual[0]) if len(residual) else 0.0
    return float(slope), float(np.sqrt(spread / max(1, len(rows) - 2) / ((hours - hours.mean()) ** 2).sum()))


def parts(rows: list[dict[str, float]], minutes: float, count: int = 5) -> list[dict[str, float]]:
    """Return the slope of what is held in each part of the time that has three readings."""
    found = []
    for part in range(count):
        begin, end = part * minutes / count, (part + 1) * minutes / count
        inside = [row for row in rows if begin <= row["minutes"] < end]
        if len(inside) >= 3:
            slope, error = line(inside, "held_mb")
            found.append(
                {"from": begin, "to": end, "rounds": len(inside), "mb_per_hour": slope, "standard_error": error}
            )
    return found


def soak(minutes: float, warmup: float) -> dict[str, Any]:
    """Run rounds for so many minutes; return the readings after the warm-up and what they amount to."""
    start, rows, rounds, environment = time.monotonic(), [], 0, names.environment("cpu")
    while (elapsed := (time.monotonic() - start) / 60) < minutes or rounds < 4:
        with tempfile.TemporaryDirectory() as folder:
            trained(rounds, Path(folder))
            looped(rounds, Path(folder))
            selected(rounds)
        rows.append({"minutes": (time.monotonic() - start) / 60, **reading()})
        rounds += 1
        if rounds % 50 == 0:
            print(f"{elapsed:.1f} min, round {rounds}: {rows[-1]}", flush=True)
    begun = [row for row in rows if row["minutes"] >= warmup * minutes]
    kept = begun if len(begun) >= 3 else rows[-3:]
    slope, error = {}, {}
    for name in ("rss_mb", "held_mb"):
        slope[name], error[name] = line(kept, name)
    return {
        "minutes": minutes, "warmup_minutes": warmup * minutes, "rounds": rounds, "limit_mb_per_hour": LIMIT,
        "slope_mb_per_hour": slope, "standard_error": error,
        "files": sorted({row["files"] for row in kept}), "threads": sorted({row["threads"] for row in kept}),
        "readings": rows[:: max(1, len(rows) // 120)], "environment": environment,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as a table in Markdown: the slope after the warm-up, and by parts of the time."""
    lines = ["| resident memory | MB an hour after the warm-up |", "|---|---|"]
    kinds = {"held_mb": "after the allocator gave back what is free", "rss_mb": "as it is"}
    for key, kind in kinds.items():
        lines.append(f"| {kind} | {result['slope_mb_per_hour'][key]:.2f} ± {result['standard_error'][key]:.2f} |")
    told = "; ".join(
        f"{part['from']:.0f} to {part['to']:.0f} min: {part['mb_per_hour']:.2f} ± {part['standard_error']:.2f}"
        for part in parts(result["readings"], result["minutes"])
    )
    count = f"{result['minutes']:.0f} minutes, {result['rounds']} rounds; {result['warmup_minutes']:.0f} minutes are warm-up"
    held = f"open files {result['files']}, threads {result['threads']}, slopes with their standard errors"
    return "\n".join(lines) + f"\n\n{count}; {held}. What is held, by parts of the time: {told}."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--warmup", type=float, default=0.4, help="share of the time that is not counted")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = soak(arguments.minutes, arguments.warmup)
    names.write_json(arguments.out, result)
    told = ("slope_mb_per_hour", "standard_error", "files", "threads", "rounds")
    print(json.dumps({name: result[name] for name in told}, indent=1))
    good = result["slope_mb_per_hour"]["held_mb"] <= LIMIT and len(result["files"]) == len(result["threads"]) == 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
