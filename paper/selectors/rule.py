"""The rule by which the outside comparators choose how much to select."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RULE = "the smallest set whose validation loss is within one standard error of the best set's (paired over the rows)"


def smallest_within_one_error(sizes: Sequence[int], losses: Sequence[np.ndarray]) -> int:
    """Return which of several models is the smallest that is not clearly worse than the best.

    With d_i the loss of a model at validation row i less that of the best, it qualifies if mean(d) ≤ sd(d)/√rows.

    Args:
        sizes: inputs that each model uses.
        losses: each model's loss at every validation row.

    Returns:
        The place of the model; of equally small ones, the better.

    Example:
        >>> smallest_within_one_error([3, 1], [np.array([1.0, 2.0, 1.5]), np.array([1.2, 1.9, 1.5])])
        1
    """
    means = [float(np.mean(loss)) for loss in losses]
    usable = [place for place, mean in enumerate(means) if math.isfinite(mean)]
    if not usable:
        raise FloatingPointError("no model of the path has a finite validation loss")
    best = min(usable, key=lambda place: (means[place], sizes[place]))
    close = []
    for place in usable:
        worse = losses[place] - losses[best]
        if worse.mean() <= worse.std(ddof=1) / math.sqrt(len(worse)):
            close.append(place)
    return min(close, key=lambda place: (sizes[place], means[place]))


def row_losses(task: str, prediction: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the loss at every row: squared error, or the negative log-probability of the label.

    Args:
        task: "regression" or "classification".
        prediction: (n,) predicted means, or (n, K) probabilities of the labels; (n,) are those of label 1.
        y: (n,) responses or labels from 0 to K − 1.
    """
    prediction = np.asarray(prediction, dtype=np.float64)
    if task == "regression":
        return np.square(prediction - y)
    if prediction.ndim == 1:
        prediction = np.stack([1 - prediction, prediction], axis=1)
    own = np.take_along_axis(prediction, np.asarray(y, dtype=np.int64)[:, None], axis=1)[:, 0]
    return -np.log(np.clip(own, 1e-7, 1 - 1e-7))
