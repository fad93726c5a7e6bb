"""Rows kept aside, and what a fitted estimator scores on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesprune.posterior import classification_metrics, mse, reliability_curve
from bayesprune.posterior.metrics import auroc

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHOWN = 0.9  # the coverage that is printed
_CURVE = 200  # points of a ROC curve


def row_copies(frame: Any) -> np.ndarray:
    """Number the rows so that equal rows have equal numbers."""
    import pandas

    floats = frame.select_dtypes("floating")
    plain = pandas.concat([frame.drop(columns=floats.columns), floats + 0.0], axis=1)  # -0.0 is 0.0
    return pandas.factorize(pandas.util.hash_pandas_object(plain, index=False))[0]


def split_rows(
    copies: np.ndarray, classes: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows to be held out: the share is kept in every class, and copies of a row stay on one side."""
    if not 0 < share < 1:
        raise ValueError(f"held_out={share}: must lie between 0 and 1")
    generator = np.random.default_rng(seed)
    held = np.zeros(len(copies), dtype=bool)
    _, first, number = np.unique(copies, return_index=True, return_inverse=True)
    size = np.bincount(number)
    kind = np.zeros(len(first), dtype=np.int64) if classes is None else classes[first]
    for code in np.unique(kind):
        bundles = generator.permutation(np.flatnonzero(kind == code))
        total = np.cumsum(size[bundles])
        # The nearest whole number of bundles: at least one, and not all where there are two.
        count = int(np.argmin(np.abs(total - share * total[-1]))) + 1
        chosen = bundles[: max(1, min(count, len(bundles) - 1))]
        held |= np.isin(number, chosen)
    if held.all() or not held.any():
        raise ValueError(f"the {len(copies)} rows are copies of {len(first)}: too few to hold some out")
    return np.flatnonzero(~held), np.flatnonzero(held)


def score_regression(
    estimator: Any, X: np.ndarray, y: np.ndarray, constant: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Score predictions and intervals of a regressor on held-out rows."""
    mean = np.asarray(estimator.predict(X), dtype=np.float64)
    calibration, band = [], np.zeros((len(y), 2))
    for level in LEVELS:
        interval = np.asarray(estimator.predict_interval(X, coverage=level), dtype=np.float64)
        inside = (interval[:, 0] <= y) & (y <= interval[:, 1])
        calibration.append({"nominal": level, "coverage": float(inside.mean())})
        if level == SHOWN:
            band = interval
    error, without = mse(mean, y), mse(np.full(len(y), constant), y)
    scores = {
        "rmse": float(np.sqrt(error)),
        "mae": float(np.abs(mean - y).mean()),
        "r2": 1 - error / without if without > 0 else None,
        "rmse_constant": float(np.sqrt(without)),
        "coverage": next(row["coverage"] for row in calibration if row["nominal"] == SHOWN),
        "coverage_error": float(np.sqrt(SHOWN * (1 - SHOWN) / len(y))),
        "width": float((band[:, 1] - band[:, 0]).mean()),
        "calibration": calibration,
    }
    return scores, np.column_stack([mean, band])


def score_classification(
    estimator: Any, X: np.ndarray, y: np.ndarray, labels: list[str], shares: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Score the probabilities of a classifier on held-out rows."""
    probability = np.asarray(estimator.predict_proba(X), dtype=np.float64)
    curve = reliability_curve(probability, y)
    rows = zip(curve.lower, curve.upper, curve.count, curve.confidence, curve.accuracy)
    keys = ("lower", "upper", "count", "confidence", "accuracy")
    constant = classification_metrics(np.tile(shares / shares.sum(), (len(y), 1)), y)
    roc = []
    for code in range(len(labels)) if len(labels) > 2 else (1,):
        positive = y == code
        if positive.any() and not positive.all():
            area = auroc(probability[:, code], positive)
            roc.append({"name": labels[code], "auroc": area, **_roc(probability[:, code], positive)})
    scores: dict[str, Any] = {
        **classification_metrics(probability, y),
        "accuracy_constant": constant["accuracy"],
        "nll_constant": constant["nll"],
        "auroc": roc[0]["auroc"] if len(labels) == 2 and roc else None,
        "reliability": [{key: float(value) for key, value in zip(keys, row)} for row in rows],
        "roc": roc,
    }
    return scores, probability


def _roc(score: np.ndarray, positive: np.ndarray) -> dict[str, list[float]]:
    """False and true positive rates over all thresholds, thinned evenly."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # equal scores are one threshold
    hits = np.cumsum(positive[order])[ends]
    false = (ends + 1 - hits) / (~positive).sum()
    points = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), _CURVE)).round().astype(int))
    return {
        "false": [0.0, *(float(value) for value in false[points])],
        "true": [0.0, *(float(value) for value in (hits / positive.sum())[points])],
    }
