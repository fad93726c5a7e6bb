"""Channel groups: a channel together with every tensor that is tied to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayesprune.sparsity.groups import ChannelGroups, Exclusion, Partition, Slice
from bayesprune.sparsity.tracing import ChannelSpace, trace_channels


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
    named = dict(model.named_modules())
    found: list[ChannelGroups] = []
    reasons: dict[str, str] = {}
    for space in trace_channels(model, example_input):
        if not space.writers:
            continue
        label = f"channels of {', '.join(space.writers)}"
        reason = space.pinned
        outside = [name for name in [*space.writers, *space.depthwise] if name not in modules]
        if reason is None and outside:
            reason = f"written by {outside[0]}, which is excluded"
        if reason is None and coupling == "none" and (space.joined or len(space.writers) > 1):
            reason = "coupled with other layers (coupling='none')"
        if reason is None and space.channels < 2:
            reason = "a single channel"
        if reason is not None:
            reasons[label] = reason
            continue
        found.append(_groups_of(space, named, [r for r in space.readers if coupling == "group" and r[0] in modules]))
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


def _groups_of(space: ChannelSpace, named: dict[str, nn.Module], readers: list[tuple[str, int]]) -> ChannelGroups:
    count = space.channels
    slices: list[Slice] = []
    tied: list[Slice] = []

    def vector(name: str, param: Any) -> None:
        if isinstance(param, Tensor):
            tied.append(Slice(name, param, (count,), (count,)))

    for name in [*space.writers, *space.depthwise]:
        weight = _weight(named[name])
        slices.append(Slice(f"{name}.weight", weight, tuple(weight.shape), (count, *[1] * (weight.dim() - 1))))
        vector(f"{name}.bias", named[name].bias)
    for name, spread in readers:
        weight = _weight(named[name])
        shape = tuple(weight.shape)
        if spread == 1:
            slices.append(Slice(f"{name}.weight", weight, shape, (1, count, *[1] * (weight.dim() - 2))))
        else:
            slices.append(Slice(f"{name}.weight", weight, (shape[0], count, spread), (1, count, 1), split=1))
    norms = [(name, named[name]) for name in space.norms]
    for name, norm in norms:
        vector(f"{name}.weight", norm.weight)
        vector(f"{name}.bias", norm.bias)
    return ChannelGroups(slices[0].name, "channel", (count,), slices, tied, norms)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
