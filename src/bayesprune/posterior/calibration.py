from __future__ import annotations

from typing import Any

import numpy as np

from bayesprune.posterior.metrics import check_probabilities, curve_of


def adaptive_ece(probabilities: Any, labels: Any, bins: int = 15) -> float:
    """Calibration error of the top label, Σ_b (n_b/n)·|accuracy_b - confidence_b|, over bins of equally many inputs.

    Where most confidences are near 1, bins of equal width leave nearly all inputs in the last one; these do not.

    Args:
        probabilities: (n, C), array or tensor.
        labels: (n,) class numbers.
        bins: how many; their sizes differ by at most one, and inputs of equal confidence may fall in two bins.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: if the inputs are not probabilities and labels, or ``bins`` is not positive.

    Example:
        >>> round(adaptive_ece([[0.9, 0.1], [0.3, 0.7]], [0, 0], bins=2), 3)
        0.4

    Reference:
        Nguyen & O'Connor (2015), "Posterior calibration and exploratory analysis for NLP models".
    """
    p, y = check_probabilities(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins={bins}: must be at least 1")
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == y
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(part) * abs(hit[part].mean() - confidence[part].mean()) for part in parts) / len(y))


def classwise_ece(probabilities: Any, labels: Any, bins: int = 15) -> float:
    """Mean over classes c of the calibration error of the event y = c, given the probability p_c; equal-width bins.

    Args:
        probabilities: (n, C), array or tensor.
        labels: (n,) class numbers.
        bins: how many bins, closed on the right.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: if the inputs are not probabilities and labels, or ``bins`` is not positive.

    Example:
        >>> round(classwise_ece([[0.9, 0.1], [0.3, 0.7]], [0, 0], bins=2), 3)
        0.4

    Reference:
        Kull et al. (2019), "Beyond temperature scaling".
    """
    p, y = check_probabilities(probabilities, labels)
    return float(np.mean([curve_of(p[:, c], y == c, bins).ece for c in range(p.shape[1])]))
