"""From columns of a table to the numbers a network reads, the same way in training and in use."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bayesprune.tabular.files import Table, absent

FORMAT = "bayesprune tabular encoding 1"
MISSING_LEVEL, OTHER_LEVEL = "(missing)", "(other)"
_MISSING_SHARE = 0.05  # from here on, that a number is missing is an input of its own
_RARE_ROWS, _RARE_SHARE = 5, 0.002
_MOST_LEVELS = 100


@dataclass(frozen=True)
class Input:
    """One column of the table, and the encoded columns that stand for it.

    Args:
        name: of the column.
        kind: "number" or "text".
        fill: for a number, what stands in for a missing value: the median of the training rows.
        indicator: for a number, whether a second column says where it was missing.
        levels: for text, the levels that have a column each.
        base: for text of two levels, the one that has none.

    Example:
        >>> Input("city", "text", levels=("Bergen", "Oslo", "(other)")).columns
        ('city = Bergen', 'city = Oslo', 'city = (other)')
    """

    name: str
    kind: str
    fill: float = 0.0
    indicator: bool = False
    levels: tuple[str, ...] = ()
    base: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        if self.kind == "number":
            return (self.name, f"{self.name} is missing") if self.indicator else (self.name,)
        return tuple(f"{self.name} = {level}" for level in self.levels)


@dataclass(frozen=True)
class Encoding:
    """How a table becomes a matrix: what to do with each input, and what was left out and why.

    Args:
        inputs: in the order of the encoded columns.
        dropped: (name, reason) of the columns that are not used.

    Example:
        >>> encoding = Encoding((Input("age", "number", fill=30.0), Input("sex", "text", levels=("m",), base="f")))
        >>> table = Table("memory", {"age": np.array([np.nan, 50]), "sex": np.array(["f", "m"], dtype=object)})
        >>> encoding.encode(table)[0].tolist()
        [[30.0, 0.0], [50.0, 1.0]]
    """

    inputs: tuple[Input, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(name for one in self.inputs for name in one.columns))

    @property
    def groups(self) -> list[list[int]]:
        """The encoded columns of each input, which are selected together."""
        groups, at = [], 0
        for one in self.inputs:
            groups.append(list(range(at, at + len(one.columns))))
            at += len(one.columns)
        return groups

    def encode(self, table: Table, needed: Collection[str] | None = None) -> tuple[np.ndarray, list[str]]:
        """Turn a table into a matrix; levels and columns are found by name.

        A missing number is replaced by the training median; a text that was not there in training counts as "(other)"
        where that level exists, and else as none of the levels.

        Args:
            table: with the inputs; other columns are ignored.
            needed: names of the inputs that must be there; the default is all. What is absent takes its fill value.

        Returns:
            (rows, columns) float64, and sentences on what was unlike the training rows.

        Raises:
            ValueError: a column is absent, holds text instead of numbers, or is infinite.
        """
        lacking = [one.name for one in self.inputs if one.name not in table.columns]
        lacking = [name for name in lacking if needed is None or name in needed]
        if lacking:
            more = f" (and {len(lacking) - 1} more of the model's inputs)" if len(lacking) > 1 else ""
            raise ValueError(absent(lacking[0], list(table.columns), table.source) + more)
        matrix = np.zeros((table.rows, len(self.columns)))
        notes: list[str] = []
        for one, group in zip(self.inputs, self.groups):
            if one.kind == "number":
                _encode_number(one, table, matrix[:, group[0] : group[-1] + 1])
            elif one.name in table.columns:
                notes += _encode_text(one, table, matrix[:, group[0] : group[-1] + 1])
        return matrix, notes

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as plain data for JSON."""
        return {"format": FORMAT, "inputs": [asdict(one) for one in self.inputs], "dropped": list(self.dropped)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Encoding:
        """Read what `to_dict` wrote.

        Args:
            value: the plain data.

        Raises:
            ValueError: another format.
        """
        if value.get("format") != FORMAT:
            raise ValueError(f"format={value.get('format')!r}: expected {FORMAT!r}; was it written by another version?")
        inputs = tuple(Input(**{**one, "levels": tuple(one["levels"])}) for one in value["inputs"])
        return cls(inputs, tuple((name, reason) for name, reason in value["dropped"]))


def fit_encoding(table: Table, names: Sequence[str], text: Collection[str] = ()) -> Encoding:
    """Learn from the training rows how to encode columns, and leave out those that say nothing.

    - A number stays one column. Missing values become the median; where at least 5 % are missing, a second column
      says so.
    - A text becomes one column a level (one in all for two levels), which are one group. Missing is a level. Levels
      in fewer than 5 rows or 0.2 % of them, or beyond the 100 most frequent, count together as "(other)".
    - Left out, with the reason: a column that is constant or wholly missing, a text with another level in most rows
      (an identifier), a column that equals an earlier one in every row.

    Args:
        table: the training rows.
        names: of the columns to use.
        text: names of columns that the user declared to be text.

    Returns:
        The encoding.

    Raises:
        ValueError: a column is infinite, or nearly all its cells are numbers and a few are not, or nothing is left.

    Example:
        >>> table = Table("memory", {"a": np.arange(50.0), "b": np.ones(50), "c": 1 + 0 * np.arange(50.0)})
        >>> fit_encoding(table, ["a", "b"]).dropped
        (('b', 'constant'),)
    """
    inputs: list[Input] = []
    dropped: list[tuple[str, str]] = []
    first_with: dict[bytes, str] = {}
    for name in names:
        table.check_finite(name)
        column = table.columns[name]
        if table.missing(name).all():
            one: Input | str = "no row has a value"
        elif table.is_text(name):
            if name not in text:
                _refuse_numbers(table, name)
            one = _fit_text(name, column)
        else:
            one = _fit_number(name, column)
        if isinstance(one, Input):
            twin = first_with.setdefault(_digest(one, table), name)
            if twin != name:
                one = f"equals {twin!r} in every row"
        if isinstance(one, Input):
            inputs.append(one)
        else:
            dropped.append((name, one))
    if not inputs:
        said = "; ".join(f"{name!r}: {reason}" for name, reason in dropped[:5]) or "the target is the only column"
        raise ValueError(f"{table.source} has no usable input ({said})")
    return Encoding(tuple(inputs), tuple(dropped))


def _fit_number(name: str, column: np.ndarray) -> Input | str:
    missing = np.isnan(column)
    indicator = bool(missing.mean() >= _MISSING_SHARE)
    fill = float(np.median(column[~missing]))
    if (column[~missing] == fill).all() and not indicator:
        return "constant"
    return Input(name, "number", fill=fill, indicator=indicator)


def _fit_text(name: str, column: np.ndarray) -> Input | str:
    counts = Counter(MISSING_LEVEL if cell is None else cell for cell in column)
    if len(counts) == 1:
        return "constant"
    if len(counts) > max(20, len(column) // 2):
        return f"looks like an identifier: {len(counts):,} levels in {len(column):,} rows"
    least = max(_RARE_ROWS, _RARE_SHARE * len(column))
    frequent = [level for level, count in counts.most_common(_MOST_LEVELS) if count >= least and level != OTHER_LEVEL]
    levels = sorted(frequent)
    if len(levels) < len(counts):
        levels.append(OTHER_LEVEL)
    if len(levels) < 2:
        return f"no two levels have {int(np.ceil(least))} rows each"
    base = levels.pop(0) if len(levels) == 2 else None
    return Input(name, "text", levels=tuple(levels), base=base)


def _encode_number(one: Input, table: Table, out: np.ndarray) -> None:
    if one.name not in table.columns:
        out[:, 0] = one.fill
        return
    if table.is_text(one.name):
        cells = table.columns[one.name]
        at = next((i for i, cell in enumerate(cells) if cell is not None and _as_number(cell) is None), 0)
        raise ValueError(
            f"column {one.name!r} of {table.source} holds text ({cells[at]!r} in data row {at + 1}); the model was "
            "trained on numbers there"
        )
    table.check_finite(one.name)
    missing = table.missing(one.name)
    out[:, 0] = np.where(missing, one.fill, table.columns[one.name])
    if one.indicator:
        out[:, 1] = missing


def _encode_text(one: Input, table: Table, out: np.ndarray) -> list[str]:
    if not table.is_text(one.name):
        if not table.missing(one.name).all():
            raise ValueError(
                f"column {one.name!r} of {table.source} holds numbers; the model was trained on text there"
            )
        cells = np.full(table.rows, None, dtype=object)
    else:
        cells = table.columns[one.name]
    place = {level: i for i, level in enumerate(one.levels)}
    unseen: Counter = Counter()
    for row, cell in enumerate(cells):
        level = MISSING_LEVEL if cell is None else cell
        at = place.get(level)
        if at is None and level != one.base:
            unseen[level] += 1
            at = place.get(OTHER_LEVEL)
        if at is not None:
            out[row, at] = 1.0
    if not unseen or OTHER_LEVEL in place:
        return []
    shown = ", ".join(map(repr, list(unseen)[:3])) + (", …" if len(unseen) > 3 else "")
    counted = f"the base level {one.base!r}" if one.base is not None else "none of the levels"
    return [f"{sum(unseen.values())} rows have a {one.name!r} unseen in training ({shown}): counted as {counted}"]


def _refuse_numbers(table: Table, name: str) -> None:
    """Refuse a column that is text for the sake of a few cells: they are slips more likely than levels."""
    cells = table.columns[name]
    levels = {cell for cell in cells if cell is not None}
    odd = {cell for cell in levels if _as_number(cell) is None}
    if len(odd) > 0.1 * len(levels):
        comma = {cell for cell in odd if _as_number(cell.replace(",", ".")) is not None}
        if len(levels) - len(odd) + len(comma) >= 0.9 * len(levels) and comma:
            raise ValueError(
                f"column {name!r} of {table.source} holds numbers with a comma ({sorted(comma)[0]!r}): write a decimal "
                "point and no thousands separators"
            )
        return
    if not odd:
        return  # Parquet may hold digits as text on purpose
    rows = [i for i, cell in enumerate(cells) if cell in odd]
    shown = ", ".join(f"{cells[i]!r} in data row {i + 1}" for i in rows[:3])
    raise ValueError(
        f"column {name!r} of {table.source} holds numbers but for {len(rows)} cells ({shown}): leave them empty if they "
        f"are unknown, or declare the column to be text with --text {name}"
    )


def _as_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _digest(one: Input, table: Table) -> bytes:
    """What an input says about the rows; equal for inputs that say the same."""
    column = table.columns[one.name]
    if one.kind == "number":
        return hashlib.blake2b(column.tobytes(), digest_size=16).digest()
    _, first, codes = np.unique(column.astype(str), return_index=True, return_inverse=True)
    # Levels are numbered in the order in which they come, so that other names for the same levels are the same.
    order = np.argsort(np.argsort(first))[codes]
    return b"text" + hashlib.blake2b(order.tobytes(), digest_size=16).digest()
