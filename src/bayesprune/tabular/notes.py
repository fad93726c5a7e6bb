"""What a reader must know before trusting a selection, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesprune.tabular.frame import FrameEncoder
from bayesprune.tabular.target import Target

FEW_ROWS = 200  # the estimators' defaults are made for this many and more
_APART = 0.5  # chains whose inclusion probabilities differ by more disagree


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
        notes.append(f"{_count(len(said), 'column')} not used: {_few(said)}.")
    gaps = [one for one in encoder.inputs if train[one.name].isna().any()]
    numbers = [repr(one.name) for one in gaps if one.kind != "text"]
    if numbers:
        marked = sum(one.indicator for one in gaps)
        also = f"; where they were missing is an input too for {_count(marked, 'column')}" if marked else ""
        notes.append(
            f"Missing numbers in {_count(len(numbers), 'column')} became the training median ({_few(numbers)}){also}."
        )
    words = [repr(one.name) for one in gaps if one.kind == "text"]
    if words:
        notes.append(
            f'Missing texts in {_count(len(words), "column")} are the level "(missing)" or "(other)" ({_few(words)}).'
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


def nothing_selected(inputs: dict[str, list[Any]], rule: str, needed: Sequence[str]) -> dict[str, str]:
    """Say that nothing was selected, and what the model predicts then: with the columns that it needs, or a constant."""
    predicts = (
        f"averages over networks on {_count(len(needed), 'input')} that predict best together "
        f"({_few([repr(name) for name in needed])}), without control of errors."
        if needed
        else "is a constant that uses no input; select=prediction takes what predicts best, without control of errors."
    )
    at = int(np.argmax(inputs["probability"]))
    return {
        "kind": "average" if needed else "constant",
        "sentence": f"No input is selected {rule}: the likeliest, {inputs['name'][at]!r}, has inclusion probability "
        f"{inputs['probability'][at]:.2f} (q-value {inputs['q_value'][at]:.2f}). The model's prediction " + predicts,
    }


def _few(words: Sequence[str], most: int = 5) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"
