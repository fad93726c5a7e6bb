"""The hard rule: from the present weights to masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesprune.sparsity.criteria import concentration, threshold_for_sparsity
from bayesprune.sparsity.group_types import Groups, TensorGroups
from bayesprune.sparsity.groups import Partition

RULES = ("magnitude", "l2", "concentration")


@dataclass(frozen=True)
class HardRule:
    """Which groups go: by a threshold λ₂ on the statistic, or by rank up to a target sparsity.

    Args:
        groups: The partition.
        rule: ``"magnitude"`` or ``"l2"`` (mean squared weight) or ``"concentration"`` (max − min over a channel).
        permanent: Whether pruned groups stay pruned.
        reading: Of the concentration rule.
        scope: ``"global"``, ``"layer"`` or ``"chain"``, of a target.
        min_groups: Every tensor keeps at least this many groups.
        round_to: Every set of channels keeps a multiple of this many.
    """

    groups: Partition
    rule: str
    permanent: bool
    reading: str
    scope: str
    min_groups: int
    round_to: int = 1

    def threshold_masks(self, means: Sequence[Tensor], old: Sequence[Tensor], threshold: float) -> list[Tensor]:
        """Keep what reaches the threshold (equations 9 and 10).

        Args:
            means: Σ w²/n per group.
            old: The present masks.
            threshold: λ₂.

        Returns:
            The new masks, True = keep.
        """
        masks = []
        for each, mean, before in zip(self.groups, means, old):
            keep = self._concentrated(each, threshold) if self.rule == "concentration" else mean >= threshold
            if self.permanent:
                keep = keep & before
            if self.min_groups:
                ranked = (mean.masked_fill(~before, -torch.inf) if self.permanent else mean).reshape(-1)
                best = torch.zeros_like(ranked, dtype=torch.bool)
                best[ranked.topk(min(self.min_groups, each.count)).indices] = True
                keep = keep | (best.view(keep.shape) & (keep.sum() < self.min_groups))
            masks.append(keep)
        return masks

    def target_masks(self, means: Sequence[Tensor], old: Sequence[Tensor], target: float) -> list[Tensor]:
        """Prune the groups of smallest statistic up to the target.

        Args:
            means: Σ w²/n per group.
            old: The present masks.
            target: Share of the prunable weights to be zero.

        Returns:
            The new masks, True = keep.
        """
        statistics = means if self.rule != "concentration" else [self._range(each) for each in self.groups]
        kept = old if self.permanent else None
        sizes = [each.size for each in self.groups]
        if self.scope == "chain":
            return [
                self._chain_mask(each, statistic, before if self.permanent else None, target)
                for each, statistic, before in zip(self.groups, statistics, old)
            ]
        if self.scope == "layer" and self.groups.kind != "channel":
            masks = []
            for index, (statistic, size) in enumerate(zip(statistics, sizes)):
                before = None if kept is None else [kept[index]]
                reach = 1.0 - min(self.min_groups, statistic.numel()) / statistic.numel()
                masks += threshold_for_sparsity(
                    [statistic], [size], min(target, reach), kept=before, min_groups=self.min_groups
                ).keep
            return masks
        if self.groups.kind != "channel":
            return threshold_for_sparsity(statistics, sizes, target, kept=kept, min_groups=self.min_groups).keep
        if self.scope == "layer":
            return self._even_masks(statistics, kept, target)
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

    def _even_masks(self, statistics: Sequence[Tensor], kept: Sequence[Tensor] | None, target: float) -> list[Tensor]:
        """Keep the same share k of every set of C channels, in multiples of m = ``round_to``: m⌊kC/m⌋, at least m.

        A channel that r others of its set outrank is kept iff r < m or k >= m(⌊r/m⌋ + 1)/C. Of the sets that change at one k the
        last lose theirs first, so that the target is met as nearly as a multiple of one set allows.
        """
        shares = []
        for index, statistic in enumerate(statistics):
            values = (statistic if kept is None else statistic.masked_fill(~kept[index], -torch.inf)).cpu()
            rank = torch.empty(len(values), dtype=torch.float64)
            rank[values.argsort(descending=True, stable=True)] = torch.arange(len(values), dtype=torch.float64)
            share = self.round_to * (rank.div(self.round_to, rounding_mode="floor") + 1) / len(values) + 1e-9 * index
            floor = max(self.min_groups, self.round_to if self.round_to > 1 else 0)
            shares.append(share.masked_fill(rank < floor, 0.0))
        steps = torch.cat(shares).unique()

        def masks(place: int) -> list[Tensor]:
            limit = steps[len(steps) - 1 - place]
            found = [share <= limit for share in shares]
            return found if kept is None else [new & old.cpu() for new, old in zip(found, kept)]

        wanted = round(target * self.groups.total)
        low, high = 0, len(steps) - 1
        while low < high:  # the fewest sets' channels that reach the wanted
            middle = (low + high) // 2
            low, high = (low, middle) if self.groups.zeros(masks(middle)) >= wanted else (middle + 1, high)
        if low and self.groups.zeros(masks(low)) - wanted > wanted - self.groups.zeros(masks(low - 1)):
            low -= 1
        return [mask.to(each.device) for mask, each in zip(masks(low), self.groups)]

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
        return concentration(each.param, each.kind, reading=self.reading, groups=each.conv_groups)
