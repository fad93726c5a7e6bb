"""Rules for products of two tensors (matmul, einsum), whose channels are heads, and for masks on attention scores."""

from __future__ import annotations

import re
import string
from typing import Any

import torch
from torch import fx

from bayesprune.graph.analysis import Analysis, argument, label
from bayesprune.graph.values import Value, unknown_like


def matmul(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``a @ b``, ``bmm``: (…, n, k) times (…, k, m)."""
    left, right = _operands(a, node, node.args)
    if left is None or min(len(left.shape), len(right.shape)) < 2 or len(left.shape) != len(right.shape):
        return a.unknown(node, f"operation {label(node)}")
    batch = string.ascii_lowercase[: len(left.shape) - 2]
    return _product(a, node, (left, right), (f"{batch}XY", f"{batch}YZ", f"{batch}XZ"))


def einsum(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``torch.einsum`` of two operands, each letter once in each."""
    left, right = _operands(a, node, node.args[1:])
    found = re.fullmatch(r"(\w+),(\w+)->(\w+)", str(node.args[0]).replace(" ", ""))
    if left is None or found is None or any(len(set(part)) < len(part) for part in found.groups()):
        return a.unknown(node, "operation einsum")
    return _product(a, node, (left, right), found.groups())


def _operands(a: Analysis, node: fx.Node, given: Any) -> tuple[Any, Any]:
    values = [a.read(node, arg) for arg in given]
    plain = len(values) == 2 and all(isinstance(value, Value) for value in values) and not node.kwargs
    return (values[0], values[1]) if plain else (None, None)


def _product(a: Analysis, node: fx.Node, values: tuple[Value, Value], letters: tuple[str, ...]) -> Any:
    """Of batched products the channels are heads, whole ones of both operands; else those of one operand alone go through."""
    shape, out = node.meta["shape"], letters[2]
    lettered = [[own[axis] for axis in value.axes] for value, own in zip(values, letters)]
    heads = [letter for letter in lettered[0] if letter in lettered[1] and letter in out]
    free = [[each for each in own if each in out and each not in heads] for own in lettered]
    summed = [[each for each in own if each not in out] for own in lettered]
    alone = all(each not in letters[1 - n] for n in (0, 1) for each in free[n])
    if not any(lettered):
        return a.opaque(node, values[0].why or values[1].why)
    if not alone or all(free) or len(heads) > 1 or sorted(summed[0]) != sorted(summed[1]) or (summed[0] and not heads):
        return a.unknown(node, f"operation {label(node)} over the channels")
    main = 1 if free[1] else 0
    value, own = values[main], lettered[main]
    atoms, const = value.atoms, torch.where(value.const == 0, 0.0, unknown_like(value.const))
    if heads:
        place = [each.index(heads[0]) for each in lettered]
        lines = [each.atoms.movedim(at, 0).flatten(1) if each.atoms.dim() > 1 else each.atoms[:, None]
                 for each, at in zip(values, place)]  # fmt: skip
        for one, two in zip(*lines):
            a.atoms.tie_all(torch.cat([one, two]))
        if summed[0]:
            atoms, own = lines[main][:, 0], heads
            const = unknown_like(atoms.double())
    order = sorted(range(len(own)), key=lambda n: out.index(own[n]))
    axes = tuple(out.index(own[n]) for n in order)
    return Value(shape, axes, atoms.permute(order), const.permute(order), value.why)


def masked(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``masked_fill`` with a mask that is the same for all channels."""
    source, mask = a.read(node, node.args[0]), a.values.get(argument(node, 1, "mask"))
    if not isinstance(source, Value) or not isinstance(mask, Value) or mask.axes:
        return a.unknown(node, f"operation {label(node)}")
    if any(mask.aligned(len(source.shape)).shape[axis] != 1 for axis in source.axes):
        return a.unknown(node, f"operation {label(node)} with a mask of each channel's own")
    fill = argument(node, 2, "value")
    alike = source.const == fill if isinstance(fill, (int, float)) else torch.zeros_like(source.const, dtype=torch.bool)
    return source.shaped(node.meta["shape"], torch.where(alike, source.const, unknown_like(source.const)))
