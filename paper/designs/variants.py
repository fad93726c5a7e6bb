"""Designs beyond the paper's three: no signal, many inputs, strong correlation, uniform columns, few rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from paper.designs.dataset import Drawing, SimulatedData, simulate
from paper.designs.inputs import block_correlated, equicorrelated
from paper.designs.responses import example2_response, example3_response, repeated_response

if TYPE_CHECKING:
    from typing_extensions import Unpack


def n0(n: int = 2000, p: int = 500, *, correlation: float = 0.5, **drawing: Unpack[Drawing]) -> SimulatedData:
    """Draw N0: y = ε is independent of every column, so that whatever is selected is false.

    Args:
        n: training rows.
        p: columns.
        correlation: correlation of every pair of columns, in [0, 1).
        **drawing: the other arguments of a draw, see `Drawing`; `strength` is refused.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> n0(n=100, p=20).true_inputs
        ()
    """
    settings: dict[str, Any] = {"n": n, "p": p, "correlation": correlation}
    inputs = partial(equicorrelated, p=p, correlation=correlation)
    return simulate("N0", "regression", inputs, _nothing, 0, n=n, p=p, settings=settings, **drawing)


def k1(
    n: int = 5000, p: int = 500, *, blocks: int = 6, correlation: float = 0.5, **drawing: Unpack[Drawing]
) -> SimulatedData:
    """Draw K1: the sum of Example 2's function over `blocks` runs of five columns, 30 true inputs by default.

    Args:
        n: training rows.
        p: columns.
        blocks: number of runs of five true inputs.
        correlation: correlation of every pair of columns, in [0, 1).
        **drawing: the other arguments of a draw, see `Drawing`.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> len(k1(n=100, p=40).true_inputs)
        30
    """
    settings: dict[str, Any] = {"n": n, "p": p, "blocks": blocks, "correlation": correlation}
    if blocks < 1:
        raise ValueError(f"blocks={blocks!r} leaves no true input: give an integer of at least 1")
    inputs = partial(equicorrelated, p=p, correlation=correlation)
    response = partial(repeated_response, blocks=blocks)
    return simulate("K1", "regression", inputs, response, 5 * blocks, n=n, p=p, settings=settings, **drawing)


def c1(
    n: int = 10000,
    p: int = 2000,
    *,
    blocks: str = "mixed",
    block_size: int = 5,
    within: float = 0.9,
    between: float = 0.5,
    **drawing: Unpack[Drawing],
) -> SimulatedData:
    """Draw C1: Example 2 with columns in blocks of correlation 0.9.

    Args:
        n: training rows.
        p: columns.
        blocks: "mixed": each true input has null twins and the true inputs lie in different blocks; "separate": the five
            true inputs are one block and the null columns form their own.
        block_size: columns of a block ("mixed": on average, with ⌈p / block_size⌉ blocks, at least 5).
        within: correlation of two columns of one block.
        between: correlation of two columns of different blocks.
        **drawing: the other arguments of a draw, see `Drawing`.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range, or too few columns.

    Example:
        >>> data = c1(n=5000, p=20)  # four blocks are too few for five true inputs
        Traceback (most recent call last):
        ValueError: p=20 gives 4 blocks of block_size=5, too few for five true inputs apart: give p of at least 21
        >>> X = c1(n=5000, p=50).X_train  # ten blocks: columns 0 and 10 are twins
        >>> np.corrcoef(X[:, [0, 1, 10]].T)[0].round(1).tolist()
        [1.0, 0.5, 0.9]
    """
    settings: dict[str, Any] = {
        "n": n,
        "p": p,
        "blocks": blocks,
        "block_size": block_size,
        "within": within,
        "between": between,
    }
    if block_size < 1:
        raise ValueError(f"block_size={block_size!r} leaves a block empty: give an integer of at least 1")
    if blocks == "mixed":
        count = -(-p // block_size)
        if count < 5:
            raise ValueError(
                f"p={p} gives {count} blocks of block_size={block_size}, too few for five true inputs apart: "
                f"give p of at least {4 * block_size + 1}"
            )
        members = np.arange(p) % count
    elif blocks == "separate":
        members = np.maximum(0, 1 + (np.arange(p) - 5) // block_size)
        members[:5] = 0
    else:
        raise ValueError(f"blocks={blocks!r} is not known: use 'mixed' or 'separate'")
    inputs = partial(block_correlated, blocks=members, within=within, between=between)
    return simulate("C1", "regression", inputs, example2_response, 5, n=n, p=p, settings=settings, **drawing)


def b1(n: int = 3000, p: int = 200, **drawing: Unpack[Drawing]) -> SimulatedData:
    """Draw B1: y = 7x₂/(1 + x₁²) + 5·sin(x₃x₄) + 2x₅ + ε with independent columns, uniform on (−1, 1).

    Args:
        n: training rows.
        p: columns.
        **drawing: the other arguments of a draw, see `Drawing`.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> bool(np.abs(b1(n=100).X_train).max() <= 1)
        True

    Reference:
        Bai, Song and Cheng, arXiv 2011.07439.
    """
    settings: dict[str, Any] = {"n": n, "p": p}
    inputs = partial(_uniform, p=p)
    return simulate(
        "B1", "regression", inputs, partial(example2_response, ratio=7.0), 5, n=n, p=p, settings=settings, **drawing
    )


def d1(n: int = 300, p: int = 500, *, correlation: float = 0.5, **drawing: Unpack[Drawing]) -> SimulatedData:
    """Draw D1: Example 3's labels on few rows, as many of either label in every split, with x_t = (e + z_t)/2.

    Args:
        n: training rows.
        p: columns.
        correlation: correlation of every pair of columns, in [0, 1); their variance is ½ throughout.
        **drawing: the other arguments of a draw, see `Drawing`; `strength` and `noise` are refused.

    Returns:
        The data set.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> d1().y_train.mean().item()
        0.5
    """
    settings: dict[str, Any] = {"n": n, "p": p, "correlation": correlation}
    inputs = partial(equicorrelated, p=p, correlation=correlation, scale=0.5**0.5)
    return simulate(
        "D1", "classification", inputs, example3_response, 4, balanced=True, n=n, p=p, settings=settings, **drawing
    )


def _nothing(X: np.ndarray) -> np.ndarray:
    return np.zeros(len(X))


def _uniform(generator: np.random.Generator, rows: int, p: int) -> np.ndarray:
    return generator.uniform(-1.0, 1.0, (rows, p))
