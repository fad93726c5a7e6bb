"""Sets of channels, what is known of a tensor that holds some, and which operations act on each channel alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# What acts on each channel alone and leaves a zero channel zero.
PASS_MODULES: tuple[type, ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
    nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d,
    nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample, nn.ZeroPad1d,
    nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
PASS_FUNCTIONS: set[Callable[..., Any]] = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh,
    torch.relu, torch.relu_, torch.tanh, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.max_pool1d, F.max_pool2d,
    F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate,
    operator.truediv, operator.neg, torch.neg,
}  # fmt: skip
PASS_METHODS = {
    "relu",
    "relu_",
    "tanh",
    "tanh_",
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "double",
    "half",
    "neg",
}
RESHAPES: tuple[Any, ...] = (torch.flatten, torch.reshape, "flatten", "view", "reshape", torch.squeeze, "squeeze")
CATS: tuple[Any, ...] = (torch.cat, torch.concat, torch.concatenate)
TRANSPOSES: tuple[Any, ...] = (
    torch.transpose, torch.swapaxes, torch.swapdims, torch.permute, "transpose", "swapaxes", "swapdims", "permute",
)  # fmt: skip
MEANS: tuple[Any, ...] = (torch.mean, torch.sum, torch.amax, "mean", "sum", "amax")
ADDS: tuple[Any, ...] = (operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub")
PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


@dataclass(eq=False)
class ChannelSpace:
    """A set of channels that exist or vanish together, and everything that touches them.

    Attributes:
        channels: Their number C.
        writers: Convolution and linear modules whose row c writes channel c.
        readers: Modules whose columns of channel c read it, with the number of columns a channel (more than one after a
            flatten).
        depthwise: Depthwise convolutions: their row c reads and writes channel c.
        norms: BatchNorm and GroupNorm modules on the channels.
        starts: Of readers and norms on a concatenation, the first column (entry) that belongs to this set.
        block: Number of neighbouring channels that can only vanish together: whole groups of a GroupNorm.
        pinned: Why the channels cannot be removed (``None`` if they can).
        joined: Whether an addition or product joined several tensors into this set.
    """

    channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    block: int = 1
    pinned: str | None = None
    joined: bool = False

    def pin(self, reason: str) -> None:
        """Keep the channels, for the first reason given."""
        self.pinned = self.pinned or reason

    def absorb(self, other: ChannelSpace) -> None:
        """Take in another set of as many channels, which is this one from now on."""
        touched = {name for name, _ in self.readers} | set(self.norms)
        for name in [*(name for name, _ in other.readers), *other.norms]:
            if name in touched:
                self.pin(f"{name} has the channels twice")
        self.writers += other.writers
        self.readers += other.readers
        self.depthwise += other.depthwise
        self.norms += other.norms
        self.starts |= other.starts
        self.block = math.lcm(self.block, other.block)
        self.pinned = self.pinned or other.pinned
        self.joined = True


@dataclass
class ChannelValue:
    """What is known of one tensor of the graph: on ``axis`` lie the channels of some sets one behind the other.

    Each part is a set and the number of neighbouring entries that a channel of it takes.
    """

    parts: list[tuple[ChannelSpace, int]]
    shape: torch.Size
    axis: int = 1

    @property
    def plain(self) -> bool:
        """Whether the axis holds one set, an entry a channel."""
        return len(self.parts) == 1 and self.parts[0][1] == 1

    def like(self, shape: torch.Size, axis: int | None = None) -> ChannelValue:
        """The same channels in another shape."""
        return ChannelValue(self.parts, shape, self.axis if axis is None else axis)


def label(node: fx.Node) -> str:
    """The name of a node's function or method."""
    return str(getattr(node.target, "__name__", node.target))


def broadcasts(value: ChannelValue, result: torch.Size) -> bool:
    """Whether a factor has the result's channels, whatever its other axes."""
    return len(value.shape) == len(result) and value.shape[value.axis] == result[value.axis]


def passes(what: str, source: ChannelValue, shape: torch.Size) -> bool:
    """Whether what acts on each channel alone does so here: pooling and padding take channels to be on axis 1."""
    if source.axis != 1 and any(word in what.lower() for word in ("pool", "pad", "upsample", "interpolate")):
        return False
    return len(shape) > source.axis and shape[source.axis] == source.shape[source.axis]


def axis_after(node: fx.Node, source: ChannelValue, shape: torch.Size) -> int | None:
    """Where a transposition or a mean leaves the channels; None if it is neither, or mixes them."""
    if node.target in TRANSPOSES:
        return _moved_axis(node, source)
    return _pooled_axis(node, source, shape) if node.target in MEANS and source.plain else None


def _moved_axis(node: fx.Node, source: ChannelValue) -> int | None:
    """Where a transposition takes the channels; None if its axes are not plain numbers."""
    axes = [arg for arg in node.args[1:] if arg is not None]
    count = len(source.shape)
    if len(axes) == 1 and isinstance(axes[0], (list, tuple)):
        axes = list(axes[0])
    if node.kwargs or not all(isinstance(axis, int) for axis in axes):
        return None
    places = [axis % count for axis in axes if isinstance(axis, int)]
    if label(node) == "permute":
        return places.index(source.axis) if sorted(places) == list(range(count)) else None
    if len(places) != 2:
        return None
    return {places[0]: places[1], places[1]: places[0]}.get(source.axis, source.axis)


def _pooled_axis(node: fx.Node, source: ChannelValue, shape: torch.Size) -> int | None:
    """Where the channels lie after a reduction over other axes, without the batch; None if it was another one."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axes = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (list, tuple)) else []
    if not axes or not all(isinstance(axis, int) for axis in axes):
        return None
    places = {int(axis) % len(source.shape) for axis in axes}  # type: ignore[call-overload]
    if 0 in places or source.axis in places:
        return None
    gone = 0 if len(shape) == len(source.shape) else sum(place < source.axis for place in places)
    return source.axis - gone
