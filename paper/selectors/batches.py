"""Minibatches as contiguous slices of a shuffled copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EPOCHS_A_SHUFFLE = 10


class ShuffledBatches:
    """Endless minibatches of `batch_size` rows: slices of a copy that is shuffled every ten epochs.

    Gathering rows costs as much as the products they feed where the network is small. Within one shuffle each epoch
    cuts the copy at another offset and visits the slices in another order, so batches do not repeat; the rows that do
    not fill a batch are left out for that epoch.

    Args:
        X: rows (n, p); never changed.
        y: responses (n,).
        batch_size: B; n if n is smaller.
        generator: source of the shuffles.

    Example:
        >>> X = torch.arange(6.0).view(6, 1)
        >>> batches = iter(ShuffledBatches(X, X[:, 0], 4, torch.Generator().manual_seed(0)))
        >>> next(batches)[0].shape
        torch.Size([4, 1])
    """

    def __init__(self, X: Tensor, y: Tensor, batch_size: int, generator: torch.Generator) -> None:
        self.X, self.y, self.generator = X, y, generator
        self.batch_size = min(batch_size, len(X))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (rows, responses) without end; both are views that the next shuffle overwrites."""
        n, size = len(self.X), self.batch_size
        if size == n:
            while True:
                yield self.X, self.y
        # Paper: SPLBNN draws each batch afresh, SVBNN shuffles every epoch and ends it with a short batch.
        X, y = torch.empty_like(self.X), torch.empty_like(self.y)
        while True:
            order = torch.randperm(n, generator=self.generator)
            torch.index_select(self.X, 0, order, out=X)
            torch.index_select(self.y, 0, order, out=y)
            for _ in range(EPOCHS_A_SHUFFLE):
                spare = n % size
                offset = int(torch.randint(spare + 1 if spare else size, (), generator=self.generator))
                count = (n - offset) // size
                for k in torch.randperm(count, generator=self.generator).tolist():
                    start = offset + k * size
                    yield X[start : start + size], y[start : start + size]
