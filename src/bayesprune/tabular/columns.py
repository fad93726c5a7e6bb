"""Columns of a data frame: their names, what they hold, and their cells as numbers or as text."""

from __future__ import annotations

import difflib
import numbers
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

MISSING_LEVEL = "(missing)"
PARTS = ("year", "month", "day", "weekday", "hour")
_ATTRIBUTES = {"weekday": "day_of_week"}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$")


def is_frame(X: Any) -> bool:
    """Return whether X is a pandas data frame, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(X, pandas.DataFrame)


def with_text_names(frame: Any) -> Any:
    """Return a data frame whose columns have names of text."""
    return (
        frame
        if all(isinstance(name, str) for name in frame.columns)
        else frame.set_axis(map(str, frame.columns), axis=1)
    )


def column_number(argument: str, column: Any, names: Sequence[str], count: int) -> int:
    """Return the number of a column that is given by its name or its number."""
    if isinstance(column, str):
        if column in names:
            return list(names).index(column)
        known = nearest_name(column, names) if len(names) else "; give numbers, or X as a data frame"
        raise ValueError(f"{argument} name column {column!r}, which X does not have{known}")
    if not isinstance(column, (int, np.integer)) or not 0 <= column < count:
        raise ValueError(f"{argument} name column {column}, but X has columns 0 to {count - 1}")
    return int(column)


def nearest_name(name: str, names: Collection[Any]) -> str:
    """Say which name comes nearest."""
    known = {str(one).lower(): str(one) for one in names}
    near = [known[one] for one in difflib.get_close_matches(name.lower(), known, n=1)]
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(str, list(names)[:8]))}"


def column_kind(name: str, column: Any) -> str:
    """Return "number", "date" or "text"."""
    import pandas
    from pandas.api import types

    if isinstance(column.dtype, pandas.CategoricalDtype):
        return "text"
    if types.is_bool_dtype(column) or (types.is_numeric_dtype(column) and not types.is_complex_dtype(column)):
        return "number"
    if types.is_datetime64_any_dtype(column):
        return "date"
    if not (types.is_object_dtype(column) or types.is_string_dtype(column)):
        raise ValueError(
            f"column {name!r} of X holds {column.dtype} values: turn them into numbers, dates or text, or leave it out"
        )
    cells = column.dropna()
    text = cells.map(lambda cell: isinstance(cell, str))
    if text.any():
        if text.all() and bool(_DATE.match(cells.iloc[0])) and cells.map(_DATE.match).notna().all():
            return "date"
        _refuse_slips(name, column.where(column.isna(), column.astype(str)))
        return "text"
    if cells.map(lambda cell: hasattr(cell, "isoformat")).all():
        return "date"
    odd = cells[~cells.map(lambda cell: isinstance(cell, numbers.Number) or hasattr(cell, "__float__"))]
    if len(odd):
        raise ValueError(
            f"column {name!r} of X holds a {type(odd.iloc[0]).__name__} ({str(odd.iloc[0])[:40]!r}): expected numbers, "
            "dates or text; turn it into one of these or leave the column out"
        )
    return "number"


def _refuse_slips(name: str, column: Any) -> None:
    """Refuse text that is text for the sake of a few cells: they are slips more likely than levels."""
    import pandas

    levels = pandas.Series(column.dropna().unique())
    odd = levels[pandas.to_numeric(levels, errors="coerce").isna()]
    comma = odd[pandas.to_numeric(odd.str.replace(",", "."), errors="coerce").notna()]
    few = len(odd) <= 0.1 * len(levels)
    if len(odd) and not few and len(comma) and len(levels) - len(odd) + len(comma) >= 0.9 * len(levels):
        raise ValueError(
            f"column {name!r} of X holds numbers with a comma ({min(comma)!r}): write a decimal point and no thousands "
            "separators"
        )
    if len(odd) and few:
        rows = np.flatnonzero(column.isin(odd))
        shown = ", ".join(f"{column.iloc[i]!r} in data row {i + 1}" for i in rows[:3])
        raise ValueError(
            f"column {name!r} of X holds numbers but for {len(rows)} cells ({shown}): leave them empty if they are "
            f"unknown, or declare the column to be text with X[{name!r}].astype('category') (--text {name})"
        )


def column_numbers(name: str, column: Any) -> np.ndarray:
    """Return the cells of a column of numbers as float64 with NaN for missing."""
    return column_cells(name, column, "number")[""]


def column_cells(name: str, column: Any, kind: str) -> dict[str, np.ndarray]:
    """Return the cells as float64 with NaN for missing: one array, under the name "", or one a part of a date."""
    import pandas

    try:
        if kind == "date":
            when = pandas.to_datetime(column).dt
            return {
                part: getattr(when, _ATTRIBUTES.get(part, part)).to_numpy(dtype=np.float64, na_value=np.nan)
                for part in PARTS
            }
        text = isinstance(column.dtype, pandas.CategoricalDtype) or not pandas.api.types.is_numeric_dtype(column)
        cells = pandas.to_numeric(column.astype(object).where(column.notna(), np.nan)) if text else column
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError, AttributeError, OverflowError):
        convert = pandas.to_datetime if kind == "date" else pandas.to_numeric
        text = column.astype(object).where(column.notna(), None)
        odd = [i for i, cell in enumerate(text) if cell is not None and pandas.isna(convert(cell, errors="coerce"))]
        shown = f"{column.iloc[odd[0]]!r} in data row {odd[0] + 1}" if odd else f"{column.dtype} values"
        raise ValueError(
            f"column {name!r} of X holds {shown}, where the training rows hold {kind}s: mend it or leave it empty"
        ) from None
    if np.isinf(values).any():
        at = np.flatnonzero(np.isinf(values))
        raise ValueError(
            f"column {name!r} of X holds {values[at[0]]} in data row {at[0] + 1} ({len(at)} in all): write a finite "
            "number, or leave the cell empty if the value is unknown"
        )
    return {"": values + 0.0}


def cells_as_text(column: Any) -> np.ndarray:
    """Return the cells as an object array of text; 1.0 is "1", for a missing cell turns whole numbers into floats."""
    cells = column.astype(object).to_numpy(dtype=object)
    return np.array([MISSING_LEVEL if gone else _text(cell) for cell, gone in zip(cells, column.isna())], dtype=object)


def _text(cell: Any) -> str:
    """Return a cell as text, whole floats as whole numbers."""
    whole = isinstance(cell, (float, np.floating)) and float(cell).is_integer() and abs(cell) < 1e16
    return str(int(cell)) if whole else str(cell)


def respelled(cells: np.ndarray, known: Collection[str]) -> np.ndarray:
    """Return cells of text with whole numbers as the known levels spell them, "1" or "1.0".

    Example:
        >>> respelled(np.array(["1.0", "2", "3.0", "a.0"], dtype=object), ["1", "2.0"]).tolist()
        ['1', '2.0', '3.0', 'a.0']
    """
    told = {}
    for cell in set(cells) - set(known):
        whole = re.fullmatch(r"([-+]?\d+)(\.0*)?", cell)
        other = whole and (whole[1] if whole[2] else f"{cell}.0")
        if other in known:
            told[cell] = other
    return np.array([told.get(cell, cell) for cell in cells], dtype=object) if told else cells
