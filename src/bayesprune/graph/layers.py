"""The layers that have channels of their own: their kinds, and where the channels lie on their tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PACKED = (nn.MultiheadAttention, nn.RNNBase)
"""Layers of several weights, which have inner channels: heads, hidden units."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CHANNEL_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS)
"""Normalisations that treat each channel alone."""


def turned_linear(module: Any) -> bool:
    """Whether a layer is ``Conv1D`` of transformers (GPT-2): linear, with its weight as (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_weighted(module: Any) -> bool:
    """Whether a layer is linear in its inputs, with a weight that mixes channels: what is pruned and counted."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) or turned_linear(module)


Side = tuple[str, int, Tensor]
"""A tensor's name in its module, one of its dimensions, and the atoms along it."""


def sides(module: Any, source: Tensor | None, target: Tensor, heads: Tensor | None = None) -> list[Side]:
    """Where the channels of a layer lie on its own tensors: the one table of what is cut, and of what is pruned together."""
    if heads is not None:
        return _of_attention(module, source, target, heads)
    if isinstance(module, nn.RNNBase):
        return _of_recurrent(module, source, target)
    if isinstance(module, nn.Embedding):
        return [("weight", 1, target)]
    turned = int(isinstance(module, TRANSPOSED) or turned_linear(module))
    found = [("weight", turned, target), *((name, 0, target) for name in ("bias", "running_mean", "running_var"))]
    if source is not None and int(getattr(module, "groups", 1)) == 1:
        found.append(("weight", 1 - turned, source))
    return [side for side in found if getattr(module, side[0], None) is not None]


def _of_attention(module: Any, source: Tensor | None, target: Tensor, heads: Tensor) -> list[Side]:
    inner = heads.repeat_interleave(int(module.head_dim))
    found = [("in_proj_weight", 0, inner.repeat(3)), ("out_proj.weight", 0, target), ("out_proj.weight", 1, inner)]
    if module.in_proj_bias is not None:
        found += [("in_proj_bias", 0, inner.repeat(3))]
    if module.out_proj.bias is not None:
        found += [("out_proj.bias", 0, target)]
    return found if source is None else [*found, ("in_proj_weight", 1, source)]


def _of_recurrent(module: nn.RNNBase, source: Tensor | None, target: Tensor) -> list[Side]:
    found: list[Side] = []
    for layer, direction in recurrent_parts(module):
        columns = source if layer == 0 else target.repeat(2 if module.bidirectional else 1)
        rows = target.repeat(gates(module))
        for which, read in (("ih", columns), ("hh", target)):
            name = f"{which}_l{layer}{direction}"
            found.append((f"weight_{name}", 0, rows))
            if read is not None:
                found.append((f"weight_{name}", 1, read))
            if module.bias:
                found.append((f"bias_{name}", 0, rows))
    return found


def gates(module: nn.RNNBase) -> int:
    """How many rows a hidden unit has in each of a recurrent layer's weights."""
    return {"LSTM": 4, "GRU": 3}.get(module.mode, 1)


def recurrent_parts(module: nn.RNNBase) -> list[tuple[int, str]]:
    """The layers and directions (as the suffix of their parameters) of a recurrent layer."""
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [(layer, direction) for layer in range(module.num_layers) for direction in directions]
