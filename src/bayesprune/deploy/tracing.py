"""A model's graph in both modes, merged into one whose mode-dependent values are marked."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from bayesprune.deploy.arguments import ByMode
from bayesprune.deploy.stock import is_stock


class _Tracer(fx.Tracer):
    # Else arithmetic on a buffer alone would run while tracing, and its result be frozen into the graph.
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_stock(m)


def trace(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Trace a model down to torch's own modules, functions and methods.

    The graph is taken once in training and once in evaluation. A constant that differs between the two followed
    ``self.training`` (as in ``F.dropout(x, training=self.training)``) and becomes a `ByMode` value; graphs that differ
    in more than constants are refused.

    Args:
        model: any module whose forward ``torch.fx`` can trace. Its modes are restored.

    Returns:
        The graph, and the constant tensors that forward made, by the names under which the graph reads them.

    Raises:
        ValueError: if the forward cannot be traced, or its structure depends on the mode.

    Example:
        >>> graph, constants = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> [(node.op, node.target) for node in graph.nodes]
        [('placeholder', 'input'), ('call_module', '0'), ('call_module', '1'), ('output', 'output')]
    """
    model = getattr(model, "_orig_mod", model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        first, constants = _trace(model.train())
        second, others = _trace(model.eval())
    finally:
        for module, mode in modes:
            module.training = mode
    if constants.keys() != others.keys() or not all(_same(constants[name], others[name]) for name in constants):
        raise ValueError("model: forward makes constant tensors that depend on the train mode; make them buffers")
    _merge(first, second)
    return first, constants


def _trace(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    before = set(vars(model))
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # torch.fx raises many types, and forward may raise any
        raise ValueError(
            f"model: {type(model).__name__} cannot be traced ({type(error).__name__}: {error}); write its forward "
            "without Python control flow that depends on tensor values or on **kwargs"
        ) from error
    finally:
        added = {name: vars(model).pop(name) for name in set(vars(model)) - before}
    return graph, {name: value for name, value in added.items() if isinstance(value, Tensor)}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


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
        f"model: forward takes another path in training than in evaluation (first at node {node.name!r}); use modules "
        "such as nn.Dropout, or pass self.training on as an argument, so that one graph serves both"
    )
