"""Candidates of a chain beside its own search: the least-angle path and a tree ensemble on the chain's learning rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

OUTLYING = 6.0  # robust standard deviations of y beyond which a response is an outlier
_SCREENED = 400  # columns that the trees see at most
_TREE_ROWS = 4000  # rows that the trees and the path see at most
_EXTREME = 0.015  # of the rows on either side that can be outliers
_PATH = 32  # steps of the path


def winsorised(y: np.ndarray, width: float = 4.0) -> np.ndarray:
    """Return a response with outliers brought back: beyond `width` robust standard deviations, at most 1.5 % on a side."""
    middle = np.median(y)
    scale = 1.4826 * np.median(np.abs(y - middle))
    if scale == 0:
        return y
    low, high = np.quantile(y, [_EXTREME, 1 - _EXTREME])
    return np.clip(y, min(low, middle - width * scale), max(high, middle + width * scale))


def path_order(X: np.ndarray, y: np.ndarray) -> list[int]:
    """Return the columns in the order in which they enter the lasso's least-angle path; classes take turns."""
    from sklearn.linear_model import lars_path

    orders = []
    for response in _responses(y):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = X.astype(np.float64), response - response.mean()
            try:
                _, _, coefficients = lars_path(*given, method="lasso", max_iter=_PATH, Gram=False)
            except ValueError:  # scikit-learn's path breaks where several inputs leave at once; in this one none leaves
                _, _, coefficients = lars_path(*given, method="lar", max_iter=_PATH, Gram=False)
        entered = (coefficients != 0).argmax(1)
        touched = np.flatnonzero((coefficients != 0).any(1))
        orders.append(touched[np.argsort(entered[touched], kind="stable")].tolist())
    return interleaved(orders)


def tree_order(X: np.ndarray, y: np.ndarray, seed: int) -> list[int]:
    """Return the columns by their importance in an ensemble of extremely randomised trees, most important first."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    shown = np.arange(X.shape[1])
    if len(shown) > _SCREENED:
        moments = [np.abs(_moment(power, r)) for r in _responses(y) for power in (X, X**2)]
        shown = np.sort(np.argsort(-np.max(moments, axis=0), kind="stable")[:_SCREENED])
    kind = ExtraTreesRegressor if np.issubdtype(y.dtype, np.floating) else ExtraTreesClassifier
    leaf = max(3, len(y) // 100)
    trees = kind(40, max_features=0.5, min_samples_leaf=leaf, random_state=seed, n_jobs=1).fit(X[:, shown], y)
    importance = trees.feature_importances_
    order = np.argsort(-importance, kind="stable")
    return [int(i) for i in shown[order[importance[order] > 0]]]


def _moment(X: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return (p,) correlations of the columns with the response, up to its scale."""
    centred = (response - response.mean()).astype(X.dtype)
    scale = X.std(0)
    return centred @ X / np.where(scale > 0, scale, 1.0)


def _responses(y: np.ndarray) -> list[np.ndarray]:
    """Return the response, or an indicator a class (of two the second alone)."""
    if np.issubdtype(y.dtype, np.floating):
        return [winsorised(y.astype(np.float64))]
    classes = np.unique(y)
    return [(y == c).astype(np.float64) for c in (classes[1:] if len(classes) == 2 else classes)]


def interleaved(orders: Sequence[Sequence[int]]) -> list[int]:
    """Return the firsts of all orders, then the seconds and so on, each item once."""
    found: dict[int, None] = {}
    for place in range(max(map(len, orders), default=0)):
        for order in orders:
            if place < len(order):
                found.setdefault(order[place])
    return list(found)


def common_union(orders: Sequence[Sequence[int]], size: int) -> list[int]:
    """Return the `size` items that stand highest over all orders, by the sum of 1/(place + 3)."""
    score: dict[int, float] = {}
    for order in orders:
        for place, item in enumerate(order):
            score[item] = score.get(item, 0.0) + 1 / (place + 3)
    return sorted(sorted(score, key=lambda item: -score[item])[:size])


def tree_rows(count: int, p: int) -> int:
    """Return how many of the shuffled rows the path and the trees read: 4,000, fewer where columns are very many."""
    return min(count, _TREE_ROWS, max(200, 10**8 // p))
