"""The hard rule: from the present weights to masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayesprune.samplers.layout import whole
from bayesprune.sparsity.criteria import concentration, keep_largest, nearest, threshold_for_sparsity
from bayesprune.sparsity.groups import Groups, TensorGroups
from bayesprune.sparsity.partition import Partition

Criterion = str | Callable[[Partition, Optimizer], Sequence[Tensor]]


@dataclass(frozen=True)
class HardRule:
    """Which groups go: by a threshold λ₂ on the statistic, or by rank up to a target sparsity; arguments as of the pruner."""

    groups: Partition
    criterion: Criterion
    permanent: bool
    reading: str
    scope: str
    min_groups: int
    round_to: int | None = 1

    def threshold_masks(
        self, means: Sequence[Tensor], old: Sequence[Tensor], threshold: float, optimizer: Optimizer
    ) -> list[Tensor]:
        """Keep what reaches the threshold (equations 9 and 10); ``means``: Σ w²/n per group."""
        masks = []
        values = self._own_statistics(optimizer) or means
        for each, mean, before in zip(self.groups, values, old):
            keep = self._concentrated(each, threshold) if self.criterion == "concentration" else mean >= threshold
            if self.permanent:
                keep = keep & before
            if self.min_groups:
                ranked = (mean.masked_fill(~before, -torch.inf) if self.permanent else mean).reshape(-1)
                best = torch.zeros_like(ranked, dtype=torch.bool)
                best[ranked.topk(min(self.min_groups, each.count)).indices] = True
                keep = keep | (best.view(keep.shape) & (keep.sum() < self.min_groups))
            masks.append(keep)
        return masks

    def target_masks(
        self, means: Sequence[Tensor], old: Sequence[Tensor], target: float, optimizer: Optimizer
    ) -> list[Tensor]:
        """Prune the groups of smallest statistic until a share ``target`` of the weights is at zero."""
        if self.criterion == "concentration":
            statistics: Sequence[Tensor] = [self._range(each) for each in self.groups]
        else:
            statistics = self._own_statistics(optimizer) or means
        kept = old if self.permanent else None
        if self.scope == "chain":
            return [
                self._chain_mask(each, statistic, None if kept is None else kept[place], target)
                for place, (each, statistic) in enumerate(zip(self.groups, statistics))
            ]
        if self.scope == "layer":
            return (self._even_masks if self.groups.coupled else self._layer_masks)(statistics, kept, target)
        sizes = [each.size for each in self.groups]
        if not self.groups.coupled:
            return threshold_for_sparsity(statistics, sizes, target, kept=kept, min_groups=self.min_groups).keep
        # Channel groups overlap: zeros are counted, a dozen times, on masks of a few thousand entries, off the device.
        cut = threshold_for_sparsity(
            [statistic.cpu() for statistic in statistics],
            sizes,
            target,
            kept=None if kept is None else [mask.cpu() for mask in kept],
            min_groups=self.min_groups,
            zeros=self.groups.zeros,
            total=self.groups.total,
        )
        return [mask.to(each.device) for mask, each in zip(cut.keep, self.groups)]

    def told(self, aimed: bool) -> str:
        """What the ``repr`` says: the criterion and, of a target, over what it ranks."""
        name = getattr(self.criterion, "__name__", type(self.criterion).__name__)
        text = str(name if callable(self.criterion) else self.criterion)
        if not aimed:
            return text
        scopes = {"global": "all together", "layer": "the same share of every set", "chain": "in every chain alone"}
        text += f", {scopes[self.scope]}"
        if self.scope == "layer" and self.groups.coupled and self.round_to != 1:
            text += ", multiples of " + (f"{self.round_to}" if self.round_to else "8 where widths allow")
        return text

    def _own_statistics(self, optimizer: Optimizer) -> list[Tensor]:
        """What the user's criterion says of every group; nothing where the criterion is one of ours."""
        if not callable(self.criterion):
            return []
        found = list(self.criterion(self.groups, optimizer))
        if len(found) != len(self.groups):
            raise ValueError(f"criterion returned {len(found)} tensors for {len(self.groups)} groups objects; one each")
        for each, statistic in zip(self.groups, found):
            if statistic.shape != each.shape or not bool((statistic >= 0).all()):
                raise ValueError(
                    f"criterion returned for {each.name!r} a tensor of shape {tuple(statistic.shape)}; it must have the mask's, "
                    f"{tuple(each.shape)}, and no entry below 0 or NaN"
                )
        return [statistic.detach() for statistic in found]

    def _layer_masks(self, statistics: Sequence[Tensor], kept: Sequence[Tensor] | None, target: float) -> list[Tensor]:
        """The same share of every tensor's groups; what a tensor at its floor cannot give, the others do."""
        counts, sizes = [each.count for each in self.groups], [each.size for each in self.groups]
        left = counts if kept is None else torch.stack([torch.count_nonzero(mask) for mask in kept]).tolist()
        gone = [count - n for count, n in zip(counts, left)]
        drops = even_drops(counts, sizes, round(target * self.groups.total), least=gone, floor=self.min_groups)
        return [
            keep_largest(statistic, count - drop, None if kept is None else kept[place])
            for place, (statistic, count, drop) in enumerate(zip(statistics, counts, drops))
        ]

    def _even_masks(self, statistics: Sequence[Tensor], kept: Sequence[Tensor] | None, target: float) -> list[Tensor]:
        """Keep the same share k of every set of C channels, in multiples of m (``round_to``): m⌊kC/m⌋, at least m."""
        shares = []
        for index, statistic in enumerate(statistics):
            values = (statistic if kept is None else statistic.masked_fill(~kept[index], -torch.inf)).cpu()
            rank = torch.empty(len(values), dtype=torch.float64)
            rank[values.argsort(descending=True, stable=True)] = torch.arange(len(values), dtype=torch.float64)
            multiple = width_multiple(len(values)) if self.round_to is None else self.round_to
            share = multiple * (rank.div(multiple, rounding_mode="floor") + 1) / len(values) + 1e-9 * index
            floor = max(self.min_groups, multiple if multiple > 1 else 0)
            shares.append(share.masked_fill(rank < floor, 0.0))
        steps = torch.cat(shares).unique()

        def masks(place: int) -> list[Tensor]:
            limit = steps[len(steps) - 1 - place]
            found = [share <= limit for share in shares]
            return found if kept is None else [new & old.cpu() for new, old in zip(found, kept)]

        wanted = round(target * self.groups.total)
        place = nearest(lambda k: self.groups.zeros(masks(k)), len(steps) - 1, wanted)
        return [mask.to(each.device) for mask, each in zip(masks(place), self.groups)]

    def _chain_mask(self, each: Groups, statistic: Tensor, before: Tensor | None, target: float) -> Tensor:
        """Keep the largest of each channel group of a grouped convolution, the same number in each."""
        chains = getattr(each, "conv_groups", 1)
        ranked = (statistic if before is None else statistic.masked_fill(~before, -torch.inf)).reshape(chains, -1)
        count = ranked.shape[1]
        keep = torch.zeros_like(ranked, dtype=torch.bool)
        best = ranked.topk(max(count - round(target * count), min(self.min_groups, count)), dim=1).indices
        keep = keep.scatter_(1, best, True).view(statistic.shape)
        return keep if before is None else keep & before

    def _concentrated(self, each: Groups, threshold: float) -> Tensor:
        """Equation 9; a kernel stays if both the input and the output channel that it belongs to do."""
        if not isinstance(each, TensorGroups) or each.kind != "kernel":
            return self._range(each) >= threshold
        inputs, outputs = each.regroup("input"), each.regroup("output")
        return inputs.broadcast(self._range(inputs) >= threshold) & (self._range(outputs) >= threshold)

    def _range(self, each: Groups) -> Tensor:
        assert isinstance(each, TensorGroups)  # the settings are checked for it
        return concentration(whole(each.param), each.kind, reading=self.reading, groups=each.conv_groups)


def even_drops(
    counts: Sequence[int], sizes: Sequence[int], wanted: int, *, least: Sequence[int], floor: int = 0
) -> list[int]:
    """How many groups each layer loses so that all lose the same share and ``wanted`` weights go in all."""
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
    """Of how many channels a set of so many keeps a multiple unless it is told: 8, 4 or 2 where that is an eighth at most."""
    return next((multiple for multiple in (8, 4, 2) if 8 * multiple <= channels), 1)
