"""Many small networks as one batched computation: chains of one data set, and replicates with data of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "silu": F.silu}


class ChainLinear(nn.Conv1d):
    """A linear layer for each of C chains: a grouped convolution of kernel 1 by its parameters, a batched product by use."""

    def __init__(self, chains: int, in_features: int, out_features: int) -> None:
        super().__init__(chains * in_features, chains * out_features, 1, groups=chains)
        self.chains, self.in_features, self.out_features = chains, in_features, out_features

    def reset_parameters(self) -> None:
        """Leave the weights as they are; `ChainMLP` draws them from a generator of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        sets, rows, _ = x.shape
        weight = self.weight.view(sets, -1, self.in_features)
        out = torch.bmm(x, weight.transpose(1, 2)) if sets > 1 else (x[0] @ weight[0].t())[None]
        if sets != self.chains:
            out = out.view(sets, rows, -1, self.out_features).transpose(1, 2)
            out = out.reshape(self.chains, rows, self.out_features)
        assert self.bias is not None
        return out + self.bias.view(self.chains, 1, self.out_features)


class ChainMLP(nn.Module):
    """C multilayer perceptrons side by side."""

    def __init__(
        self,
        chains: int,
        sizes: Sequence[int],
        *,
        activation: str = "relu",
        generator: torch.Generator | None,
        first_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is unknown; use one of {', '.join(map(repr, ACTIVATIONS))}")
        self.chains, self.sizes, self.activation = chains, tuple(sizes), activation
        self.layers = nn.ModuleList(ChainLinear(chains, a, b) for a, b in zip(sizes, sizes[1:]))
        for depth, layer in enumerate(self.layers):
            assert isinstance(layer, ChainLinear) and layer.bias is not None
            last = depth == len(self.layers) - 1
            std = math.sqrt((1.0 if last or activation == "tanh" else 2.0) / layer.in_features)
            if generator is None:
                continue
            with torch.no_grad():
                layer.weight.normal_(0.0, std * (first_scale if depth == 0 else 1.0), generator=generator)
                # Different hinges from the start: units whose first weights are next to nothing would all be alike.
                layer.bias.uniform_(-0.1, 0.1, generator=generator) if not last else layer.bias.zero_()

    @property
    def first(self) -> ChainLinear:
        """The first layer."""
        layer = self.layers[0]
        assert isinstance(layer, ChainLinear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (C, B, out) at inputs (R, B, in)."""
        activation = ACTIVATIONS[self.activation]
        for depth, layer in enumerate(self.layers):
            x = layer(activation(x) if depth else x)
        return x

    def input_weights(self) -> Tensor:
        """Return the first layer's weights as (C, hidden, in)."""
        return self.first.weight.view(self.chains, self.first.out_features, self.first.in_features)

    @torch.no_grad()
    def choose(self, chains: Tensor, columns: Tensor | None = None) -> ChainMLP:
        """Return some of the chains (repeated if named twice), each on columns of its own."""
        width = self.first.in_features if columns is None else columns.shape[1]
        small = ChainMLP(len(chains), (width, *self.sizes[1:]), activation=self.activation, generator=None)
        for depth, (new, old) in enumerate(zip(small.layers, self.layers)):
            assert isinstance(new, ChainLinear) and isinstance(old, ChainLinear)
            assert new.bias is not None and old.bias is not None
            weight = old.weight.view(self.chains, old.out_features, old.in_features)[chains]
            if depth == 0 and columns is not None:
                index = columns.clamp_min(0)[:, None, :].expand(-1, old.out_features, -1)
                weight = weight.gather(2, index).masked_fill_((columns < 0)[:, None, :], 0)
            new.weight.copy_(weight.reshape(new.weight.shape))
            new.bias.copy_(old.bias.view(self.chains, -1)[chains].reshape(-1))
        return small
