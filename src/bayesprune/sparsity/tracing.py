"""Which channels belong together: the graph is traced; tensors that add up, or pass each other on, share channels.

A :class:`ChannelSpace` is a set of C channels with everything that touches them: the convolution and linear rows that
write them, the columns that read them, the BatchNorm pairs on the way. Residual additions join the spaces of their
summands.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# What acts on each channel alone and leaves a zero channel zero.
_PASS_MODULES: tuple[type, ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
    nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d,
    nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
_PASS_FUNCTIONS: set[Callable[..., Any]] = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh,
    torch.relu, torch.relu_, torch.tanh, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.max_pool1d, F.max_pool2d,
    F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate,
    operator.truediv, operator.neg, torch.neg,
}  # fmt: skip
_PASS_METHODS = {
    "relu",
    "relu_",
    "tanh",
    "tanh_",
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "double",
    "half",
    "neg",
}
_RESHAPES: tuple[Any, ...] = (torch.flatten, torch.reshape, "flatten", "view", "reshape", torch.squeeze, "squeeze")
_MEANS: tuple[Any, ...] = (torch.mean, torch.sum, torch.amax, "mean", "sum", "amax")
_ADDS: tuple[Any, ...] = (operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub")
_PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


@dataclass(eq=False)
class ChannelSpace:
    """A set of channels that exist or vanish together, and everything that touches them.

    Attributes:
        channels: Their number C.
        writers: Convolution and linear modules whose row c writes channel c.
        readers: Modules whose columns of channel c read it, with the number of columns a channel (more than one after a
            flatten).
        depthwise: Depthwise convolutions: their row c reads and writes channel c.
        norms: BatchNorm modules on the channels.
        pinned: Why the channels cannot be removed (``None`` if they can).
        joined: Whether an addition or product joined several tensors into this set.
    """

    channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    pinned: str | None = None
    joined: bool = False


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_CONV, *_NORM, nn.Linear)) or super().is_leaf_module(m, module_qualified_name)


@dataclass
class _Value:
    """What is known of one tensor of the graph: its channels lie on axis 1, ``spread`` entries each."""

    space: ChannelSpace
    spread: int
    shape: torch.Size


class _Walk:
    """One pass over the traced graph."""

    def __init__(self, model: nn.Module, example: tuple[Any, ...]) -> None:
        self.modules = dict(model.named_modules())
        self.spaces: list[ChannelSpace] = []
        self.values: dict[fx.Node, _Value] = {}
        self.calls: dict[str, tuple[_Value | None, _Value | None]] = {}
        self.weights: dict[int, str] = {}
        try:
            graph = _Tracer().trace(model)
        except Exception as error:  # torch.fx raises many types
            raise ValueError(
                f"the model's graph cannot be traced by torch.fx ({type(error).__name__}: {error}); channel "
                "groups need a forward without data-dependent control flow: use other groups, or rewrite it"
            ) from error
        modes = {module: module.training for module in model.modules()}
        model.eval()  # the shapes are wanted, not a step of the normalisation statistics
        try:
            with torch.no_grad():
                ShapeProp(fx.GraphModule(model, graph)).propagate(*example)
        except Exception as error:
            raise ValueError(
                f"example_input does not run through the model: {type(error).__name__}: {error}"
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode
        for node in graph.nodes:
            self._visit(node)

    # -- spaces ------------------------------------------------------------------------------------------------------

    def _new(self, node: fx.Node, shape: torch.Size, pinned: str | None = None) -> _Value:
        space = ChannelSpace(shape[1] if len(shape) > 1 else 1, pinned=pinned)
        self.spaces.append(space)
        value = _Value(space, 1, shape)
        self.values[node] = value
        return value

    def _pin(self, value: _Value | None, reason: str) -> None:
        if value is not None and value.space.pinned is None:
            value.space.pinned = reason

    def _join(self, a: _Value, b: _Value, reason: str) -> None:
        """Make two values share one space; where their channels do not match, both stay."""
        one, two = a.space, b.space
        if one is two:
            return
        if self.spaces.index(one) > self.spaces.index(two):
            one, two = two, one  # the order stays that of the graph
        if one.channels != two.channels or a.spread != b.spread:
            self._pin(a, reason)
            self._pin(b, reason)
            return
        one.writers += two.writers
        one.readers += two.readers
        one.depthwise += two.depthwise
        one.norms += two.norms
        one.pinned = one.pinned or two.pinned
        one.joined = True
        self.spaces.remove(two)
        for pair in self.calls.values():
            for value in pair:
                if value is not None and value.space is two:
                    value.space = one
        for value in self.values.values():
            if value.space is two:
                value.space = one

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        meta = node.meta.get("tensor_meta")
        shape = getattr(meta, "shape", None)
        sources = [self.values[arg] for arg in node.all_input_nodes if arg in self.values]
        if node.op == "output":
            for value in sources:
                self._pin(value, "model output")
        elif node.op == "placeholder":
            if shape is not None:
                self._new(node, shape, "model input")
        elif node.op == "get_attr":
            if shape is not None:
                self._new(node, shape, f"parameter or buffer {node.target} used outside a layer")
        elif node.op == "call_module":
            self._module(node, str(node.target), sources, shape)
        elif shape is None:
            if meta is not None:  # several tensors at once
                for value in sources:
                    self._pin(value, f"operation {_label(node)} returns several tensors")
        else:
            self._function(node, sources, shape)

    def _module(self, node: fx.Node, name: str, sources: list[_Value], shape: torch.Size | None) -> None:
        module = self.modules[name]
        source = sources[0] if len(sources) == 1 else None
        if source is None or shape is None:
            self._unknown(node, f"module {name} ({type(module).__name__})", sources, shape)
        elif isinstance(module, (*_CONV, nn.Linear)):
            self._layer(node, name, module, source, shape)
        elif isinstance(module, _NORM):
            if source.spread != 1:
                self._unknown(node, f"BatchNorm {name} behind a flatten", sources, shape)
            else:
                if name not in source.space.norms:
                    source.space.norms.append(name)
                self._again(name, source, source)
                self.values[node] = _Value(source.space, 1, shape)
        elif isinstance(module, nn.Flatten):
            self._reshape(node, source, shape, f"flatten {name}")
        elif isinstance(module, _PASS_MODULES) and shape[1] == source.shape[1]:
            self.values[node] = _Value(source.space, source.spread, shape)
        else:
            self._unknown(node, f"module {name} ({type(module).__name__})", sources, shape)

    def _layer(self, node: fx.Node, name: str, module: nn.Module, source: _Value, shape: torch.Size) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        owner = self.weights.setdefault(id(weight), name)
        if isinstance(module, nn.Linear) and len(shape) != 2:
            self._unknown(node, f"linear layer {name} on a tensor of {len(shape)} dimensions", [source], shape)
            return
        if owner != name:
            for value in [*self.calls.get(owner, ()), source]:
                self._pin(value, f"layers {owner} and {name} share their weight")
            self._new(node, shape, f"layers {owner} and {name} share their weight")
            return
        groups = getattr(module, "groups", 1)
        first = name not in self.calls
        if groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1:
            if first:
                source.space.depthwise.append(name)
            self._again(name, source, source)
            self.values[node] = _Value(source.space, source.spread, shape)
            return
        target = self._new(node, shape)
        if groups > 1:
            self._pin(source, f"read by the grouped convolution {name}")
            self._pin(target, f"written by the grouped convolution {name}")
        if first:
            source.space.readers.append((name, source.spread))
            target.space.writers.append(name)
        self._again(name, source, target)

    def _again(self, name: str, source: _Value, target: _Value) -> None:
        """A module called a second time ties both calls' channels."""
        if name in self.calls:
            before, after = self.calls[name]
            if before is not None and before.spread != source.spread:
                self._pin(source, f"module {name} is called on different layouts")
                self._pin(before, f"module {name} is called on different layouts")
            elif before is not None:
                self._join(before, source, f"module {name} is called twice")
            if after is not None:
                self._join(after, target, f"module {name} is called twice")
        else:
            self.calls[name] = (
                _Value(source.space, source.spread, source.shape),
                _Value(target.space, 1, target.shape),
            )

    def _function(self, node: fx.Node, sources: list[_Value], shape: torch.Size) -> None:
        target = node.target
        added = target in _ADDS and all(s.shape == shape for s in sources)
        multiplied = target in _PRODUCTS and all(_broadcasts(s.shape, shape) for s in sources)
        if len(sources) == 2 and (added or multiplied):
            self._join(sources[0], sources[1], f"operation {_label(node)} joins unlike channels")
            self.values[node] = _Value(sources[0].space, sources[0].spread, shape)
        elif len(sources) != 1:
            self._unknown(node, f"operation {_label(node)}", sources, shape)
        elif (target in _ADDS or target in _PRODUCTS) and shape != sources[0].shape:
            self._unknown(node, f"operation {_label(node)} changes the shape and", sources, shape)
        elif target in (*_PASS_FUNCTIONS, *_ADDS, *_PRODUCTS) or (node.op == "call_method" and target in _PASS_METHODS):
            self.values[node] = _Value(sources[0].space, sources[0].spread, shape)
        elif target in _RESHAPES:
            self._reshape(node, sources[0], shape, f"operation {_label(node)}")
        elif target in _MEANS and sources[0].spread == 1 and _is_pool(sources[0].shape, shape, node):
            self.values[node] = _Value(sources[0].space, 1, shape)
        else:
            self._unknown(node, f"operation {_label(node)}", sources, shape)

    def _reshape(self, node: fx.Node, source: _Value, shape: torch.Size, label: str) -> None:
        before = source.shape
        if len(shape) == 2 and len(before) >= 2 and shape[0] == before[0] and shape[1] == math.prod(before[1:]):
            self.values[node] = _Value(source.space, source.spread * math.prod(before[2:]), shape)
        elif shape[:2] == before[:2]:
            self.values[node] = _Value(source.space, source.spread, shape)
        else:
            self._unknown(node, label, [source], shape)

    def _unknown(self, node: fx.Node, label: str, sources: list[_Value], shape: torch.Size | None) -> None:
        reason = f"{label} is not known to act on each channel alone"
        for value in sources:
            self._pin(value, reason)
        if shape is not None:
            self._new(node, shape, reason)


def _label(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _broadcasts(shape: torch.Size, result: torch.Size) -> bool:
    return len(shape) == len(result) and shape[1] == result[1]


def _is_pool(before: torch.Size, after: torch.Size, node: fx.Node) -> bool:
    """Whether a reduction ran over axes behind the channels only."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axes = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (list, tuple)) else []
    return bool(axes) and all(isinstance(a, int) and a % len(before) >= 2 for a in axes) and before[:2] == after[:2]


def trace_channels(model: nn.Module, example_input: Any) -> list[ChannelSpace]:
    """Find which channels of a model are coupled.

    The graph is traced with ``torch.fx`` and run once in evaluation mode on ``example_input`` for its shapes; modes are
    restored. Whatever the tracer does not know to act on each channel alone pins the channels it touches, with a
    reason.

    Args:
        model: The model.
        example_input: An input tensor, or a tuple of the inputs.

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
    example = tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,)
    return _Walk(model, example).spaces
