"""All methods of Table 1 on a twin for CPUs: half-width ResNet-20 on half-size features (a stem of stride 2),
10,000 CIFAR-10 images, 10 epochs, all 10,000 test images.

    python -m benchmarks.cpu_twins --data-dir DATA [--budget-minutes M] [--only PATTERN …] [--seeds 0 1 2] [--threads 1] [--jobs 2]

Runs what is missing, seed 0 of every method first, goes on with what was stopped, and never runs a finished cell again. Each
cell is a line of benchmarks/results/cpu_twins.jsonl. Equal epochs, last epoch, batch 64; the settings are the recipes
twin-METHOD.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paper.cells import Cell, run_cells, standing
from paper.image_tables import mean_and_spread
from paper.ledger import Ledger
from paper.published import chosen

RESULTS = Path(__file__).parent / "results" / "cpu_twins.jsonl"
DENSE = {"sgd": "SGD (Nesterov)", "csgld": "cSGLD", "csghmc": "cSGHMC", "rank1": "rank-1 BNN", "cvadam": "CV-Adam"}
WEIGHTS = {
    "sparse-momentum": "sparse momentum", "dsr": "DSR", "set": "SET", "rigl": "RigL", "gmp": "gradual magnitude pruning",
    "dpf-sgd": "DPF on SGD", "dfp": "**EM-MCMC, DFP**", "dpf": "**EM-MCMC, DPF**",
}  # fmt: skip
CHANNELS = {
    "channel-gmp": "gradual L2 channel pruning on SGD",
    "dfp-channel": "**EM-MCMC, DFP**",
    "dpf-channel": "**EM-MCMC, DPF**",
}
SPARSITIES = (70, 90)
HEAD = ["", "single %", "averaged %", "NLL", "ECE", "zero: prunable", "multiply-adds left", "samples", "seconds", "n"]


def names() -> list[str]:
    """Return the recipes, first things first: a baseline of each kind beside ours, the rest of Table 1, what it has not."""
    first, last = ("dfp", "rigl", "dpf", "dfp-channel", "channel-gmp", "sparse-momentum", "dsr"), ("dpf-sgd", "set")
    rest = [name for name in (*WEIGHTS, *CHANNELS) if name not in first + last]
    pruned = [f"twin-{name}-{sparsity}" for name in (*first, *rest, *last) for sparsity in SPARSITIES]
    between = len(SPARSITIES) * len(first)
    return ["twin-sgd", "twin-cvadam", *pruned[:between], "twin-csgld", "twin-rank1", *pruned[between:], "twin-csghmc"]


def table(result: dict[str, Any]) -> str:
    """Return the table in three blocks, from the rows of its ledger."""
    rows = [row for row in result["rows"] if row["status"] == "done" and not row["changes"]]
    parts = []
    blocks = [("Dense", [(label, f"twin-{name}") for name, label in DENSE.items()])]
    for kind, methods in (("single weights", WEIGHTS), ("whole channels", CHANNELS)):
        for sparsity in SPARSITIES:
            entries = [(label, f"twin-{name}-{sparsity}") for name, label in methods.items()]
            blocks.append((f"{sparsity} % of the prunable weights, {kind}", entries))
    for title, entries in blocks:
        lines = ["| " + " | ".join([title, *HEAD[1:]]) + " |", "|---" + "|---:" * (len(HEAD) - 1) + "|"]
        for label, name in entries:
            mine = [row for row in rows if row["recipe"] == name]
            lines.append("| " + " | ".join([label, *_cells(mine)]) + " |")
        parts.append("\n".join(lines))
    failed = [f"{row['name']}: {row['reason']}" for row in result["rows"] if row["status"] == "failed"]
    note = "Mean ± standard deviation over n seeds (initial weights and batches; the 10,000 images are the same)."
    if rows:
        environment = rows[0]["environment"]
        note += f" {environment['cpu']}, 1 thread a run, torch {environment['torch']}, commit {environment['commit']}."
    return "\n\n".join([*parts, note, *failed])


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["–"] * (len(HEAD) - 2) + ["0"]
    scores = (("accuracy_single", 100, 2), ("accuracy_mean", 100, 2), ("nll", 1, 3), ("ece", 1, 3))
    cells = [mean_and_spread([factor * row[key] for row in rows], digits) for key, factor, digits in scores]
    zero = 100 * sum(row["sparsity_prunable"] for row in rows) / len(rows)
    left = 100 * sum(row["madds"] / row["madds_dense"] for row in rows) / len(rows)
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    return [*cells, f"{zero:.1f} %", f"{left:.1f} %", str(rows[0]["num_samples"]), f"{seconds:.0f}", str(len(rows))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--budget-minutes", type=float)
    parser.add_argument("--only", nargs="+", default=[], help="recipes or patterns, as 'twin-*-90'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", default="runs/twins")
    parser.add_argument("--out", default=str(RESULTS))
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="try it small; such cells stand apart"
    )
    parser.add_argument("--merge", nargs="+", default=[], help="take in the rows of other machines; run nothing")
    parser.add_argument("--retry", action="store_true")
    arguments = parser.parse_args()
    if arguments.merge:
        Ledger(arguments.out).merge(*arguments.merge)
        print(table(standing(arguments.out)))
        return
    settings = (*arguments.set, f"threads={arguments.threads}", "device=cpu")
    cells = [Cell(name, seed, settings) for seed in arguments.seeds for name in chosen(names(), arguments.only)]
    result = run_cells(
        cells, arguments.out, runs=arguments.runs, data_dir=arguments.data_dir, budget_minutes=arguments.budget_minutes,
        jobs=arguments.jobs, retry=arguments.retry,
    )  # fmt: skip
    print(table(result))


if __name__ == "__main__":
    main()
