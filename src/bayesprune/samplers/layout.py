"""Flat views of tensors in memory order, and per-group weight decay laid along them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def memory_order(tensor: Tensor) -> list[int]:
    """Return the dimensions from the slowest to the fastest in memory (channels_last: 0, 2, 3, 1).

    Example:
        >>> memory_order(torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last))
        [0, 2, 3, 1]
    """
    if tensor.is_contiguous():
        return list(range(tensor.dim()))
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda d: -strides[d])


def flat_view(tensor: Tensor, order: list[int] | None = None) -> Tensor | None:
    """Return a one-dimensional view in memory order, or None where the memory has gaps or overlaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    dense = tensor.permute(order if order is not None else memory_order(tensor))
    return dense.view(-1) if dense.is_contiguous() else None


def like_layout(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return `tensor` itself if its strides are those of `reference`, else a copy in that layout."""
    if tensor.stride() == reference.stride():
        return tensor
    return torch.empty_like(reference).copy_(tensor)


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
    """Lay a broadcastable decay tensor along the flat memory of `param`.

    A decay whose dimensions beyond size 1 are adjacent in memory (one value a kernel, an input, an output, a weight)
    needs one value a group; any other pattern is expanded to one value a weight.

    Example:
        >>> layout = decay_layout(torch.tensor([[1.0], [2.0]]), torch.empty(2, 3))
        >>> layout.inner, layout.period, layout.slice(2, 5).tolist()
        (3, 2, [1.0, 2.0, 2.0])
    """
    order = memory_order(param)
    shape = [param.shape[d] for d in order]
    aligned = decay.reshape((1,) * (param.dim() - decay.dim()) + tuple(decay.shape)).permute(order)
    varying = [d for d in range(len(shape)) if aligned.shape[d] != 1]
    if varying and any(aligned.shape[d] == 1 != shape[d] for d in range(varying[0], varying[-1])):
        aligned, varying = aligned.expand(shape), list(range(len(shape)))
    inner = 1
    for size in shape[(varying[-1] + 1) if varying else 0 :]:
        inner *= size
    values = aligned.reshape(-1).contiguous()
    return DecayLayout(values, max(inner, 1), max(values.numel(), 1))
