"""What the members of an ensemble give and hold: tensors stacked, outputs joined, logits averaged."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from bayesprune.graph.source import graph_module
from bayesprune.posterior.predict import answer, in_batches, split_batch
from bayesprune.posterior.samples import Samples

_PLAIN = (bool, int, float, str, type(None))


def stack_members(
    own: dict[str, Tensor], constants: Collection[str], members: Samples | Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The members' tensors stacked, and what all of them share; constants are the model's own."""
    count = len(members)
    if not count:
        raise ValueError(f"members={members!r}: no members; collect some samples")
    stacked: dict[str, Tensor] = {}
    shared = {name: tensor.detach().clone() for name, tensor in own.items()}
    differs: set[str] = set()
    for index in range(count):
        member = members[index]
        if not isinstance(member, Mapping):
            raise ValueError(
                f"members: member {index} is a {type(member).__name__}; give state dicts (net.state_dict())"
            )
        for name, tensor in own.items():
            if name in constants:
                continue
            value = member.get(name)
            if value is None or value.shape != tensor.shape or value.dtype != tensor.dtype:
                found = "is missing" if value is None else f"is {value.dtype}{list(value.shape)}"
                raise ValueError(
                    f"members: tensor {name!r} of member {index} {found}, the model has {tensor.dtype}{list(tensor.shape)}"
                )
            if name not in stacked:
                stacked[name] = torch.empty((count, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
            stacked[name][index] = value
            if name not in differs and not torch.equal(stacked[name][0], stacked[name][index]):
                differs.add(name)
    for name in list(stacked):
        if name in differs:
            del shared[name]
        else:
            shared[name] = stacked.pop(name)[0].clone()
    return stacked, shared


def leaves(output: Any) -> tuple[list[Any], Any]:
    """The parts of an output and its form; what would be lost without a word is refused."""
    found, form = tree_flatten(output)
    odd = next((leaf for leaf in found if not isinstance(leaf, (Tensor, *_PLAIN))), None)
    if odd is not None or not any(isinstance(leaf, Tensor) for leaf in found):
        raise ValueError(
            f"model: its output holds {'no tensor' if odd is None else f'a {type(odd).__name__}'}; "
            "return a tensor, or a tuple, list or dict of tensors"
        )
    return found, form


def joined(outputs: Sequence[Any]) -> Any:
    """The members' outputs stacked along a new first axis, in their own form; what is no tensor is the first member's."""
    parts = [leaves(output)[0] for output in outputs]
    stacks = [torch.stack(column) if isinstance(column[0], Tensor) else column[0] for column in zip(*parts)]
    return tree_unflatten(stacks, leaves(outputs[0])[1])


def logits_of(output: Any) -> Any:
    """Of a network's output the logits: the entry or attribute of that name, the only entry, or the output itself."""
    if isinstance(output, Mapping) and "logits" not in output:
        if len(output) == 1:
            return next(iter(output.values()))
        raise ValueError(f"model: its output has the entries {list(output)}; give one of them the name 'logits'")
    return answer(output)


def averaged(members: Sequence[fx.GraphModule]) -> fx.GraphModule:
    """One graph that runs all members on the same inputs and averages their softmax."""
    root, graph = nn.Module(), fx.Graph()
    inputs = [
        graph.placeholder(
            str(node.target), default_value=node.args[0] if node.args else fx.node.inspect.Signature.empty
        )
        for node in members[0].graph.nodes
        if node.op == "placeholder"
    ]
    form = next(node.args[0] for node in members[0].graph.nodes if node.op == "output")
    key: Any = None
    if isinstance(form, Mapping):
        key = logits_of({name: name for name in form})
    total: Any = None
    for index, member in enumerate(members):
        root.add_module(f"member_{index}", member)
        output = graph.call_module(f"member_{index}", tuple(inputs))
        if key is not None:
            output = graph.call_function(operator.getitem, (output, key))
        probabilities = graph.call_function(torch.softmax, (output, 1))
        total = probabilities if total is None else graph.call_function(operator.add, (total, probabilities))
    graph.output(graph.call_function(operator.truediv, (total, len(members))))
    return graph_module(root, graph).eval()


def batches(inputs: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Inputs and labels batch by batch: of a tensor, of tensors by name, or of what a loader gives."""
    for batch in in_batches(inputs, batch_size):
        values, target = split_batch(batch)
        if isinstance(values, Mapping):
            values, among = split_batch(values)
            target = among if target is None else target
        held = list(values.values()) if isinstance(values, Mapping) else [values]
        odd = next((value for value in held if not isinstance(value, Tensor)), None if held else values)
        if odd is not None:
            raise ValueError(
                f"inputs: a batch holds a {type(odd).__name__}; expected a tensor, tensors by name, or (inputs, labels)"
            )
        yield values, target
