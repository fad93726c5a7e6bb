"""Channel groups: a channel together with every tensor that is tied to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayesprune.sparsity.channel_spaces import ChannelSpace, Part
from bayesprune.sparsity.groups import ChannelGroups, Exclusion, Partition, Slice
from bayesprune.sparsity.tracing import trace_channels

TRANSPOSED_REASON = "transposed convolutions are not pruned"


def channel_partition(
    model: nn.Module, modules: dict[str, nn.Module], excluded: list[Exclusion], coupling: str, example_input: Any
) -> Partition:
    """The channel groups of a model (see :func:`bayesprune.sparsity.partition`, ``kind="channel"``).

    Args:
        model: The model.
        modules: Its prunable modules.
        excluded: What was left out so far.
        coupling: ``"group"`` or ``"none"``.
        example_input: An input (or tuple of inputs).

    Returns:
        One :class:`ChannelGroups` a channel set that can be removed.

    Raises:
        ValueError: If the coupling is unknown or no channel can be removed.
    """
    if coupling not in ("group", "none"):
        raise ValueError(f"coupling={coupling!r} is unknown; choose 'group' or 'none'")
    named = dict(model.named_modules(remove_duplicate=False))
    dense = {each.name.removesuffix(".weight") for each in excluded if each.reason == TRANSPOSED_REASON}
    found: list[ChannelGroups] = []
    reasons: dict[str, str] = {}
    for space in trace_channels(model, example_input):
        if not space.writers:
            continue
        reason = _reason(space, modules, dense, coupling)
        groups = None if reason else _groups_of(space, named, modules, dense, coupling)
        if groups is None:
            reasons[f"channels of {', '.join(space.writers)}"] = reason or "no prunable weight"
        else:
            found.append(groups)
    if not found:
        why = "; ".join(f"{label}: {reason}" for label, reason in reasons.items())
        raise ValueError(
            f"no channel of the model can be removed ({why or 'no layer was traced'}); use groups='kernel'"
        )
    covered = {id(part.param) for groups in found for part in groups.slices}
    left = [
        Exclusion(f"{name}.weight", int(module.weight.numel()), "no removable channel")  # type: ignore[operator,union-attr]
        for name, module in modules.items()
        if id(module.weight) not in covered
    ]
    pinned = [Exclusion(label, 0, reason) for label, reason in reasons.items()]
    return Partition(found, "channel", [*excluded, *left, *pinned])


def _reason(space: ChannelSpace, modules: dict[str, nn.Module], dense: set[str], coupling: str) -> str | None:
    """Why the channels of a set cannot be removed; None if they can."""
    outside = [name for name in [*space.writers, *space.depthwise] if name not in modules and name not in dense]
    stay = [name for name in space.loud if coupling != "group" or (name not in modules and name not in dense)]
    if space.pinned is not None:
        return space.pinned
    if outside:
        return f"written by {outside[0]}, which is excluded"
    if coupling == "none" and (space.joined or len(space.writers) > 1):
        return "coupled with other layers (coupling='none')"
    if space.channels // space.block < 2:
        return (
            "a single channel"
            if space.block == 1
            else "a single group of a GroupNorm"
            if space.norms
            else "a single block"
        )
    if stay:
        return f"read by {stay[0]}, which would see something else than zero and keeps its columns"
    return None


def _groups_of(
    space: ChannelSpace, named: dict[str, nn.Module], modules: dict[str, nn.Module], dense: set[str], coupling: str
) -> ChannelGroups | None:
    count = space.channels // space.block
    slices: list[Slice] = []
    tied: list[Slice] = []
    for part in space.parts:
        if part.role == "norm" or (part.role == "column" and coupling != "group"):
            continue
        if part.role == "column" and part.module not in modules and part.module not in dense:
            continue
        counts = part.role != "tied" and part.module in modules
        (slices if counts else tied).append(_slice(part, getattr(named[part.module], part.tensor), count))
    norms = [(name, named[name]) for name in space.norms]
    starts = {name: space.starts[name] for name, _ in norms if name in space.starts}
    return ChannelGroups(slices[0].name, "channel", (count,), slices, tied, norms, starts) if slices else None


def _slice(part: Part, param: Tensor, count: int) -> Slice:
    """The groups along an axis of a tensor, where they lie on it."""
    shape, axis, each = tuple(param.shape), part.axis, part.each
    window = None if part.start is None else (part.start, count * each)
    pair, mask = ((count,), (count,)) if each == 1 else ((count, each), (count, 1))
    view = (*shape[:axis], *pair, *shape[axis + 1 :])
    mask_view = (*[1] * axis, *mask, *[1] * (len(shape) - axis - 1))
    return Slice(part.name, param, view, mask_view, None if each == 1 else axis, axis, window)
