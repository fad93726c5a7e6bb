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


def determined(X: np.ndarray, units: Sequence[np.ndarray]) -> list[list[int]]:
    """Return the sets of inputs, by number, that are functions of each other: levels of a factor, parts and their sum, a
    city and its country.

    The columns are standardised, each group's is an orthonormal basis. A set has an input of which n(1 − R²) < 1 is left in every
    direction, given all others, and those that share its eigenvectors of eigenvalues next to 0. More columns than half the
    rows have such eigenvalues by chance.

    Example:
        >>> a, b, c = np.random.default_rng(0).standard_normal((3, 100))
        >>> determined(np.stack([a, b, c, (a + b) / 2**0.5], axis=1), [np.array([j]) for j in range(4)])
        [[0, 1, 3]]
    """
    n = min(len(X), _SEEN)
    if not 2 <= sum(map(len, units)) <= n / 2:
        return []
    bases = {number: _basis(X[:n, unit].astype(np.float64)) for number, unit in enumerate(units)}
    bases = {number: basis for number, basis in bases.items() if basis.shape[1]}
    numbers, sizes = list(bases), [basis.shape[1] for basis in bases.values()]
    part = np.hstack(list(bases.values()))
    values, vectors = np.linalg.eigh(part.T @ part / n)
    null = vectors[:, len(X) * values < _DETERMINED]
    if not null.shape[1]:
        return []
    from scipy.sparse.csgraph import connected_components

    gone = len(X) / (vectors**2 / np.maximum(values, 1e-9)).sum(1) < _DETERMINED
    places = np.split(np.arange(len(gone)), np.cumsum(sizes)[:-1])
    touched = np.array([gone[own].any() for own in places])
    whole = np.array([gone[own].all() and np.linalg.matrix_rank(null[own], tol=1e-3) == len(own) for own in places])
    starts = [own[0] for own in places]
    shared = np.sqrt(np.add.reduceat(np.add.reduceat((null @ null.T) ** 2, starts, axis=0), starts, axis=1))
    linked = shared > _LINKED * np.sqrt(np.outer(shared.diagonal(), shared.diagonal()))
    linked &= np.outer(touched, touched) & (whole[:, None] | whole)
    number = connected_components(linked)[1]
    sets = [[numbers[i] for i in np.flatnonzero(number == one)] for one in range(number.max() + 1)]
    return [one for one in sets if len(one) > 1]


def _basis(columns: np.ndarray) -> np.ndarray:
    """Return a column as it is, and of several an orthonormal basis, scaled to variance 1."""
    if columns.shape[1] == 1:
        return columns
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, values > 1e-4 * max(values[0], 1e-300)] * np.sqrt(len(columns))


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
