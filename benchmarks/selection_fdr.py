"""Realised false-discovery rate, over clusters, and power on designs with known true inputs.

    python -m benchmarks.selection_fdr [--only proxies N0 …] [--repetitions 50] [--first 0] [--budget-minutes 60]

One cell is a design with its settings; a few repetitions at a time are fitted as one batched computation. Finished repetitions
are lines of benchmarks/results/selection_fdr.jsonl and not repeated; the tables, docs/figures/selection_fdr.png and
docs/figures/selection_calibration.png come from it. Settings were chosen on repetitions from 1000 on (`--first 1000
--results elsewhere.jsonl`).
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
from bayesprune.train.folder import commit
from bayesprune.train.memory import keep_freed_memory
from benchmarks.selection_designs import cells, draw

RESULTS = Path(__file__).parent / "results" / "selection_fdr.jsonl"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"


def run_chunk(settings: dict[str, Any], repetitions: list[int], fdr: float) -> list[dict[str, Any]]:
    """Fit some repetitions; one row each."""
    drawn = [draw(settings, r) for r in repetitions]
    kind = SparseBNNRegressor if np.issubdtype(drawn[0][1].dtype, np.floating) else SparseBNNClassifier
    start = time.process_time()
    models = fit_many(kind(fdr=fdr, refit=False, random_state=repetitions[0]), [(X, y) for X, y, _ in drawn])
    seconds = (time.process_time() - start) / len(repetitions)
    rows = []
    for r, (X, _, true), model in zip(repetitions, drawn, models):
        null = np.setdiff1d(np.arange(X.shape[1]), true)
        members = [list(cluster.members) for cluster in model.clusters_]
        rows.append(
            {
                "repetition": r,
                "true": len(true),
                "found": len(members),
                "false": sum(not set(own) & set(true) for own in members),
                "hits": len({j for own in members for j in own if j in true}),
                "sizes": [len(own) for own in members],
                "columns": X.shape[1],
                "probability_true": [round(float(v), 4) for v in model.inclusion_probability_[true]],
                "probability_null": [round(float(v), 4) for v in model.inclusion_probability_[null] if v > 0.02],
                "p_true": [float(f"{v:.3g}") for v in model.p_value_[true]],
                "p_null": [float(f"{v:.3g}") for v in model.p_value_[null] if v < 0.2],
                "cpu_seconds": round(seconds, 2),
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return realised FDR (mean of false/found), its standard error, power, the share that finds anything, seconds."""
    share = [row["false"] / max(1, row["found"]) for row in rows]
    power = [row["hits"] / row["true"] for row in rows if row["true"]]
    return {
        "fdr": float(np.mean(share)),
        "fdr_se": float(np.std(share, ddof=1) / math.sqrt(len(share))) if len(share) > 1 else float("nan"),
        "power": float(np.mean(power)) if power else float("nan"),
        "any": float(np.mean([row["found"] > 0 for row in rows])),
        "size": float(np.mean([size for row in rows for size in row["sizes"]] or [float("nan")])),
        "seconds": float(np.mean([row["cpu_seconds"] for row in rows])),
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| Design | n repetitions | realised FDR at 0.05 (± se) | power | finds anything | mean cluster | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, rows in results.items():
        own = summary(rows)
        power = "–" if math.isnan(own["power"]) else f"{own['power']:.2f}"
        size = "–" if math.isnan(own["size"]) else f"{own['size']:.1f}"
        lines.append(
            f"| {key} | {len(rows)} | {own['fdr']:.3f} ± {own['fdr_se']:.3f} | {power} | {own['any']:.2f} | {size} | "
            f"{own['seconds']:.1f} |"
        )
    return "\n".join(lines)


def calibration(results: dict[str, list[dict[str, Any]]]) -> list[tuple[float, float, int]]:
    """Return mean probability, share of true inputs and count in bins of the inclusion probability above 0.02."""
    true = np.concatenate([row["probability_true"] for rows in results.values() for row in rows] or [np.zeros(0)])
    null = np.concatenate([row["probability_null"] for rows in results.values() for row in rows] or [np.zeros(0)])
    both, label = np.concatenate([true, null]), np.repeat([1.0, 0.0], [len(true), len(null)])
    bins = []
    for low, high in zip(*[np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.01])[i : i + 7] for i in (0, 1)]):
        inside = (both >= low) & (both < high)
        if inside.any():
            bins.append((float(both[inside].mean()), float(label[inside].mean()), int(inside.sum())))
    return bins


def draw_figures(results: dict[str, list[dict[str, Any]]]) -> None:
    """Draw realised FDR (bars of two standard errors) and power, design by design; and the calibration."""
    from matplotlib.figure import Figure

    keys = list(results)
    places = np.arange(len(keys))[::-1]
    own = [summary(results[key]) for key in keys]
    figure = Figure(figsize=(9, 0.32 * len(keys) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    spread = [2 * np.nan_to_num(one["fdr_se"]) for one in own]
    left.errorbar([one["fdr"] for one in own], places, xerr=spread, fmt="o", ms=4)
    left.axvline(0.05, lw=0.8, ls="--")
    right.plot([one["power"] for one in own], places, "o", ms=4)
    left.set(yticks=places, yticklabels=keys, xlabel="realised FDR (± 2 standard errors); dashed: nominal")
    left.set_xlim(-0.01, None)
    right.set(xlabel="power", xlim=(-0.03, 1.03))
    left.tick_params(axis="y", labelsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / "selection_fdr.png", dpi=110)
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    bins = calibration(results)
    error = [math.sqrt(max(share * (1 - share), 0.01) / count) for _, share, count in bins]
    axes.errorbar([mean for mean, _, _ in bins], [share for _, share, _ in bins], yerr=error, fmt="o-", ms=4)
    axes.plot([0, 1], [0, 1], lw=0.8, ls="--")
    axes.set(xlabel="inclusion probability", ylabel="share of true inputs")
    axes.grid(alpha=0.25)
    figure.savefig(FIGURES / "selection_calibration.png", dpi=110)


def name_of(settings: dict[str, Any]) -> str:
    """Return a cell's name."""
    return ", ".join(str(value) if name == "name" else f"{name} {value}" for name, value in settings.items())


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the finished rows by cell, in the order of `cells`."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    order = [name_of(settings) for family in cells().values() for settings, _, _ in family]
    found = {key: [line for line in lines if line.get("cell") == key] for key in order}
    return {key: rows for key, rows in found.items() if rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(cells()), default=list(cells()))
    parser.add_argument("--first", type=int, default=0, help="number of the first repetition")
    parser.add_argument("--repetitions", type=int, default=50, help="at most, of every cell")
    parser.add_argument("--fdr", type=float, default=0.05)
    parser.add_argument("--budget-minutes", type=float, default=math.inf)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    end = time.monotonic() + 60 * arguments.budget_minutes
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    done = {(key, row["repetition"]) for key, rows in read(arguments.results).items() for row in rows}
    jobs = []
    for family in arguments.only:
        for settings, total, chunk in cells()[family]:
            for first in range(0, min(total, arguments.repetitions), chunk):
                last = min(first + chunk, total, arguments.repetitions)
                jobs.append((first, settings, [arguments.first + r for r in range(first, last)]))
    about = {
        "command": "python -m benchmarks.selection_fdr",
        "commit": commit(),
        "versions": f"bayesprune {bayesprune.__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "hardware": f"{platform.machine()}, {arguments.threads} thread(s)",
    }
    # The first chunk of every cell, then the second: a budget cuts all alike.
    for _, settings, repetitions in sorted(jobs, key=lambda job: job[0]):
        key = name_of(settings)
        missing = [r for r in repetitions if (key, r) not in done]
        if not missing:
            continue
        if time.monotonic() > end:
            break
        rows = run_chunk(settings, missing, arguments.fdr)
        with arguments.results.open("a") as file:
            for row in rows:
                file.write(json.dumps({"cell": key, **row, **about}) + "\n")
        false, found = sum(row["false"] for row in rows), sum(row["found"] for row in rows)
        hits, true = sum(row["hits"] for row in rows), sum(row["true"] for row in rows)
        print(f"{key}: {missing[0]}–{missing[-1]}, {false} of {found} false, {hits} of {true} hit, "
              f"{rows[-1]['cpu_seconds']:.1f} CPU s each", flush=True)  # fmt: skip
    results = read(arguments.results)
    print(table(results))
    if arguments.results == RESULTS:
        draw_figures(results)


if __name__ == "__main__":
    main()
