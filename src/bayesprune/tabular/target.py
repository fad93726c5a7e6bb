"""The column to be predicted: its task, its classes, its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesprune.common.checks import check_choice
from bayesprune.tabular.columns import column_kind, column_numbers
from bayesprune.tabular.reader import absent

TASKS = ("auto", "regression", "classification")
MIN_ROWS = 40  # 32 to learn from and 8 to judge by
MIN_CLASS_ROWS = 5
_MOST_CLASSES = 10  # up to as many distinct whole numbers are taken for classes


@dataclass(frozen=True, eq=False)
class Target:
    """Responses with their meaning."""

    name: str
    task: str
    values: np.ndarray
    classes: tuple[str | int | float, ...]
    rows: np.ndarray
    why: str

    def column(self, at: np.ndarray) -> Any:
        """Return some of the responses, or labels, as a pandas series with the column's name."""
        import pandas

        values = np.array(self.classes)[self.values[at]] if self.classes else self.values[at]
        return pandas.Series(values, name=self.name)


def read_target(frame: Any, name: str, task: str = "auto", source: str = "the table") -> Target:
    """Take the response out of a data frame."""
    check_choice("task", task, TASKS)
    if name not in frame.columns:
        raise ValueError("target: " + absent(name, list(frame.columns), source))
    rows = np.flatnonzero(frame[name].notna())
    if len(rows) < MIN_ROWS:
        without = f" (and {len(frame) - len(rows)} without it)" if len(rows) < len(frame) else ""
        raise ValueError(
            f"{source} has {len(rows)} rows with a value of {name!r}{without}; at least {MIN_ROWS} are needed to learn "
            "from some and to judge by the others"
        )
    column = frame[name].iloc[rows]
    text = column_kind(name, column) != "number"
    if text and task == "regression":
        raise ValueError(
            f"target column {name!r} holds {column_kind(name, column)} ({str(column.iloc[0])!r} in data row "
            f'{rows[0] + 1}); a regression needs numbers: use task="classification", or mend the column'
        )
    values = column.astype(str).to_numpy() if text else column_numbers(name, column)
    labels, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(labels) == 1:
        raise ValueError(f"target column {name!r} is constant ({labels[0]} in every row): nothing to predict")
    found, why = (task, "as asked") if task != "auto" else _guess(labels, counts, text)
    if found == "regression":
        return Target(name, found, values, (), rows, why)
    rare = counts < MIN_CLASS_ROWS
    if rare.any():
        mend = 'merge or remove rare classes, or use task="regression"' if not text else "merge or remove rare classes"
        raise ValueError(
            f"target column {name!r} has {len(labels)} classes, of which {rare.sum()} have fewer than {MIN_CLASS_ROWS} "
            f"rows ({labels[counts.argmin()]}: {counts.min()}): {mend}"
        )
    classes = tuple(str(v) if text else int(v) if float(v).is_integer() else float(v) for v in labels)
    return Target(name, found, codes.astype(np.int64), classes, rows, why)


def _guess(labels: np.ndarray, counts: np.ndarray, text: bool) -> tuple[str, str]:
    """The task of a column with these values, and why."""
    if text:
        return "classification", "the target is text"
    if len(labels) == 2:
        return "classification", "the target has two distinct values"
    if (labels == labels.round()).all() and len(labels) <= _MOST_CLASSES and counts.min() >= MIN_CLASS_ROWS:
        return "classification", f"the target has {len(labels)} distinct whole numbers"
    return "regression", f"the target has {len(labels):,} distinct numbers"
