"""LSTM, GRU and RNN: hidden units stay or go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from bayesprune.graph.analysis import Analysis, Mixer
from bayesprune.graph.layers import gates, recurrent_parts
from bayesprune.graph.rules_layers import unusual_parameters
from bayesprune.graph.values import NAN, Value


def recurrent(a: Analysis, node: fx.Node, module: Any) -> Any:
    """A recurrent layer from a hidden state of zero; a unit is one through all layers and directions, which share a size."""
    name = node.meta["name"]
    source = a.read(node, node.args[0]) if len(node.args) == 1 and not node.kwargs else None
    odd = unusual_parameters(module, *module._flat_weights_names)
    if not isinstance(source, Value) or odd or module.proj_size:
        why = odd or ("its output is projected" if module.proj_size else "a hidden state is given")
        return a.unknown(node, f"recurrent layer {name} ({why})")
    last = len(source.shape) - 1
    if source.axes not in ((), (last,)):
        return a.unknown(node, f"recurrent layer {name} across the channels' dimension")
    source = a.channels(node, source, last)
    size, both = int(module.hidden_size), 2 if module.bidirectional else 1
    units = a.atoms.fresh(size)
    zero = _silent(a, module, source.const)
    const = torch.where(zero, 0.0, torch.full((size,), NAN, dtype=torch.float64))
    for layer, direction in recurrent_parts(module):
        reads = (source.atoms, source.const) if layer == 0 else (units.repeat(both), const.repeat(both))
        for weight, (atoms, held) in (("ih", reads), ("hh", (units, const))):
            used = _used(a, module, f"weight_{weight}_l{layer}{direction}").any(0)
            a.mixers.append(Mixer(name, node, atoms, units, used, held, False, moves=False))
    if (reason := a.shared(node, *(getattr(module, each) for each in module._flat_weights_names))) is not None:
        a.pin(node, source, reason)
        a.pin(node, Value(torch.Size((size,)), (0,), units), reason)
    a.call(node, module, source.atoms, units)
    return _values(node.meta["shape"], units, const, both)


def _values(shape: Any, units: Tensor, const: Tensor, both: int) -> Any:
    """What the layer returns: all steps, and the last state (or the last state and cell)."""
    steps, state = shape
    out = Value(steps, (len(steps) - 1,), units.repeat(both), const.repeat(both))

    def held(each: torch.Size) -> Value:
        return Value(each, (len(each) - 1,), units, const)

    return out, held(state) if isinstance(state, torch.Size) else tuple(map(held, state))


def _used(a: Analysis, module: Any, name: str) -> Tensor:
    """(gates, units, columns): where a weight is not zero for good."""
    weight = getattr(module, name)
    return (~a.zeros.of(weight)).view(gates(module), -1, weight.shape[1])


def _silent(a: Analysis, module: nn.RNNBase, source: Tensor) -> Tensor:
    """The units that are zero at every step, in all layers and directions: the largest set that feeds on itself alone."""
    candidate = 2 if gates(module) > 1 else 0
    zero = torch.ones(module.hidden_size, dtype=torch.bool)
    both = 2 if module.bidirectional else 1
    while True:
        found = zero.clone()
        for layer, direction in recurrent_parts(module):
            live = source != 0 if layer == 0 else ~zero.repeat(both)  # NaN is not 0
            for weight, columns in (("ih", live), ("hh", ~zero)):
                part = f"{weight}_l{layer}{direction}"
                found &= ~(_used(a, module, f"weight_{part}")[candidate] & columns).any(1)
                if module.bias:
                    bias: Tensor = getattr(module, f"bias_{part}")
                    found &= a.zeros.of(bias).view(gates(module), -1)[candidate]
        if torch.equal(found, zero):
            return zero
        zero = found
