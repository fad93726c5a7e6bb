"""What selected inputs do to the prediction: curves with credible bands, sizes of effects, interactions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesprune.tabular.columns import cells_as_text, column_numbers

GRID, ROWS, SHUFFLES = 21, 400, 3
BAND = (0.05, 0.95)
MONOTONE = 0.8  # share of a curve's ups and downs that must go one way
WEAK = 0.25  # a curve that varies less than this share of the whole effect says little of it


def draws(estimator: Any, X: Any) -> np.ndarray:
    """Predict with every posterior member."""
    values = np.asarray(estimator.predict_members(X), dtype=np.float64)
    if values.ndim == 2:
        return values[:, :, None]
    return values[:, :, 1:] if values.shape[2] == 2 else values


def partial_dependence(estimator: Any, X: Any, name: str, kind: str) -> dict[str, Any]:
    """Average the prediction over the rows while one input runs through its values, member by member."""
    grid, values = _grid(X[name], name, kind)
    curves = []
    for value in values:
        curves.append(draws(estimator, X.assign(**{name: value})).mean(axis=1))
    paths = np.stack(curves, axis=-1)  # (members, outputs, grid)
    lower, upper = (np.quantile(paths, at, axis=0).tolist() for at in BAND)
    mean = paths.mean(axis=0).tolist()
    return {"grid": grid, "mean": mean, "lower": lower, "upper": upper, "members": len(paths)}


def total_effect(estimator: Any, X: Any, name: str, seed: int = 0) -> float:
    """Measure how far the prediction moves when one input alone is exchanged between rows."""
    generator = np.random.default_rng(seed)
    here, squares = draws(estimator, X).mean(axis=0), []
    for _ in range(SHUFFLES):
        rows = _exchanged(X, [name], generator.permutation(len(X)))
        squares.append(((draws(estimator, rows).mean(axis=0) - here) ** 2).sum(axis=1).mean())
    return float(np.sqrt(0.5 * np.mean(squares)))


def interactions(estimator: Any, X: Any, names: Sequence[str], seed: int = 0) -> dict[tuple[str, str], float]:
    """Measure how far the effect of one input depends on another, for every pair."""
    generator = np.random.default_rng(seed)
    squares: dict[tuple[str, str], list[float]] = {pair: [] for pair in itertools.combinations(names, 2)}
    for _ in range(SHUFFLES if squares else 0):
        order = generator.permutation(len(X))
        here = draws(estimator, X)
        alone = {name: draws(estimator, _exchanged(X, [name], order)) for name in names}
        for first, second in squares:
            both = draws(estimator, _exchanged(X, [first, second], order))
            mixed = here - alone[first] - alone[second] + both  # (members, n, outputs)
            noise = mixed.var(axis=0, ddof=1) / len(mixed) if len(mixed) > 1 else 0.0
            squares[first, second].append(float((mixed.mean(axis=0) ** 2 - noise).sum(axis=1).mean()))
    strength = {pair: 0.5 * float(np.sqrt(max(0.0, float(np.mean(values))))) for pair, values in squares.items()}
    return dict(sorted(strength.items(), key=lambda entry: -entry[1]))


def _exchanged(X: Any, names: Sequence[str], order: np.ndarray) -> Any:
    """Return the rows with some columns of other rows."""
    return X.assign(**{name: X[name].array[order] for name in names})


def main_effect(curve: dict[str, Any], column: Any, name: str, kind: str) -> float:
    """Standard deviation of the partial dependence over the rows: the effect of the input on its own."""
    mean = np.asarray(curve["mean"])
    if kind == "text":
        place = {level: at for at, level in enumerate(curve["grid"])}
        values = mean[:, [place[cell] for cell in cells_as_text(column) if cell in place]]
    else:
        numbers = _as_numbers(column, name, kind)
        values = np.stack([np.interp(numbers[~np.isnan(numbers)], curve["grid"], line) for line in mean])
    return float(np.sqrt(values.var(axis=1).sum()))


def direction(curve: dict[str, Any], kind: str, main: float, total: float, outputs: list[str]) -> str:
    """Say in a few words which way an input acts."""
    if main <= WEAK * total:
        return "through interactions" if total > 0 else "none"
    mean = np.asarray(curve["mean"])
    which = int(np.ptp(mean, axis=1).argmax())
    line = mean[which]
    if kind == "text":
        said = f"highest for {curve['grid'][int(line.argmax())]}"
    else:
        steps = np.diff(line)
        moved = steps.sum() / max(float(np.abs(steps).sum()), 1e-300)
        said = "increasing" if moved >= MONOTONE else "decreasing" if moved <= -MONOTONE else "not monotone"
    return f"{said} ({outputs[which]})" if len(mean) > 1 else said


def _grid(column: Any, name: str, kind: str) -> tuple[list[Any], list[Any]]:
    """The values an input runs through, as they are shown and as they stand in the frame."""
    if kind == "text":
        levels, counts = np.unique(cells_as_text(column).astype(str), return_counts=True)
        most = np.sort(np.argsort(-counts, kind="stable")[:GRID])
        return levels[most].tolist(), levels[most].tolist()
    numbers = _as_numbers(column, name, kind)
    there = np.flatnonzero(~np.isnan(numbers))
    there = there[np.argsort(numbers[there], kind="stable")]
    distinct = there[np.append(True, np.diff(numbers[there]) > 0)]
    if len(distinct) <= GRID:
        return numbers[distinct].tolist(), [column.iloc[at] for at in distinct]
    if kind == "number":
        values = np.unique(np.quantile(numbers[there], np.linspace(0.01, 0.99, GRID)))
        return values.tolist(), values.tolist()
    at = distinct[np.unique(np.linspace(0.01, 0.99, GRID) * (len(distinct) - 1)).astype(int)]
    return numbers[at].tolist(), [column.iloc[i] for i in at]


def _as_numbers(column: Any, name: str, kind: str) -> np.ndarray:
    """Return a column as numbers, dates as years."""
    if kind == "number":
        return column_numbers(name, column)
    import pandas

    when = pandas.to_datetime(column)
    days = (when.dt.day_of_year - 1 + when.dt.hour / 24) / 366
    return (when.dt.year + days).to_numpy(dtype=np.float64, na_value=np.nan)
