"""Channel groups: a channel together with every tensor that is tied to it, read off the graph that compaction reads.

Of a copy with all weights at zero the graph's analysis says what compaction could remove if a channel's weights were zero:
which channels are tied, which stay for a reason, and which readers would still see something else than zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.graph.analysis import Analysis, Pin, label
from bayesprune.graph.errors import CompactionError
from bayesprune.graph.hooks import changing_hooks, silent_copy
from bayesprune.graph.inputs import Inputs, few_that_run
from bayesprune.graph.layers import CHANNEL_NORMS, PACKED
from bayesprune.graph.rules import analyse
from bayesprune.graph.switches import switched
from bayesprune.graph.trace import depends_on_mode, trace, with_training
from bayesprune.graph.zeros import Zeros
from bayesprune.sparsity.groups import COMPILED, ChannelGroups, Slice

ROLES = ("row", "grouped", "column", "norm", "tied")  # in this order a set's tensors are listed


@dataclass(frozen=True)
class Part:
    """Where the channels of a set lie in one tensor: ``each`` neighbouring entries a group, from ``start`` on."""

    module: str
    tensor: str
    axis: int
    role: str
    start: int | None = None
    each: int = 1

    @property
    def name(self) -> str:
        """The tensor's name in the model."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor


@dataclass(eq=False)
class ChannelSpace:
    """A set of channels that exist or vanish together, and everything that touches them.

    Attributes:
        channels: Their number C.
        block: Number of neighbouring channels that can only vanish together: whole groups of a GroupNorm or of a grouped
            convolution, whole heads.
        pinned: Why the channels cannot be removed (``None`` if they can).
        loud: Readers that see something else than zero where the channel's own weights are zero (behind a sigmoid):
            without their columns zeroed too the channel cannot go.
        parts: All tensors of the set.

    Example:
        >>> space = ChannelSpace(channels=16, block=4)
        >>> space.pinned is None, space.channels // space.block
        (True, 4)
    """

    channels: int
    block: int = 1
    pinned: str | None = None
    loud: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def _modules(self, role: str) -> list[str]:
        return list(dict.fromkeys(part.module for part in self.parts if part.role == role))

    @property
    def writers(self) -> list[str]:
        """Convolution and linear modules whose row c writes channel c."""
        return self._modules("row")

    @property
    def readers(self) -> list[tuple[str, int]]:
        """Modules whose columns of channel c read it, and how many columns (more than one after a flatten)."""
        columns = [part for part in self.parts if part.role == "column"]
        return list(
            {part.module: (part.module, max(part.each // self.block, 1)) for part in reversed(columns)}.values()
        )[::-1]

    @property
    def depthwise(self) -> list[str]:
        """Grouped convolutions: their rows of a group read and write its channels."""
        return self._modules("grouped")

    @property
    def norms(self) -> list[str]:
        """BatchNorm and GroupNorm modules on the channels."""
        return self._modules("norm")

    @property
    def starts(self) -> dict[str, int]:
        """Of readers and norms on a concatenation, the first column (entry) that belongs to this set."""
        own = [part for part in self.parts if part.role in ("column", "norm")]
        return {part.module: part.start for part in reversed(own) if part.start is not None}

    @property
    def joined(self) -> bool:
        """Whether several layers write them, or one twice."""
        return sum(part.role == "row" for part in self.parts) > 1


def trace_channels(model: nn.Module, example_input: Any) -> list[ChannelSpace]:
    """Find which channels of a model are coupled.

    The graph is traced with ``torch.fx`` in evaluation mode on ``example_input``, on a copy. Whatever the tracer does
    not know to act on each channel alone pins the channels it touches, with a reason.

    Args:
        model: The model.
        example_input: An input tensor, a tuple of the inputs, or a dict of them by name.

    Returns:
        The channel sets in the order of the graph; a set with ``pinned`` cannot be removed.

    Raises:
        ValueError: If the graph cannot be traced or the input does not run.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2))
        >>> for space in trace_channels(net, torch.zeros(1, 3, 4, 4)):
        ...     print(space.channels, space.writers, space.norms, space.readers, space.pinned)
        3 [] [] [('0', 1)] model input
        8 ['0'] ['1'] [('4', 4)] None
        2 ['4'] [] [] model output

    Reference: method, section 7.
    """
    if example_input is None:
        raise ValueError("example_input is needed for groups='channel': an input tensor on which the graph is traced")
    plain = getattr(model, "_orig_mod", model)
    a = _zeroed_analysis(plain, Inputs.of(plain, example_input))
    return _spaces(a, "" if plain is model else COMPILED)


def channel_groups(
    model: nn.Module, modules: dict[str, nn.Module], dense: set[str], coupling: str, example_input: Any
) -> tuple[list[ChannelGroups], dict[str, str]]:
    """The channel groups of a model, one object a set that can be removed, and of the other sets the reason."""
    if coupling not in ("group", "none"):
        raise ValueError(f"coupling={coupling!r} is unknown; choose 'group' or 'none'")
    found: list[ChannelGroups] = []
    reasons: dict[str, str] = {}
    for space in trace_channels(model, example_input):
        if not space.writers:
            continue
        reason = _reason(space, model, modules, dense, coupling)
        groups = None if reason else _groups_of(space, model, modules, dense, coupling)
        if groups is None:
            reasons[f"channels of {', '.join(space.writers)}"] = reason or "no prunable weight"
        else:
            found.append(groups)
    _tell_apart(found)
    if not found:
        why = "; ".join(f"{label}: {reason}" for label, reason in reasons.items())
        raise ValueError(
            f"no channel of the model can be removed ({why or 'no layer was traced'}); use groups='kernel'"
        )
    return found, reasons


def _tell_apart(found: list[ChannelGroups]) -> None:
    """Name by number the further sets that begin with the same tensor: its rows and its columns, or parts of its rows."""
    seen: dict[str, int] = {}
    for groups in found:
        seen[groups.name] = count = seen.get(groups.name, 0) + 1
        if count > 1:
            groups.name = f"{groups.name} ({count})"


def _reason(
    space: ChannelSpace, model: nn.Module, modules: dict[str, nn.Module], dense: set[str], coupling: str
) -> str | None:
    """Why the channels of a set cannot be removed; None if they can."""
    outside = [name for name in [*space.writers, *space.depthwise] if name not in modules and name not in dense]
    stay = [name for name in space.loud if coupling != "group" or (name not in modules and name not in dense)]
    if space.pinned is not None:
        return space.pinned
    if outside:
        return f"written by {outside[0]}, which is excluded"
    if coupling == "none" and space.joined:
        return "coupled with other layers (coupling='none')"
    if space.channels // space.block < 2:
        if space.block == 1:
            return "a single channel"
        grouped = any(isinstance(model.get_submodule(name), nn.GroupNorm) for name in space.norms)
        return "a single group of a GroupNorm" if grouped else "a single block"
    if stay:
        return f"read by {stay[0]}, which would see something else than zero and keeps its columns"
    return None


def _groups_of(
    space: ChannelSpace, model: nn.Module, modules: dict[str, nn.Module], dense: set[str], coupling: str
) -> ChannelGroups | None:
    count = space.channels // space.block
    slices: list[Slice] = []
    tied: list[Slice] = []
    norms: list[tuple[Slice, nn.Module]] = []
    for part in space.parts:
        if part.role == "column" and (coupling != "group" or part.module not in (*modules, *dense)):
            continue
        owner = model.get_submodule(part.module)
        tensor = getattr(owner, part.tensor, None)
        if tensor is None:
            continue  # a normalisation without running statistics
        own = Slice.along(part.name, tensor, part.axis, count, part.each, part.start)
        if part.role == "norm":
            norms.append((own, owner))
        else:
            (slices if part.role != "tied" and part.module in modules else tied).append(own)
    return ChannelGroups(slices[0].name, "channel", (count,), slices, tied, norms) if slices else None


def _zeroed_analysis(model: nn.Module, example: Inputs) -> Analysis:
    """The analysis of a copy whose parameters are all zero."""
    try:
        few = few_that_run(lambda: silent_copy(model, changing_hooks(model, example)), example)
        bare = silent_copy(model, changing_hooks(model, few))
        graph = with_training(bare, trace(bare, few), few)
    except CompactionError as error:
        if error.reason == "not-traceable":
            raise ValueError(
                f"the model's graph cannot be traced by torch.fx ({error}); channel groups need a forward without "
                "data-dependent control flow: use other groups, or rewrite it"
            ) from error
        raise
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied ({type(error).__name__}: {error}); use groups other than 'channel'"
        ) from error
    with torch.no_grad():
        for param in bare.parameters():
            param.zero_()
        for module in bare.modules():
            if isinstance(module, CHANNEL_NORMS) and module.running_mean is not None:
                module.running_mean.zero_()
    a = analyse(bare, graph, Zeros(bare, None, set()), False, drop=False)
    for grid in a.grids:
        _settle_grid(a, grid.atoms, grid.full)
    _pin_literal_sizes(a, few)
    return a


def _pin_literal_sizes(a: Analysis, example: Inputs) -> None:
    """Keep what the code counts by a number, where no graph can stand for a forward that is another one in training."""
    classes, counted = a.atoms.classes(), []
    for size in [each for each in a.sizes if each.node in a.alive and not each.computed]:
        held: list[Tensor] = []

        def noted(atoms: Tensor, held: list[Tensor] = held) -> Tensor:
            held.append(atoms.reshape(-1))
            return torch.ones_like(atoms, dtype=torch.bool)

        size.new(noted)
        for each in classes[torch.cat(held)].unique():
            if size.new((classes != each).__getitem__) != size.old:
                counted.append((size.node, (classes == each).nonzero().flatten()))
    if counted and (depends_on_mode(a.model, example) or switched(a.model, example)):
        for node, atoms in counted:
            why = f"{label(node)} ({node.name}) names their number in a forward that depends on the mode"
            a.pins.append(Pin(node, atoms, f"{why}: write chunk, -1 or x.shape[dim] there"))


def _settle_grid(a: Analysis, atoms: Tensor, full: tuple[int, ...]) -> None:
    """Tie atoms so that whatever is kept of them forms a grid: along all axes but one."""
    for axis in full:
        _tie_along(a, atoms, axis)
    while True:
        roots = a.atoms.roots(atoms)
        vary = [axis for axis in range(atoms.dim()) if not bool((roots == roots.narrow(axis, 0, 1)).all())]
        if len(vary) < 2:
            return
        _tie_along(a, atoms, min(vary, key=lambda axis: atoms.shape[axis]))


def _tie_along(a: Analysis, atoms: Tensor, axis: int) -> None:
    first = atoms.select(axis, 0)
    for n in range(1, atoms.shape[axis]):
        a.atoms.tie(first, atoms.select(axis, n))


def _places(a: Analysis, first: dict[int, str]) -> Iterator[tuple[Part, Tensor]]:
    """Every tensor that has channels, with the atoms along its axis."""
    for call in a.calls.values():
        module, name = call.module, first[id(call.module)]
        if isinstance(module, nn.PReLU):
            continue  # what a slope makes of zero is zero
        norm = isinstance(module, (*CHANNEL_NORMS, nn.GroupNorm))
        if norm:
            yield Part(name, "running_mean", 0, "norm"), call.target
        inner = isinstance(module, PACKED)  # it reads channels of its own too
        for tensor, axis, atoms in sorted(call.sides(), key=lambda side: side[2] is not call.source):
            if tensor.startswith("running"):
                continue
            tied, grouped = norm or "bias" in tensor, int(getattr(module, "groups", 1)) > 1
            reads = atoms is call.source or (inner and axis == 1)
            role = "column" if reads else "tied" if tied else "grouped" if grouped else "row"
            path, _, which = tensor.rpartition(".")
            yield Part(f"{name}.{path}".strip("."), which, axis, role), atoms
    for name, (axis, atoms, _) in a.tensors.items():
        path, _, which = name.rpartition(".")
        if isinstance(getattr(a.modules[path], which), nn.Parameter):
            yield Part(path, which, axis, "tied"), atoms


def _spaces(a: Analysis, prefix: str) -> list[ChannelSpace]:
    classes = a.atoms.classes()
    first = {id(module): name for name, module in reversed(list(a.model.named_modules()))}
    places = [(part, classes[atoms].tolist()) for part, atoms in _places(a, first)]
    pins: dict[int, str] = {}
    for pin in a.pins:
        for each in classes[pin.atoms].reshape(-1).tolist():
            pins.setdefault(each, pin.reason)
    # Channels that lie in the same tensors, as often, and stay for the same reason are one set.
    counts: dict[int, dict[int, int]] = {}
    for number, (_, held) in enumerate(places):
        for each in held:
            own = counts.setdefault(each, {})
            own[number] = own.get(number, 0) + 1
    sets: dict[Any, dict[int, int]] = {}
    for each, own in counts.items():  # in the order of their first appearance
        members = sets.setdefault((tuple(own), pins.get(each)), {})
        members[each] = len(members)
    loud: dict[int, list[str]] = {}  # class -> the readers that do not see zero there
    for mixer in a.mixers:
        for each in classes[mixer.source[mixer.const != 0]].tolist():
            loud.setdefault(each, []).append(first[id(a.calls[mixer.name].module)])
    return [
        _space([places[number] for number in own], members, reason, loud, prefix)
        for (own, reason), members in sets.items()
    ]


def _space(
    places: list[tuple[Part, list[int]]],
    ranks: dict[int, int],
    reason: str | None,
    loud: dict[int, list[str]],
    prefix: str,
) -> ChannelSpace:
    """One set, from the places where its classes lie; ``ranks``: their order."""
    space = ChannelSpace(len(ranks), pinned=reason)
    for part, held in sorted(places, key=lambda place: ROLES.index(place[0].role)):
        name, windows = f"{prefix}{part.module}".removesuffix("."), _windows(held, ranks)
        if windows is None:
            space.pinned = space.pinned or f"{name} has the channels in another order"
            continue
        if not space.parts:
            space.block, space.channels = windows[0][1], windows[0][1] * len(ranks)
        partly = sum(each for _, each in windows) * len(ranks) < len(held) or len(windows) > 1
        space.parts += [
            replace(part, module=name, start=start if partly else None, each=each) for start, each in windows
        ]
    heard = [f"{prefix}{name}".removesuffix(".") for each in ranks for name in loud.get(each, [])]
    space.loud = list(dict.fromkeys(heard))
    return space


def _windows(held: list[int], ranks: dict[int, int]) -> list[tuple[int, int]] | None:
    """Where the classes lie one behind the other, each as often: (start, entries a class); None if in another order."""
    found, n = [], 0
    while n < len(held):
        if held[n] not in ranks:
            n += 1
            continue
        each = next((m for m in range(n, len(held)) if held[m] != held[n]), len(held)) - n
        wanted = [each_class for each_class in ranks for _ in range(each)]
        if held[n : n + len(wanted)] != wanted:
            return None
        found.append((n, each))
        n += len(wanted)
    return found
