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
        if reason is None and space.channels // space.block < 2:
            reason = "a single channel" if space.block == 1 else "a single group of a GroupNorm"
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
    count = space.channels // space.block
    slices: list[Slice] = []
    tied: list[Slice] = []

    def cut(name: str, param: Tensor, axis: int, spread: int = 1, start: int | None = None) -> Slice:
        """The groups along an axis, ``spread`` entries a channel, from ``start`` on if other channels lie there too."""
        each, shape = spread * space.block, tuple(param.shape)
        ones = [1] * axis, [1] * (len(shape) - axis - 1)
        window = None if start is None else (start, count * each)
        if each == 1:
            view = (*shape[:axis], count, *shape[axis + 1 :])
            return Slice(name, param, view, (*ones[0], count, *ones[1]), None, axis, window)
        view = (*shape[:axis], count, each, *shape[axis + 1 :])
        return Slice(name, param, view, (*ones[0], count, 1, *ones[1]), axis, axis, window)

    for name in [*space.writers, *space.depthwise]:
        slices.append(cut(f"{name}.weight", _weight(named[name]), 0))
        if isinstance(bias := named[name].bias, Tensor):
            tied.append(cut(f"{name}.bias", bias, 0))
    for name, spread in readers:
        slices.append(cut(f"{name}.weight", _weight(named[name]), 1, spread, space.starts.get(name)))
    norms = [(name, named[name]) for name in space.norms]
    for name, norm in norms:
        for which in ("weight", "bias"):
            if isinstance(param := getattr(norm, which), Tensor):
                tied.append(cut(f"{name}.{which}", param, 0, 1, space.starts.get(name)))
    starts = {name: space.starts[name] for name, _ in norms if name in space.starts}
    return ChannelGroups(slices[0].name, "channel", (count,), slices, tied, norms, starts)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
