"""What a reader must know before trusting a selection, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesprune.common.files import listed
from bayesprune.tabular.candidates import OUTLYING, winsorised
from bayesprune.tabular.frame import FrameEncoder
from bayesprune.tabular.target import Target

FEW_ROWS = 200  # the estimators' defaults are made for this many and more
_APART = 0.5  # chains whose inclusion probabilities differ by more disagree
_NAMED = 5  # columns that a note names
_SERIAL = 1 / 3  # product of two lag-one correlations at which rows are worth half their number


class DataWarning(UserWarning):
    """What in the data makes a selection or a prediction doubtful."""


def outlier_note(y: np.ndarray) -> str:
    """Say that a few outliers make up most of the variance of a regression's response; "" where they do not."""
    bounded = winsorised(y, OUTLYING)
    beyond = np.abs(y - bounded)
    if bounded.var() >= 0.5 * y.var():
        return ""
    return (
        f"{(beyond > 0).sum()} of {len(y):,} responses hold {1 - bounded.var() / y.var():.0%} of the variance of y (such as "
        f"{y[beyond.argmax()]:.4g}): the selection bounds them, predictions follow them; mend or leave out what is wrong, or give the "
        "logarithm of y"
    )


def variance_note(names: Sequence[str]) -> str:
    """Say that intervals are of one width though the noise's size depends on inputs; "" where it depends on none."""
    if not names:
        return ""
    shown = listed(list(dict.fromkeys(names)), _NAMED)
    return (
        f"the noise's size depends on {shown}, and the intervals are of one width for all rows, too narrow where it is large: give "
        "the logarithm of a positive y, or set variance='network'"
    )


def order_note(table: Any, response: np.ndarray, columns: Sequence[int], names: Sequence[str]) -> str:
    """Say that neighbouring rows are alike in the response and in a selected column, as in a time series; "" where they are not.

    A file that is sorted by the response says nothing of that. The mean of the product of two series of lag-one correlations a and b
    varies as if of n·(1 − ab)/(1 + ab) rows (Bartlett 1946).
    """
    steps = np.diff(response)
    if not len(columns) or (steps >= 0).all() or (steps <= 0).all():
        return ""
    chosen = table[:, columns]
    chosen = chosen.toarray() if hasattr(chosen, "toarray") else chosen
    own, each = _likeness(response), [_likeness(column.astype(np.float64)) for column in chosen.T]
    at = int(np.argmax(each))
    both, rows = own * each[at], len(response)
    if both < _SERIAL:
        return ""
    return (
        f"rows next to each other are alike in y (correlation {own:.2f}) and in {names[at]} ({each[at]:.2f}): the tests take rows for "
        f"independent; if these follow in time or belong together (one patient, one place), {rows:,} are worth about "
        f"{rows * (1 - both) / (1 + both):,.0f} and p-values are far too small: give one row a unit, or changes in place of levels"
    )


def _likeness(values: np.ndarray) -> float:
    """Return the correlation of neighbours; of labels how much oftener than by chance they are equal."""
    if not np.issubdtype(values.dtype, np.floating):
        chance = float(np.square(np.bincount(values) / len(values)).sum())
        return (float((values[1:] == values[:-1]).mean()) - chance) / max(1 - chance, 1e-300)
    apart = values - values.mean()
    return float(apart[1:] @ apart[:-1] / max(apart @ apart, 1e-300))


def data_notes(rows_in_file: int, target: Target, train: Any, encoder: FrameEncoder, copies: np.ndarray) -> list[str]:
    """Say what was done to the data."""
    notes = []
    without = rows_in_file - len(target.rows)
    if without:
        notes.append(f"{_count(without, 'row')} without a value of {target.name!r} left out.")
    if len(train) < FEW_ROWS:
        notes.append(f"Only {len(train)} training rows: weak inputs will be missed ({FEW_ROWS} and more are advised).")
    again = len(copies) - len(np.unique(copies))
    if again:
        notes.append(
            f"{_count(again, 'row')} with the same inputs as an earlier one: copies were kept on one side of the split."
        )
    if encoder.dropped:
        said = [f"{name!r} ({reason})" for name, reason in encoder.dropped.items()]
        notes.append(f"{_count(len(said), 'column')} not used: {listed(said, _NAMED)}.")
    gaps = [one for one in encoder.inputs if train[one.name].isna().any()]
    numbers = [repr(one.name) for one in gaps if one.kind != "text"]
    if numbers:
        marked = sum(one.indicator for one in gaps)
        also = f"; where they were missing is an input too for {_count(marked, 'column')}" if marked else ""
        notes.append(
            f"Missing numbers in {_count(len(numbers), 'column')} became the training median ({listed(numbers, _NAMED)}){also}."
        )
    words = [repr(one.name) for one in gaps if one.kind == "text"]
    if words:
        notes.append(
            f'Missing texts in {_count(len(words), "column")} are the level "(missing)" or "(other)" ({listed(words, _NAMED)}).'
        )
    return notes


def chain_notes(inputs: dict[str, list[Any]]) -> list[str]:
    """Say on which inputs the chains disagree."""
    notes = []
    for name, selected, *values in zip(inputs["name"], inputs["selected"], *inputs["chains"]):
        if values and max(values) - min(values) > _APART:
            notes.append((selected, name, min(values), max(values)))
    notes.sort(key=lambda note: not note[0])
    said = [
        f"The chains disagree about {name!r} (inclusion probabilities from {low:.2f} to {high:.2f}): its probability is "
        "uncertain."
        for _, name, low, high in notes[:5]
    ]
    if len(notes) > 5:
        said.append(f"The chains disagree about {len(notes) - 5} more inputs.")
    return said


def further_note(further: Sequence[str]) -> list[str]:
    """Say which inputs the predictions read beside what is found."""
    if not further:
        return []
    return [
        f"Predictions read {_count(len(further), 'input')} beside the findings, for rows that a network has not seen are "
        f"predicted better with them, without control of errors ({listed([repr(name) for name in further], _NAMED)}); "
        "select=fdr goes without."
    ]


def nothing_selected(inputs: dict[str, list[Any]], rule: str, needed: Sequence[str]) -> dict[str, str]:
    """Say that nothing was selected, and what the model predicts then: with the columns that it needs, or a constant."""
    predicts = (
        f"averages over networks on {_count(len(needed), 'input')} that predict best together "
        f"({listed([repr(name) for name in needed], _NAMED)}), without control of errors."
        if needed
        else "is a constant that uses no input; select=prediction takes what predicts best, without control of errors."
    )
    at = int(np.argmax(inputs["probability"]))
    return {
        "kind": "average" if needed else "constant",
        "sentence": f"No input is selected {rule}: the likeliest, {inputs['name'][at]!r}, has inclusion probability "
        f"{inputs['probability'][at]:.2f} (q-value {inputs['q_value'][at]:.2f}). The model's prediction " + predicts,
    }


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"
