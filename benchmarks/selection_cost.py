"""Seconds and memory of a selection beside LassoCV, boosting with permutation importance and Boruta, each fit in a process of its own.

    python -m benchmarks.selection_cost [--shapes 500x500 3000x300 …] [--methods bayesprune …] [--limit 120]

y = 10 sin(π x₀x₁) + 20 (x₂ − ½)² + 10 x₃ + 5 x₄ + N(0, 1) (Friedman 1, columns in random order). CPU seconds are those of all threads
from import to end, memory is the process's peak. A fit that needs more than `--limit` CPU seconds is ended and kept as such. Methods:
bayesprune (with the predictive network), bayesprune-select (refit=False), bayesprune-one-thread (OMP_NUM_THREADS=1 outside; without it
torch has all cores, and a fit takes one), lasso, boosting, boruta (pip install boruta). Rows of the same shape and method
are replaced in benchmarks/results/selection_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "selection_cost.json"
SHAPES = ("500x500", "3000x300", "100000x200", "2000x20000")


def friedman(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """Return X, y and the true columns."""
    rng = np.random.default_rng(seed)
    X = rng.random((n, p))
    true = rng.permutation(p)[:5]
    a, b, c, d, e = X[:, true].T
    y = 10 * np.sin(np.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e + rng.standard_normal(n)
    return X, y, set(true.tolist())


def bayesprune(X: np.ndarray, y: np.ndarray, refit: bool = True) -> np.ndarray:
    from bayesprune.tabular import SparseBNNRegressor

    return SparseBNNRegressor(random_state=0, refit=refit).fit(X, y).get_support(indices=True)


def bayesprune_select(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return bayesprune(X, y, refit=False)


def lasso(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LassoCV
    from sklearn.preprocessing import StandardScaler

    return np.flatnonzero(LassoCV(random_state=0).fit(StandardScaler().fit_transform(X), y).coef_)


def boosting(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Boosting stopped early; columns whose permutation importance on a held-out quarter is two standard deviations above 0."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import train_test_split

    X_train, X_held, y_train, y_held = train_test_split(X, y, random_state=0)
    model = HistGradientBoostingRegressor(early_stopping=True, random_state=0).fit(X_train, y_train)
    found = permutation_importance(model, X_held, y_held, n_repeats=5, random_state=0)
    return np.flatnonzero(found.importances_mean > 2 * found.importances_std)


def boruta(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    from boruta import BorutaPy
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(max_depth=5, random_state=0)
    return np.flatnonzero(BorutaPy(forest, n_estimators="auto", random_state=0).fit(X, y).support_)


METHODS = {
    "bayesprune": bayesprune, "bayesprune-one-thread": bayesprune, "bayesprune-select": bayesprune_select, "lasso": lasso,
    "boosting": boosting, "boruta": boruta,
}  # fmt: skip


def measure(method: str, n: int, p: int) -> dict[str, Any]:
    """Fit here; seconds, memory and what was selected."""
    X, y, true = friedman(n, p)
    start, began = time.process_time(), time.perf_counter()
    found = set(METHODS[method](X, y).tolist())
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_seconds": round(time.process_time() - start + children.ru_utime + children.ru_stime, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "true": len(found & true),
        "false": len(found - true),
    }


def apart(method: str, shape: str, limit: int) -> dict[str, Any]:
    """Fit in a process of its own, which may use `limit` CPU seconds."""
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    if method == "bayesprune-one-thread":
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.selection_cost", "--one", method, "--shapes", shape],
        env=environment, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5)),
    )  # fmt: skip
    if done.returncode < 0:
        return {"ended_after": limit}
    if "ModuleNotFoundError" in done.stderr:
        return {"not_installed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line a shape and method."""
    head = ["Rows × columns", "Method", "CPU s", "seconds", "peak GB", "true of 5", "false"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    order = {(shape, method): place for place, (shape, method) in enumerate((s, m) for s in SHAPES for m in METHODS)}
    for row in sorted(rows, key=lambda row: order[row["shape"], row["method"]]):
        cells = [row["shape"].replace("x", " × "), row["method"]]
        if "cpu_seconds" in row:
            cells += [str(row[key]) for key in ("cpu_seconds", "seconds", "peak_gb", "true", "false")]
        else:
            cells += [f"ended after {row['ended_after']}" if "ended_after" in row else "not installed", *["–"] * 4]
        lines.append("| " + " | ".join(cells) + " |")
    last = rows[-1]
    return "\n".join(lines) + f"\n\n{last['versions']}; {last['hardware']}; commit {last['commit']}."


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="rows x columns")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--limit", type=int, default=120, help="CPU seconds of a fit")
    parser.add_argument("--one", choices=list(METHODS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        n, p = map(int, arguments.shapes[0].split("x"))
        print(json.dumps(measure(arguments.one, n, p)))
        return
    import sklearn
    import torch

    import bayesprune as package
    from bayesprune.train.folder import commit, write_json

    about = {
        "command": "python -m benchmarks.selection_cost",
        "commit": commit(),
        "versions": f"bayesprune {package.__version__}, torch {torch.__version__}, scikit-learn {sklearn.__version__}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, other work beside",
    }
    for shape in arguments.shapes:
        for method in arguments.methods:
            row = {"shape": shape, "method": method} | apart(method, shape, arguments.limit)
            print(row, flush=True)
            kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
            kept = [one for one in kept if (one["shape"], one["method"]) != (shape, method)]
            write_json(RESULTS, [*kept, row | about])


if __name__ == "__main__":
    main()
