"""Which channels belong together: the graph is traced; tensors that add up, or pass each other on, share channels.

A :class:`ChannelSpace` is a set of C channels with everything that touches them: the convolution and linear rows that
write them, the columns that read them, the normalisation pairs on the way. Residual additions join the spaces of their
summands; a concatenation lays spaces one behind the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from bayesprune.sparsity.channel_spaces import (
    ADDS,
    BATCH_NORMS,
    CATS,
    CONVOLUTIONS,
    PASS_FUNCTIONS,
    PASS_METHODS,
    PASS_MODULES,
    PRODUCTS,
    RESHAPES,
    ChannelSpace,
    ChannelValue,
    axis_after,
    broadcasts,
    label,
    passes,
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*CONVOLUTIONS, *BATCH_NORMS, nn.Linear)) or super().is_leaf_module(
            m, module_qualified_name
        )


class _Walk:
    """One pass over the traced graph."""

    def __init__(self, model: nn.Module, example: tuple[Any, ...]) -> None:
        self.modules = dict(model.named_modules())
        self.spaces: list[ChannelSpace] = []
        self.values: dict[fx.Node, ChannelValue] = {}
        self.calls: dict[str, tuple[ChannelValue | None, ChannelValue | None]] = {}
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

    def _new(self, node: fx.Node, shape: torch.Size, pinned: str | None = None, axis: int = 1) -> ChannelValue:
        space = ChannelSpace(shape[axis] if len(shape) > axis else 1, pinned=pinned)
        self.spaces.append(space)
        value = ChannelValue([(space, 1)], shape, axis)
        self.values[node] = value
        return value

    def _pin(self, value: ChannelValue | None, reason: str) -> None:
        for space, _ in value.parts if value is not None else []:
            space.pin(reason)

    def _join(self, a: ChannelValue, b: ChannelValue, reason: str) -> None:
        """Make two values share their sets; where their channels do not match, all stay."""
        if [(s.channels, spread) for s, spread in a.parts] != [(s.channels, spread) for s, spread in b.parts]:
            self._pin(a, reason)
            self._pin(b, reason)
            return
        for place in range(len(a.parts)):
            one, two = a.parts[place][0], b.parts[place][0]
            if one is two:
                continue
            if self.spaces.index(one) > self.spaces.index(two):
                one, two = two, one  # the order stays that of the graph
            one.absorb(two)
            self.spaces.remove(two)
            held = [value for pair in self.calls.values() for value in pair if value is not None]
            for value in [*held, *self.values.values(), a, b]:
                value.parts = [(one if space is two else space, spread) for space, spread in value.parts]

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
                    self._pin(value, f"operation {label(node)} returns several tensors")
        else:
            self._function(node, sources, shape)

    def _module(self, node: fx.Node, name: str, sources: list[ChannelValue], shape: torch.Size | None) -> None:
        module = self.modules[name]
        source = sources[0] if len(sources) == 1 else None
        if source is None or shape is None:
            self._unknown(node, f"module {name} ({type(module).__name__})", sources, shape)
        elif isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            self._layer(node, name, module, source, shape)
        elif isinstance(module, (*BATCH_NORMS, nn.GroupNorm)):
            self._norm(node, name, module, source, shape)
        elif isinstance(module, nn.Flatten):
            self._reshape(node, source, shape, f"flatten {name}")
        elif isinstance(module, PASS_MODULES) and passes(type(module).__name__, source, shape):
            self.values[node] = source.like(shape)
        else:
            self._unknown(node, f"module {name} ({type(module).__name__})", sources, shape)

    def _norm(self, node: fx.Node, name: str, module: nn.Module, source: ChannelValue, shape: torch.Size) -> None:
        kind = "GroupNorm" if isinstance(module, nn.GroupNorm) else "BatchNorm"
        if source.axis != 1 or any(spread != 1 for _, spread in source.parts):
            self._unknown(node, f"{kind} {name} behind a flatten or on another axis", [source], shape)
            return
        if isinstance(module, nn.GroupNorm):
            if not source.plain:
                self._unknown(node, f"GroupNorm {name} on a concatenation", [source], shape)
                return
            space = source.parts[0][0]
            space.block = math.lcm(space.block, space.channels // module.num_groups)
        if name not in self.calls:
            self._touch(name, source, lambda space, spread: space.norms.append(name))
        self._again(name, source, source)
        self.values[node] = source.like(shape)

    def _touch(self, name: str, source: ChannelValue, note: Callable[[ChannelSpace, int], None]) -> None:
        """Note a module that has the channels of a value at its entries, one part behind the other."""
        start, seen = 0, set()
        for space, spread in source.parts:
            if id(space) in seen:
                space.pin(f"{name} has the channels twice")
            else:
                note(space, spread)
            if len(source.parts) > 1:
                space.starts[name] = start
            seen.add(id(space))
            start += space.channels * spread

    def _layer(self, node: fx.Node, name: str, module: nn.Module, source: ChannelValue, shape: torch.Size) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        owner = self.weights.setdefault(id(weight), name)
        axis = len(shape) - 1 if isinstance(module, nn.Linear) else 1
        if owner != name:
            for value in [*self.calls.get(owner, ()), source]:
                self._pin(value, f"layers {owner} and {name} share their weight")
            self._new(node, shape, f"layers {owner} and {name} share their weight", axis)
            return
        groups = getattr(module, "groups", 1)
        first = name not in self.calls
        if groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1 and source.axis == 1 and source.plain:
            if first:
                source.parts[0][0].depthwise.append(name)
            self._again(name, source, source)
            self.values[node] = source.like(shape)
            return
        target = self._new(node, shape, axis=axis)
        if groups > 1:
            self._pin(source, f"read by the grouped convolution {name}")
            self._pin(target, f"written by the grouped convolution {name}")
        if source.axis != axis:
            self._pin(source, f"layer {name} reads another axis of the tensor")
        if first:
            self._touch(name, source, lambda space, spread: space.readers.append((name, spread)))
            target.parts[0][0].writers.append(name)
        self._again(name, source, target)

    def _again(self, name: str, source: ChannelValue, target: ChannelValue) -> None:
        """A module called a second time ties both calls' channels."""
        if name in self.calls:
            before, after = self.calls[name]
            if before is not None and [p for _, p in before.parts] != [p for _, p in source.parts]:
                self._pin(source, f"module {name} is called on different layouts")
                self._pin(before, f"module {name} is called on different layouts")
            elif before is not None:
                self._join(before, source, f"module {name} is called twice")
            if after is not None:
                self._join(after, target, f"module {name} is called twice")
        else:
            self.calls[name] = source.like(source.shape), target.like(target.shape)

    def _function(self, node: fx.Node, sources: list[ChannelValue], shape: torch.Size) -> None:
        target = node.target
        added = target in ADDS and all(s.shape == shape for s in sources)
        multiplied = target in PRODUCTS and all(broadcasts(s, shape) for s in sources)
        what = f"operation {label(node)}"
        if target in CATS:
            self._cat(node, sources, shape)
        elif len(sources) == 2 and (added or multiplied) and sources[0].axis == sources[1].axis:
            self._join(sources[0], sources[1], f"{what} joins unlike channels")
            self.values[node] = sources[0].like(shape)
        elif len(sources) != 1:
            self._unknown(node, what, sources, shape)
        elif (target in ADDS or target in PRODUCTS) and shape != sources[0].shape:
            self._unknown(node, f"{what} changes the shape and", sources, shape)
        elif (target in PASS_FUNCTIONS and passes(what, sources[0], shape)) or (
            target in (*ADDS, *PRODUCTS) or (node.op == "call_method" and target in PASS_METHODS)
        ):
            self.values[node] = sources[0].like(shape)
        elif target in RESHAPES:
            self._reshape(node, sources[0], shape, what)
        elif (axis := axis_after(node, sources[0], shape)) is not None:
            self.values[node] = sources[0].like(shape, axis)
        else:
            self._unknown(node, what, sources, shape)

    def _cat(self, node: fx.Node, sources: list[ChannelValue], shape: torch.Size) -> None:
        """Concatenated along their channels, sets lie one behind the other; along another axis, they are the same set."""
        terms = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        known = isinstance(terms, (list, tuple)) and all(term in self.values for term in terms)
        values = [self.values[term] for term in terms] if known else []  # type: ignore[union-attr, index]
        if not values or not isinstance(dim, int) or len({value.axis for value in values}) > 1:
            self._unknown(node, f"operation {label(node)}", sources, shape)
        elif dim % len(shape) == values[0].axis:
            self.values[node] = ChannelValue([part for value in values for part in value.parts], shape, values[0].axis)
        else:
            for value in values[1:]:
                self._join(values[0], value, f"operation {label(node)} joins unlike channels")
            self.values[node] = values[0].like(shape)

    def _reshape(self, node: fx.Node, source: ChannelValue, shape: torch.Size, what: str) -> None:
        before, last = source.shape, source.axis == len(source.shape) - 1
        whole = len(shape) == 2 and len(before) >= 2 and shape[0] == before[0] and shape[1] == math.prod(before[1:])
        if whole and source.axis == 1:
            behind = math.prod(before[2:])
            self.values[node] = ChannelValue([(space, spread * behind) for space, spread in source.parts], shape)
        elif source.axis == 1 and shape[:2] == before[:2]:
            self.values[node] = source.like(shape)
        elif last and len(before) > 2 and shape[-1:] == before[-1:]:
            self.values[node] = source.like(shape, len(shape) - 1)
        else:
            self._unknown(node, what, [source], shape)

    def _unknown(self, node: fx.Node, what: str, sources: list[ChannelValue], shape: torch.Size | None) -> None:
        reason = f"{what} is not known to act on each channel alone"
        for value in sources:
            self._pin(value, reason)
        if shape is not None:  # what comes out is pinned on any axis; that of the input lets sums see why
            self._new(node, shape, reason, next((v.axis for v in sources if v.axis < len(shape)), 1))


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
