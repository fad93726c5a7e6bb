"""Rules for layers called as functions on a module's own weight: ``F.linear(x, self.weight, self.bias)`` and its like.

A subclass with a forward of its own that calls ``super().forward`` comes down to these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from bayesprune.graph import rules_layers as layers
from bayesprune.graph.analysis import Analysis, Sizes, label
from bayesprune.graph.layers import BATCH_NORMS, CONVOLUTIONS
from bayesprune.graph.values import Value

_NAMES = {
    "linear": ("input", "weight", "bias"),
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
}


def _owner(a: Analysis, bound: dict[str, Any], kinds: tuple[type, ...], own: tuple[str, ...]) -> tuple[str, Any] | None:
    """The one module whose own tensors the arguments are, each under its name."""
    found: set[str] = set()
    for which in own:
        arg = bound.get(which)
        if isinstance(arg, fx.Node):
            path, _, name = str(arg.target).rpartition(".")
            if arg.op != "get_attr" or name != which:
                return None
            found.add(path)
    if len(found) != 1:
        return None
    path = a.names.setdefault(id(a.modules[next(iter(found))]), next(iter(found)))
    module: Any = a.modules[path]
    same = all((getattr(module, which, None) is None) == (bound.get(which) is None) for which in own)
    return (path, module) if isinstance(module, kinds) and same else None


def _bind(node: fx.Node, kind: str) -> dict[str, Any]:
    return dict(zip(_NAMES[kind], node.args)) | dict(node.kwargs)


def _as_layer(a: Analysis, node: fx.Node, kind: str, kinds: tuple[type, ...], own: tuple[str, ...], rule: Any) -> Any:
    bound = _bind(node, kind)
    found = _owner(a, bound, kinds, own)
    if found is None or not isinstance(bound.get("input"), fx.Node):
        return a.unknown(node, f"operation {label(node)} with a weight that is computed, or no layer's own,")
    path, module = found
    if kind == "conv" and int(bound.get("groups", 1)) != module.groups:
        return a.unknown(node, f"operation {label(node)} with other groups than its layer's")
    for which in own:
        a.tensors.pop(f"{path}.{which}" if path else which, None)  # cut with the layer
        if isinstance(arg := bound.get(which), fx.Node):
            a.consumed.add((arg, node))
    node.meta["name"] = path
    return rule(a, node, module, a.read(node, bound["input"]), functional=True)


def linear(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``F.linear`` on the weight of an ``nn.Linear``."""
    return _as_layer(a, node, "linear", (nn.Linear,), ("weight", "bias"), layers.linear_on)


def convolution(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``F.conv1d/2d/3d`` on the weight of a convolution; a graph holds its number of groups."""
    found = _as_layer(a, node, "conv", CONVOLUTIONS, ("weight", "bias"), layers.convolution_on)
    groups = int(_bind(node, "conv").get("groups", 1))
    if groups > 1 and isinstance(found, Value) and found.axes:

        def count(index: Callable[[Tensor], Tensor]) -> tuple[int, ...]:
            return (int(index(found.atoms.view(groups, -1)).any(1).sum()),)

        def put(target: fx.Node, new: tuple[int, ...]) -> None:
            if len(target.args) > 6:
                target.update_arg(6, new[0])
            else:
                target.update_kwarg("groups", new[0])

        a.sizes.append(Sizes(node, (groups,), count, put, computed=True))
    return found


def batch_norm(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``F.batch_norm`` on the scale, shift and statistics of a BatchNorm."""
    own = ("running_mean", "running_var", "weight", "bias")
    return _as_layer(a, node, "batch_norm", BATCH_NORMS, own, layers.batch_norm_on)
