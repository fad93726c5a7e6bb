"""A simulated data set, and the one function that draws it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

SPLITS = ("train", "validation", "test")
_ROWS = 1024  # rows drawn at a time: keeps the float64 copy of a wide design small


class Drawing(TypedDict, total=False):
    """Keyword arguments that every design shares; `simulate` gives their defaults.

    Args:
        n_validation: validation rows; a fifth of the training rows if not given, so that small designs stay small.
        n_test: test rows, 5000.
        strength: factor of the noise-free function, 1; refused where it would do nothing.
        noise: standard deviation of the noise, 1; refused for "classification".
        seed: root of the seeds, 0.
        repetition: which of the independent data sets of that seed, 0.
        dtype: of the inputs, "float32" (or "float64").

    Example:
        >>> from paper.designs import example1
        >>> drawing: Drawing = {"seed": 7, "repetition": 2, "n_test": 50}
        >>> example1(n=100, p=20, **drawing).X_test.shape
        (50, 20)
    """

    n_validation: int | None
    n_test: int
    strength: float
    noise: float
    seed: int
    repetition: int
    dtype: str


@dataclass(frozen=True, eq=False)
class SimulatedData:
    """A simulated data set whose true inputs and noise-free signal are known.

    y = f(x) + ε with ε ~ N(0, σ²) for "regression", y = [f(x) > 0] without label noise for "classification".

    Args:
        name: name of the design.
        task: "regression" or "classification".
        X_train: inputs (n, p); likewise `X_validation` and `X_test`.
        y_train: responses in the inputs' dtype, or int64 labels 0 and 1; likewise `y_validation` and `y_test`.
        signal_train: f(x) of the stored rows in float64; likewise `signal_validation` and `signal_test`.
        true_inputs: S, the columns that f reads.
        noise_variance: σ², the smallest expected squared error of any predictor; 0 for "classification".
        settings: every argument as resolved, so that `design(name, **settings)` is this data set again.

    Example:
        >>> from paper.designs import example2
        >>> data = example2(n=200, p=50, seed=3)
        >>> data.X_train.shape, data.true_inputs, data.noise_variance
        ((200, 50), (0, 1, 2, 3, 4), 1.0)
    """

    name: str
    task: str
    X_train: np.ndarray
    y_train: np.ndarray
    X_validation: np.ndarray
    y_validation: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    signal_train: np.ndarray
    signal_validation: np.ndarray
    signal_test: np.ndarray
    true_inputs: tuple[int, ...]
    noise_variance: float
    settings: dict[str, Any]

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the inputs, responses and signal of a split.

        Args:
            name: "train", "validation" or "test".

        Returns:
            (X, y, signal).

        Raises:
            ValueError: an unknown split.

        Example:
            >>> from paper.designs import example2
            >>> X, y, signal = example2(n=200, p=50).split("train")
        """
        if name not in SPLITS:
            raise ValueError(f"name={name!r} is no split: use one of {', '.join(map(repr, SPLITS))}")
        return getattr(self, f"X_{name}"), getattr(self, f"y_{name}"), getattr(self, f"signal_{name}")

    def floor(self, split: str = "test") -> float:
        """Return what the true function scores on a split: its mean squared error, or its accuracy (1 by design).

        On finitely many rows the squared error strays from `noise_variance` by about σ²·√(2/rows).

        Args:
            split: "train", "validation" or "test".

        Returns:
            The mean squared error of the signal ("regression") or the accuracy of its sign ("classification").

        Raises:
            ValueError: an unknown split.

        Example:
            >>> from paper.designs import example3
            >>> example3(n=200, p=50).floor()
            1.0
        """
        _, y, signal = self.split(split)
        return float(np.mean((y - signal) ** 2 if self.task == "regression" else (signal > 0) == y))


def simulate(
    name: str,
    task: str,
    inputs: Callable[[np.random.Generator, int], np.ndarray],
    response: Callable[[np.ndarray], np.ndarray],
    true_inputs: int,
    *,
    n: int,
    p: int,
    settings: dict[str, Any],
    n_validation: int | None = None,
    n_test: int = 5000,
    strength: float = 1.0,
    noise: float = 1.0,
    balanced: bool = False,
    seed: int = 0,
    repetition: int = 0,
    dtype: str = "float32",
) -> SimulatedData:
    """Draw train, validation and test rows of y = strength·f(x) + noise·ε, or of the label [f(x) > 0].

    Repetition r is child r of `SeedSequence(seed)`; the splits are the children of r, and the inputs and the noise of
    a split are children of that split. Nothing is shared between splits, no global generator is touched, and unless
    `balanced` the first rows do not depend on how many follow. f is taken at the rows as stored, after rounding to
    `dtype`.

    Args:
        name: name of the design.
        task: "regression" or "classification".
        inputs: function (generator, rows) that draws float64 rows of p columns.
        response: f, a function of rows.
        true_inputs: number of leading columns that f reads.
        n: training rows.
        p: columns.
        settings: the design's own arguments, stored with those of the draw.
        n_validation: validation rows; None takes a fifth of `n`, so that small designs stay small.
        n_test: test rows.
        strength: factor of f, for "regression" with true inputs.
        noise: standard deviation of the noise, for "regression".
        balanced: every split holds as many rows of either label (one more of label 1 if the number is odd).
        seed: root of the seeds, a non-negative integer.
        repetition: r, which of the independent data sets, from 0.
        dtype: "float32" or "float64".

    Returns:
        The data set.

    Raises:
        ValueError: a size, seed, strength, noise or dtype outside its range or without effect, or no row of one label.

    Example:
        >>> data = simulate(
        ...     "line", "regression", lambda g, rows: g.standard_normal((rows, 3)), lambda X: 2.0 * X[:, 0], 1,
        ...     n=100, p=3, settings={}, seed=1,
        ... )
        >>> data.X_validation.shape, data.true_inputs
        ((20, 3), (0,))
    """
    for argument, value, least in (("n", n, 1), ("p", p, max(1, true_inputs)), ("n_test", n_test, 1)):
        _check_integer(argument, value, least)
    n_validation = max(1, n // 5) if n_validation is None else n_validation
    for argument, value, least in (("n_validation", n_validation, 1), ("seed", seed, 0), ("repetition", repetition, 0)):
        _check_integer(argument, value, least)
    for argument, number in (("strength", strength), ("noise", noise)):
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{argument}={number!r} is no scale: give a finite number of at least 0")
        idle = task == "classification" or (argument == "strength" and not true_inputs)
        if idle and number != 1.0:
            raise ValueError(f"{argument}={number!r} changes nothing in design {name}: leave it out")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r} is not supported: use 'float32' or 'float64'")
    if task not in ("regression", "classification"):
        raise ValueError(f"task={task!r} is not known: use 'regression' or 'classification'")

    drawing: dict[str, Any] = {
        "n_validation": n_validation,
        "n_test": n_test,
        "seed": seed,
        "repetition": repetition,
        "dtype": dtype,
    }
    if task == "regression":
        drawing |= {"strength": strength, "noise": noise} if true_inputs else {"noise": noise}
    arrays: dict[str, np.ndarray] = {}
    children = np.random.SeedSequence(seed, spawn_key=(repetition,)).spawn(len(SPLITS))
    for split, rows, child in zip(SPLITS, (n, n_validation, n_test), children):
        for_inputs, for_noise = (np.random.default_rng(grandchild) for grandchild in child.spawn(2))
        draw = _draw_balanced if balanced else _draw
        X, signal = draw(for_inputs, rows, p, inputs, response, np.dtype(dtype))
        if task == "regression":
            signal *= strength
            y = (signal + noise * for_noise.standard_normal(rows)).astype(dtype)
        else:
            y = (signal > 0).astype(np.int64)
        arrays |= {f"X_{split}": X, f"y_{split}": y, f"signal_{split}": signal}
    return SimulatedData(
        name=name,
        task=task,
        true_inputs=tuple(range(true_inputs)),
        noise_variance=float(noise) ** 2 if task == "regression" else 0.0,
        settings=settings | drawing,
        **arrays,
    )


def _draw(
    generator: np.random.Generator, rows: int, p: int, inputs: Callable, response: Callable, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    X, signal = np.empty((rows, p), dtype), np.empty(rows)
    for start in range(0, rows, _ROWS):
        stop = min(start + _ROWS, rows)
        X[start:stop] = inputs(generator, stop - start)
        signal[start:stop] = response(X[start:stop])
    return X, signal


def _draw_balanced(
    generator: np.random.Generator, rows: int, p: int, inputs: Callable, response: Callable, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    quota = {False: rows // 2, True: rows - rows // 2}
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    blocks = 0
    while any(quota.values()):
        blocks += 1
        if blocks > 100 + rows:
            raise ValueError(f"balanced=True finds hardly a row of label {int(quota[True] > 0)}: leave it out")
        X, signal = _draw(generator, _ROWS, p, inputs, response, dtype)
        for label in quota:
            chosen = np.flatnonzero((signal > 0) == label)[: quota[label]]
            quota[label] -= len(chosen)
            kept.append((X[chosen], signal[chosen]))
    order = generator.permutation(rows)  # the rows were collected label by label
    return np.concatenate([X for X, _ in kept])[order], np.concatenate([signal for _, signal in kept])[order]


def _check_integer(argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{argument}={value!r} does not fit this design: give an integer of at least {least}")
