"""How often the predictive intervals of `SparseBNNRegressor` hold the response, on the designs of Table 4 and smaller ones.

    python -m benchmarks.interval_coverage [--only "Example 1" …] [--repetitions 3] [--threads 1]

Inputs are selected and the default network is sampled, all repetitions of a design as one batched computation; coverage is
that of 5,000 test rows. Finished designs are kept in benchmarks/results/interval_coverage.json. Real data: see
`python -m benchmarks.selection_real`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesprune.tabular import SparseBNNRegressor, fit_many
from bayesprune.train.folder import environment, write_json
from bayesprune.train.memory import keep_freed_memory
from paper.designs import design
from paper.table4_blocks import DESIGNS as TABLE4
from paper.table4_blocks import ROWS

RESULTS = Path(__file__).parent / "results" / "interval_coverage.json"
LEVELS = (0.5, 0.8, 0.9, 0.95)
SEED = 2  # not the seed of Table 4
DESIGNS: dict[str, dict[str, Any]] = {
    block.title: {"name": block.name, **block.settings, **ROWS}
    for key, block in TABLE4.items()
    if not key.startswith("example3")
} | {"small n: 1,000 rows, p = 200": {"name": "small_n", "n": 1000, "p": 200, "n_test": 5000}}


def measure(settings: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Return each repetition's coverage by nominal level, and its mean squared error over the noise variance."""
    data = [design(**settings, seed=SEED, repetition=r) for r in range(repetitions)]
    orders = [np.random.default_rng([SEED, r]).permutation(d.X_train.shape[1]) for r, d in enumerate(data)]
    start = time.perf_counter()
    models = fit_many(SparseBNNRegressor(random_state=0), [(d.X_train[:, o], d.y_train) for d, o in zip(data, orders)])
    rows = []
    for d, order, model in zip(data, orders, models):
        X = d.X_test[:, order]
        ends = {level: model.predict_interval(X, level).T for level in LEVELS}
        held = {
            str(level): float(np.mean((low <= d.y_test) & (d.y_test <= high))) for level, (low, high) in ends.items()
        }
        rows.append({"coverage": held, "noise_variance": model.noise_variance_, "selected": int(model.support_.sum())})
    return {
        "settings": settings,
        "rows": rows,
        "seconds": time.perf_counter() - start,
        "environment": environment("cpu"),
    }


def table(results: dict[str, Any]) -> str:
    """Return mean coverage and its standard error over repetitions, as Markdown."""
    head = ["Design", "n", *(f"{100 * level:g} %" for level in LEVELS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in (each for each in DESIGNS if each in results):
        cell, shown = results[name], []
        for level in LEVELS:
            held = 100 * np.array([row["coverage"][str(level)] for row in cell["rows"]])
            error = held.std(ddof=1) / math.sqrt(len(held)) if len(held) > 1 else float("nan")
            shown.append(f"{held.mean():.1f} ± {error:.1f}")
        lines.append("| " + " | ".join([name, str(len(cell["rows"])), *shown]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(DESIGNS), help="beginnings of names")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, settings in DESIGNS.items():
        wanted = any(name.startswith(start) for start in arguments.only)
        if wanted and len(results.get(name, {"rows": []})["rows"]) < arguments.repetitions:
            results[name] = measure(settings, arguments.repetitions)
            write_json(RESULTS, results)
            print(f"{name}: {results[name]['seconds']:.0f} s", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
