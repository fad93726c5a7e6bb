"""What decides that a group is pruned: statistics, and thresholds that meet a target. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayesprune.sparsity.groups import TensorGroups


def mean_square(weight: Tensor, kind: str = "kernel", *, groups: int = 1) -> Tensor:
    """The mean squared weight of each group, Σ w²/n, in the shape of the group mask.

    Args:
        weight: A weight of shape ``(O, I/groups, *k)``.
        kind: ``"weight"``, ``"kernel"``, ``"input"`` or ``"output"``.
        groups: Channel groups of the convolution.

    Returns:
        One value a group, in the shape of the group mask.

    Example:
        >>> mean_square(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "input")
        tensor([[ 5., 10.]])
    """
    return TensorGroups("weight", weight, kind, groups).mean_square()


def l2(weight: Tensor) -> Tensor:
    """The L2 rule's statistic per input unit of a linear layer, Σ_o w²/n_o (equation 10).

    Args:
        weight: The layer's weight, ``(n_o, n_i)``.

    Returns:
        One value an input unit, shape ``(1, n_i)``; a unit is pruned when it is below λ₂.

    Raises:
        ValueError: If the weight is not a matrix.

    Example:
        >>> l2(torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        tensor([[5., 0.]])

    Reference: arXiv 2210.12957, equation 10.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight has {weight.dim()} dimensions; equation 10 is for a linear layer (use mean_square)")
    return mean_square(weight, "input")


def concentration(weight: Tensor, kind: str = "input", *, reading: str = "signed", groups: int = 1) -> Tensor:
    """The concentration rule's statistic of an input or output channel: max − min over its weights (equation 9).

    Args:
        weight: A weight of shape ``(O, I/groups, *k)``.
        kind: ``"input"`` (over all weights reading a channel), ``"output"`` (all weights writing it) or ``"kernel"``.
        reading: ``"signed"``: max w − min w, as the released code has it. ``"absolute"``: max |w| − min |w|, as the
            paper prints it.
        groups: Channel groups of the convolution.

    Returns:
        One value a group, in the shape of the group mask; a channel is pruned when it is below λ₂.

    Raises:
        ValueError: If the reading or the kind is unknown.

    Example:
        >>> weight = torch.tensor([[1.0, -2.0], [-1.5, 2.0]])
        >>> concentration(weight, "input"), concentration(weight, "input", reading="absolute")
        (tensor([[2.5000, 4.0000]]), tensor([[0.5000, 0.0000]]))

    Reference: arXiv 2210.12957, equation 9.
    """
    if reading not in ("signed", "absolute"):
        raise ValueError(f"reading={reading!r} is unknown; choose 'signed' or 'absolute'")
    if kind == "weight":
        raise ValueError("kind='weight' has no range: the concentration rule needs groups of several weights")
    part = TensorGroups("weight", weight, kind, groups).slices[0]
    values = part.viewed(weight.detach())
    values = values.abs() if reading == "absolute" else values
    # Paper: equation 9 prints |w|; the released code takes the signed range, which is our default.
    return values.amax(part.reduced, keepdim=True) - values.amin(part.reduced, keepdim=True)


def cubic_ramp(step: int, start: int, end: int, final: float, initial: float = 0.0) -> float:
    """The target sparsity at a step of the gradual schedule.

    s_t = s_f + (s_i − s_f)·(1 − (t − t₀)/(t₁ − t₀))³ between t₀ = ``start`` and t₁ = ``end``, constant outside.

    Args:
        step: t.
        start: t₀, up to which the target is ``initial``.
        end: t₁, from which the target is ``final``.
        final: s_f.
        initial: s_i.

    Returns:
        The target sparsity.

    Example:
        >>> [round(cubic_ramp(t, 0, 10, 0.8), 3) for t in (0, 5, 10, 20)]
        [0.0, 0.7, 0.8, 0.8]

    Reference: Zhu & Gupta 2017 (arXiv 1710.01878), equation 1.
    """
    if step >= end:
        return final
    if step <= start:
        return initial
    return final + (initial - final) * (1.0 - (step - start) / (end - start)) ** 3


class SparsityCut(NamedTuple):
    """What :func:`threshold_for_sparsity` found.

    Example:
        >>> cut = threshold_for_sparsity([torch.tensor([0.1, 0.5, 0.9, 0.2])], [1], 0.5)
        >>> cut.keep[0].tolist()
        [False, True, True, False]
    """

    keep: list[Tensor]
    threshold: float


def threshold_for_sparsity(
    statistics: Sequence[Tensor],
    sizes: Sequence[int],
    target: float,
    *,
    kept: Sequence[Tensor] | None = None,
    min_groups: int = 0,
    zeros: Callable[[Sequence[Tensor]], int] | None = None,
    total: int | None = None,
) -> SparsityCut:
    """The masks that prune the groups of smallest statistic until a share ``target`` of all weights is at zero.

    Groups are ranked over all tensors together; ties go by position (tensor, then index), so that the result is
    deterministic. With one weight a group exactly round(target · total) weights are pruned; with larger groups the
    count is the nearest that whole groups in this order allow.

    Args:
        statistics: Per tensor, the statistic of each group (not negative).
        sizes: Per tensor, the number of weights in each of its groups.
        target: Share of weights to be zero, in [0, 1].
        kept: Per tensor, a mask of what is still kept; what is not stays pruned and counts.
        min_groups: In each tensor this many groups of largest statistic are never pruned.
        zeros: Counts the weights at zero under given masks, for groups that overlap; else sizes are added up.
        total: Number of weights in all; the sum of the sizes if None. Needed with ``zeros``.

    Returns:
        ``keep``: per tensor a mask, True = keep; ``threshold``: the largest pruned statistic (−inf if nothing is
        pruned).

    Raises:
        ValueError: If the target is outside [0, 1] or out of reach because of ``min_groups``.

    Example:
        >>> cut = threshold_for_sparsity([torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0])], [1, 1], 0.5)
        >>> cut.keep, cut.threshold
        ([tensor([ True, False]), tensor([False,  True])], 2.0)
    """
    if not 0 <= target <= 1:
        raise ValueError(f"sparsity={target} must lie between 0 and 1")
    device = statistics[0].device
    flat, protected, dropped = [], [], []
    for index, statistic in enumerate(statistics):
        values = _floats(statistic).to(device)
        gone = torch.zeros_like(values, dtype=torch.bool) if kept is None else ~kept[index].reshape(-1)
        safe = torch.zeros_like(gone)
        if min_groups > 0:
            best = values.masked_fill(gone, -torch.inf).topk(min(min_groups, len(values))).indices
            safe[best] = True
            safe &= ~gone
        flat.append(values)
        protected.append(safe)
        dropped.append(gone)
    lengths = [len(values) for values in flat]
    values, safe, gone = torch.cat(flat), torch.cat(protected), torch.cat(dropped)

    if total is None:
        total = sum(size * length for size, length in zip(sizes, lengths))
    wanted = round(target * total)

    def split(flags: Tensor) -> list[Tensor]:
        return [part.view(stat.shape) for part, stat in zip(flags.split(lengths), statistics)]

    free = ~(gone | safe)
    if zeros is None:
        _check_reach(wanted, total, _weigh(sizes, protected), min_groups)
        left = wanted - _weigh(sizes, dropped)
        if len(set(sizes)) == 1:
            pool, count = values[free], (2 * left + sizes[0]) // (2 * sizes[0])
            drop = torch.zeros_like(free)
            drop[free] = ~keep_largest(pool, max(len(pool) - count, 0))
        else:
            counts = torch.tensor(lengths, device=device)
            drop = _drop_sized(values, free, torch.tensor(sizes, device=device).repeat_interleave(counts), left)
    else:
        _check_reach(wanted, total, total - zeros(split(safe)), min_groups)
        places = free.nonzero().view(-1)
        order = places[values[places].sort(stable=True).indices]

        def first(k: int) -> Tensor:
            chosen = gone.clone()
            chosen[order[:k]] = True
            return chosen

        drop = first(nearest(lambda k: zeros(split(~first(k))), len(order), wanted))
    drop = drop | gone
    threshold = float(values.masked_fill(~drop, -torch.inf).max()) if len(values) else float("-inf")
    return SparsityCut(split(~drop), threshold)


def nearest(count: Callable[[int], int], most: int, wanted: int) -> int:
    """The k from 0 to ``most`` whose count, which grows with k, is nearest to the wanted; of two the larger."""
    low, high = 0, most
    while low < high:  # the smallest that reaches it
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= wanted else (middle + 1, high)
    return low - (low > 0 and count(low) - wanted > wanted - count(low - 1))


def _weigh(sizes: Sequence[int], flags: Sequence[Tensor]) -> int:
    """Number of weights in the flagged groups, with one wait for the device."""
    return sum(
        size * flagged for size, flagged in zip(sizes, torch.stack([torch.count_nonzero(f) for f in flags]).tolist())
    )


def _check_reach(wanted: int, total: int, protected: int, min_groups: int) -> None:
    if wanted > total - protected:
        raise ValueError(
            f"sparsity wants {wanted:,} of {total:,} weights at zero, but only {total - protected:,} "
            f"({(total - protected) / max(total, 1):.4%}) can be: each tensor keeps min_groups={min_groups} of its "
            "groups; lower sparsity or min_groups, or choose smaller groups"
        )


def keep_largest(statistic: Tensor, count: int, kept: Tensor | None = None) -> Tensor:
    """A mask of the ``count`` groups of largest statistic; ties go to those behind."""
    values = _floats(statistic)
    if kept is not None:
        values = values * kept.reshape(-1)  # no statistic is below 0: what is gone goes first
    wanted = len(values) - count
    if wanted <= 0:
        return torch.ones_like(statistic, dtype=torch.bool) if kept is None else kept.clone()
    limit = _smallest(values, wanted)
    drop = values <= limit
    excess = int(torch.count_nonzero(drop)) - wanted
    if excess > 0:
        ties = values == limit
        ties = (ties if kept is None else ties & kept.reshape(-1)).nonzero().view(-1)
        drop[ties[len(ties) - excess :]] = False
    return ~drop.view(statistic.shape)


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest value; NumPy's selection is ten times as fast as torch's on a CPU."""
    if values.device.type != "cpu":
        return values.kthvalue(k).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]


def _floats(statistic: Tensor) -> Tensor:
    values = statistic.detach().reshape(-1)
    return values if values.dtype == torch.float64 else values.float()


def _drop_sized(ranked: Tensor, free: Tensor, sizes: Tensor, wanted: int) -> Tensor:
    """The smallest free groups whose sizes add up to the number nearest to ``wanted``."""
    drop = torch.zeros_like(free)
    if wanted <= 0:
        return drop
    # + 0.0 makes +0 of −0; what is not free goes behind all else.
    bits = (ranked + 0.0).view(torch.int64 if ranked.dtype == torch.float64 else torch.int32)
    bins = (bits >> (48 if ranked.dtype == torch.float64 else 16)).clamp_(min=0)
    bins = bins.masked_fill_(~free, 32767).to(torch.int32)
    below = torch.bincount(bins, weights=sizes.double() * free, minlength=32768).cumsum(0)
    edge = int((below < wanted).sum())
    drop |= (bins < edge) & free
    left = wanted - (int(below[edge - 1]) if edge > 0 else 0)
    places = ((bins == edge) & free).nonzero().view(-1)
    places = places[ranked[places].sort(stable=True).indices]
    ordered = sizes[places]
    # Taking group j brings the count nearer iff at least half of it is still wanted.
    taken = ordered.cumsum(0) * 2 - ordered <= 2 * left
    drop[places] = taken
    if bool(taken.all()):  # half of the next bin's first group may still be wanted
        places = ((bins > edge) & free).nonzero().view(-1)
        if len(places):
            values = ranked[places]
            first = places[(values == values.amin()).nonzero()[0, 0]]
            drop[first] = int(sizes[first]) <= 2 * (left - int(ordered.sum()))
    return drop
