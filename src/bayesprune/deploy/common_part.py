"""A graph cut in two: what no varying tensor reaches, to be computed once for all members, and the rest."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from bayesprune.graph.analysis import works_in_place
from bayesprune.graph.source import graph_module

_NEW = (operator.add, operator.mul, operator.sub, torch.add, torch.cat)  # their results are nobody else's storage


def cut(model: fx.GraphModule, varying: Collection[str]) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Cut a model where the first varying tensor comes in."""
    if not orderly(model):
        return None
    modules = dict(model.named_modules())
    late: set[fx.Node] = set()
    for node in model.graph.nodes:
        own = node.op in ("call_module", "get_attr") and any(
            name == node.target or name.startswith(f"{node.target}.") for name in varying
        )
        if own or node.op == "output" or any(source in late for source in node.all_input_nodes):
            late.add(node)
    early = [node for node in model.graph.nodes if node not in late]
    if not any(node.op == "call_module" and _has_weights(modules[str(node.target)]) for node in early):
        return None

    first, second = fx.Graph(), fx.Graph()
    before: dict[fx.Node, fx.Node] = {}
    after: dict[fx.Node, fx.Node] = {}
    for node in early:
        before[node] = first.node_copy(node, before.__getitem__)
    bounds = [node for node in early if node.op != "get_attr" and any(user in late for user in node.users)]
    first.output(tuple(before[node] for node in bounds))
    for node in bounds:
        after[node] = second.placeholder(node.name)
    for node in model.graph.nodes:
        if node in late or (node.op == "get_attr" and any(user in late for user in node.users)):
            after[node] = second.node_copy(node, after.__getitem__)
    one, two = (graph_module(model, graph) for graph in (first, second))
    return one.eval(), two.eval()


def orderly(model: fx.GraphModule) -> bool:
    """Whether nobody else reads what an operation writes into."""
    modules = dict(model.named_modules())
    return all(_alone(node, modules) for node in model.graph.nodes if in_place(node, modules))


def clones(values: Any) -> Any:
    """Copy values for a member that may write into them; the same tensor twice stays one."""
    copied: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        return copied.setdefault(id(value), value.clone()) if isinstance(value, Tensor) else value

    return tree_map(copy, values)


def in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node writes over a tensor that others may read."""
    if node.op not in ("call_module", "call_method", "call_function"):
        return False
    module = modules[str(node.target)] if node.op == "call_module" else None
    return works_in_place(node, module) or node.target is operator.setitem or "out" in node.kwargs


def _alone(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what an operation writes into is read by it alone, up to where that memory was made."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if len(node.users) > 1:
            return False
        if node.op == "call_module" and _has_weights(modules[str(node.target)]):
            return True
        if node.op == "call_function" and node.target in _NEW:
            return True
    return True


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
