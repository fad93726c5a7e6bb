"""The noise-free functions of the simulated designs, each on the first columns of a matrix, in float64."""

from __future__ import annotations

import numpy as np

FORMULAS = ("paper", "authors-code", "sun")


def example1_response(X: np.ndarray, formula: str = "paper") -> np.ndarray:
    """Tangents of five inputs; the three printed versions differ in where one bracket closes and in one factor.

    With a = tanh(2·tanh(2x₁ − x₂)), b = tanh(x₃ − 2x₄), c = tanh(2x₅):
    "paper" is a + 2·tanh(b − c); "authors-code" is a + 2·tanh(b) − c; "sun" is a + 2·tanh(2b − c).

    Args:
        X: inputs (rows, columns), x₁…x₅ first.
        formula: "paper", "authors-code" (the released generator) or "sun" (Sun, Song and Liang 2021).

    Returns:
        One value a row.

    Raises:
        ValueError: an unknown formula, or fewer than five columns.

    Example:
        >>> X = np.zeros((1, 5))
        >>> X[0, 2] = 1.0
        >>> [round(float(example1_response(X, formula)[0]), 3) for formula in ("paper", "authors-code", "sun")]
        [1.284, 1.284, 1.819]

    Reference:
        Example 1 of the paper's variable selection study.
    """
    x1, x2, x3, x4, x5 = _inputs(X, 5)
    a, b, c = np.tanh(2 * np.tanh(2 * x1 - x2)), np.tanh(x3 - 2 * x4), np.tanh(2 * x5)
    if formula == "paper":
        return a + 2 * np.tanh(b - c)
    if formula == "authors-code":
        return a + 2 * np.tanh(b) - c
    if formula == "sun":
        return a + 2 * np.tanh(2 * b - c)
    raise ValueError(f"formula={formula!r} is not known: use one of {', '.join(map(repr, FORMULAS))}")


def example2_response(X: np.ndarray, ratio: float = 5.0) -> np.ndarray:
    """A ratio, a sine and a line: ratio·x₂/(1 + x₁²) + 5·sin(x₃x₄) + 2x₅, where x₁ acts through the ratio alone.

    Args:
        X: inputs (rows, columns), x₁…x₅ first.
        ratio: factor of the first term; 5 in Example 2, 7 in design B1.

    Returns:
        One value a row.

    Raises:
        ValueError: fewer than five columns.

    Example:
        >>> example2_response(np.array([[1.0, 2.0, 0.0, 0.0, 3.0]])).tolist()
        [11.0]

    Reference:
        Example 2 of the paper's variable selection study.
    """
    x1, x2, x3, x4, x5 = _inputs(X, 5)
    return ratio * x2 / (1 + x1**2) + 5 * np.sin(x3 * x4) + 2 * x5


def example3_response(X: np.ndarray) -> np.ndarray:
    """The margin e^x₁ + x₂² + 5·sin(x₃x₄) − 3, whose sign is the label.

    Args:
        X: inputs (rows, columns), x₁…x₄ first.

    Returns:
        One value a row; the label is 1 where it is above zero.

    Raises:
        ValueError: fewer than four columns.

    Example:
        >>> example3_response(np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])).tolist()
        [-1.0, 2.0]

    Reference:
        Example 3 of the paper's variable selection study.
    """
    x1, x2, x3, x4 = _inputs(X, 4)
    return np.exp(x1) + x2**2 + 5 * np.sin(x3 * x4) - 3


def repeated_response(X: np.ndarray, blocks: int) -> np.ndarray:
    """Sum of Example 2's function over `blocks` runs of five columns: Σ_k f(x_{5k+1}, …, x_{5k+5}).

    Args:
        X: inputs (rows, columns), the 5·blocks true ones first.
        blocks: number of runs of five.

    Returns:
        One value a row.

    Raises:
        ValueError: fewer than 5·blocks columns.

    Example:
        >>> X = np.array([[1.0, 2.0, 0.0, 0.0, 3.0]])
        >>> repeated_response(np.hstack([X, X]), 2).tolist()
        [22.0]
    """
    _inputs(X, 5 * blocks)
    total = np.zeros(len(X))
    for k in range(blocks):
        total += example2_response(X[:, 5 * k : 5 * k + 5])
    return total


def _inputs(X: np.ndarray, count: int) -> np.ndarray:
    if X.ndim != 2 or X.shape[1] < count:
        raise ValueError(f"X has shape {X.shape}: give rows of at least {count} columns")
    return X[:, :count].astype(np.float64).T
