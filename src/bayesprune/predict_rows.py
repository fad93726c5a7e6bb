"""Prediction of a table's rows with the model of a selection."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.common.files import csv_text, write_text
from bayesprune.tabular.reader import read_frame

_COVERAGE = 0.9


def run_predict(
    model: str | os.PathLike[str], data: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> dict[str, np.ndarray]:
    """Predict the rows of a file with a model that `run_select` wrote, and write them as CSV, a line a row."""
    from bayesprune.tabular import load

    place = Path(model)
    place = place / "model" if (place / "model").is_dir() else place
    try:
        fitted = load(place)
    except FileNotFoundError:
        raise ValueError(
            f"model={str(model)!r} holds no model: name the folder that `bayesprune select` wrote, or its folder model"
        ) from None
    names = fitted.needed_names()
    kinds = {one.name: one.kind for one in fitted.encoder_.inputs}
    text = [name for name in names if kinds[name] == "text"]
    frame = read_frame(data, only={*names, fitted.target_name_} if len(names) else None, text=text, strict=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        # Where nothing was selected nothing is read.
        columns = _predictions(fitted, frame if len(names) else frame.reindex(columns=fitted.column_names_))
    for note in dict.fromkeys(str(warning.message) for warning in told):
        print(f"bayesprune: {note}", file=sys.stderr)
    written = csv_text(list(columns), zip(*(column.tolist() for column in columns.values())))
    if out is None:
        sys.stdout.write(written)
    else:
        write_text(out, written)
    said = _error_on(fitted, frame, columns["prediction"])
    if said:
        print(f"bayesprune: {said}", file=sys.stderr)
    return columns


def _predictions(fitted: Any, frame: Any) -> dict[str, np.ndarray]:
    """The columns of the CSV file."""
    if hasattr(fitted, "classes_"):
        probability = fitted.predict_proba(frame)
        columns = {"prediction": fitted.classes_[probability.argmax(axis=1)]}
        return columns | {f"probability {label}": probability[:, code] for code, label in enumerate(fitted.classes_)}
    mean, std = fitted.predict(frame, return_std=True)
    lower, upper = fitted.predict_interval(frame, coverage=_COVERAGE).T
    return {"prediction": mean, "std": std, "lower90": lower, "upper90": upper}


def _error_on(fitted: Any, frame: Any, predicted: np.ndarray) -> str:
    """How wrong the predictions are, if the table knows the truth."""
    name = fitted.target_name_
    if name not in frame.columns:
        return ""
    known = frame[name].notna().to_numpy()
    truth = frame[name].to_numpy()[known]
    if hasattr(fitted, "classes_") and known.any():
        hits = [str(a) == str(b) or a == b for a, b in zip(truth, predicted[known])]
        return f"accuracy {100 * np.mean(hits):.1f} % on the {len(hits):,} rows with a value of {name!r}"
    if not known.any() or truth.dtype.kind not in "iuf":
        return ""
    error = float(np.sqrt(np.mean((truth - predicted[known]) ** 2)))
    return f"RMSE {error:.4g} on the {len(truth):,} rows with a value of {name!r}"
