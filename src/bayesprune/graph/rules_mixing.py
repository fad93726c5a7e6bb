"""Rules for what moves or pairs channels in ways of its own: gated halves, shuffles, transposed convolution, expand."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from bayesprune.graph.analysis import Analysis, Grid, Mixer, argument, label
from bayesprune.graph.rules_layers import mixed_const, unusual
from bayesprune.graph.values import NAN, Value, unknown_like


def _setting(node: fx.Node, module: Any, place: int, name: str, default: Any) -> Any:
    if module is not None:
        return getattr(module, name)
    return argument(node, place, name, default)


def gated_halves(a: Analysis, node: fx.Node, module: Any) -> Any:
    """GLU: the first half of the channels times the sigmoid of the second; pairs stay or go."""
    source, dim = a.read(node, node.args[0]), _setting(node, module, 1, "dim", -1)
    if not isinstance(source, Value) or not isinstance(dim, int):
        return a.unknown(node, f"operation {label(node)}")
    if not source.on(dim):
        return (
            a.unknown(node, f"{label(node)} across the channels' dimension")
            if source.axes
            else a.opaque(node, source.why)
        )
    (one, two), (first, second) = source.atoms.chunk(2), source.const.chunk(2)
    a.atoms.tie(one, two)
    const = torch.where(first == 0, 0.0, first * second.sigmoid())
    return Value(node.meta["shape"], source.axes, one, a.settled(const))


def softmax(a: Analysis, node: fx.Node, module: Any) -> Any:
    """A softmax over another dimension than the channels' acts on each channel alone; no channel is zero behind it."""
    source = a.read(node, node.args[0])
    dim = _setting(node, module, 1, "dim", None)
    if not isinstance(source, Value) or not isinstance(dim, int) or dim % len(source.shape) in source.axes:
        return a.unknown(node, f"operation {label(node)}")
    return source.with_const(unknown_like(source.const))


def pixel_shuffle(a: Analysis, node: fx.Node, module: Any) -> Any:
    """r² neighbouring channels become one of r times the size."""
    source, factor = a.read(node, node.args[0]), _setting(node, module, 1, "upscale_factor", None)
    if not isinstance(source, Value) or not isinstance(factor, int) or not source.on(1) or len(source.shape) != 4:
        return a.unknown(node, f"operation {label(node)}")
    blocks, const = source.atoms.view(-1, factor**2), source.const.view(-1, factor**2)
    for block in blocks:
        a.atoms.tie_all(block)
    alike = (const == const[:, :1]).all(1)
    return Value(node.meta["shape"], (1,), blocks[:, 0], torch.where(alike, const[:, 0], NAN))


def channel_shuffle(a: Analysis, node: fx.Node, module: Any) -> Any:
    """Groups of channels are interleaved: the same places of all groups stay or go."""
    source, groups = a.read(node, node.args[0]), _setting(node, module, 1, "groups", None)
    if not isinstance(source, Value) or not isinstance(groups, int) or not source.on(1):
        return a.unknown(node, f"operation {label(node)}")
    atoms = source.atoms.view(groups, -1)
    a.grids.append(Grid(node, atoms, (0,), f"one of the same place in {label(node)}"))
    return Value(source.shape, source.axes, atoms.t().reshape(-1), source.const.view(groups, -1).t().reshape(-1))


def expand(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``expand``: other dimensions grow."""
    source, shape = a.read(node, node.args[0]), node.meta.get("shape")
    sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    if not isinstance(source, Value) or not isinstance(shape, torch.Size) or len(sizes) != len(shape):  # type: ignore[arg-type]
        return a.unknown(node, f"operation {label(node)}")
    value = source.aligned(len(shape))
    if any(sizes[axis] != -1 or value.shape[axis] != shape[axis] for axis in value.axes):  # type: ignore[index]
        return a.unknown(node, f"operation {label(node)} that names the number of channels")
    return value.shaped(shape)


def transposed(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``nn.ConvTranspose1d/2d/3d`` in one group: its weight has the columns first."""
    source, name = a.read(node, node.args[0]) if len(node.args) == 1 and not node.kwargs else None, node.meta["name"]
    if not isinstance(source, Value) or module.groups > 1 or unusual(module):
        why = "grouped" if module.groups > 1 else unusual(module) or "called unusually"
        return a.unknown(node, f"transposed convolution {name} ({why})")
    source = a.collapsed(source, 1)
    if len(source.shape) != module.weight.dim() or source.axes not in ((), (1,)):
        return a.unknown(node, f"transposed convolution {name} across the channels' dimension")
    source = a.channels(node, source, 1)
    used = ~a.zeros.of(module.weight).flatten(2).all(2).t()
    target = Value(node.meta["shape"], (1,), a.atoms.fresh(used.shape[0]))
    if (reason := a.shared(node, module.weight, module.bias)) is not None:
        a.pin(node, source, reason)
        a.pin(node, target, reason)
    a.call(node, module, source.atoms, target.atoms)
    const = torch.where(source.const == 0, 0.0, unknown_like(source.const))  # what it makes of a constant varies
    a.mixers.append(Mixer(name, node, source.atoms, target.atoms, used, const, False))
    target.const = mixed_const(a, used, const, torch.zeros(used.shape, dtype=torch.float64), module.bias, False)
    return target
