"""The designs of `benchmarks.selection_fdr`: the library's own, and those with proxies, copies, heavy tails and wide tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from paper.designs import design


def draw(settings: dict[str, Any], repetition: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return X, y and the true inputs of one repetition, the columns in random order.

    Args:
        settings: "name" and the design's arguments.
        repetition: its number; the seed of everything.
    """
    options = dict(settings)
    name = options.pop("name")
    generator = np.random.default_rng([7, repetition])
    if name in _OWN:
        X, y, true = _OWN[name](generator, **options)
    else:
        data = design(name, **options, seed=1, repetition=repetition, n_test=1)
        X, y, true = data.X_train, data.y_train, data.true_inputs
    order = np.random.default_rng([1, repetition]).permutation(X.shape[1])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return X[:, order], y, sorted(int(place[j]) for j in true)


def _proxies(
    generator: np.random.Generator, n: int = 500, p: int = 40, correlation: float = 0.95, blocks: bool = False
) -> tuple[np.ndarray, np.ndarray, range]:
    """Four causes, each with two proxies of the given correlation that have no effect; three linear, one a tangent.

    With `blocks`, the columns are in blocks of ten of common correlation ½, a cause and its proxies in each.
    """
    X = generator.standard_normal((n, p))
    of = np.concatenate([np.arange(4), np.repeat(np.arange(4), 2), np.arange(p - 12) % 4])
    if blocks:
        X = np.sqrt(0.5) * X + np.sqrt(0.5) * generator.standard_normal((n, 4))[:, of]
    for k in range(4, 12):
        X[:, k] = correlation * X[:, of[k]] + np.sqrt(1 - correlation**2) * generator.standard_normal(n)
    return X, _four(X) + generator.standard_normal(n), range(4)


def _copies(generator: np.random.Generator, n: int = 500, p: int = 40) -> tuple[np.ndarray, np.ndarray, range]:
    """Four causes, of each of which there is an exact copy."""
    X = generator.standard_normal((n, p))
    X[:, 4:8] = X[:, :4]
    return X, _four(X) + generator.standard_normal(n), range(4)


def _four(X: np.ndarray) -> np.ndarray:
    return X[:, 0] + X[:, 1] + np.tanh(2 * X[:, 2]) - X[:, 3]


def _wide(
    generator: np.random.Generator, n: int = 300, p: int = 5000, effects: int = 5, r2: float = 0.92
) -> tuple[np.ndarray, np.ndarray, range]:
    """Linear effects of ±1 among far more columns than rows."""
    X = generator.standard_normal((n, p))
    signs = np.where(np.arange(effects) % 2, -1.0, 1.0)
    noise = np.sqrt(effects * (1 - r2) / r2)
    return X, X[:, :effects] @ signs + noise * generator.standard_normal(n), range(effects)


def _friedman(generator: np.random.Generator, n: int = 500, p: int = 100) -> tuple[np.ndarray, np.ndarray, range]:
    """Friedman's first function, five true inputs, noise of variance 1."""
    X = generator.random((n, p))
    y = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3] + 5 * X[:, 4]
    return X, y + generator.standard_normal(n), range(5)


def _heavy(generator: np.random.Generator, n: int = 500, p: int = 100) -> tuple[np.ndarray, np.ndarray, range]:
    """Five linear effects under t noise of three degrees of freedom, with one per cent of gross outliers."""
    X = generator.standard_normal((n, p))
    y = X[:, :5].sum(1) + generator.standard_t(3, n)
    outliers = generator.random(n) < 0.01
    y[outliers] += generator.choice([-30.0, 30.0], outliers.sum())
    return X, y, range(5)


_OWN = {
    "proxies": _proxies,
    "copies": _copies,
    "wide": _wide,
    "friedman": _friedman,
    "heavy": _heavy,
}


def cells() -> dict[str, list[tuple[dict[str, Any], int, int]]]:
    """Return the cells: family to [(design and settings, repetitions, repetitions fitted at once)]."""
    return {
        "proxies": [
            ({"name": "proxies", "n": n, "correlation": c, "blocks": blocks}, 50, 5)
            for blocks in (False, True)
            for n in (500, 1500)
            for c in (0.95, 0.98)
        ],
        "copies": [({"name": "copies"}, 20, 5)],
        "hard": [({"name": "friedman"}, 50, 5), ({"name": "heavy"}, 50, 5)],
        "small_n": [({"name": "small_n", "n": n}, 50, 5) for n in (500, 1000, 2000)],
        "N0": [({"name": "N0"}, 50, 2)],
        "strength": [
            ({"name": "small_n", "n": 1000, "p": 200, "strength": strength, "correlation": correlation}, 50, 5)
            for correlation in (0.0, 0.5, 0.9)
            for strength in (0.25, 0.5, 1.0)
        ],
        "wide": [({"name": "wide"}, 10, 2), ({"name": "wide", "n": 2000, "p": 20_000, "effects": 6}, 10, 1)],
        "other": [({"name": "B1"}, 50, 5), ({"name": "D1"}, 50, 5), ({"name": "K1"}, 50, 1), ({"name": "C1"}, 50, 1)],
    }
