from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SMALLEST = float(np.finfo(np.float64).tiny)


def accuracy(probabilities: Any, labels: Any) -> float:
    """Share of inputs whose most probable class (the first, if tied) is the label.

    Args:
        probabilities: (n, C), array or tensor.
        labels: (n,) class numbers.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: if the shapes do not fit, a label is out of range, or a row is not a distribution.

    Example:
        >>> accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
        0.5
    """
    p, y = check_probabilities(probabilities, labels)
    return float((p.argmax(axis=1) == y).mean())


def nll(probabilities: Any, labels: Any) -> float:
    """Mean negative log-likelihood in nats, -(1/n) Σ_i log p(y_i | x_i).

    A probability of exactly 0 counts as the smallest normal float64, that is 708.4 nats, so that the mean stays finite.

    Args:
        probabilities: (n, C), array or tensor; for an ensemble, the mean of the members' probabilities.
        labels: (n,) class numbers.

    Returns:
        The mean, at least 0.

    Raises:
        ValueError: as `accuracy`.

    Example:
        >>> round(nll([[0.5, 0.5], [0.5, 0.5]], [0, 1]), 4)
        0.6931
    """
    p, y = check_probabilities(probabilities, labels)
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST)).mean())


def brier(probabilities: Any, labels: Any) -> float:
    """Brier score in Brier's own form, (1/n) Σ_i Σ_c (p_ic - [y_i = c])², between 0 and 2 for any number of classes.

    Args:
        probabilities: (n, C), array or tensor.
        labels: (n,) class numbers.

    Returns:
        The mean; for two classes it is twice the score of the positive class alone.

    Raises:
        ValueError: as `accuracy`.

    Example:
        >>> brier([[0.5, 0.5], [1.0, 0.0]], [0, 1])
        1.25
    """
    p, y = check_probabilities(probabilities, labels)
    # Multiplied out, so that no one-hot copy of the labels is made: (n, C) may be 50,000 × 1,000.
    return float((np.einsum("ic,ic->i", p, p) - 2 * p[np.arange(len(y)), y] + 1).mean())


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against accuracy in bins (lower, upper]; both are NaN where a bin is empty.

    Example:
        >>> curve = reliability_curve([[0.9, 0.1], [0.6, 0.4]], [0, 1], bins=2)
        >>> curve.count.tolist(), float(curve.confidence[1]), float(curve.accuracy[1])
        ([0, 2], 0.75, 0.5)
    """

    lower: Array
    upper: Array
    count: Array
    confidence: Array
    accuracy: Array

    @property
    def ece(self) -> float:
        """Mean of |accuracy - confidence|, weighted by the counts."""
        filled = self.count > 0
        gap = np.abs(self.accuracy - self.confidence)
        return float((gap[filled] * self.count[filled]).sum() / self.count.sum())


def reliability_curve(probabilities: Any, labels: Any, bins: int = 15) -> ReliabilityCurve:
    """The reliability diagram of the top label over bins of equal width, closed on the right.

    Args:
        probabilities: (n, C), array or tensor.
        labels: (n,) class numbers.
        bins: how many; bin b holds the confidences in ((b - 1)/bins, b/bins].

    Returns:
        The table, one entry a bin.

    Raises:
        ValueError: as `accuracy`, or if ``bins`` is not positive.

    Example:
        >>> curve = reliability_curve([[0.9, 0.1], [0.3, 0.7]], [0, 0], bins=2)
        >>> curve.count.tolist(), round(float(curve.confidence[1]), 2), float(curve.accuracy[1])
        ([0, 2], 0.8, 0.5)
    """
    p, y = check_probabilities(probabilities, labels)
    return curve_of(p.max(axis=1), p.argmax(axis=1) == y, bins)


def curve_of(confidence: Array, hit: Array, bins: int) -> ReliabilityCurve:
    """The reliability diagram of any binary event: the probability given to it, and whether it happened."""
    if bins < 1:
        raise ValueError(f"bins={bins}: must be at least 1")
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, weights=confidence, minlength=bins) / count
        mean_hit = np.bincount(place, weights=hit.astype(np.float64), minlength=bins) / count
    return ReliabilityCurve(edges[:-1], edges[1:], count, mean_confidence, mean_hit)


def ece(probabilities: Any, labels: Any, bins: int = 15) -> float:
    """Expected calibration error of the top label, Σ_b (n_b/n)·|accuracy_b - confidence_b| over bins of equal width.

    Args:
        probabilities: (n, C), array or tensor.
        labels: (n,) class numbers.
        bins: how many bins, closed on the right.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: as `reliability_curve`.

    Example:
        >>> round(ece([[0.9, 0.1], [0.3, 0.7]], [0, 0], bins=2), 3)
        0.3

    Reference:
        Guo et al. (2017), "On calibration of modern neural networks", eq. 3.
    """
    return reliability_curve(probabilities, labels, bins).ece


def classification_metrics(probabilities: Any, labels: Any, bins: int = 15) -> dict[str, float]:
    """The dict ``{"accuracy", "nll", "brier", "ece"}`` of `accuracy`, `nll`, `brier` and `ece`.

    Args:
        probabilities: (n, C), array or tensor.
        labels: (n,) class numbers.
        bins: bins of the calibration error.

    Returns:
        ``{"accuracy", "nll", "brier", "ece"}``.

    Raises:
        ValueError: as `reliability_curve`.

    Example:
        >>> sorted(classification_metrics([[0.9, 0.1], [0.3, 0.7]], [0, 0]))
        ['accuracy', 'brier', 'ece', 'nll']
    """
    p, y = check_probabilities(probabilities, labels)
    return {"accuracy": accuracy(p, y), "nll": nll(p, y), "brier": brier(p, y), "ece": ece(p, y, bins)}


def mse(mean: Any, targets: Any) -> float:
    """Mean squared error, (1/n) Σ (mean_i - y_i)².

    Args:
        mean: predictions, array or tensor.
        targets: values of the same shape; (n, 1) against (n,) is refused, for it would broadcast.

    Returns:
        The mean over all entries.

    Raises:
        ValueError: if the shapes differ or there is nothing to average.

    Example:
        >>> mse([1.0, 2.0], [1.0, 4.0])
        2.0
    """
    m, y = _same_shape("mean", mean, targets)
    return float(((m - y) ** 2).mean())


def gaussian_nll(mean: Any, variance: Any, targets: Any) -> float:
    """Mean negative log density in nats of a normal prediction, ½ log(2π·variance) + (y - mean)²/(2·variance).

    Args:
        mean: predictive means, array or tensor.
        variance: predictive variances of the same shape, or one number.
        targets: values of the same shape.

    Returns:
        The mean over all entries.

    Raises:
        ValueError: if the shapes differ or a variance is not positive.

    Example:
        >>> round(gaussian_nll([0.0], 1.0, [0.0]), 4)
        0.9189
    """
    m, y = _same_shape("mean", mean, targets)
    v = array_of(variance)
    if v.shape not in ((), m.shape):
        raise ValueError(f"variance: shape {v.shape} against {m.shape} of mean; give one number or the same shape")
    if not (v > 0).all():
        raise ValueError("variance: must be positive everywhere; include the noise of the targets")
    return float((0.5 * np.log(2 * np.pi * v) + (y - m) ** 2 / (2 * v)).mean())


def auroc(scores: Any, positives: Any) -> float:
    """Area under the ROC curve: P(a positive scores above a negative) + ½ P(they tie), from mid-ranks.

    Args:
        scores: (n,) larger means more likely positive; infinities are allowed.
        positives: (n,) booleans or 0/1.

    Returns:
        A number in [0, 1]; 0.5 for scores that say nothing.

    Raises:
        ValueError: if the shapes differ, a score is NaN, or one of the two classes is absent.

    Example:
        >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    s, y = _scores(scores, positives)
    _, place, counts = np.unique(s, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(counts) - (counts - 1) / 2
    n_pos = int(y.sum())
    return float((mid_rank[place][y].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * (len(y) - n_pos)))


def average_precision(scores: Any, positives: Any) -> float:
    """Area under the precision-recall curve as a sum of steps, Σ_k (recall_k - recall_{k-1})·precision_k (AUPR).

    Args:
        scores: (n,) larger means more likely positive; equal scores make one step.
        positives: (n,) booleans or 0/1.

    Returns:
        A number in [0, 1]; the share of positives for scores that say nothing.

    Raises:
        ValueError: as `auroc`.

    Example:
        >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 4)
        0.8333
    """
    s, y = _scores(scores, positives)
    order = np.argsort(-s, kind="stable")
    ranked = s[order]
    last_of_tie = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(s) - 1)  # infinities tie too
    hits = np.cumsum(y[order])[last_of_tie]
    return float((np.diff(hits, prepend=0) / y.sum() * hits / (last_of_tie + 1)).sum())


def ood_metrics(in_scores: Any, out_scores: Any, tpr: float = 0.95) -> dict[str, float]:
    """How well a score tells inputs of another distribution (out) from those of the training distribution (in).

    ``fpr95`` is the share of out inputs that are accepted by the strictest threshold that accepts at least ``tpr``
    of the in inputs, where an input is accepted if its score is at most the threshold.

    Args:
        in_scores: (n,) scores of the in inputs; larger means stranger (for example the predictive entropy).
        out_scores: (m,) scores of the out inputs.
        tpr: share of in inputs to accept for ``fpr95``.

    Returns:
        ``{"auroc", "aupr_out", "aupr_in", "fpr95"}``; the two areas differ in which side counts as positive.

    Raises:
        ValueError: if a side is empty, a score is NaN, or ``tpr`` is not in (0, 1].

    Example:
        >>> ood_metrics([0.1, 0.2], [0.8, 0.9])
        {'auroc': 1.0, 'aupr_out': 1.0, 'aupr_in': 1.0, 'fpr95': 0.0}

    Reference:
        Liang, Li & Srikant (2018), "Enhancing the reliability of out-of-distribution image detection in neural
        networks", for the convention of the false positive rate.
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr={tpr}: must lie in (0, 1]")
    inside, outside = array_of(in_scores).ravel(), array_of(out_scores).ravel()
    scores = np.concatenate([inside, outside])
    is_out = np.arange(len(scores)) >= len(inside)
    scores, is_out = _scores(scores, is_out)
    # The small subtraction keeps 0.55·100 = 55.00000000000001 from asking for the fifty-sixth.
    threshold = np.sort(inside)[max(int(np.ceil(tpr * len(inside) - 1e-9)), 1) - 1]
    return {
        "auroc": auroc(scores, is_out),
        "aupr_out": average_precision(scores, is_out),
        "aupr_in": average_precision(-scores, ~is_out),
        "fpr95": float((outside <= threshold).mean()),
    }


def check_probabilities(probabilities: Any, labels: Any) -> tuple[Array, Array]:
    """Probabilities as float64 (n, C) and labels as integers (n,), or an error that says what is wrong with them."""
    p, y = array_of(probabilities), array_of(labels)
    if p.ndim != 2 or p.shape[1] < 2 or not len(p):
        raise ValueError(
            f"probabilities: shape {p.shape}; give (n, C) with C >= 2 (for p of class 1: stack 1 - p and p)"
        )
    if y.shape != (len(p),):
        raise ValueError(f"labels: shape {y.shape}; give one class number for each of the {len(p)} rows")
    if not (p >= -1e-6).all() or not (np.abs(p.sum(axis=1) - 1) < 1e-3).all():
        raise ValueError(
            "probabilities: a row is negative, NaN or does not sum to 1; give softmax outputs, not logits (of bfloat16 logits: "
            "logits.float().softmax(1))"
        )
    if (y != np.floor(y)).any() or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels: must be whole numbers from 0 to {p.shape[1] - 1}, found {y.min():g} to {y.max():g}")
    return p, y.astype(np.int64)


def array_of(values: Any) -> Array:
    """Any array, tensor or nested list as float64 on the host, without knowing torch."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _same_shape(name: str, values: Any, targets: Any) -> tuple[Array, Array]:
    v, y = array_of(values), array_of(targets)
    if v.shape != y.shape or not v.size:
        raise ValueError(f"{name}: shape {v.shape} against {y.shape} of targets; they must be equal and not empty")
    return v, y


def _scores(scores: Any, positives: Any) -> tuple[Array, Array]:
    s, y = array_of(scores), array_of(positives)
    if s.ndim != 1 or s.shape != y.shape:
        raise ValueError(f"scores: shape {s.shape} against {y.shape} of positives; both must be (n,)")
    if np.isnan(s).any():
        raise ValueError("scores: NaN cannot be ranked")
    if not np.isin(y, (0, 1)).all() or len(np.unique(y)) < 2:
        raise ValueError("positives: must be 0 or 1, with at least one of each")
    return s, y.astype(bool)
