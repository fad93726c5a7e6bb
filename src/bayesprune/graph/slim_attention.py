"""Attention with fewer heads than its width is made of: what ``nn.MultiheadAttention`` cannot express."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SlimAttention(nn.Module):
    """Multi-head attention with ``num_heads`` heads of ``head_dim`` each, whatever the width of its input.

    It replaces an ``nn.MultiheadAttention`` some of whose heads were removed: the names of its parameters and the
    arguments of its forward are the same, and so is what it computes. It returns no attention weights.

    Args:
        embed_dim: Width of the inputs.
        num_heads: Number of heads.
        head_dim: Width of one head.
        out_dim: Width of the output; None: ``embed_dim``.
        bias: Whether the projections have biases.
        dropout: Dropout rate on the attention weights, in training.
        batch_first: Whether inputs are (batch, length, width) rather than (length, batch, width).

    Example:
        >>> attention = SlimAttention(16, num_heads=3, head_dim=4)
        >>> attention(*[torch.zeros(2, 5, 16)] * 3)[0].shape
        torch.Size([2, 5, 16])

    Reference: method, section 7, rule 5.
    """

    # What nn.TransformerEncoderLayer asks of its attention before it takes its fused path, which must not be taken.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        out_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.out_dim = embed_dim if out_dim is None else out_dim
        self.dropout, self.batch_first = dropout, batch_first
        inner = num_heads * head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, embed_dim, device=device, dtype=dtype))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner, device=device, dtype=dtype)) if bias else None
        self.out_proj = nn.Linear(inner, self.out_dim, bias=bias, device=device, dtype=dtype)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return the attended values, and None where ``nn.MultiheadAttention`` returns attention weights.

        Args:
            query: (batch, length, width), or (length, batch, width) without ``batch_first``.
            key: As ``query``.
            value: As ``query``.
            key_padding_mask: (batch, length), True (or −inf) where a key is to be left out.
            need_weights: Ignored: no weights are returned.
            attn_mask: (length, length), True (or −inf) where a query must not look.
            average_attn_weights: Ignored.
            is_causal: Only together with ``attn_mask``, as in torch: a hint.
        """
        same = query is key and key is value
        weight, bias, inner = self.in_proj_weight, self.in_proj_bias, self.num_heads * self.head_dim
        if same:
            parts = F.linear(query, weight, bias).chunk(3, dim=-1)
            projected = [parts[0], parts[1], parts[2]]
        else:
            projected = []
            for place, source in enumerate((query, key, value)):
                rows = slice(place * inner, (place + 1) * inner)
                projected.append(F.linear(source, weight[rows], None if bias is None else bias[rows]))
        if not self.batch_first:
            projected = [part.transpose(0, 1) for part in projected]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in projected)
        mask = _additive(attn_mask, q)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)
            assert padding is not None
            padding = padding.unsqueeze(1).unsqueeze(1)
            mask = padding if mask is None else mask + padding
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def extra_repr(self) -> str:
        """The sizes, for printing."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask to be added to the scores, from one that is True where nothing may be seen."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
