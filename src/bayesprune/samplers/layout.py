"""Flat views of tensors in memory order, shards of distributed tensors, and weight decay laid along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

_RANGES = [list(range(dim)) for dim in range(65)]
"""The order of dimensions of a contiguous tensor, by their number; torch allows 64."""

_WHOLE = (Tensor, torch.nn.Parameter)
"""Types that are no DTensor, told apart faster than by an attribute."""


def memory_order(tensor: Tensor) -> list[int]:
    """Return the dimensions from the slowest to the fastest in memory (channels_last: 0, 2, 3, 1)."""
    plain = _RANGES[tensor.dim()]
    if tensor.is_contiguous():
        return plain
    strides = tensor.stride()
    order = sorted(plain, key=lambda d: -strides[d])
    return plain if flat_view(tensor, order) is None else order


def flat_view(tensor: Tensor, order: list[int]) -> Tensor | None:
    """Return a one-dimensional view in the given order of dimensions, or None where the memory has gaps or overlaps."""
    if tensor.is_contiguous() and (tensor.dim() == 1 or order == _RANGES[tensor.dim()]):
        return tensor if tensor.dim() == 1 else tensor.view(-1)
    dense = tensor.permute(order)
    return dense.view(-1) if dense.is_contiguous() else None


def flat_like(tensor: Tensor, order: list[int]) -> Tensor:
    """Return a flat view in the given order of dimensions, or a flat copy where there is none."""
    view = flat_view(tensor, order)
    return tensor.permute(order).contiguous().view(-1) if view is None else view


def shaped(flat: Tensor, shape: Sequence[int], order: list[int]) -> Tensor:
    """Return a view of a flat tensor in the given shape, its memory in the given order of dimensions."""
    inverse = sorted(range(len(order)), key=lambda d: order[d])
    return flat.view([shape[d] for d in order]).permute(inverse)


def state_view(state: dict[str, Any], name: str, order: list[int]) -> Tensor:
    """Return a flat view of a state tensor in the weight's memory order; one in another layout is laid anew."""
    local = local_part(state[name])[0]
    flat = flat_view(local, order)
    if flat is None:
        flat = flat_like(local, order)
        state[name] = shaped(flat, local.shape, order)
    return flat


def overlaps(tensor: Tensor) -> bool:
    """Return whether two entries of a tensor may share memory, as those of an expanded tensor do."""
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def local_part(tensor: Tensor) -> tuple[Tensor, int]:
    """Return what this process holds of a tensor, and the number of its first element within the whole."""
    if type(tensor) in _WHOLE or not hasattr(tensor, "to_local"):
        return tensor, 0
    sharded = [(place, p) for place, p in enumerate(tensor.placements) if not p.is_replicate()]  # type: ignore[attr-defined]
    if not sharded:
        return tensor.to_local(), 0
    place, placement = sharded[0]
    if len(sharded) > 1 or type(placement).__name__ != "Shard" or placement.dim != 0:
        raise RuntimeError(
            f"a parameter of shape {tuple(tensor.shape)} has placements {tensor.placements}; samplers step replicas and "  # type: ignore[attr-defined]
            "shards along dimension 0 (fully_shard's default): shard it so."
        )
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    rows = -(-tensor.shape[0] // mesh.size(place))
    first = min(mesh.get_local_rank(place) * rows, tensor.shape[0])
    return tensor.to_local(), first * (tensor.numel() // max(tensor.shape[0], 1))


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor's whole, gathered from all processes, which must all ask; any other tensor is its own."""
    return cast(Tensor, tensor.full_tensor()) if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def local_decay(decay: Tensor, param: Tensor, offset: int) -> Tensor:
    """Return the rows of a broadcastable decay that belong to this process's shard of `param`."""
    if not hasattr(param, "to_local") or not decay.dim() or decay.dim() < param.dim() or decay.shape[0] == 1:
        return decay
    first = offset // (param.numel() // param.shape[0])
    return decay[first : first + cast(Tensor, param.to_local()).shape[0]]  # type: ignore[operator]


@dataclass(frozen=True)
class DecayLayout:
    """A weight decay along a flat weight: weight i has `values[(i // inner) % period]`."""

    values: Tensor
    inner: int
    period: int

    def slice(self, start: int, stop: int) -> Tensor:
        """Return the decay of the flat weights start..stop-1."""
        index = torch.arange(start, stop, device=self.values.device)
        return self.values[index.div(self.inner, rounding_mode="floor") % self.period]


def decay_layout(decay: Tensor, param: Tensor) -> DecayLayout:
    """Lay a broadcastable decay tensor along the flat memory of `param`."""
    order = memory_order(param)
    shape = [param.shape[d] for d in order]
    aligned = decay if decay.dim() == len(shape) else decay.reshape((1,) * (len(shape) - decay.dim()) + decay.shape)
    if order != _RANGES[len(shape)]:
        aligned = aligned.permute(order)
    varying = [d for d, size in enumerate(aligned.shape) if size != 1]
    if varying and any(aligned.shape[d] == 1 != shape[d] for d in range(varying[0], varying[-1])):
        aligned, varying = aligned.expand(shape), list(range(len(shape)))
    inner = math.prod(shape[varying[-1] + 1 if varying else 0 :])
    values = aligned.reshape(-1).contiguous()
    return DecayLayout(values, max(inner, 1), max(values.numel(), 1))
