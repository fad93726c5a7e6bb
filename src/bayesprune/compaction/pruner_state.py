"""The pruner comes along: the same settings on the smaller tensors, its masks cut as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.compaction.masked import COMPILED, plain_name
from bayesprune.compaction.slices import Cut, take
from bayesprune.graph.errors import CompactionError
from bayesprune.sparsity.base import Pruner
from bayesprune.sparsity.decay import GroupDecay, covers_of
from bayesprune.sparsity.feedback import FeedbackPruning
from bayesprune.sparsity.group_types import ChannelGroups, Groups, Slice, TensorGroups
from bayesprune.sparsity.groups import Partition
from bayesprune.sparsity.optimizer_link import link


class _KeptSize:
    """Groups whose statistic is still over the weights that they had: what was removed counts as the zeros it was."""

    trained_size: int

    def mean_square(self) -> Tensor:
        return self.sum_squares() / self.trained_size  # type: ignore[attr-defined]


class CompactTensorGroups(_KeptSize, TensorGroups):
    """Groups of one weight tensor that was cut."""


class CompactChannelGroups(_KeptSize, ChannelGroups):
    """Groups of coupled channels some of which were removed."""


@torch.no_grad()
def transfer_pruner(
    pruner: Pruner, model: nn.Module, optimizer: Optimizer, cuts: Mapping[str, Cut]
) -> tuple[Pruner, list[str]]:
    """Attach a pruner of the same settings and (smaller) masks to the compact model and its optimizer.

    A group's statistic stays over as many weights as it was trained with, the removed ones counting as zeros. (Rows that
    were removed because nothing reads them need not be zero: in the masked model they still count in the statistic of
    ``"input"`` groups, here no longer.) A target sparsity counts the removed weights as the zeros they were: with T old
    and T' new prunable weights, target s becomes s' = max(0, (sT − (T − T'))/T').

    Args:
        pruner: The old pruner; it is not changed.
        model: The compact model.
        optimizer: Its optimizer.
        cuts: What was cut from each tensor, by name.

    Returns:
        The new pruner, and what is to be said about it.

    Raises:
        CompactionError: ``pruner-groups``.
    """
    params = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    olds = [_uncompiled(each) for each in pruner.groups]
    kept = [(place, found) for place, each in enumerate(olds) if (found := _groups(each, params, modules, cuts))]
    groups = Partition([found[0] for _, found in kept], pruner.groups.kind, pruner.groups.excluded)
    new: Pruner = copy.copy(pruner)
    new.model, new.optimizer, new.groups = model, optimizer, groups
    new._rule = replace(pruner._rule, groups=groups)
    new.priors = [pruner.priors[place] for place, _ in kept]
    new.priors = [
        prior if prior.inclusion is None else replace(prior, inclusion=None, soft_threshold=prior.threshold(old.size))
        for prior, old in zip(new.priors, (pruner.groups[place] for place, _ in kept))
    ]

    def masks(held: list[Tensor]) -> list[Tensor]:
        return [take(held[place], cut).view(found.shape) for place, (found, cut) in kept]

    new._soft = masks(pruner._soft)
    new._running = None if pruner._running is None else masks(pruner._running)
    notes = _retarget_(pruner, new)
    new._covers = covers_of(groups)
    new._decay = GroupDecay(optimizer, new._covers, pruner._decay.spike_decay, pruner._decay.slab_decay)
    new._active, new._active_norms = [], []
    new._keep = [each.all_kept() for each in groups]
    new._set_keep_(masks(pruner._keep))
    new._fresh = pruner._fresh
    if pruner._decay.active:
        new._decay.set_(new._soft)
    if isinstance(new, FeedbackPruning) and isinstance(pruner, FeedbackPruning):
        notes.append("feedback: what was removed cannot come back")
        dense = {plain_name(name): tensor for name, tensor in pruner._dense.items()}
        new._dense = {
            cover.name: take(dense[cover.name], cuts.get(cover.name, [])) for cover, _ in new._active
            if cover.name in dense
        }  # fmt: skip
    new._hooks = link(new, optimizer)
    return new, notes


def _uncompiled(old: Groups) -> Groups:
    """Groups under the names that the model has without ``torch.compile``."""
    if not any(part.name.startswith(COMPILED) for part in old.slices):
        return old
    new = copy.copy(old)
    new.name = plain_name(old.name)
    new.slices, new.tied = (
        tuple(replace(part, name=plain_name(part.name)) for part in held) for held in (old.slices, old.tied)
    )
    new.norms = tuple((plain_name(name), norm) for name, norm in old.norms)
    new.starts = {plain_name(name): start for name, start in old.starts.items()}
    return new


def _retarget_(old: Pruner, new: Pruner) -> list[str]:
    """Set the target of what is left, and what the last ranking was asked for."""
    if old.target_sparsity is None:
        return []
    removed = old.groups.total - new.groups.total
    left = max(new.groups.total, 1)
    new.target_sparsity = max(0.0, (round(old.target_sparsity * old.groups.total) - removed) / left)
    new._wanted = max(0, old._wanted - removed)
    if new.target_sparsity == old.target_sparsity:
        return []
    return [
        f"pruner: target sparsity {old.target_sparsity:.4f} of all weights is {new.target_sparsity:.4f} of what is left"
    ]


def _groups(
    old: Groups, params: dict[str, Any], modules: dict[str, nn.Module], cuts: Mapping[str, Cut]
) -> tuple[Groups, Cut] | None:
    """The groups that are left of one groups object, and the cut of its mask; None if nothing is left."""
    made: CompactTensorGroups | CompactChannelGroups
    if isinstance(old, TensorGroups):
        if old.name not in params:
            return None
        cut, conv = cuts.get(old.name, []), old.conv_groups
        rows = next((index for dim, index in cut if dim == 0), None)
        if conv > 1 and rows is not None:
            per = old.param.shape[0] // conv
            left = torch.unique(rows // per)
            conv = int(left.numel())
        mask_cut: Cut = [
            (dim, index) for dim, index in cut if dim < len(old.shape) and old.shape[dim] == old.param.shape[dim]
        ]
        if len(old.shape) != old.param.dim():  # (G, 1, I/G, …) of a grouped convolution: whole channel groups went
            mask_cut = [] if rows is None else [(0, left)]
        made = CompactTensorGroups(old.name, params[old.name], old.kind, conv)
        made.trained_size = old.trained_size if isinstance(old, CompactTensorGroups) else old.size
        return made, mask_cut
    index = _channels(old, params, cuts)
    if index is None:
        return None
    count = int(index.numel())
    parts = {
        which: [_slice(part, params[part.name], old, count, cuts) for part in held if part.name in params]
        for which, held in (("slices", old.slices), ("tied", old.tied))
    }
    if not parts["slices"]:
        return None
    norms = [(name, modules[name]) for name, _ in old.norms if name in modules]
    starts = {name: _moved(start, cuts.get(f"{name}.running_mean", []), 0) for name, start in old.starts.items()}
    made = CompactChannelGroups(old.name, old.kind, (count,), parts["slices"], parts["tied"], norms, starts)
    made.trained_size = old.trained_size if isinstance(old, CompactChannelGroups) else old.size
    return made, [(0, index)]


def _channels(old: Groups, params: dict[str, Any], cuts: Mapping[str, Cut]) -> Tensor | None:
    """The channels of a coupled set that are left: the same in every tensor of it."""
    if old.count == 1:
        return torch.arange(1) if any(part.name in params for part in old.slices) else None
    found: Tensor | None = None
    for part in [*old.slices, *old.tied]:
        if part.name not in params:
            continue
        cut = _cut_along(cuts.get(part.name, []), part.axis)
        if cut is None:
            index = torch.arange(old.count)
        else:
            start, length = part.window or (0, part.length)
            own = cut[(cut >= start) & (cut < start + length)] - start
            index = torch.unique(own // (length // old.count))
        if found is not None and not torch.equal(found, index):
            raise CompactionError(
                "pruner-groups",
                f"the channels of group {old.name!r} were cut differently in {part.name!r}; use coupling='intersection' "
                "with groups='channel', or compact without the pruner",
            )
        found = index
    return found


def _cut_along(cut: Cut, axis: int) -> Tensor | None:
    return next((index for dim, index in cut if dim == axis), None)


def _moved(start: int, cut: Cut, axis: int) -> int:
    """Where an entry lies once what was cut in front of it is gone."""
    left = _cut_along(cut, axis)
    return start if left is None else int((left < start).sum())


def _slice(part: Slice, param: Tensor, old: Groups, count: int, cuts: Mapping[str, Cut]) -> Slice:
    at, each = part.axis, part.length // old.count
    mask_view = list(part.mask_view)
    mask_view[at] = count
    window = None
    if part.window is not None:
        window = _moved(part.window[0], cuts.get(part.name, []), at), count * each
    pair = (count,) if part.split is None else (count, each)
    return Slice(
        part.name, param, (*param.shape[:at], *pair, *param.shape[at + 1 :]), tuple(mask_view), part.split, at, window
    )
