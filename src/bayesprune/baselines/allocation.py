"""How many weights each layer keeps: Erdős–Rényi-kernel and uniform densities, and exact whole numbers from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

DISTRIBUTIONS = ("uniform", "erk")


def erdos_renyi_kernel(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """The Erdős–Rényi-kernel density of each layer: the more neurons and the fewer weights, the denser.

    d_l = min(1, ε·Σ_k n_k / Π_k n_k) for a layer l of shape (n_1, n_2, …), with the ε that solves
    Σ_l d_l·Π_k n_k = ``density`` · Σ_l Π_k n_k.

    Args:
        shapes: Shape of each weight tensor: (out, in) of a linear, (out, in, height, width) of a convolution.
        density: Share of all weights to be kept, in [0, 1].

    Returns:
        One density a layer.

    Raises:
        ValueError: If the density is outside [0, 1].

    Example:
        >>> [round(d, 3) for d in erdos_renyi_kernel([(4, 4), (100, 100)], 0.3)]
        [1.0, 0.299]

    Reference: Evci et al. 2020 (arXiv 1911.11134), section 3; the form without kernel: Mocanu et al. 2018, equation 1.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density={density} must lie between 0 and 1")
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes)]
    full: set[int] = set()
    while len(full) < len(shapes):
        open_ = [i for i in range(len(shapes)) if i not in full]
        wanted = density * sum(sizes) - sum(sizes[i] for i in full)
        epsilon = wanted / sum(sum(shapes[i]) for i in open_)
        over = {i for i in open_ if epsilon * raw[i] > 1}
        if not over:
            return [1.0 if i in full else epsilon * raw[i] for i in range(len(shapes))]
        full |= over  # a layer cut off at 1 leaves more to the others, so that what is over stays over
    return [1.0] * len(shapes)


def layer_counts(
    shapes: Sequence[Sequence[int]],
    target_sparsity: float,
    distribution: str = "uniform",
    *,
    capacity: Sequence[int] | None = None,
) -> list[int]:
    """The number of weights that each layer keeps, N − round(``target_sparsity`` · N) of N in all, at least one each.

    Args:
        shapes: Shape of each weight tensor.
        target_sparsity: Share of all weights to be zero.
        distribution: ``"uniform"`` (the same share in each layer) or ``"erk"`` (:func:`erdos_renyi_kernel`).
        capacity: The most that each layer may keep; None: all of it.

    Returns:
        One number a layer; fractions are rounded by largest remainder, so that the sum is exact.

    Raises:
        ValueError: If the distribution is unknown or fewer weights than layers are left.

    Example:
        >>> layer_counts([(3, 3), (5, 5)], 0.5), layer_counts([(3, 3), (5, 5)], 0.5, "erk")
        ([5, 12], [6, 11])
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution={distribution!r} is unknown; choose one of {', '.join(map(repr, DISTRIBUTIONS))}"
        )
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(sizes)
    keep = total - round(target_sparsity * total)
    if keep < len(sizes):
        raise ValueError(
            f"target_sparsity={target_sparsity} leaves {keep} of {total:,} weights to {len(sizes)} layers; lower it, "
            "so that each layer keeps one"
        )
    shares: Sequence[float] = sizes
    if distribution == "erk":
        shares = [density * size for density, size in zip(erdos_renyi_kernel(shapes, keep / total), sizes)]
    return apportion(keep, shares, sizes if capacity is None else capacity, minimum=1)


def apportion(
    total: int, shares: Sequence[float], capacity: Sequence[int], *, minimum: int = 0, overflow: str = "proportional"
) -> list[int]:
    """Divide ``total`` in proportion to ``shares``, in whole numbers, none above its capacity."""
    if total > sum(capacity):
        raise ValueError(f"total={total} does not fit into the capacities, {sum(capacity)} in all")
    if not all(share >= 0 and math.isfinite(share) for share in shares):
        raise ValueError(f"shares={list(shares)} must be finite and not negative")
    # Exact arithmetic: rounding must not lose or invent a weight.
    parts = [Fraction(share) for share in shares]
    quota = [Fraction(0)] * len(parts)
    excess, open_ = Fraction(total), list(range(len(parts)))
    while excess and open_:
        weights = [Fraction(1) if overflow == "equal" and any(quota) else parts[i] for i in open_]
        weights = weights if sum(weights) else [Fraction(1)] * len(open_)
        whole = sum(weights)
        for i, weight in zip(open_, weights):
            quota[i] += excess * weight / whole
        excess = sum((max(q - c, Fraction(0)) for q, c in zip(quota, capacity)), Fraction(0))
        quota = [min(q, Fraction(c)) for q, c in zip(quota, capacity)]
        open_ = [i for i, (q, c) in enumerate(zip(quota, capacity)) if q < c]
    counts = [math.floor(q) for q in quota]
    by_remainder = sorted(range(len(quota)), key=lambda i: (counts[i] - quota[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    for i, most in enumerate(capacity):
        while counts[i] < min(minimum, most) and max(counts) > minimum:
            counts[counts.index(max(counts))] -= 1
            counts[i] += 1
    return counts
