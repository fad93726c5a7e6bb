"""A model's graph in both modes, merged into one whose mode-dependent values are marked."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bayesprune.common.modes import evaluating
from bayesprune.deploy.arguments import ByMode
from bayesprune.deploy.stock import is_stock
from bayesprune.graph.hooks import detached_copy
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.switches import switched
from bayesprune.graph.trace import Tracer

EVALUATION_ONLY = (
    "this model was saved for evaluation only: "
    "its forward takes another path in training, or switches gradients off for a part"
)


_CLOSED = (nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Layers whose own code cannot be followed: they are nodes, which a whole model is not."""


def closed(model: nn.Module) -> bool:
    """Whether a model is a single layer that cannot be followed."""
    return type(model) in _CLOSED


def whole(model: nn.Module) -> nn.Module:
    """A model to trace: a single layer that cannot be followed, in a model around it; any other as it is."""
    if not closed(model):
        return model

    class Around(nn.Module):
        layer: nn.Module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.layer(*args, **kwargs)

    Around.forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    around = Around()
    around.layer = model
    around.training = model.training
    return around


@dataclass(frozen=True)
class Traced:
    """What `trace` found."""

    graph: fx.Graph
    constants: dict[str, Tensor]
    evaluation_only: str | None = None


def trace(model: nn.Module, inputs: Inputs | None = None) -> Traced:
    """Trace a model down to torch's own modules, functions and methods."""
    model = getattr(model, "_orig_mod", model)
    with evaluating(model):
        evaluated, constants = _trace(model, inputs)
        try:
            # Layers are run on the example: a copy's statistics move.
            trained, others = _trace((model if inputs is None else detached_copy(model)).train(), inputs)
            alike = constants.keys() == others.keys() and all(
                value.dtype == others[name].dtype and torch.equal(value, others[name])
                for name, value in constants.items()
            )
            if not alike:
                raise ValueError("forward makes constant tensors that depend on the train mode")
            _merge(trained, evaluated)
            if inputs is not None and (part := switched(model, inputs, is_stock)):
                raise ValueError(f"in forward {part}, which a graph does not hold")
        except ValueError as error:
            for node in evaluated.nodes:
                node.meta["arguments"] = (node.args, node.kwargs)
            return Traced(evaluated, constants, str(error))
    return Traced(trained, constants)


@torch.no_grad()
def _trace(model: nn.Module, inputs: Inputs | None) -> tuple[fx.Graph, dict[str, Tensor]]:
    before = set(vars(model))
    try:
        with torch.random.fork_rng(devices=[]):
            graph = Tracer(inputs, is_stock).trace(model)
    except Exception as error:  # torch.fx raises many types, and forward may raise any
        raise ValueError(
            f"model: {type(model).__name__} cannot be traced ({type(error).__name__}: {error}); write its forward "
            "without Python control flow that depends on tensor values or on **kwargs"
        ) from error
    finally:
        added = {name: vars(model).pop(name) for name in set(vars(model)) - before}
    for node in reversed(graph.nodes) if inputs is not None else ():  # what only a condition read, or nobody
        idle = node.target is operator.getitem or (
            node.meta.get("shape") is None and node.target is not operator.setitem
        )
        if idle and node.op.startswith("call_") and not node.users:
            graph.erase_node(node)
    return graph, {name: value for name, value in added.items() if isinstance(value, Tensor)}


def _merge(first: fx.Graph, second: fx.Graph) -> None:
    """Mark in the first graph what differs in the second."""
    pairs: dict[fx.Node, fx.Node] = {}
    ours, theirs = list(first.nodes), list(second.nodes)
    for one, other in zip(ours, theirs):
        if (one.op, one.target) != (other.op, other.target):
            raise _diverged(one)
        pairs[one] = other
        # Set past fx's own setters, which accept none but its own argument types.
        args = _merged(one.args, other.args, pairs, one)
        kwargs = _merged(one.kwargs, other.kwargs, pairs, one)
        one.meta["arguments"] = (args, kwargs)
    if len(ours) != len(theirs):
        raise _diverged(ours[-1])


def _merged(one: Any, other: Any, pairs: dict[fx.Node, fx.Node], node: fx.Node) -> Any:
    if isinstance(one, fx.Node) or isinstance(other, fx.Node):
        if isinstance(one, fx.Node) and pairs.get(one) is other:
            return one
        raise _diverged(node)
    if isinstance(one, slice) and isinstance(other, slice):
        parts = [(one.start, other.start), (one.stop, other.stop), (one.step, other.step)]
        return slice(*(_merged(*part, pairs, node) for part in parts))
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return {key: _merged(one[key], other[key], pairs, node) for key in one}
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        merged = [_merged(a, b, pairs, node) for a, b in zip(one, other)]
        return merged if isinstance(one, list) else tuple(merged)
    if type(one) is type(other) and (one == other or one != one):
        return one
    if isinstance(one, (bool, int, float)) and isinstance(other, (bool, int, float)):
        return ByMode(one, other)
    raise _diverged(node)


def _diverged(node: fx.Node) -> ValueError:
    return ValueError(
        f"forward takes another path in training than in evaluation (first at node {node.name!r}); use modules "
        "such as nn.Dropout, or pass self.training on as an argument, so that one graph serves both"
    )
