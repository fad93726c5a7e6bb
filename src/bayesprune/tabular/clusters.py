"""Inputs that the rows cannot tell apart, and findings about them: one for a cluster, or for a member where it stands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_APART = 100.0  # n(1 − ρ²) below which two inputs are interchangeable
_DETERMINED = 1.0  # n(1 − R²) below which the others leave nothing of an input
_SEEN = 4000  # rows from which that is measured
_LINKED = 0.1  # correlation in the projection on the null space from which two inputs belong together


def interchangeable(correlation: np.ndarray, rows: int) -> list[list[int]]:
    """Return the clusters of inputs whose mean correlation leaves less than n(1 − ρ²) = 100 between them."""
    count = len(correlation)
    if count < 2:
        return [[i] for i in range(count)]
    from scipy.cluster.hierarchy import fcluster, linkage

    upper = np.triu_indices(count, 1)
    tree = linkage(np.clip(1 - correlation[upper], 0.0, None), method="average")
    number = fcluster(tree, 1 - least_correlation(rows), criterion="distance")
    groups: dict[int, list[int]] = {}
    for item, cluster in enumerate(number):
        groups.setdefault(int(cluster), []).append(item)
    return sorted(groups.values())


def least_correlation(rows: int) -> float:
    """Return the correlation at which two inputs are interchangeable: √(1 − 100/n), at least 0.85."""
    return float(np.sqrt(max(1 - _APART / rows, 0.7225)))


def twins(correlation: np.ndarray, candidates: np.ndarray, rows: int, most: int | None = None) -> np.ndarray:
    """Return inputs outside the candidates that are interchangeable with one of them, the nearest of each."""
    near = correlation >= least_correlation(rows)
    near[:, candidates] = False
    found: set[int] = set()
    for row, mask in zip(correlation, near):
        places = np.flatnonzero(mask)
        found.update(places[np.argsort(-row[places], kind="stable")[:most]].tolist())
    return np.array(sorted(found), dtype=np.int64)


def determined(X: np.ndarray, columns: Sequence[int]) -> list[list[int]]:
    """Return the sets among standardised columns that determine each other: the levels of a factor, parts and their sum.

    Each column has n(1 − R²) < 1 given all others, by the eigenvectors whose eigenvalue is next to 0; those that share such eigenvectors
    are a set. More columns than half the rows have eigenvalues next to 0 by chance.

    Example:
        >>> a, b, c = np.random.default_rng(0).standard_normal((3, 100))
        >>> determined(np.stack([a, b, c, (a + b) / 2**0.5], axis=1), [0, 1, 2, 3])
        [[0, 1, 3]]
    """
    n = min(len(X), _SEEN)
    if not 2 <= len(columns) <= n / 2:
        return []
    part = X[:n, columns].astype(np.float64)
    values, vectors = np.linalg.eigh(part.T @ part / n)
    null = vectors[:, len(X) * values < _DETERMINED]
    left = len(X) / (vectors**2 / np.maximum(values, 1e-9)).sum(1)
    inside = np.flatnonzero((left < _DETERMINED) & (null != 0).any(1))
    if len(inside) < 2:
        return []
    from scipy.sparse.csgraph import connected_components

    null = null[inside] / np.linalg.norm(null[inside], axis=1, keepdims=True)
    number = connected_components(np.abs(null @ null.T) > _LINKED)[1]
    sets = [[int(columns[i]) for i in inside[number == one]] for one in range(number.max() + 1)]
    return [one for one in sets if len(one) > 1]


@dataclass(frozen=True)
class Cluster:
    """A finding: inputs of which at least one matters."""

    members: tuple[int, ...]
    shares: tuple[float, ...]
    p_value: float
    q_value: float


def _harmonic(hypotheses: int) -> float:
    """Return 1 + 1/2 + … + 1/m: what a step-up rule that holds under every dependence costs (Benjamini & Yekutieli 2001)."""
    return float((1 / np.arange(1, hypotheses + 1)).sum())


def step_up(p_values: np.ndarray, hypotheses: int) -> np.ndarray:
    """Return the Benjamini–Yekutieli q-values: min over larger p of p·m·(1 + … + 1/m)/rank."""
    order = np.argsort(p_values, kind="stable")
    ranked = p_values[order] * hypotheses * _harmonic(hypotheses) / np.arange(1, len(order) + 1)
    q = np.empty(len(order))
    q[order] = np.minimum(1.0, np.minimum.accumulate(ranked[::-1])[::-1])
    return q


def findings(
    clusters: Sequence[Sequence[int]],
    cluster_p: np.ndarray,
    single_p: dict[int, float],
    shares: Sequence[Sequence[float]],
    hypotheses: int,
    fdr: float,
) -> list[Cluster]:
    """Return the clusters that are found at a false-discovery rate, each narrowed to a member that stands out."""
    q = step_up(cluster_p, hypotheses)
    found = [i for i in range(len(clusters)) if q[i] <= fdr]
    level = fdr * len(found) / (hypotheses * _harmonic(hypotheses))
    result = []
    for i in found:
        members = list(clusters[i])
        alone = [j for j in members if len(members) > 1 and single_p[j] <= level / len(members)]
        if alone:
            result += [Cluster((j,), (1.0,), single_p[j], float(q[i])) for j in alone]
        else:
            result.append(Cluster(tuple(members), tuple(shares[i]), float(cluster_p[i]), float(q[i])))
    return result
