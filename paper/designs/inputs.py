"""Laws of the input columns: each function draws rows from a generator that the caller owns."""

from __future__ import annotations

import numpy as np


def truncated_normal(generator: np.random.Generator, shape: tuple[int, ...], bound: float = 10.0) -> np.ndarray:
    """Draw standard normals truncated to [−bound, bound], by drawing again whatever falls outside.

    Args:
        generator: source of the draws.
        shape: shape of the result.
        bound: the largest absolute value, above 0.

    Returns:
        float64 array.

    Raises:
        ValueError: `bound` is not above 0.

    Example:
        >>> float(np.abs(truncated_normal(np.random.default_rng(0), (1000,), bound=1.0)).max()) <= 1.0
        True
    """
    if not bound > 0:
        raise ValueError(f"bound={bound!r} leaves nothing to draw: give a number above 0")
    draws = generator.standard_normal(shape)
    # At the default bound this is one draw in 10²², so rows do not depend on how many are drawn together.
    while (outside := np.abs(draws) > bound).any():
        draws[outside] = generator.standard_normal(int(outside.sum()))
    return draws


def equicorrelated(
    generator: np.random.Generator, rows: int, p: int, correlation: float = 0.5, scale: float = 1.0
) -> np.ndarray:
    """Draw columns x_t = scale·(√c·e + √(1 − c)·z_t), so that every pair has correlation c.

    e (one a row) and z_t are standard normals truncated to [−10, 10]; c = ½ and scale = 1 give x_t = (e + z_t)/√2.

    Args:
        generator: source of the draws.
        rows: number of rows.
        p: number of columns.
        correlation: c, in [0, 1).
        scale: standard deviation of every column.

    Returns:
        float64 array (rows, p).

    Raises:
        ValueError: `correlation` outside [0, 1).

    Example:
        >>> X = equicorrelated(np.random.default_rng(0), 20_000, 2, correlation=0.5)
        >>> bool(abs(np.corrcoef(X.T)[0, 1] - 0.5) < 0.03)
        True
    """
    _check_correlation("correlation", correlation)
    draws = truncated_normal(generator, (rows, p + 1))
    X = draws[:, 1:]
    X *= scale * np.sqrt(1 - correlation)
    X += scale * np.sqrt(correlation) * draws[:, :1]
    return X


def block_correlated(
    generator: np.random.Generator, rows: int, blocks: np.ndarray, within: float = 0.9, between: float = 0.5
) -> np.ndarray:
    """Draw unit-variance columns x_t = √b·e + √(w − b)·u_k(t) + √(1 − w)·z_t with correlation w in a block, b outside.

    Args:
        generator: source of the draws.
        rows: number of rows.
        blocks: k(t), the block of each column, numbered from 0.
        within: w, the correlation of two columns of one block, in [between, 1).
        between: b, the correlation of two columns of different blocks, in [0, within].

    Returns:
        float64 array (rows, len(blocks)).

    Raises:
        ValueError: a correlation outside its range.

    Example:
        >>> X = block_correlated(np.random.default_rng(0), 20_000, np.array([0, 0, 1]))
        >>> (np.corrcoef(X.T)[0].round(1) + 0).tolist()
        [1.0, 0.9, 0.5]
    """
    _check_correlation("between", between)
    _check_correlation("within", within)
    if within < between:
        raise ValueError(f"within={within!r} is below between={between!r}: columns of one block share both factors")
    count = int(blocks.max()) + 1
    draws = truncated_normal(generator, (rows, 1 + count + len(blocks)))
    X = draws[:, 1 + count :]
    X *= np.sqrt(1 - within)
    X += np.sqrt(between) * draws[:, :1]
    X += np.sqrt(within - between) * draws[:, 1 + blocks]
    return X


def _check_correlation(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} is no correlation of a common factor: give a number in [0, 1)")
