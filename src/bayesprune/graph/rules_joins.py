"""Rules for operations on several tensors: sums, products, concatenation, attention scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from bayesprune.graph.analysis import Analysis, Implication, Scatter, label
from bayesprune.graph.rules_shapes import elementwise
from bayesprune.graph.values import NAN, Value, unknown_like

_SUMS = ("add", "add_", "iadd", "sub", "sub_", "isub")
_PRODUCTS = ("mul", "mul_", "imul")


def binary(a: Analysis, node: fx.Node, module: Any) -> Any:
    """Sum, difference, product, quotient, of two tensors or of a tensor and a number."""
    name = label(node)
    if len(node.args) != 2 or (node.kwargs and not set(node.kwargs) <= {"alpha"}):
        return a.unknown(node, f"operation {name}")
    operands: list[Any] = [a.values.get(arg) if isinstance(arg, fx.Node) else None for arg in node.args]
    tensors = [n for n, value in enumerate(operands) if isinstance(value, Value)]
    if not tensors:
        return a.opaque(node, f"operation {name}")
    numbers = [arg for n, arg in enumerate(node.args) if n not in tensors]
    if len(tensors) == 1:
        return _with_number(a, node, tensors[0], numbers[0], operands[tensors[0]])
    shape = node.meta["shape"]
    if name in _SUMS:
        dropped = _dropped(a, node, operands, shape)
        if dropped is not None:
            rest, constant = a.read(node, node.args[1 - dropped]), operands[dropped].const
            return rest.with_const(a.settled(rest.const + constant)) if (constant != 0).any() else rest
        if a.indexed and all(isinstance(v, Value) and v.single and v.shape == shape for v in operands):
            return _indexed_sum(a, node, operands)
    left, right = (a.read(node, arg) for arg in node.args)
    return _joined(a, node, left, right, shape)


def _with_number(a: Analysis, node: fx.Node, place: int, number: Any, source: Value) -> Any:
    if place == 0 and not isinstance(number, fx.Node):
        return elementwise(a, node, None)
    value = a.read(node, node.args[place])
    if isinstance(number, fx.Node):  # a number computed from sizes
        keeps_zero = label(node) in (*_PRODUCTS, "truediv", "div") and place == 0
        const = (
            torch.where(value.const == 0, 0.0, unknown_like(value.const)) if keeps_zero else unknown_like(value.const)
        )
        return value.shaped(node.meta["shape"], const)
    const = node.target(number, value.const)  # type: ignore[operator]
    if label(node) in _PRODUCTS:
        const = torch.where(value.const == 0, 0.0, const)
    return value.shaped(node.meta["shape"], a.settled(const))


def _dropped(a: Analysis, node: fx.Node, operands: list[Any], shape: torch.Size) -> int | None:
    """Which term of a sum is zero everywhere (or, where constants count, a constant), so that the sum is the other."""
    plain = label(node) in ("add", "add_", "iadd") and not node.kwargs

    def zero(place: int) -> bool:
        value, other = operands[place], operands[1 - place]
        if other.shape != shape or value.shape != shape or not value.single or not (plain or place == 1):
            return False
        if other.axes not in ((), value.axes):
            return False
        if plain and a.fold and other.axes and node.args[0] is not node.args[1]:
            return not bool(value.const.isnan().any())
        return bool((value.const == 0).all())

    if a.dropped is not None:
        place = a.dropped.get(node.name)
        if place is not None and not zero(place):
            a.problems.append(f"the branch that ends in {label(node)} ({node.name}) is not zero or constant")
    else:
        place = next((n for n in (1, 0) if a.drop and zero(n)), None)
    if place is not None:
        a.drops[node] = place
        a.offsets[node] = operands[place]
    return place


def _indexed_sum(a: Analysis, node: fx.Node, operands: list[Value]) -> Value:
    """A stream and a branch: the branch keeps only the channels that it adds something to."""
    alive = [int((value.const != 0).sum()) for value in operands]
    users = [len(arg.users) for arg in node.args]  # type: ignore[union-attr]
    base = 0 if (alive[0], users[0]) >= (alive[1], users[1]) else 1
    if label(node) not in ("add", "add_", "iadd") or len(set(node.args)) == 1:
        base = 0
    stream, branch = operands[base], operands[1 - base]
    plain = label(node) in ("add", "add_", "iadd") and node.args[0] is not node.args[1] and not node.kwargs
    if not plain or stream.axes != branch.axes:
        return _joined(a, node, stream, branch, node.meta["shape"])
    axis = stream.axes[0]
    args: list[Any] = list(node.args)
    a.implications.append(
        Implication(node, stream.atoms, branch.atoms, branch.const != 0, f"added into the stream at {label(node)}")
    )
    a.implications.append(Implication(node, branch.atoms, stream.atoms, None, f"takes a branch at {label(node)}"))
    a.scatters.append(Scatter(node, args[base], args[1 - base], axis, stream.atoms, branch.atoms))
    a.sums.append((node, stream, branch))
    return stream.with_const(a.settled(stream.const + branch.const))


def _joined(a: Analysis, node: fx.Node, left: Any, right: Any, shape: Any) -> Any:
    name = label(node)
    if not isinstance(shape, torch.Size) or not all(isinstance(value, Value) for value in (left, right)):
        return a.unknown(node, f"operation {name}")
    left, right = (value.aligned(len(shape)) for value in (left, right))
    found = next((v.axes[0] for v in (left, right) if v.single and v.shape[v.axes[0]] == shape[v.axes[0]]), None)
    if found is not None:
        left, right = (
            a.along(node, v, found - len(shape)) if v.tensor and not v.axes and v.shape[found] == shape[found] else v
            for v in (left, right)
        )
    values = [left, right]
    ranks = {len(value.shape) for value in values if value.axes}
    axes = {value.axes for value in values if value.axes}
    if not axes:
        return Value(shape, why=left.why or right.why)
    if len(axes) > 1 or ranks != {len(shape)}:
        return a.unknown(node, f"operation {name} on unlike channels")
    (at,) = axes
    result: Value | None = None
    const: Tensor | None = None
    for value in values:
        offset = len(shape) - len(value.shape)
        sizes = [value.shape[axis - offset] if axis >= offset else 1 for axis in at]
        if not value.axes and all(size == 1 for size in sizes):
            term = torch.full([shape[axis] for axis in at], NAN, dtype=torch.float64)  # one number for all channels
        elif not value.axes or sizes != [shape[axis] for axis in at]:
            reason = value.why or f"operation {name} spreads one channel over all"
            for other in values:
                a.pin(node, other, reason)
            return Value(shape, why=reason)
        else:
            if result is not None:
                a.atoms.tie(result.atoms, value.atoms)
            result = value if result is None else result
            term = value.const
        const = term if const is None else _combined(name, const, term, node.kwargs.get("alpha", 1))
    assert result is not None and const is not None
    if name in _SUMS and left.axes and right.axes:
        a.sums.append((node, left, right))
    return Value(shape, at, result.atoms, a.settled(const))


def _combined(name: str, one: Tensor, two: Tensor, alpha: Any) -> Tensor:
    if name in ("add", "add_", "iadd"):
        return one + alpha * two
    if name in ("sub", "sub_", "isub"):
        return one - alpha * two
    if name in _PRODUCTS:
        return torch.where((one == 0) | (two == 0), 0.0, one * two)
    if name in ("maximum", "minimum"):
        return torch.maximum(one, two) if name == "maximum" else torch.minimum(one, two)
    return torch.where((one == 0) & (two != 0) & ~two.isnan(), 0.0, one / two)


def concatenate(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``torch.cat``: channels one after the other, or tied where another dimension grows."""
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    shape = node.meta.get("shape")
    if not isinstance(parts, (list, tuple)) or not isinstance(dim, int) or not isinstance(shape, torch.Size):
        return a.unknown(node, "operation cat")
    values = [a.read(node, part) for part in parts]
    if not all(isinstance(value, Value) for value in values):
        return a.unknown(node, "operation cat")
    dim %= len(shape)
    if not any(value.axes for value in values):
        return Value(shape, why=values[0].why)
    if all(value.axes in ((), (dim,)) for value in values):
        values = [a.channels(node, value, dim) for value in values]
        atoms, const = torch.cat([v.atoms for v in values]), torch.cat([v.const for v in values])
        return Value(shape, (dim,), atoms, const)
    axes = next(value.axes for value in values if value.axes)
    if len(axes) != 1 or dim in axes or any(value.axes not in ((), axes) for value in values):
        return a.unknown(node, "operation cat of unlike channels")
    values = [a.channels(node, value, axes[0]) for value in values]
    const = values[0].const
    for value in values[1:]:
        a.atoms.tie(values[0].atoms, value.atoms)
        const = torch.where(const == value.const, const, NAN)
    return Value(shape, axes, values[0].atoms, const)


def attention_scores(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``F.scaled_dot_product_attention``: (…, heads, length, width); whole heads stay or go."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    bound = dict(zip(names, node.args)) | dict(node.kwargs)
    values = [a.read(node, bound.get(name)) for name in names[:3]]
    if not all(isinstance(value, Value) for value in values) or bound.get("enable_gqa"):
        return a.unknown(node, "attention")
    if not any(value.axes for value in values):
        return a.opaque(node, values[0].why)
    rank = len(values[0].shape)
    if any(v.axes not in ((rank - 3, rank - 1), (rank - 1,)) or v.axes != values[0].axes for v in values):
        return a.unknown(node, "attention on channels that are not (heads, width)")
    heads = 1 if values[0].single else values[0].atoms.shape[0]
    mask = bound.get("attn_mask")
    if isinstance(mask, fx.Node) and (mask.meta.get("shape") or ())[-3:-2] == (heads,) != (1,):
        return a.unknown(node, "attention under a mask of its own for each head")
    if any(not v.single and v.atoms.shape[0] != heads for v in values):
        return a.unknown(node, "attention with unlike heads")
    for head in range(heads):
        of_head = [value.atoms.reshape(heads, -1)[head] for value in values]
        a.atoms.tie_all(torch.cat(of_head))
    out = values[2]
    return Value(node.meta["shape"], out.axes, out.atoms, torch.where(out.const == 0, 0.0, unknown_like(out.const)))
