"""Rules for operations that move channels about: reshape, transpose, split, index, pool, reduce, activate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from bayesprune.graph.analysis import Analysis, Grid, Sizes, argument, label
from bayesprune.graph.values import NAN, Value, unknown_like


def elementwise(a: Analysis, node: fx.Node, module: Any) -> Any:
    """A function of each entry alone; constants go through it."""
    source = a.read(node, node.args[0])
    if not isinstance(source, Value) or any(isinstance(arg, fx.Node) for arg in node.all_input_nodes[1:]):
        return a.unknown(node, f"operation {label(node)}")
    known = source.const.nan_to_num(nan=0.0)
    if module is not None:
        const = module.forward(known)
    elif node.op == "call_method":
        const = getattr(known, str(node.target))(*node.args[1:], **node.kwargs)
    else:
        const = node.target(known, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return source.shaped(node.meta["shape"], a.settled(torch.where(source.const.isnan(), NAN, const.double())))


def same(a: Analysis, node: fx.Node, module: Any) -> Any:
    """What changes no value: casts, clones, dropout (in evaluation), identity."""
    source = a.read(node, node.args[0])
    if not isinstance(source, Value) or node.meta.get("shape") != source.shape:
        return a.unknown(node, f"operation {label(node)}")
    return source


def pool(a: Analysis, node: fx.Node, module: Any) -> Any:
    """Pooling and resizing act on the dimensions behind the channels; a constant stays, unless zeros are averaged in."""
    source = a.read(node, node.args[0])
    shape = node.meta.get("shape")
    if not isinstance(source, Value) or not isinstance(shape, torch.Size):
        return a.unknown(node, f"operation {label(node)}")
    if any(axis != 1 for axis in source.axes) or shape[:2] != source.shape[:2] or len(shape) != len(source.shape):
        return a.unknown(node, f"operation {label(node)} across the channels' dimension")
    keeps = "max" in label(node) or "daptive" in label(node) or label(node) == "interpolate"
    if module is not None:
        name = type(module).__name__
        padding = getattr(module, "padding", 0)
        keeps = "Max" in name or "Adaptive" in name or "Upsample" in name or name[:4] in ("Refl", "Repl", "Circ")
        plain = not (padding if isinstance(padding, int) else any(padding)) and not getattr(
            module, "divisor_override", None
        )
        keeps = keeps or ("AvgPool" in name and plain)
    return source.shaped(shape, source.const if keeps else torch.where(source.const == 0, source.const, NAN))


def reduce(a: Analysis, node: fx.Node, module: Any) -> Any:
    """Mean, sum or maximum over dimensions other than the channels'."""
    source = a.read(node, node.args[0])
    dims = argument(node, 1, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    shape = node.meta.get("shape")
    if not isinstance(source, Value) or not isinstance(shape, torch.Size) or not isinstance(dims, (list, tuple)):
        return a.unknown(node, f"operation {label(node)}")
    if not all(isinstance(d, int) for d in dims):
        return a.unknown(node, f"operation {label(node)}")
    gone = {d % len(source.shape) for d in dims}
    if gone & set(source.axes):
        return a.unknown(node, f"operation {label(node)} over the channels")
    kept_dims = len(shape) == len(source.shape)
    axes = source.axes if kept_dims else tuple(axis - sum(g < axis for g in gone) for axis in source.axes)
    const = source.const if label(node) != "sum" else torch.where(source.const == 0, source.const, NAN)
    return Value(shape, axes, source.atoms, const, source.why)


def permute(a: Analysis, node: fx.Node, module: Any) -> Any:
    """Transpose, permute, movedim: the same channels along other dimensions."""
    source = a.read(node, node.args[0])
    if not isinstance(source, Value) or any(isinstance(arg, fx.Node) for arg in node.all_input_nodes[1:]):
        return a.unknown(node, f"operation {label(node)}")
    probe = torch.empty(source.shape, device="meta")
    marks = torch.empty([n + 2 for n in range(probe.dim())], device="meta")  # sizes that name the dimensions
    if node.op == "call_method":
        moved = getattr(marks, str(node.target))(*node.args[1:], **node.kwargs)
    else:
        moved = node.target(marks, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    order = [size - 2 for size in moved.shape]
    axes = [order.index(axis) for axis in source.axes]
    places = sorted(range(len(axes)), key=lambda i: axes[i])
    return Value(
        node.meta["shape"], tuple(sorted(axes)), source.atoms.permute(places), source.const.permute(places), source.why
    )


def reshape(a: Analysis, node: fx.Node, module: Any) -> Any:
    """View, reshape, flatten, unflatten, squeeze: the channels' dimension may be merged with others, or split."""
    source = a.read(node, node.args[0])
    shape = node.meta.get("shape")
    if not isinstance(source, Value) or not isinstance(shape, torch.Size):
        return a.unknown(node, f"operation {label(node)}")
    if not source.axes:
        return Value(shape, why=source.why)
    moved = _reshaped(source, shape)
    if moved is None:
        return a.unknown(node, f"operation {label(node)}, which merges channels with the batch,")
    if len(moved.axes) > 1:
        a.grids.append(Grid(node, moved.atoms, (), f"one of the same part in {label(node)}"))
    if node.op != "call_module" and label(node).startswith("squeeze"):
        _unsqueezed(a, node, source)
    _literal_sizes(a, node, moved)
    return moved


def _unsqueezed(a: Analysis, node: fx.Node, source: Value) -> None:
    """Of channels that a squeeze would drop the dimension of, two stay."""
    dims = argument(node, 1, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, (tuple, list)):
        dims = range(len(source.shape))
    for place, axis in enumerate(source.axes):
        if axis in [dim % len(source.shape) for dim in dims]:
            line = source.atoms.movedim(place, 0).flatten(1)[:, 0] if len(source.axes) > 1 else source.atoms
            a.floors.append((line, 2, "a squeeze would drop a single channel's dimension"))


def _reshaped(source: Value, shape: torch.Size) -> Value | None:
    """Where the channels lie after a reshape; None if they are merged with dimension 0."""
    before, after = list(source.shape), list(shape)
    axes: list[int] = []
    atoms, const = source.atoms, source.const
    i = j = 0
    position = 0  # of the next source axis within ``atoms``
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = i + (i < len(before)), j + (j < len(after))
        while left != right:
            if left < right:
                left *= before[i]
                i += 1
            else:
                right *= after[j]
                j += 1
        inside = [axis for axis in source.axes if i0 <= axis < i]
        if not inside:
            continue
        wide = [n for n in range(i0, i) if before[n] != 1]
        if 0 in wide and 0 not in inside and wide != inside:
            return None
        if [n for n in wide if n in inside] == wide and len(wide) <= 1 and j - j0 == 1:
            axes.append(j0)
            position += len(inside)
            continue
        # The block's atoms at full size, then in the new sizes; dimensions along which they do not vary are no axes.
        lead, tail = atoms.shape[:position], atoms.shape[position + len(inside) :]
        block = [before[n] if n in inside else 1 for n in range(i0, i)]
        full = [before[n] for n in range(i0, i)]
        new = after[j0:j]

        def relaid(tensor: Tensor) -> Tensor:
            seen = tensor.reshape(*lead, *block, *tail).expand(*lead, *full, *tail)  # noqa: B023
            return seen.reshape((*lead, *new, *tail))  # noqa: B023

        atoms, const = relaid(atoms), relaid(const)
        kept: list[int] = []
        for n in range(j0, j):
            at = position + len(kept)
            first_atoms, first_const = atoms.narrow(at, 0, 1), const.narrow(at, 0, 1)
            alike = ((const == first_const) | (const.isnan() & first_const.isnan())).all()
            if after[n] == 1 or (bool((atoms == first_atoms).all()) and bool(alike)):
                atoms, const = atoms.select(at, 0), const.select(at, 0)
            else:
                kept.append(n)
        axes += kept
        position += len(kept)
    if 0 in axes and 0 not in source.axes:
        return None
    return Value(shape, tuple(axes), atoms, const, source.why)


def _literal_sizes(a: Analysis, node: fx.Node, value: Value) -> None:
    """Sizes of a reshape that count channels: literal ones, which fewer channels make wrong, and computed ones, which may
    be computed from other channels.
    """
    name = label(node) if node.op != "call_module" else ""
    if name == "unflatten":
        dim, sizes = argument(node, 1, "dim"), argument(node, 2, "sizes")
        start = dim % len(a.values[node.args[0]].shape) if isinstance(dim, int) else 0  # type: ignore[index]
        packed = True
    elif name in ("view", "reshape"):
        packed = len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
        sizes, start = node.args[1] if packed else node.args[1:], 0
    else:
        return
    if not isinstance(sizes, (list, tuple)):
        return
    for axis_place, axis in enumerate(value.axes):
        place = axis - start
        computed = 0 <= place < len(sizes) and isinstance(sizes[place], fx.Node)
        if computed or (0 <= place < len(sizes) and isinstance(sizes[place], int) and sizes[place] != -1):
            lines = value.atoms.movedim(axis_place, 0).reshape(value.atoms.shape[axis_place], -1)

            def count(index: Any, lines: Tensor = lines) -> tuple[int, ...]:
                return (int(index(lines).any(1).sum()),)

            def put(target: fx.Node, new: tuple[int, ...], place: int = place, packed: bool = packed) -> None:
                at = {"unflatten": 2}.get(name, 1)
                if packed:
                    entries = list(target.args[at])  # type: ignore[arg-type]
                    entries[place] = new[0]
                    target.update_arg(at, tuple(entries))
                else:
                    target.update_arg(1 + place, new[0])

            a.sizes.append(Sizes(node, (int(value.shape[axis]),), count, put, computed))


def chunk(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``chunk`` and ``split``: parts of the channels, or of another dimension."""
    source = a.read(node, node.args[0])
    shapes = node.meta.get("shape")
    dim = argument(node, 2, "dim", 0)
    if not isinstance(source, Value) or not isinstance(shapes, tuple) or not isinstance(dim, int):
        return a.unknown(node, f"operation {label(node)}")
    dim %= len(source.shape)
    if dim not in source.axes:
        return tuple(source.shaped(shape) for shape in shapes)
    place, sizes = source.axes.index(dim), [shape[dim] for shape in shapes]
    atoms, const = source.atoms.split(sizes, place), source.const.split(sizes, place)
    parts = [Value(shape, source.axes, x, c, source.why) for shape, x, c in zip(shapes, atoms, const)]
    if label(node) == "chunk":
        if len(set(sizes)) > 1 or not source.single:
            a.pin(node, source, f"operation {label(node)} cuts unequal parts")
        else:
            a.grids.append(Grid(node, source.atoms.view(len(sizes), -1), (0,), f"{label(node)} cuts equal parts"))
    else:

        def count(index: Any) -> tuple[int, ...]:
            return tuple(
                int(index(part.movedim(place, 0).reshape(part.shape[place], -1)).any(1).sum()) for part in atoms
            )

        def put(target: fx.Node, new: tuple[int, ...]) -> None:
            target.update_arg(1, list(new))

        a.sizes.append(Sizes(node, tuple(sizes), count, put))
    return tuple(parts)


def unbind(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``unbind``: one tensor an entry of a dimension."""
    source = a.read(node, node.args[0])
    shapes = node.meta.get("shape")
    dim = argument(node, 1, "dim", 0)
    if not isinstance(source, Value) or not isinstance(shapes, tuple) or not isinstance(dim, int):
        return a.unknown(node, f"operation {label(node)}")
    return tuple(_selected(a, node, source, dim % len(source.shape), n, shape) for n, shape in enumerate(shapes))


def _selected(a: Analysis, node: fx.Node, source: Value, dim: int, at: int, shape: torch.Size) -> Value:
    axes = tuple(axis - (axis > dim) for axis in source.axes if axis != dim)
    if dim not in source.axes:
        return Value(shape, axes, source.atoms, source.const, source.why)
    place = source.axes.index(dim)
    a.grids.append(Grid(node, source.atoms, (place,), f"{label(node)} takes one part"))
    return Value(shape, axes, source.atoms.select(place, at), source.const.select(place, at), source.why)


def getitem(a: Analysis, node: fx.Node, module: Any) -> Any:
    """One entry of several results, or a part of a tensor."""
    index = node.args[1]
    held = a.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if isinstance(held, tuple) and isinstance(index, int):
        return held[index]
    source = a.read(node, node.args[0])
    shape = node.meta.get("shape")
    if not isinstance(source, Value) or not isinstance(shape, torch.Size):
        if isinstance(held, (Value, tuple)):
            return a.unknown(node, "indexing")
        return a.opaque(node, "model input") if shape is not None else None  # an entry of a dict
    entries = list(index) if isinstance(index, tuple) else [index]
    if sum(entry is Ellipsis for entry in entries) > 1 or not all(
        entry is None or entry is Ellipsis or isinstance(entry, (int, slice)) for entry in entries
    ):
        return a.unknown(node, "indexing")
    if Ellipsis in [entry for entry in entries if not isinstance(entry, fx.Node)]:
        at = next(n for n, entry in enumerate(entries) if entry is Ellipsis)
        missing = len(source.shape) - sum(entry is not None for entry in entries) + 1
        entries[at : at + 1] = [slice(None)] * missing
    value, dim = source, 0
    for entry in entries:
        size = list(value.shape)
        if entry is None:
            size.insert(dim, 1)
            axes = tuple(axis + (axis >= dim) for axis in value.axes)
            value = Value(torch.Size(size), axes, value.atoms, value.const, value.why)
            dim += 1
        elif isinstance(entry, int):
            del size[dim]
            value = _selected(a, node, value, dim, entry, torch.Size(size))
        else:
            if dim in value.axes and entry != slice(None):
                return a.unknown(node, "indexing a part of the channels")
            dim += 1
    result = value.shaped(shape)
    if all(isinstance(entry, slice) for entry in entries):
        result.tensor = source.tensor  # a part of a position embedding
    return result


def assigned(a: Analysis, node: fx.Node, module: Any) -> None:
    """``x[i] = y``: all channels of both stay, and nothing is known of what x holds."""
    base = node.args[0]
    a.unknown(node, "assignment to a part")
    if isinstance(base, fx.Node) and isinstance(held := a.values.get(base), Value):
        a.values[base] = held.with_const(unknown_like(held.const))


def padding(a: Analysis, node: fx.Node, module: Any) -> Any:
    """``F.pad``: around the image, or new constant channels in front and behind."""
    source = a.read(node, node.args[0])
    pad = argument(node, 1, "pad")
    shape = node.meta.get("shape")
    ok = isinstance(pad, (list, tuple)) and all(isinstance(p, int) for p in pad)
    if not isinstance(source, Value) or not isinstance(shape, torch.Size) or not ok:
        return a.unknown(node, "operation pad")
    filled = (
        float(argument(node, 3, "value", None) or 0.0) if argument(node, 2, "mode", "constant") == "constant" else NAN
    )
    rank = len(source.shape)
    sides = {rank - 1 - n // 2: (pad[n], pad[n + 1]) for n in range(0, len(pad), 2) if pad[n] or pad[n + 1]}
    if any(axis in sides for axis in source.axes) and (not source.single or math.isnan(filled)):
        return a.unknown(node, "operation pad on the channels")
    elsewhere = any(axis not in source.axes for axis in sides)
    const = source.const
    if elsewhere and not math.isnan(filled):
        const = torch.where(const == filled, const, unknown_like(const))
    if not source.axes or source.axes[0] not in sides:
        return source.shaped(shape, const)
    axis = source.axes[0]
    front, back = sides[axis]
    if front < 0 or back < 0:
        return a.unknown(node, "operation pad that cuts channels off")
    new = [a.atoms.fresh(front), a.atoms.fresh(back)]
    fill = [torch.full((n,), filled, dtype=torch.float64) for n in (front, back)]
    place = 2 * (rank - 1 - axis)

    def count(index: Any) -> tuple[int, ...]:
        return int(index(new[0]).sum()), int(index(new[1]).sum())

    def put(target: fx.Node, sizes: tuple[int, ...]) -> None:
        entries = list(pad)
        entries[place : place + 2] = sizes
        if len(target.args) > 1:
            target.update_arg(1, tuple(entries))
        else:
            target.update_kwarg("pad", tuple(entries))

    a.sizes.append(Sizes(node, (front, back), count, put))
    atoms = torch.cat([new[0], source.atoms, new[1]])
    return Value(shape, (axis,), atoms, a.settled(torch.cat([fill[0], const, fill[1]])), source.why)
