"""Prediction of a table's rows with the model of a selection."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import numpy as np

from bayesprune.common.files import write_text
from bayesprune.tabular.files import Table
from bayesprune.tabular.table_model import TableModel, load_table_model


def run_predict(
    model: str | os.PathLike[str], data: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> dict[str, np.ndarray]:
    """Predict the rows of a file with a model that `run_select` wrote, and write them as CSV, a line a row.

    Only the inputs that the prediction depends on need to be in the file. What was unlike the training rows is said on
    the standard error stream; so is the error, if the file has the target.

    Args:
        model: the folder of a selection, or its folder model.
        data: a file of any format that `run_select` reads.
        out: the CSV file; standard output by default.

    Returns:
        The columns of the CSV file.

    Raises:
        ValueError: there is no model, or the file lacks an input that is needed.
    """
    fitted = load_table_model(model)
    table = fitted.read(data)
    columns, notes = fitted.predict(table)
    for note in notes:
        print(f"bayesprune: {note}", file=sys.stderr)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values())))
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        write_text(Path(out), text.getvalue())
    said = _error_on(fitted, table, columns)
    if said:
        print(f"bayesprune: {said}", file=sys.stderr)
    return columns


def _error_on(model: TableModel, table: Table, columns: dict[str, np.ndarray]) -> str:
    """How wrong the predictions are, if the table knows the truth."""
    if model.target not in table.columns:
        return ""
    known = ~table.missing(model.target)
    truth, predicted = table.columns[model.target][known], columns["prediction"][known]
    if not known.any() or (not model.classes and table.is_text(model.target)):
        return ""
    if model.classes:
        hits = [str(a) == str(b) or a == b for a, b in zip(truth, predicted)]
        return f"accuracy {100 * np.mean(hits):.1f} % on the {len(hits):,} rows with a value of {model.target!r}"
    error = float(np.sqrt(np.mean((truth - predicted) ** 2)))
    return f"RMSE {error:.4g} on the {len(truth):,} rows with a value of {model.target!r}"
