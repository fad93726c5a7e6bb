"""The column to be predicted: its task, its classes, its rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from bayesprune.tabular.files import Table, absent

TASKS = ("auto", "regression", "classification")
MIN_ROWS = 40  # 32 to learn from and 8 to judge by
MIN_CLASS_ROWS = 5
_MOST_CLASSES = 10  # up to as many distinct whole numbers are taken for classes


@dataclass(frozen=True, eq=False)
class Target:
    """Responses with their meaning.

    Args:
        name: of the column.
        task: "regression" or "classification".
        values: (n,) numbers, or class codes 0 … C - 1.
        classes: what the codes stand for, text or numbers in ascending order; empty for regression.
        rows: (n,) rows of the table that have a response.
        why: how the task was found, in words.

    Example:
        >>> Target("y", "regression", np.zeros(3), (), np.arange(3), "as asked").values.tolist()
        [0.0, 0.0, 0.0]
    """

    name: str
    task: str
    values: np.ndarray
    classes: tuple[str | int | float, ...]
    rows: np.ndarray
    why: str


def read_target(table: Table, name: str, task: str = "auto") -> Target:
    """Take the response out of a table.

    Rows without a response are left out. With ``task="auto"``, text is classes; so are numbers with two distinct
    values, or whole numbers with at most ten of which each stands in five rows; other numbers are a regression.

    Args:
        table: with a column `name`.
        name: of the response.
        task: "auto", "regression" or "classification".

    Returns:
        The responses of the rows that have one.

    Raises:
        ValueError: there is no such column, or it is infinite, constant, text for a regression, or has too few rows in
            all or in a class; the message says which.

    Example:
        >>> table = Table("memory", {"y": np.array(["a", "b"] * 30, dtype=object)})
        >>> target = read_target(table, "y")
        >>> target.task, target.classes, target.values[:3].tolist()
        ('classification', ('a', 'b'), [0, 1, 0])
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(map(repr, TASKS))}")
    if name not in table.columns:
        raise ValueError("target: " + absent(name, list(table.columns), table.source))
    table.check_finite(name)
    rows = np.flatnonzero(~table.missing(name))
    if len(rows) < MIN_ROWS:
        without = f" (and {table.rows - len(rows)} without it)" if len(rows) < table.rows else ""
        raise ValueError(
            f"{table.source} has {len(rows)} rows with a value of {name!r}{without}; at least {MIN_ROWS} are needed to "
            "learn from some and to judge by the others"
        )
    column = table.columns[name][rows]
    text = table.is_text(name)
    if text and task == "regression":
        at = next(i for i, value in enumerate(column) if not _is_number(value))
        raise ValueError(
            f"target column {name!r} holds text ({column[at]!r} in data row {rows[at] + 1}); a regression needs "
            'numbers: use task="classification", or mend the column'
        )
    counts = Counter(column.tolist())
    if len(counts) == 1:
        raise ValueError(
            f"target column {name!r} is constant ({next(iter(counts))!r} in every row): nothing to predict"
        )
    found, why = (task, "as asked") if task != "auto" else _guess(counts, text)
    if found == "regression":
        return Target(name, found, column.astype(np.float64), (), rows, why)
    rare = [(value, count) for value, count in counts.items() if count < MIN_CLASS_ROWS]
    if rare:
        value, count = min(rare, key=lambda pair: pair[1])
        mend = 'merge or remove rare classes, or use task="regression"' if not text else "merge or remove rare classes"
        raise ValueError(
            f"target column {name!r} has {len(counts)} classes, of which {len(rare)} have fewer than {MIN_CLASS_ROWS} "
            f"rows ({value!r}: {count}): {mend}"
        )
    labels, codes = np.unique(column.astype(str) if text else column, return_inverse=True)
    classes = tuple(str(v) if text else int(v) if float(v).is_integer() else float(v) for v in labels)
    return Target(name, found, codes.astype(np.int64), classes, rows, why)


def _guess(counts: Counter, text: bool) -> tuple[str, str]:
    """The task of a column with these values, and why."""
    if text:
        return "classification", "the target is text"
    if len(counts) == 2:
        return "classification", "the target has two distinct values"
    whole = all(float(value).is_integer() for value in counts)
    if whole and len(counts) <= _MOST_CLASSES and min(counts.values()) >= MIN_CLASS_ROWS:
        return "classification", f"the target has {len(counts)} distinct whole numbers"
    return "regression", f"the target has {len(counts):,} distinct numbers"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
