"""How a target is shared among layers: the same share of each, whole groups, the sum met."""

from __future__ import annotations

from collections.abc import Sequence


def even_drops(
    counts: Sequence[int], sizes: Sequence[int], wanted: int, *, least: Sequence[int], floor: int = 0
) -> list[int]:
    """How many groups each layer loses so that all lose the same share and ``wanted`` weights go in all.

    Layer i of Cᵢ groups of nᵢ weights loses round(s·Cᵢ) of them, at least ``least``ᵢ and at most Cᵢ − ``floor``; the share s is
    such that Σ nᵢ·dropsᵢ is nearest to ``wanted``, and of the layers that change at one s the first do so first.

    Args:
        counts: Groups a layer.
        sizes: Weights in a group, by layer.
        wanted: Weights to be dropped in all.
        least: Groups that are gone already.
        floor: Groups that every layer keeps.

    Returns:
        Groups to drop, by layer.

    Example:
        >>> even_drops([10, 10], [9, 9], 90, least=[0, 0])
        [5, 5]
        >>> even_drops([2, 10, 10], [9, 9, 9], 162, least=[0, 0, 0], floor=1)
        [1, 9, 8]
    """
    most = [max(count - floor, gone) for count, gone in zip(counts, least)]

    def at(share: float) -> list[int]:
        return [min(max(round(share * c), gone), top) for c, gone, top in zip(counts, least, most)]

    def weigh(drops: Sequence[int]) -> int:
        return sum(drop * size for drop, size in zip(drops, sizes))

    even = at(wanted / max(1, weigh(counts)))
    if weigh(even) == wanted:
        return even
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if weigh(at(middle)) >= wanted else (middle, high)
    drops, above = at(low), at(high)
    left = wanted - weigh(drops)
    for place, size in enumerate(sizes):
        while drops[place] < above[place] and 2 * left >= size:  # nearer iff at least half of the group is still wanted
            drops[place] += 1
            left -= size
    return drops


def width_multiple(channels: int) -> int:
    """Of how many channels a set of so many keeps a multiple unless it is told: 8, 4 or 2 where that is an eighth at most.

    Example:
        >>> [width_multiple(channels) for channels in (8, 16, 32, 48, 64, 2048)]
        [1, 2, 4, 4, 8, 8]
    """
    return next((multiple for multiple in (8, 4, 2) if 8 * multiple <= channels), 1)
