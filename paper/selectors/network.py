"""Several small networks of one shape as one batched computation, with a hand-written backward pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesprune.common.checks import check_choice

ACTIVATIONS = ("relu", "tanh")


class BatchedNetwork:
    """K multilayer perceptrons over the same rows: layer 1 of all is one matrix product, the others are batched.

    z₀ = xᵀ, z_l = a(W_l z_{l−1} + b_l) for each hidden layer, f = W_L z_{L−1} + b_L, for k = 1…K at once. Units come
    first and rows last, so that every buffer is contiguous and layer 1 is (K·h₁, p) times (p, B). All weights live in
    one flat buffer, so that a prior acts on them in one pass.

    Args:
        networks: K.
        sizes: number of inputs, of units in each hidden layer, and of outputs.
        activation: a, "relu" or "tanh".
        dtype: of weights and outputs.

    Raises:
        ValueError: fewer than two sizes, a size or number below 1, an unknown activation.

    Example:
        >>> network = BatchedNetwork(10, (1000, 5, 3, 1))
        >>> network.initialise_(torch.Generator().manual_seed(0)).forward(torch.zeros(7, 1000)).shape
        torch.Size([10, 1, 7])
    """

    def __init__(
        self, networks: int, sizes: Sequence[int], *, activation: str = "relu", dtype: torch.dtype = torch.float32
    ) -> None:
        check_choice("activation", activation, ACTIVATIONS)
        if len(sizes) < 2 or min(*sizes, networks) < 1:
            raise ValueError(f"sizes={tuple(sizes)}, networks={networks}: give two sizes or more, each at least 1")
        self.networks, self.sizes, self.activation = networks, tuple(sizes), activation
        pairs = list(itertools.pairwise(sizes))
        self.flat = torch.zeros(networks * sum((before + 1) * after for before, after in pairs), dtype=dtype)
        self.weights, self.biases = self.views(self.flat)
        self._rows = -1
        self._z: list[Tensor] = []
        self._deltas: list[Tensor] = []

    def views(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Cut a buffer of the size of `flat` into weights (K, out, in) and biases (K, out, 1), layer by layer."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        start = 0
        for before, after in itertools.pairwise(self.sizes):
            for store, width in ((weights, before), (biases, 1)):
                stop = start + self.networks * after * width
                store.append(flat[start:stop].view(self.networks, after, width))
                start = stop
        return weights, biases

    def initialise_(self, generator: torch.Generator) -> BatchedNetwork:
        """Draw weights and biases from U(−1/√in, 1/√in), torch's default for linear layers."""
        for weight, bias in zip(self.weights, self.biases):
            bound = 1 / math.sqrt(weight.shape[2])
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        return self

    def forward(self, X: Tensor) -> Tensor:
        """Return the outputs (K, out, B) of rows `X` (B, p), in a buffer that the next call overwrites."""
        if len(X) != self._rows:
            self._rows = len(X)
            shapes = [(self.networks, size, self._rows) for size in self.sizes[1:]]
            self._z = [self.flat.new_empty(shape) for shape in shapes]
            self._deltas = [self.flat.new_empty(shape) for shape in shapes]
        for layer, (weight, bias, z) in enumerate(zip(self.weights, self.biases, self._z)):
            if layer == 0:
                torch.addmm(bias.view(-1, 1), weight.view(-1, X.shape[1]), X.T, out=z.view(-1, self._rows))
            else:
                torch.baddbmm(bias, weight, self._z[layer - 1], out=z)
            if layer < len(self._z) - 1:
                z.relu_() if self.activation == "relu" else z.tanh_()
        return self._z[-1]

    def backward_(self, delta: Tensor) -> None:
        """Carry `delta` = ∂loss/∂f (K, out, B) of the last forward pass down to every layer's pre-activation."""
        self._deltas[-1] = delta
        for layer in range(len(self._deltas) - 2, -1, -1):
            z, below = self._z[layer], self._deltas[layer]
            torch.bmm(self.weights[layer + 1].transpose(1, 2), self._deltas[layer + 1], out=below)
            below.mul_(z > 0 if self.activation == "relu" else 1 - z.square())

    def accumulate_(self, X: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], alpha: float = 1.0) -> None:
        """Add alpha·gradient to `weights` and `biases`, after `backward_` on the same rows.

        Given the network's own weights and alpha = −step, this is a step of gradient descent without a gradient buffer.
        """
        for layer, (weight, bias, delta) in enumerate(zip(weights, biases, self._deltas)):
            if layer == 0:
                weight.view(-1, X.shape[1]).addmm_(delta.view(-1, self._rows), X, alpha=alpha)
            else:
                weight.baddbmm_(delta, self._z[layer - 1].transpose(1, 2), alpha=alpha)
            bias.add_(delta.sum(2, keepdim=True), alpha=alpha)

    def predict(self, X: Tensor, rows: int = 4096) -> Tensor:
        """Return the outputs (K, out, n) of any number of rows, in a tensor of its own."""
        out = self.flat.new_empty(self.networks, self.sizes[-1], len(X))
        for start in range(0, len(X), rows):
            out[:, :, start : start + rows] = self.forward(X[start : start + rows])
        return out
