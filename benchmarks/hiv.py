"""HIV-1 protease mutations that matter for drug resistance: findings by position against treatment-selected positions.

    python -m benchmarks.hiv --data FOLDER [--drugs APV …] [--knockpy] [--fdr 0.05]

FOLDER holds PI_mutations.csv and PI_resistances.csv (Rhee et al. 2006, as in the knockoff papers). The response is the log of the
fold change; mutations in fewer than three viruses are left out, and of equal columns all but one. A finding is true if one of
its members stands at a treatment-selected position; several findings at a position count once. With --knockpy the knockoff
filter (MVR knockoffs, masked likelihood ratio) runs beside (pip install knockpy). Rows are kept in benchmarks/results/hiv.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayesprune
from bayesprune.tabular import SparseBNNRegressor
from bayesprune.train.folder import commit
from bayesprune.train.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "hiv.jsonl"
TRUE = {
    10, 11, 20, 23, 24, 30, 32, 33, 34, 35, 43, 46, 47, 48, 50, 53, 54, 55, 58, 66, 67, 71, 73, 74, 76, 79, 82, 84, 85, 88, 89,
    90, 92, 95,
}  # fmt: skip
DRUGS = ("APV", "ATV", "IDV", "LPV", "NFV", "RTV", "SQV")


def load(folder: Path, drug: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the mutations (n, p), the log fold changes and the columns' names."""
    import pandas as pd

    mutations = pd.read_csv(folder / "PI_mutations.csv", index_col=0)
    response = pd.read_csv(folder / "PI_resistances.csv", index_col=0)[drug]
    rows = response.notna().to_numpy()
    X, y = mutations.to_numpy(np.float64)[rows], np.log(response.to_numpy(np.float64)[rows])
    kept = np.flatnonzero(X.sum(0) >= 3)
    _, first = np.unique(X[:, kept], axis=1, return_index=True)
    kept = kept[np.sort(first)]
    return X[:, kept], y, [mutations.columns[j] for j in kept]


def position(name: str) -> int:
    """Return 82 of "P82.A"."""
    return int(name[1 : name.index(".")])


def count(found: list[list[str]]) -> dict[str, Any]:
    """Return the true and false positions of findings."""
    true, false = set(), set()
    for members in found:
        hits = [position(name) for name in members if position(name) in TRUE]
        (true if hits else false).add(hits[0] if hits else position(members[0]))
    return {"true": sorted(true), "false": sorted(false)}


def ours(X: np.ndarray, y: np.ndarray, names: list[str], fdr: float, seed: int) -> list[list[str]]:
    """Return the members of our findings, the likeliest first."""
    model = SparseBNNRegressor(fdr=fdr, refit=False, random_state=seed).fit(X, y)
    return [[names[j] for j in np.array(c.members)[np.argsort(c.shares)[::-1]]] for c in model.clusters_]


def knockpy(X: np.ndarray, y: np.ndarray, names: list[str], fdr: float, seed: int) -> list[list[str]]:
    """Return what knockpy's filter finds with MVR knockoffs and the masked likelihood ratio."""
    from knockpy.knockoff_filter import KnockoffFilter

    np.random.seed(seed)
    filter_ = KnockoffFilter(ksampler="gaussian", fstat="mlr", knockoff_kwargs={"method": "mvr"})
    rejected = filter_.forward(X=X, y=y, fdr=fdr, shrinkage="ledoitwolf")
    return [[names[j]] for j in np.flatnonzero(rejected)]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the latest findings of each drug and method."""
    latest = {(row["drug"], row["method"]): row for row in rows}
    head = ["Drug", "Method", "viruses", "mutations", "true positions", "false positions", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in dict.fromkeys(method for _, method in latest):
        own = [row for row in latest.values() if row["method"] == method]
        for row in own:
            cells = [row["drug"], method, row["rows"], row["columns"], len(row["true"])]
            cells += [
                f"{len(row['false'])} ({', '.join(map(str, row['false']))})" if row["false"] else 0,
                row["cpu_seconds"],
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        true, false = (sum(len(row[key]) for row in own) for key in ("true", "false"))
        share = f"{false}: a share of {false / max(1, true + false):.3f}"
        lines.append(
            f"| all {len(own)} | {method} | | | **{true}** | **{share}** | {sum(row['cpu_seconds'] for row in own):.0f} |"
        )
    return (
        "\n".join(lines)
        + f"\n\nAt a false-discovery rate of {rows[-1]['fdr']}, counted by position; {rows[-1]['versions']}, commit {rows[-1]['commit']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--drugs", nargs="+", choices=DRUGS, default=list(DRUGS))
    parser.add_argument("--knockpy", action="store_true")
    parser.add_argument("--fdr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    revision = commit()
    totals: dict[str, list[int]] = {}
    for drug in arguments.drugs:
        X, y, names = load(arguments.data, drug)
        for method in (ours, knockpy) if arguments.knockpy else (ours,):
            start = time.process_time()
            found = method(X, y, names, arguments.fdr, arguments.seed)
            row = {"drug": drug, "method": method.__name__, "rows": len(y), "columns": X.shape[1], **count(found)}
            row |= {"found": found, "cpu_seconds": round(time.process_time() - start, 1), "fdr": arguments.fdr}
            row |= {"seed": arguments.seed, "commit": revision, "command": "python -m benchmarks.hiv",
                    "versions": f"bayesprune {bayesprune.__version__}, torch {torch.__version__}"}  # fmt: skip
            row["hardware"] = platform.machine()
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            own = totals.setdefault(method.__name__, [0, 0])
            own[0] += len(row["true"])
            own[1] += len(row["false"])
            print(f"{drug} {method.__name__}: {len(row['true'])} true, {len(row['false'])} false {row['false']}, "
                  f"{row['cpu_seconds']} CPU s", flush=True)  # fmt: skip
    for name, (true, false) in totals.items():
        print(f"{name}: {true} true, {false} false, false share {false / max(1, true + false):.3f}")


if __name__ == "__main__":
    main()
