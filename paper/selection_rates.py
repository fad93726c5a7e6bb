"""How well repeated selections agree with the truth, pooled over the repetitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def false_selection_rate(selected: Iterable[Iterable[int]], truth: Iterable[Any]) -> float:
    """Share of the selected variables that are not true, pooled over repetitions: Σ|Ŝ∖S| / Σ|Ŝ| (0 if there are none).

    Args:
        selected: one set of variables for each repetition.
        truth: one set for each repetition, or one set (of numbers) for all of them.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: if there is no repetition, or the numbers of sets differ.

    Example:
        >>> false_selection_rate([{0, 1, 7}, {0}], {0, 1})
        0.25
    """
    pairs = _selections(selected, truth)
    total = sum(len(found) for found, _ in pairs)
    return sum(len(found - true) for found, true in pairs) / total if total else 0.0


def miss_rate(selected: Iterable[Iterable[int]], truth: Iterable[Any]) -> float:
    """Share of the true variables that are not selected, pooled over repetitions: Σ|S∖Ŝ| / Σ|S| (0 if none is true).

    Args:
        selected: one set of variables for each repetition.
        truth: one set for each repetition, or one set (of numbers) for all of them.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: as `false_selection_rate`.

    Example:
        >>> miss_rate([{0, 1, 7}, {0}], {0, 1})
        0.25
    """
    pairs = _selections(selected, truth)
    total = sum(len(true) for _, true in pairs)
    return sum(len(true - found) for found, true in pairs) / total if total else 0.0


def exact_recoveries(selected: Iterable[Iterable[int]], truth: Iterable[Any]) -> int:
    """Number of repetitions in which the selected set is the true one.

    Args:
        selected: one set of variables for each repetition.
        truth: one set for each repetition, or one set (of numbers) for all of them.

    Returns:
        A count.

    Raises:
        ValueError: as `false_selection_rate`.

    Example:
        >>> exact_recoveries([{0, 1, 7}, {0, 1}], {0, 1})
        1
    """
    return sum(found == true for found, true in _selections(selected, truth))


def _selections(selected: Iterable[Iterable[int]], truth: Iterable[Any]) -> list[tuple[set[int], set[int]]]:
    found = [{int(i) for i in one} for one in selected]
    given: Sequence[Any] = list(truth)
    shared = all(not isinstance(one, Iterable) for one in given)
    true = [{int(i) for i in given}] * len(found) if shared else [{int(i) for i in one} for one in given]
    if not found or len(found) != len(true):
        raise ValueError(f"selected: {len(found)} repetitions against {len(true)} of truth; give one set for each")
    return list(zip(found, true))
