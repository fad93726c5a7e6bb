"""What a predictive network reads of its inputs: the values, their normal scores, waves of their ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

_KNOTS = 256  # values by which a column's ranks are interpolated
_WAVES = (1, 2, 4)
_TAIL = 0.005  # ranks nearer to 0 or 1 have the normal score of this


@dataclass(frozen=True)
class RankFeatures:
    """Fixed functions of each column: z, Φ⁻¹(r), sin πkr and cos πkr for k = 1, 2, 4, with r the rank of z in (0, 1).

    Smooth networks learn slowly what leaps or waves along an input (hours of a day, frequencies); a first layer on waves
    of the ranks does not depend on how the values are spread either. Columns of two values stay as they are.

    Args:
        values: (p, K) ascending values of the training rows, the last one repeated.
        ranks: (p, K) their mean ranks, between 0 and 1.

    Example:
        >>> features = RankFeatures.of(np.array([[0.0, 1.0], [1.0, 2.0], [0.0, 3.0], [1.0, 4.0]]))
        >>> features.owner.tolist(), features(np.zeros((5, 2))).shape
        ([0, 1, 1, 1, 1, 1, 1, 1, 1], (5, 9))

    Reference:
        Gorishniy, Rubachev & Babenko, "On embeddings for numerical features in tabular deep learning" (2022).
    """

    values: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> RankFeatures:
        """Measure (n, p) training rows."""
        values, ranks = np.zeros((2, x.shape[1], _KNOTS))
        for column, own in enumerate(np.asarray(x, dtype=np.float64).T):
            ascending = np.sort(own)
            knots = np.unique(own)
            if len(knots) > _KNOTS:
                knots = knots[np.linspace(0, len(knots) - 1, _KNOTS).round().astype(int)]
            below, upto = np.searchsorted(ascending, knots, "left"), np.searchsorted(ascending, knots, "right")
            missing = _KNOTS - len(knots)
            values[column] = np.pad(knots, (0, missing), mode="edge")
            ranks[column] = np.pad((below + upto) / (2 * len(own)), (0, missing), mode="edge")
        return cls(values, ranks)

    @property
    def owner(self) -> np.ndarray:
        """(features,) the column of each: all columns first, then the functions of those of more than two values."""
        return np.concatenate([np.arange(len(self.values)), np.repeat(self._many(), 1 + 2 * len(_WAVES))])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return (n, features) float32 of (n, p) rows."""
        parts = [np.asarray(x, dtype=np.float32)]
        for column in self._many():
            rank = np.interp(x[:, column], self.values[column], self.ranks[column])
            waves = [wave(np.pi * k * rank) for k in _WAVES for wave in (np.sin, np.cos)]
            parts.append(np.stack([ndtri(rank.clip(_TAIL, 1 - _TAIL)), *waves], axis=1).astype(np.float32))
        return np.concatenate(parts, axis=1)

    def _many(self) -> np.ndarray:
        return np.flatnonzero(self.values[:, 2] > self.values[:, 1])
