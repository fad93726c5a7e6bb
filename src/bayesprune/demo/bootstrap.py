"""Scores over all folds, with bootstrap intervals over the test images and the letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesprune.demo.cross_validation import Array, FoldPrediction

DRAWS, COVERAGE = 2000, 0.95
_SMALLEST = np.finfo(np.float64).tiny


def scores(
    models: dict[str, Sequence[FoldPrediction]], reference: str, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Return accuracy, NLL and the area under the ROC curve (letters against digits, by entropy) of each model."""
    random = np.random.RandomState(seed)
    names, folds = list(models), len(models[reference])
    values = np.zeros((DRAWS + 1, len(names), 3))
    number = sum(len(said.labels) for said in models[reference])
    for fold in range(folds):
        parts = [models[name][fold] for name in names]
        images, letters = len(parts[0].labels), len(parts[0].strange_letters)
        drawn = np.vstack([np.arange(images), random.randint(images, size=(DRAWS, images))])
        drawn_letters = np.vstack([np.arange(letters), random.randint(letters, size=(DRAWS, letters))])
        counts = _counts(drawn, images), _counts(drawn_letters, letters)
        for place, part in enumerate(parts):
            right = (part.probabilities.argmax(1) == part.labels).astype(float)
            loss = -np.log(np.maximum(part.probabilities[np.arange(images), part.labels], _SMALLEST))
            values[:, place, 0] += right[drawn].sum(1) / number
            values[:, place, 1] += loss[drawn].sum(1) / number
            values[:, place, 2] += _areas(part.strange, part.strange_letters, *counts) / folds
    found = {}
    for place, name in enumerate(names):
        found[name] = {
            key: _interval(values[:, place, column]) for column, key in enumerate(("accuracy", "nll", "auroc"))
        }
        found[name]["difference"] = _interval(values[:, place, 0] - values[:, names.index(reference), 0])
    return found


def _counts(drawn: Array, number: int) -> Array:
    """How often each item is in each draw."""
    return np.stack([np.bincount(row, minlength=number) for row in drawn]).astype(float)


def _areas(inside: Array, outside: Array, inside_counts: Array, outside_counts: Array) -> Array:
    """P(an outside score is above an inside one) + ½ P(they tie), in each draw."""
    wins = (outside[None] > inside[:, None]) + 0.5 * (outside[None] == inside[:, None])
    return np.einsum("di,io,do->d", inside_counts, wins, outside_counts, optimize=True) / (len(inside) * len(outside))


def _interval(values: Array) -> list[float]:
    tail = 100 * (1 - COVERAGE) / 2
    return [float(values[0]), *map(float, np.percentile(values[1:], [tail, 100 - tail]))]


def as_plain(said: FoldPrediction) -> dict[str, Any]:
    """What one fold's model amounts to, for the record."""
    hits = said.probabilities.argmax(1) == said.labels
    return {
        "fold": said.fold, "images": len(hits), "wrong": int((~hits).sum()), "members": said.members,
        "bytes": said.bytes, "parameters": said.parameters,
    }  # fmt: skip
