"""Which channels belong together: read off the analysis of the graph that compaction makes.

Of a copy with all weights at zero the analysis says what compaction could remove if a channel's weights were zero: which
channels are tied, which stay for a reason, and which readers would still see something else than zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.graph.analysis import Analysis, Call
from bayesprune.graph.errors import CompactionError
from bayesprune.graph.hooks import changing_hooks, silent_copy
from bayesprune.graph.inputs import Inputs, small_batch
from bayesprune.graph.layers import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from bayesprune.graph.rules import analyse
from bayesprune.graph.trace import trace
from bayesprune.graph.zeros import Zeros
from bayesprune.sparsity.channel_spaces import ChannelSpace, Part

Place = tuple[Part, Tensor]
NORMS = (*BATCH_NORMS, nn.GroupNorm)


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
    for grid in a.grids:
        _settle_grid(a, grid.atoms, grid.full)
    return _spaces(a, "" if plain is model else "_orig_mod")


def _zeroed_analysis(model: nn.Module, example: Inputs) -> Analysis:
    """The analysis of a copy whose parameters are all zero."""
    few = small_batch(example)
    try:
        bare = silent_copy(model, changing_hooks(model, few))
        graph = trace(bare, few)
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
            if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                module.running_mean.zero_()
    return analyse(bare, graph, Zeros(bare, None, set()), False, drop=False)


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


def _places(a: Analysis) -> Iterator[Place]:
    """Every tensor that has channels, with the atoms along its axis."""
    first = {id(module): name for name, module in reversed(list(a.model.named_modules()))}
    for call in a.calls.values():
        name = first[id(call.module)]
        yield from _places_of(call, name)
    for name, (axis, atoms, _) in a.tensors.items():
        path, _, which = name.rpartition(".")
        if isinstance(getattr(a.modules[path], which), nn.Parameter):
            yield Part(path, which, axis, None, 1, "tied"), atoms


def _places_of(call: Call, name: str) -> Iterator[Place]:
    module: Any = call.module
    turned, norm = isinstance(module, TRANSPOSED), isinstance(module, NORMS)
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) or turned:
        grouped = int(module.groups) > 1 if hasattr(module, "groups") else False
        if call.source is not None and not grouped:
            yield Part(name, "weight", int(not turned), None, 1, "column"), call.source
        yield Part(name, "weight", int(turned), None, 1, "grouped" if grouped else "row"), call.target
    elif call.source is not None:  # an attention: it stays whole
        yield Part(name, "in_proj_weight", 1, None, 1, "column"), call.source
        yield Part(name, "out_proj.weight", 0, None, 1, "row"), call.target
    elif norm:
        affine = module.weight is not None
        yield Part(name, "weight" if affine else "", 0, None, 1, "norm"), call.target  # its statistics
    for which in ("weight", "bias") if norm else ("bias",):
        if isinstance(getattr(module, which, None), Tensor):
            yield Part(name, which, 0, None, 1, "tied"), call.target


def _spaces(a: Analysis, prefix: str) -> list[ChannelSpace]:
    classes = a.atoms.classes()
    places = [(part, classes[atoms].tolist()) for part, atoms in _places(a)]
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
    loud = _loud(a, classes)
    return [
        _space([places[number] for number in own], members, reason, loud, prefix)
        for (own, reason), members in sets.items()
    ]


def _loud(a: Analysis, classes: Tensor) -> dict[int, list[str]]:
    """Class -> the readers that do not see zero there."""
    first = {id(module): name for name, module in reversed(list(a.model.named_modules()))}
    found: dict[int, list[str]] = {}
    for mixer in a.mixers:
        for each in classes[mixer.source[mixer.const != 0]].tolist():
            found.setdefault(each, []).append(first[id(a.calls[mixer.name].module)])
    return found


_ORDER = ("row", "grouped", "column", "norm", "tied")


def _space(
    places: list[tuple[Part, list[int]]],
    ranks: dict[int, int],
    reason: str | None,
    loud: dict[int, list[str]],
    prefix: str,
) -> ChannelSpace:
    """One set, from the places where its classes lie; ``ranks``: their order."""

    def full(name: str) -> str:
        return f"{prefix}.{name}".strip(".") if prefix else name

    space = ChannelSpace(len(ranks), pinned=reason)
    for part, held in sorted(places, key=lambda place: _ORDER.index(place[0].role)):
        name, windows = full(part.module), _windows(held, ranks)
        if windows is None:
            space.pin(f"{name} has the channels in another order")
            continue
        if len(windows) > 1 and part.role == "norm" and not part.tensor:
            space.pin(f"{name} has the channels twice")
        start, each = windows[0]
        if not space.parts:
            space.block, space.channels = each, each * len(ranks)
        partly = len(windows) * each * len(ranks) < len(held) or len(windows) > 1
        for start_of, each_of in windows:
            space.parts.append(replace(part, module=name, start=start_of if partly else None, each=each_of))
        if part.role in ("column", "norm") and partly:
            space.starts[name] = start
        if part.role == "norm" and not part.tensor and each != space.block and partly:
            space.pin(f"{name} has the channels in blocks of another size")
        if part.role == "column":
            space.readers.append((name, max(each // space.block, 1)))
        elif part.role != "tied":
            {"row": space.writers, "grouped": space.depthwise, "norm": space.norms}[part.role].append(name)
    space.joined = len(space.writers) > 1
    space.loud = list(dict.fromkeys(full(name) for each in ranks for name in loud.get(each, [])))
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
