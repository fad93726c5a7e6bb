"""What a selected input does to the prediction: its curve with a credible band, and the size of its effect."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesprune.tabular.encode import Input

GRID, ROWS, SHUFFLES = 21, 400, 3
BAND = (0.05, 0.95)
MONOTONE = 0.8  # share of a curve's ups and downs that must go one way
WEAK = 0.25  # a curve that varies less than this share of the whole effect says little of it


def draws(estimator: Any, X: np.ndarray) -> np.ndarray:
    """Predict with every posterior member, or with the mean alone where an estimator offers no members.

    Args:
        estimator: fitted; its ``predict_members(X)`` gives (members, n) or (members, n, C), if it has one.
        X: (n, p) encoded inputs.

    Returns:
        (members, n, outputs): one output for a regression, a probability for each of C > 2 classes, and the
        probability of the second of two.
    """
    if hasattr(estimator, "predict_members"):
        values = np.asarray(estimator.predict_members(X), dtype=np.float64)
    elif hasattr(estimator, "predict_proba"):
        values = np.asarray(estimator.predict_proba(X), dtype=np.float64)[None]
    else:
        values = np.asarray(estimator.predict(X), dtype=np.float64)[None]
    if values.ndim == 2:
        return values[:, :, None]
    return values[:, :, 1:] if values.shape[2] == 2 else values


def partial_dependence(estimator: Any, X: np.ndarray, one: Input, group: list[int]) -> dict[str, Any]:
    """Average the prediction over the rows while one input runs through its values, member by member.

    PD_m(v) = (1/n) Σ_i f_m(v, x_i without the input); the curve is the mean over the members m, the band their 5 % and
    95 % quantiles: the credible band of the mean prediction, without the noise of the response.

    Args:
        estimator: fitted.
        X: (n, p) encoded rows to average over.
        one: the input.
        group: its encoded columns.

    Returns:
        "grid" (numbers: distinct quantiles from 1 % to 99 %, or all values if there are few; text: the levels),
        "mean", and "lower" and "upper" if the estimator has members, each (outputs, grid points) as lists; "members",
        how many.
    """
    grid, columns = _grid(one, X[:, group])
    curves = []
    rows = X.copy()
    for values in columns:
        rows[:, group] = values
        curves.append(draws(estimator, rows).mean(axis=1))
    paths = np.stack(curves, axis=-1)  # (members, outputs, grid)
    result = {"grid": grid, "mean": paths.mean(axis=0).tolist(), "lower": None, "upper": None, "members": len(paths)}
    if len(paths) > 1:
        result["lower"], result["upper"] = (np.quantile(paths, at, axis=0).tolist() for at in BAND)
    return result


def total_effect(estimator: Any, X: np.ndarray, group: list[int], seed: int = 0) -> float:
    """Measure how far the prediction moves when one input alone is exchanged between rows.

    T = √( ½ E (f(x) - f(x with the input of another row))² ), the standard deviation of the prediction that is due to
    the input, its interactions with others included. For several outputs the squares are summed.

    Args:
        estimator: fitted.
        X: (n, p) encoded rows.
        group: the input's encoded columns.
        seed: of the exchanges.

    Returns:
        T, in units of the response or as a probability.

    Reference:
        Jansen (1999), "Analysis of variance designs for model output", for the form of the estimator.
    """
    generator = np.random.default_rng(seed)
    here, squares = draws(estimator, X).mean(axis=0), []
    rows = X.copy()
    for _ in range(SHUFFLES):
        rows[:, group] = X[generator.permutation(len(X))][:, group]
        squares.append(((draws(estimator, rows).mean(axis=0) - here) ** 2).sum(axis=1).mean())
    return float(np.sqrt(0.5 * np.mean(squares)))


def main_effect(curve: dict[str, Any], one: Input, column: np.ndarray) -> float:
    """Standard deviation of the partial dependence over the rows: the effect of the input on its own.

    Args:
        curve: from `partial_dependence`.
        one: the input.
        column: (n, columns) its encoded columns.

    Returns:
        The standard deviation; over several outputs, the root of the summed variances.
    """
    mean = np.asarray(curve["mean"])
    if one.kind == "number":
        values = np.stack([np.interp(column[:, 0], curve["grid"], line) for line in mean])
    else:
        values = mean[:, _level_of(one, column)]
    return float(np.sqrt(values.var(axis=1).sum()))


def direction(curve: dict[str, Any], one: Input, main: float, total: float, outputs: list[str]) -> str:
    """Say in a few words which way an input acts.

    Args:
        curve: from `partial_dependence`.
        one: the input.
        main: its effect on its own.
        total: its effect with all interactions.
        outputs: names of the outputs; one, or one a class.

    Returns:
        "increasing", "decreasing", "not monotone", "through interactions", or the level with the highest prediction;
        for several classes that of the class it moves most, with its name.
    """
    if main <= WEAK * total:
        return "through interactions" if total > 0 else "none"
    mean = np.asarray(curve["mean"])
    which = int(np.ptp(mean, axis=1).argmax())
    line = mean[which]
    if one.kind == "text":
        said = f"highest for {curve['grid'][int(line.argmax())]}"
    else:
        steps = np.diff(line)
        moved = steps.sum() / max(float(np.abs(steps).sum()), 1e-300)
        said = "increasing" if moved >= MONOTONE else "decreasing" if moved <= -MONOTONE else "not monotone"
    return f"{said} ({outputs[which]})" if len(mean) > 1 else said


def _grid(one: Input, column: np.ndarray) -> tuple[list[Any], list[np.ndarray]]:
    """The values an input runs through, and each in its encoded columns."""
    if one.kind == "number":
        there = column[column[:, 1] == 0, 0] if one.indicator else column[:, 0]
        values = np.unique(there)
        if len(values) > GRID:
            values = np.unique(np.quantile(there, np.linspace(0.01, 0.99, GRID)))
        rest = [0.0] * (column.shape[1] - 1)
        return values.tolist(), [np.array([value, *rest]) for value in values]
    levels = ([one.base] if one.base is not None else []) + list(one.levels)
    eye = np.eye(len(one.levels))
    return levels, ([np.zeros(len(one.levels))] if one.base is not None else []) + list(eye)


def _level_of(one: Input, column: np.ndarray) -> np.ndarray:
    """The grid's number of each row's level."""
    if one.base is not None:
        return column[:, 0].astype(int)
    return column.argmax(axis=1)
