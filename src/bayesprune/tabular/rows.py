"""The rows that chains are trained on: standardised, shuffled once, read in contiguous windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_DENSE = 2 * 10**8  # a sparse table of at most this many entries (800 MB) is made dense once
_NEAR = 1e-7  # of its mean: a column that varies by less (milliseconds since 1970) is measured about its mean
_ROUNDING = 1e-14  # of its mean: what varies by less is constant
_COLUMNS = 256  # that are measured so at once


@dataclass(frozen=True)
class Standardiser:
    """Column means and scales of a table, and of the response."""

    mean: np.ndarray
    scale: np.ndarray
    y_mean: float = 0.0
    y_scale: float = 1.0

    @classmethod
    def of(cls, X: Any, y: np.ndarray | None = None, weight: np.ndarray | None = None) -> Standardiser:
        """Measure a table: an array (n, p) or a scipy.sparse matrix; `y` for a regression; a weight a row."""
        if weight is not None:
            share = weight / weight.sum()
            mean = np.asarray(X.T @ share).ravel()
            square = X.multiply(X).T @ share - mean**2 if hasattr(X, "tocsr") else (X - mean).T ** 2 @ share
            variance = np.maximum(np.asarray(square).ravel(), 0.0)
        elif hasattr(X, "tocsr"):
            mean = np.asarray(X.mean(axis=0), dtype=np.float64).ravel()
            square = np.asarray(X.multiply(X).mean(axis=0), dtype=np.float64).ravel()
            variance = np.maximum(square - mean**2, 0.0)
        else:
            mean = X.mean(axis=0, dtype=np.float64)
            variance = X.var(axis=0, dtype=np.float64)
        scale = np.sqrt(variance)
        near = np.flatnonzero((scale <= _NEAR * np.abs(mean)) & (mean != 0))
        for part in (near[start : start + _COLUMNS] for start in range(0, len(near), _COLUMNS)):
            mean[part], scale[part] = _measured_about(mean[part], X[:, part], weight)
        scale = np.where(scale <= _ROUNDING * np.maximum(np.abs(mean), 1e-30), 1.0, scale)
        return cls(mean, scale) if y is None else cls(mean, scale).with_response(y, weight)

    def with_response(self, y: np.ndarray, weight: np.ndarray | None = None) -> Standardiser:
        """Return the same for the columns, with the mean and the scale of a response."""
        y_mean = float(np.average(y, weights=weight))
        y_scale = float(np.sqrt(np.average((y - y_mean) ** 2, weights=weight)))
        return replace(self, y_mean=y_mean, y_scale=max(y_scale, _ROUNDING * max(abs(y_mean), 1e-30)))

    def inputs(self, X: Any, columns: np.ndarray | None = None) -> np.ndarray:
        """Return standardised float32 rows, of all columns or of some."""
        if columns is not None:
            X = X[:, columns]
        dense = X.toarray() if hasattr(X, "toarray") else X
        mean = self.mean if columns is None else self.mean[columns]
        scale = self.scale if columns is None else self.scale[columns]
        out = np.empty(dense.shape, dtype=np.float32)
        for start in range(0, len(out), 2048):
            part = slice(start, start + 2048)
            out[part] = (dense[part] - mean) / scale
        return out


def _measured_about(mean: np.ndarray, X: Any, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and standard deviations of columns of about these means, with the means' own rounding taken off."""
    apart = (X.toarray() if hasattr(X, "toarray") else X) - mean
    further = np.average(apart, axis=0, weights=weight)
    return mean + further, np.sqrt(np.average((apart - further) ** 2, axis=0, weights=weight))


class Rows:
    """Training rows of S data sets of one shape."""

    def __init__(
        self,
        tables: Sequence[Any],
        responses: Sequence[np.ndarray],
        standardisers: Sequence[Standardiser],
        batch_size: int,
        generator: torch.Generator,
        weights: Sequence[np.ndarray] = (),
    ) -> None:
        self.count, self.p = tables[0].shape
        self.sets = len(tables)
        self.batch_size = min(batch_size, self.count)
        self.generator = generator
        order = torch.randperm(self.count, generator=generator).numpy()
        wrapped = np.concatenate([order, order[: self.batch_size]])
        self.order = order
        regression = np.issubdtype(responses[0].dtype, np.floating)
        self.y = torch.stack(
            [
                torch.from_numpy((y[wrapped] - s.y_mean) / s.y_scale).float()
                if regression
                else torch.from_numpy(y[wrapped].astype(np.int64))
                for y, s in zip(responses, standardisers)
            ]
        )
        self.weight = torch.stack([torch.from_numpy(w[wrapped]).float() for w in weights]) if len(weights) else None
        self._sparse: list[Any] | None = None
        self._standardisers = list(standardisers)
        if hasattr(tables[0], "tocsr") and self.count * self.p * self.sets > _DENSE:
            self._sparse = [table.tocsr()[wrapped] for table in tables]
            self.x = torch.empty(0)
            return
        self.x = torch.empty(self.sets, len(wrapped), self.p)
        for out, table, standardiser in zip(self.x, tables, standardisers):
            source = table.tocsr() if hasattr(table, "tocsr") else table
            for start in range(0, len(wrapped), 2048):
                part = wrapped[start : start + 2048]
                out[start : start + len(part)] = torch.from_numpy(standardiser.inputs(source[part]))

    def window(self) -> int:
        """Return the first row of a random minibatch; 0 where a minibatch is all rows."""
        if self.batch_size == self.count:
            return 0
        return int(torch.randint(self.count, (1,), generator=self.generator))

    def inputs(self, start: int, size: int | None = None) -> Tensor:
        """Return (S, B, p) rows from `start`."""
        stop = start + (self.batch_size if size is None else size)
        if self._sparse is None:
            return self.x[:, start:stop]
        parts = [s.inputs(m[start:stop]) for s, m in zip(self._standardisers, self._sparse)]
        return torch.from_numpy(np.stack(parts))

    def responses(self, start: int, size: int | None = None) -> Tensor:
        """Return (S, B) responses of rows from `start`."""
        return self.y[:, start : start + (self.batch_size if size is None else size)]

    def row_weight(self, which: int) -> Tensor:
        """Return (n + B,) the rows' weights in a data set, ones where they weigh alike."""
        return torch.ones(len(self.y[0])) if self.weight is None else self.weight[which]

    def only(self, which: int) -> Rows:
        """Return the rows of one of the data sets."""
        small = object.__new__(Rows)
        small.__dict__.update(self.__dict__)
        part = slice(which, which + 1)
        small.sets, small.y, small.x = 1, self.y[part], self.x[part]
        small.weight = None if self.weight is None else self.weight[part]
        small._sparse = None if self._sparse is None else self._sparse[part]
        small._standardisers = self._standardisers[part]
        return small

    def in_batches(self, size: int) -> Rows:
        """Return the same rows in minibatches of at most `size`."""
        small = object.__new__(Rows)
        small.__dict__.update(self.__dict__)
        small.batch_size = min(size, self.batch_size)
        return small

    def narrowed(self, columns: Tensor) -> Rows:
        """Return the same rows with columns of their own for each of C chains."""
        chains, width = columns.shape
        small = object.__new__(Rows)
        small.__dict__.update(self.__dict__)
        small._sparse = None
        small.sets, small.p = chains, width
        per_set = chains // self.sets
        small.x = torch.empty(chains, len(self.y[0]), width)
        for start in range(0, len(self.y[0]), 2048):
            block = self.inputs(start, min(2048, len(self.y[0]) - start))
            for chain in range(chains):
                wanted = columns[chain]
                part = block[chain // per_set].index_select(1, wanted.clamp_min(0))
                small.x[chain, start : start + block.shape[1]] = part.masked_fill_(wanted < 0, 0)
        return small


def principal_directions(x: Tensor, rank: int = 2, rows: int = 1000, sweeps: int = 6) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors and eigenvalues of the columns' second moments, by subspace iteration."""
    x = x[:, :rows]
    sets, count, width = x.shape
    q = min(rank, width)
    basis = F.normalize(torch.randn(sets, width, min(q + 1, width), generator=torch.Generator().manual_seed(0)), dim=1)
    for _ in range(sweeps):
        basis, _ = torch.linalg.qr(torch.bmm(x.transpose(1, 2), torch.bmm(x, basis)))
    projected = torch.bmm(x, basis)
    values, rotation = torch.linalg.eigh(torch.bmm(projected.transpose(1, 2), projected) / count)
    values, rotation = values.flip(1), rotation.flip(2)
    if values.shape[1] == q:  # nothing is left beyond all columns
        values = torch.cat([values, values[:, -1:]], dim=1)
    return torch.bmm(basis, rotation)[:, :, :q], values
