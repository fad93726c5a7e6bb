"""Realised false-discovery rate and power of `SparseBNNRegressor/Classifier` on simulated designs.

    python -m benchmarks.selection_fdr [--only N0 strength …] [--budget-minutes 60] [--chunk 5] [--threads 1]

One cell is a design with its settings; its repetitions are fitted a chunk at a time as one batched computation.
Finished chunks are kept in benchmarks/results/selection_fdr.json and not repeated; the table and the plot
docs/figures/selection_fdr.png come from it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayesprune
from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor, fit_many
from bayesprune.train.folder import write_json
from bayesprune.train.memory import keep_freed_memory
from paper.designs import design

RESULTS = Path(__file__).parent / "results" / "selection_fdr.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "selection_fdr.png"
LEVELS = (0.05, 0.1)
SEED = 1  # not the seed of Table 4, and not those the defaults were chosen on


def cells() -> dict[str, list[tuple[dict[str, Any], int]]]:
    """Return the cells: family to [(design and settings, repetitions)]."""
    grid = [
        ({"name": "small_n", "n": 1000, "p": 200, "strength": strength, "correlation": correlation}, 10)
        for correlation in (0.0, 0.5, 0.9)
        for strength in (0.25, 0.5, 1.0)
    ]
    return {
        "N0": [({"name": "N0"}, 50)],
        "strength": grid,
        "other": [({"name": name}, 10) for name in ("K1", "C1", "B1", "D1")],
        "small_n": [({"name": "small_n", "n": n}, 10) for n in (500, 1000, 2000)],
    }


def run_chunk(settings: dict[str, Any], repetitions: list[int]) -> list[dict[str, Any]]:
    """Fit some repetitions; one row each."""
    data = [design(**settings, seed=SEED, repetition=r, n_test=1) for r in repetitions]
    kind = SparseBNNRegressor if data[0].task == "regression" else SparseBNNClassifier
    orders = [np.random.default_rng([SEED, r]).permutation(data[0].X_train.shape[1]) for r in repetitions]
    start = time.perf_counter()
    models = fit_many(
        kind(refit=False, random_state=repetitions[0]), [(d.X_train[:, o], d.y_train) for d, o in zip(data, orders)]
    )
    seconds = (time.perf_counter() - start) / len(repetitions)
    rows = []
    for r, d, order, model in zip(repetitions, data, orders, models):
        row: dict[str, Any] = {"repetition": r, "true": len(d.true_inputs), "seconds": seconds}
        for level in LEVELS:
            found = {int(order[j]) for j in np.flatnonzero(model.q_value_ <= level)}
            hits = len(found & set(d.true_inputs))
            row[f"q{level}"] = {"selected": len(found), "false": len(found) - hits, "hits": hits}
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]], level: float) -> dict[str, float]:
    """Return realised FDR (mean of false/selected), its standard error, power and the share that selects anything."""
    fdp = [row[f"q{level}"]["false"] / max(1, row[f"q{level}"]["selected"]) for row in rows]
    power = [row[f"q{level}"]["hits"] / row["true"] for row in rows if row["true"]]
    return {
        "fdr": float(np.mean(fdp)),
        "fdr_se": float(np.std(fdp, ddof=1) / math.sqrt(len(fdp))) if len(fdp) > 1 else float("nan"),
        "power": float(np.mean(power)) if power else float("nan"),
        "any": float(np.mean([row[f"q{level}"]["selected"] > 0 for row in rows])),
    }


def table(results: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| Design | n repetitions | realised FDR at 0.05 (± se) | at 0.1 (± se) | power at 0.05 | selects anything |",
        "|---|---|---|---|---|---|",
    ]
    for key, cell in results["cells"].items():
        low, high = (summary(cell["rows"], level) for level in LEVELS)
        power = "–" if math.isnan(low["power"]) else f"{low['power']:.2f}"
        lines.append(
            f"| {key} | {len(cell['rows'])} | {low['fdr']:.3f} ± {low['fdr_se']:.3f} | {high['fdr']:.3f} ± "
            f"{high['fdr_se']:.3f} | {power} | {low['any']:.2f} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, Any]) -> None:
    """Draw realised FDR (bars of two standard errors) against its nominal level, and power, design by design."""
    from matplotlib.figure import Figure

    keys = list(results["cells"])
    places = np.arange(len(keys))[::-1]
    figure = Figure(figsize=(9, 0.32 * len(keys) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for level, colour, shift in zip(LEVELS, ("#1f77b4", "#d95f02"), (0.15, -0.15)):
        own = [summary(results["cells"][key]["rows"], level) for key in keys]
        spread = [2 * np.nan_to_num(one["fdr_se"]) for one in own]
        left.errorbar(
            [one["fdr"] for one in own], places + shift, xerr=spread, fmt="o", ms=4, color=colour, label=f"at {level}"
        )
        left.axvline(level, color=colour, lw=0.8, ls="--")
        right.plot([one["power"] for one in own], places + shift, "o", ms=4, color=colour)
    left.set(
        yticks=places,
        yticklabels=keys,
        xlabel="realised FDR (± 2 standard errors); dashed: nominal",
        xlim=(-0.01, None),
    )
    right.set(xlabel="power", xlim=(-0.03, 1.03))
    left.legend(frameon=False, fontsize=8)
    left.tick_params(axis="y", labelsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(cells()), default=list(cells()))
    parser.add_argument("--budget-minutes", type=float, default=math.inf)
    parser.add_argument("--chunk", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    results: dict[str, Any] = {"cells": {}}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text())
    results |= {
        "command": "python -m benchmarks.selection_fdr",
        "seed": SEED,
        "versions": {
            "bayesprune": bayesprune.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": f"{platform.machine()}, {arguments.threads} thread(s)",
    }
    end = time.monotonic() + 60 * arguments.budget_minutes
    # The first chunk of every cell, then the second: a budget cuts all alike.
    jobs = [
        (chunk, settings, total) for family in arguments.only for settings, total in cells()[family]
        for chunk in range(0, total, arguments.chunk)
    ]  # fmt: skip
    for chunk, settings, total in sorted(jobs, key=lambda job: job[0]):
        key = ", ".join(str(value) if name == "name" else f"{name} {value}" for name, value in settings.items())
        cell = results["cells"].setdefault(key, {"settings": settings, "rows": []})
        done = {row["repetition"] for row in cell["rows"]}
        missing = [r for r in range(chunk, min(chunk + arguments.chunk, total)) if r not in done]
        if not missing:
            continue
        if time.monotonic() > end:
            break
        cell["rows"] += run_chunk(settings, missing)
        write_json(RESULTS, results)
        print(f"{key}: repetitions {missing[0]}–{missing[-1]}, {cell['rows'][-1]['seconds']:.1f} s each", flush=True)
    print(table(results))
    draw(results)


if __name__ == "__main__":
    main()
