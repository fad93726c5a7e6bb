"""The law of some columns given all others: ridge regressions of all of them from one eigendecomposition, and draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PENALTIES = np.logspace(-4, 4, 33)
_FEW = 12  # distinct values up to which a column is drawn from its own values
_LOOSE = 30.0  # square root of how much less the loose columns are penalised
_FREEDOM = 0.7  # degrees of freedom over rows at most: beyond, generalised cross-validation means nothing
_WINDOW = 0.04  # of the rows, from which a row's discrete values are drawn


@dataclass(frozen=True)
class ColumnModel:
    """What the other columns say about the columns of one input or cluster."""

    columns: np.ndarray
    values: np.ndarray
    fitted: np.ndarray
    discrete: bool

    @property
    def residual(self) -> np.ndarray:
        """(n, k) what the other columns do not say."""
        return self.values - self.fitted

    def variances(self) -> np.ndarray:
        """Return (n, k) the variance of each column given all others: of discrete ones by row, else at all rows alike."""
        square = self.residual**2
        if not self.discrete:
            return np.broadcast_to(square.mean(0), square.shape)
        order, _, low, width = self._windows()
        total = np.concatenate([np.zeros((1, square.shape[1])), np.cumsum(square[order], axis=0)])
        return (total[low + width] - total[low]) / width

    def _windows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Return the rows in the order of their expectations, each row's place in it, and its window's start and width."""
        n = len(self.values)
        order = np.argsort(_score(self.fitted), kind="stable")
        width = min(n, 2 * max(5, round(_WINDOW * n / 2)) + 1)
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        return order, place, np.clip(place - width // 2, 0, n - width), width

    def draws(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draw the columns given all others."""
        n = len(self.values)
        if self.discrete:
            order, _, low, width = self._windows()
            return self.values[order[low + generator.integers(0, width, size=(count, n))]]
        rows = np.stack([generator.permutation(n) for _ in range(count)])
        return self.fitted + self.residual[rows]


def _score(fitted: np.ndarray) -> np.ndarray:
    """Return (n,) one number a row that orders rows by the expectations of all columns: the leading component."""
    if fitted.shape[1] == 1:
        return fitted[:, 0]
    centred = fitted - fitted.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][0]


class ConditionalModels:
    """Ridge regressions of any columns on all the others."""

    def __init__(self, X: np.ndarray, loose: np.ndarray) -> None:
        self.n, self.p = X.shape
        many = 4 * loose.sum() > self.n
        self.factor = np.where(loose, _LOOSE / 3 if many else _LOOSE, 1.0)
        self.X = X
        scaled = X * self.factor.astype(X.dtype)
        if self.p <= self.n:
            values, vectors = np.linalg.eigh((scaled.T @ scaled).astype(np.float64) / self.n)
            keep = values > 1e-9 * max(values[-1], 1e-300)
            self.values, self.vectors = values[keep], vectors[:, keep]
        else:
            values, left = np.linalg.eigh((scaled @ scaled.T).astype(np.float64) / self.n)
            keep = values > 1e-7 * max(values[-1], 1e-300)
            self.values = values[keep]
            self.vectors = (scaled.T @ left[:, keep].astype(X.dtype)) / np.sqrt(self.n * self.values)
        # What is loose stays so: at the largest penalty a standardised loose column is shrunk by some per cent.
        most = np.inf if many else _LOOSE**2 / 15
        self.penalties = _PENALTIES[most >= _PENALTIES]

    def of(self, columns: np.ndarray, discrete: bool | None = None) -> ColumnModel:
        """Return the model of some columns given all others."""
        values = self.X[:, columns].astype(np.float64)
        if discrete is None:
            discrete = all(len(np.unique(values[:, i])) <= _FEW for i in range(len(columns)))
        weights = self.vectors[columns].astype(np.float64)  # (k, r)
        best = min(self.penalties, key=lambda penalty: self._criterion(weights, penalty))
        inner = self._inner(weights, best)
        # XΩ_J = scaled·Ω_J with scaled = U·√(n d)·Vᵀ; the part of Ω outside the span of V meets no row.
        back = np.linalg.solve(inner, np.diag(1 / self.factor[columns]))
        coefficient = (self.vectors @ (weights / (self.values + best)).T @ back) * self.factor[:, None]
        residual = self.X @ coefficient.astype(self.X.dtype)
        return ColumnModel(columns, values, values - residual.astype(np.float64), discrete)

    def explained(self, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        """Return a ridge fit of a response on all columns: criterion, fit, coefficients, degrees of freedom over n."""
        projected = self.vectors.T @ (self.factor * (self.X.T @ y.astype(self.X.dtype)).astype(np.float64)) / self.n
        total = float(y @ y) / self.n

        def criterion(penalty: float) -> float:
            shrunk = projected**2 / (self.values + penalty)
            # |y − Xγ|²/n = yᵀy/n − 2·qᵀ(d + λ)⁻¹q + qᵀ(d + λ)⁻¹d(d + λ)⁻¹q, q = VᵀXᵀy/n.
            left = total - 2 * shrunk.sum() + (shrunk * self.values / (self.values + penalty)).sum()
            share = float((self.values / (self.values + penalty)).sum()) / self.n
            return left / (1 - share) ** 2 if share < _FREEDOM else np.inf

        best = min(self.penalties, key=criterion)
        coefficient = self.factor * (self.vectors @ (projected / (self.values + best)))
        fitted = (self.X @ coefficient.astype(self.X.dtype)).astype(np.float64)
        return criterion(best), fitted, coefficient, float((self.values / (self.values + best)).sum()) / self.n

    def _inner(self, weights: np.ndarray, penalty: float) -> np.ndarray:
        """Return Ω_JJ."""
        return (weights * (1 / (self.values + penalty) - 1 / penalty)) @ weights.T + np.eye(len(weights)) / penalty

    def _criterion(self, weights: np.ndarray, penalty: float) -> float:
        """Return the generalised cross-validation score, summed over the columns."""
        inverse = np.linalg.inv(self._inner(weights, penalty))
        shrunk = weights / (self.values + penalty)
        squares = np.diag(inverse @ ((shrunk * self.values) @ shrunk.T) @ inverse)
        whole = (weights * (1 / (self.values + penalty) ** 2 - 1 / penalty**2)) @ weights.T
        whole += np.eye(len(weights)) / penalty**2
        trace = float((1 / (self.values + penalty)).sum() + (self.p - len(self.values)) / penalty)
        without = trace - float(np.trace(whole @ inverse))
        freedom = (self.p - len(weights)) - penalty * without
        share = freedom / self.n
        return float(squares.sum() / (1 - share) ** 2) if share < _FREEDOM else np.inf
