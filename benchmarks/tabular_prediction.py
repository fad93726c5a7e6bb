"""Predictions of tables beside boosting: error, likelihood and coverage on the protocol of bde.

    python -m benchmarks.tabular_prediction [--data airfoil bikesharing-hour] [--seeds 0 1 2 3 4] [--inner 1000]

A seed splits the rows, 80 % to train on; errors and likelihoods are those of the standardised response. `--inner S` splits
the training rows again with seed S and leaves the test rows alone: settings are chosen there. `--tables` is a folder with
airfoil.csv (target: target) and bikesharing-hour.csv (target: cnt); the heteroscedastic rows are drawn. Each fit's row is kept in
benchmarks/results/tabular_prediction.json; rows of the same data, seed, inner split, method and arguments are replaced.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split

import bayesprune
from bayesprune.tabular import SparseBNNRegressor
from bayesprune.train.folder import commit, write_json
from paper.image_tables import mean_and_spread

RESULTS = Path(__file__).parent / "results" / "tabular_prediction.json"
TARGET = {"airfoil": "target", "bikesharing-hour": "cnt", "heteroscedastic": None}
UNUSED = ["instant", "dteday", "casual", "registered"]
COVERAGE = 0.9
TESTED = (0, 1, 2, 3, 4)  # splits that settings were not chosen on
SAME = ("data", "seed", "inner", "method", "settings")


def heteroscedastic(seed: int) -> tuple[np.ndarray, ...]:
    """Return 1,500 rows and 4,000 to test on of sin 2x₀ + w(x₁)·N(0, 1), w from 0.1 to 2, and a column without effect."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((5500, 3))
    y = np.sin(2 * X[:, 0]) + (0.1 + 1.9 / (1 + np.exp(-3 * X[:, 1]))) * rng.standard_normal(5500)
    y = (y - y[:1500].mean()) / y[:1500].std()
    return X[:1500], y[:1500], X[1500:], y[1500:]


def split(tables: Path, name: str, seed: int, inner: int | None) -> tuple[np.ndarray, ...]:
    """Return X and y to train on and to test on, y standardised by the training rows."""
    if name == "heteroscedastic":
        return heteroscedastic(seed)
    import pandas

    frame = pandas.read_csv(tables / f"{name}.csv").drop(columns=UNUSED, errors="ignore")
    y = frame.pop(TARGET[name]).to_numpy(np.float64)
    X = frame.to_numpy(np.float64)
    train, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=seed)
    if inner is not None:
        train, test = train_test_split(train, test_size=0.15, random_state=inner)
    y = (y - y[train].mean()) / y[train].std()
    return X[train], y[train], X[test], y[test]


def network(name: str, rows: tuple[np.ndarray, ...], seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit ours; its scores."""
    X, y, X_test, y_test = rows
    model = SparseBNNRegressor(random_state=seed, **settings).fit(X, y)
    mean = model.predict(X_test)
    low, high = model.predict_interval(X_test, COVERAGE).T
    return {
        "rmse": float(np.sqrt(np.mean((mean - y_test) ** 2))),
        "nll": float(-model.log_density(X_test, y_test).mean()),
        **_covered(y_test, low, high),
        "selected": model.get_support(indices=True).tolist(),
        "on_variance": np.flatnonzero(model.variance_support_).tolist(),
    }


def boosting(name: str, rows: tuple[np.ndarray, ...], seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit scikit-learn's boosted trees, stopped early; their error alone, for they have no likelihood."""
    X, y, X_test, y_test = rows
    model = HistGradientBoostingRegressor(max_iter=2000, learning_rate=0.05, early_stopping=True, random_state=seed)
    return {"rmse": float(np.sqrt(np.mean((model.fit(X, y).predict(X_test) - y_test) ** 2)))}


def bde(name: str, rows: tuple[np.ndarray, ...], seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit microcanonical Langevin ensembles as their authors' example for airfoil does (pip install sklearn-contrib-bde)."""
    import jax.numpy as jnp
    from bde import BdeRegressor
    from bde.loss import GaussianNLL
    from scipy.special import logsumexp

    X, y, X_test, y_test = rows
    mean, scale = X.mean(0), X.std(0) + 1e-8
    model = BdeRegressor(
        hidden_layers=[16, 16], n_members=8, seed=seed, loss=GaussianNLL(), epochs=1000, validation_split=0.15, lr=1e-3,
        weight_decay=1e-3, warmup_steps=5000, n_samples=1000, n_thinning=1, patience=20,
    )  # fmt: skip
    model.fit(x=jnp.asarray((X - mean) / scale), y=jnp.asarray(y))
    strange = jnp.asarray((X_test - mean) / scale)
    members = np.asarray(model.predict(strange, raw=True), dtype=np.float64).reshape(-1, len(y_test), 2)
    found, width = members[..., 0], np.log1p(np.exp(members[..., 1]))
    density = -0.5 * ((y_test - found) / width) ** 2 - np.log(width) - 0.5 * np.log(2 * np.pi)
    drawn = found + width * np.random.default_rng(seed).standard_normal(found.shape)
    low, high = np.quantile(drawn, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return {
        "rmse": float(np.sqrt(np.mean((found.mean(0) - y_test) ** 2))),
        "nll": float(-(logsumexp(density, axis=0) - np.log(len(density))).mean()),
        **_covered(y_test, low, high),
    }


def _covered(y: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """Return the share of rows inside their intervals, of all and by quarter of the width."""
    inside = (low <= y) & (y <= high)
    quarters = np.array_split(inside[np.argsort(high - low, kind="stable")], 4)
    return {
        "coverage": float(inside.mean()),
        "coverage_by_width": [float(quarter.mean()) for quarter in quarters],
    }


METHODS = {"bayesprune": network, "boosting": boosting, "bde": bde}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the test splits' means and standard deviations, a line a data set and method."""
    head = ["Data", "Method", "n splits", "RMSE", "NLL", "90 % coverage", "by quarter of width", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows = [row for row in rows if row["inner"] is None and not row["settings"] and row["seed"] in TESTED]
    for name, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        own = [row for row in rows if (row["data"], row["method"]) == (name, method)]
        cells = [
            name,
            method,
            str(len(own)),
            *(mean_and_spread([row.get(key) for row in own], 3) for key in ("rmse", "nll", "coverage")),
        ]
        quarters = [row["coverage_by_width"] for row in own if "coverage_by_width" in row]
        cells.append(", ".join(f"{value:.2f}" for value in np.mean(quarters, axis=0)) if quarters else "–")
        lines.append("| " + " | ".join([*cells, f"{np.mean([row['cpu_seconds'] for row in own]):.0f}"]) + " |")
    ours = [row for row in rows if row["method"] == "bayesprune"]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in ours))
    where = f"{ours[-1]['hardware']}, torch {ours[-1]['versions']['torch']}, commit {commits}"
    return (
        "\n".join(lines)
        + f"\n\nMean ± standard deviation over splits; errors and likelihoods of the standardised response. {where}."
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder of airfoil.csv and bikesharing-hour.csv")
    parser.add_argument("--data", nargs="+", default=list(TARGET), choices=list(TARGET))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(TESTED))
    parser.add_argument("--inner", type=int)
    parser.add_argument("--methods", nargs="+", default=["bayesprune", "boosting"], choices=list(METHODS))
    parser.add_argument("--settings", type=json.loads, default={}, help="the estimator's arguments, as JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    about = {
        "command": "python -m benchmarks.tabular_prediction "
        + " ".join(
            "DATA" if word == str(arguments.tables) else word for word in (sys.argv[1:] if argv is None else argv)
        ),
        "commit": commit(),
        "versions": {"bayesprune": bayesprune.__version__, "torch": torch.__version__, "sklearn": sklearn.__version__},
        "hardware": f"{platform.machine()}, 1 thread",
    }
    for name in arguments.data:
        for seed in arguments.seeds:
            rows = split(arguments.tables, name, seed, arguments.inner)
            for method in arguments.methods:
                settings = arguments.settings if method == "bayesprune" else {}
                start = time.process_time()
                found = METHODS[method](name, rows, seed, settings)
                key = {"data": name, "seed": seed, "inner": arguments.inner, "method": method, "settings": settings}
                row = key | found | {"cpu_seconds": round(time.process_time() - start, 1)} | about
                print({k: row[k] for k in row if k not in about}, flush=True)
                _keep(row)


def _keep(row: dict[str, Any]) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [one for one in kept if any(one[key] != row[key] for key in SAME)]
    write_json(RESULTS, [*kept, row])


if __name__ == "__main__":
    main()
