"""Where smaller modules are not enough: branches that end, sums by index, literal sizes in the forward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from bayesprune.common.modes import device_of
from bayesprune.compaction.solve import Solution
from bayesprune.graph import source
from bayesprune.graph.analysis import Analysis, Gather, Scatter, label, works_in_place
from bayesprune.graph.hooks import FORWARD, HOOKS


class Reason(NamedTuple):
    """Why the graph itself must change, and what would leave it as it is."""

    why: str
    mend: str


def graph_reasons(a: Analysis, solution: Solution) -> list[Reason]:
    """Why the graph itself must change; empty if smaller modules under the same code do."""
    lines = [
        Reason(f"{label(node)} ({node.name}) lost a branch that is zero or constant", "dead_branches='keep'")
        for node in a.drops if node in a.alive
    ]  # fmt: skip
    edges: list[Gather | Scatter] = [*a.gathers, *a.scatters]
    for edge in edges:
        if edge.node in a.alive and _places(edge, solution) is not None:
            what = "reads" if isinstance(edge, Gather) else "adds to"
            why = f"{label(edge.node)} ({edge.node.name}) {what} some channels by index"
            lines.append(Reason(why, "coupling='intersection'"))
    for size in a.sizes:
        if size.node in a.alive and not size.computed and size.new(solution.kept) != size.old:
            why = f"{label(size.node)} ({size.node.name}) names a number of channels in the code"
            lines.append(Reason(why, "-1 or x.shape[dim] in place of that number"))
    return lines


def spared(reasons: list[Reason]) -> str:
    """What would leave the graph as it is."""
    return " and ".join(dict.fromkeys(reason.mend for reason in reasons))


def _places(edge: Gather | Scatter, solution: Solution) -> Tensor | None:
    """Where among the full channels that are kept the part's lie; None if there is no difference."""
    full, part = solution.kept(edge.full), solution.kept(edge.part)
    return None if torch.equal(full, part) else part[full].nonzero().flatten()


def graph_module(model: nn.Module, a: Analysis, solution: Solution) -> fx.GraphModule:
    """The rewritten model under a graph of its own."""
    for each in a.graph.nodes:  # tensors that the forward or a hook makes were noted on the analysed model
        if each.op == "get_attr" and "." not in str(each.target) and not hasattr(model, str(each.target)):
            model.register_buffer(str(each.target), getattr(a.model, str(each.target)))
    graph, env = fx.Graph(), {}  # type: ignore[var-annotated]
    graph.output(graph.graph_copy(a.graph, env))
    device = device_of(model)
    replaced: set[fx.Node] = set()
    count = 0

    def index_node(before: fx.Node, places: Tensor) -> fx.Node:
        nonlocal count
        while hasattr(model, f"index_{count}"):
            count += 1
        model.register_buffer(f"index_{count}", places.to(device))
        with graph.inserting_before(before):
            return graph.get_attr(f"index_{count}")

    for size in a.sizes:
        new = size.new(solution.kept)
        if size.node in a.alive and (size.computed or new != size.old):
            size.put(env[size.node], new)
    for gather in a.gathers:
        places = _places(gather, solution) if gather.node in a.alive else None
        if places is not None:
            node = env[gather.node]
            index = index_node(node, places)
            with graph.inserting_before(node):
                part = graph.call_function(torch.index_select, (env[gather.source], gather.axis, index))
            node.replace_input_with(env[gather.source], part)
    for scatter in a.scatters:
        places = _places(scatter, solution) if scatter.node in a.alive else None
        if places is not None:
            node = env[scatter.node]
            replaced.add(node)
            if not node.users:
                continue
            base, branch = (node.args[n] for n in _order(scatter))
            index = index_node(node, places)
            with graph.inserting_before(node):
                total = graph.call_function(torch.index_add, (base, scatter.axis, index, branch))
            node.replace_all_uses_with(total)
    for old, place in a.drops.items():
        if old in a.alive:
            node = env[old]
            rest = node.args[1 - place]
            constant = _offset(a, solution, old)
            count += 1  # whether or not it adds a constant, that further samples have the same names
            while hasattr(model, f"constant_{count}"):
                count += 1
            if constant is None:
                rest = _spare_the_stream(model, graph, node, rest)
            else:
                model.register_buffer(f"constant_{count}", constant.to(device, next(model.parameters()).dtype))
                with graph.inserting_before(node):
                    rest = graph.call_function(torch.add, (rest, graph.get_attr(f"constant_{count}")))
            node.replace_all_uses_with(rest)
            replaced.add(node)
    for old in reversed(list(a.graph.nodes)):
        node = env.get(old)
        if node is None or node.users or node.op in ("output", "placeholder"):
            continue
        if old.users or node in replaced:
            graph.erase_node(node)
    graph.lint()
    result = source.graph_module(model, graph, type(model).__name__)
    _move_hooks_(model, result, a)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in result.named_modules():
        module.training = modes.get(name, model.training)
    return result


def _move_hooks_(model: nn.Module, result: fx.GraphModule, a: Analysis) -> None:
    """The whole model's hooks come along; those around a layer that change values stand in the graph already."""
    for kind in HOOKS:
        if kind in model.__dict__:
            result.__dict__[kind] = model.__dict__[kind]
    analysed: dict[str, nn.Module] = dict(a.model.named_modules(remove_duplicate=False))
    for name, module in result.named_modules():
        if name and name in analysed:
            for kind in FORWARD:
                for key in getattr(analysed[name], kind):
                    getattr(module, kind).pop(key, None)


def _offset(a: Analysis, solution: Solution, node: fx.Node) -> Tensor | None:
    """What a term that was left out added to each channel that is left, shaped to be added; None if nothing."""
    rest, value = a.values[node], a.offsets[node]
    constant = value.const[solution.kept(rest.atoms)] if rest.axes else value.const
    if not (constant != 0).any():
        return None
    return constant.view(-1, *[1] * (len(value.shape) - value.axes[0] - 1))


def _order(scatter: Scatter) -> tuple[int, int]:
    return (0, 1) if scatter.node.args[0] is scatter.base else (1, 0)


def _spare_the_stream(model: nn.Module, graph: fx.Graph, node: fx.Node, rest: Any) -> Any:
    """What worked in place on a fresh sum must not work in place on the stream that takes its place."""
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    for user in node.users:
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if module is not None and getattr(module, "inplace", False):
            module.inplace = False
        if user.kwargs.get("inplace"):
            user.update_kwarg("inplace", False)
    if any(works_in_place(user) for user in node.users):
        with graph.inserting_before(node):
            return graph.call_function(torch.clone, (rest,))
    return rest
