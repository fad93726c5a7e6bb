"""The graph of evaluation: BatchNorm multiplied into the layer before it, dropout and identities left out."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bayesprune.deploy.common_part import in_place, orderly
from bayesprune.graph.source import deep_copy, releasing_source

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_VIEWS = {"view": "reshape", "view_as": "reshape_as"}
_SILENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@torch.no_grad()
def fold(model: fx.GraphModule, layout: bool = False) -> fx.GraphModule:
    """A copy of a model for evaluation alone, with fewer operations, and if wanted with channels last."""
    model = deep_copy(model).eval()
    modules = dict(model.named_modules())
    calls: dict[str, int] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        module, source = modules[str(node.target)], node.args[0]
        if isinstance(module, _SILENT):
            replaced = source
        elif isinstance(module, _NORM) and _foldable(module, source, modules, calls) and calls[str(node.target)] == 1:
            _set(model, str(source.target), _merged(modules[str(source.target)], module))
            replaced = source
        else:
            continue
        node.replace_all_uses_with(replaced)
        model.graph.erase_node(node)
    for node in model.graph.nodes:
        if node.op == "call_function" and node.target in (operator.add, torch.add) and _own(node, modules):
            node.target = add_into
        elif layout and _is_view(node):
            # A view may not exist in this layout; who asks for it has made sure that no write tells it from a copy.
            node.target = _VIEWS[str(node.target)]
    # Of what nobody reads stays what writes into what others read (h.relu_()).
    for node in reversed(list(model.graph.nodes)):
        if not node.users and not node.is_impure() and not in_place(node, modules):
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    return releasing_source(model.to(memory_format=torch.channels_last) if layout else model)  # type: ignore[call-overload]


def wants_channels_last(model: fx.GraphModule) -> bool:
    """Whether convolutions gain by it and nothing else changes."""
    # Where a write is seen through another name, the layout would decide whether a reshape is one (or a copy).
    return any(isinstance(module, nn.Conv2d) for module in model.modules()) and orderly(model)


def channels_last(value: Tensor) -> Tensor:
    """An image batch with its channels last."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def add_into(a: Tensor, b: Tensor) -> Tensor:
    """Add b to a, in a's place where that is of the result's shape and type: an addition is bound by memory."""
    return a.add_(b) if a.shape == b.shape and a.dtype == b.dtype else a + b


def _is_view(node: fx.Node) -> bool:
    """Whether a node is a view of another shape (not of another type)."""
    plain = node.op == "call_method" and node.target in _VIEWS and not node.kwargs
    return plain and not isinstance(node.args[1], torch.dtype)


def _own(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the first of two terms is a convolution's output that nobody else reads."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
        return False
    first: Any = node.args[0]
    return first.op == "call_module" and len(first.users) == 1 and isinstance(modules[str(first.target)], _CONV)


def _foldable(norm: nn.Module, source: fx.Node, modules: dict[str, nn.Module], calls: dict[str, int]) -> bool:
    if source.op != "call_module" or len(source.users) != 1 or norm.running_var is None:
        return False
    # Linear layers are left alone: BatchNorm1d may normalise another axis than theirs, and a graph does not tell shapes.
    return isinstance(modules[str(source.target)], _CONV) and calls[str(source.target)] == 1


def _merged(layer: Any, norm: Any) -> Any:
    """A convolution with its normalisation multiplied in, in float64."""
    layer, norm, dtype = copy.deepcopy(layer).double(), copy.deepcopy(norm).double(), next(layer.parameters()).dtype
    return fuse_conv_bn_eval(layer, norm).to(dtype).requires_grad_(False)


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
