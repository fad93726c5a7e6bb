"""From the columns of a data frame to the numbers that a network reads, the same way in training and in use."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bayesprune.tabular.columns import cells_as_text, column_cells, column_kind, nearest_name, respelled

OTHER_LEVEL = "(other)"
_MISSING_SHARE = 0.05  # from here on, that a number is missing is an input of its own
_RARE_ROWS, _RARE_SHARE = 5, 0.002
_MOST_LEVELS = 100
_ENOUGH = 20  # rows from which whole numbers without repeats look like an identifier
_IDENTIFIER = re.compile(r"(^|[^a-z])(id|uuid|guid|key|index|rowid)$|[a-z](ID|Id|Key|Index)$|^Unnamed: 0$|^$")


@dataclass(frozen=True)
class Input:
    """One column of the frame, and what is known of it."""

    name: str
    kind: str
    parts: tuple[str, ...] = ()
    fills: tuple[float, ...] = ()
    indicator: bool = False
    levels: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        if self.kind == "text":
            levels = (*self.levels, OTHER_LEVEL) if self.rare else self.levels
            return tuple(f"{self.name} = {level}" for level in (levels[1:] if len(levels) == 2 else levels))
        names = tuple(f"{self.name}: {part}" for part in self.parts) or (self.name,)
        return (*names, f"{self.name} is missing") if self.indicator else names


@dataclass(frozen=True)
class FrameEncoder:
    """How a data frame becomes a matrix: scikit-learn's imputer and one-hot encoder, set up from what each input says."""

    inputs: tuple[Input, ...]
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def members(self) -> dict[str, list[int]]:
        """The encoded columns of each input by name."""
        found: dict[str, list[int]] = {one.name: [] for one in self.inputs}
        values = [one.name for one in self.inputs for _ in one.fills]
        missing = [one.name for one in self.inputs if one.indicator]
        levels = [one.name for one in self.inputs if one.kind == "text" for _ in one.columns]
        for place, name in enumerate([*values, *missing, *levels]):
            found[name].append(place)
        return found

    def only(self, names: Collection[str]) -> FrameEncoder:
        """Return the encoder of some of the inputs."""
        return FrameEncoder(tuple(one for one in self.inputs if one.name in names))

    def encode(self, frame: Any) -> np.ndarray:
        """Turn a frame into a matrix; columns and levels are found by name."""
        absent = [one.name for one in self.inputs if one.name not in frame.columns]
        if absent:
            more = f" and {len(absent) - 1} more of the model's inputs" if len(absent) > 1 else ""
            raise ValueError(f"X has no column {absent[0]!r}{more}{nearest_name(absent[0], frame.columns)}")
        blocks = [np.zeros((len(frame), 0))]
        read = [one for one in self.inputs if one.kind != "text"]
        if read:
            parts = [column_cells(one.name, frame[one.name], one.kind) for one in read]
            values = [cells[part] for one, cells in zip(read, parts) for part in one.parts or ("",)]
            blocks.append(_imputer(read).transform(np.column_stack(values)))
        words = [one for one in self.inputs if one.kind == "text"]
        if words:
            columns = [respelled(cells_as_text(frame[one.name]), {*one.levels, *one.rare}) for one in words]
            cells = np.column_stack(columns).astype(object)
            _warn_unseen(words, cells)
            with warnings.catch_warnings():  # scikit-learn names the column by its number
                warnings.filterwarnings("ignore", message="Found unknown categories")
                blocks.append(_one_hot(words).transform(cells))
        return np.concatenate(blocks, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Return the encoder as plain data for JSON."""
        return {"inputs": [asdict(one) for one in self.inputs], "dropped": self.dropped}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FrameEncoder:
        """Read what `to_dict` wrote."""
        inputs: list[Any] = [Input(**_tuples(one)) for one in value["inputs"]]
        return cls(tuple(inputs), dict(value["dropped"]))


def _tuples(one: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in one.items()}


def check_distinct(frame: Any) -> None:
    """Refuse a frame of which two columns have one name."""
    counts = Counter(map(str, frame.columns))
    name, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ValueError(f"X has {count} columns named {name!r}: rename all but one")


def learn_encoder(frame: Any) -> FrameEncoder:
    """Learn from the training rows how to encode their columns, and leave out those that say nothing."""
    import pandas

    check_distinct(frame)
    names = [str(name) for name in frame.columns]
    inputs: list[Input] = []
    dropped: dict[str, str] = {}
    first_with: dict[tuple[Any, ...], str] = {}
    for name, (_, column) in zip(names, frame.items()):
        kind = "" if column.isna().all() else column_kind(name, column)
        found: Input | str = "no row has a value"
        digest: tuple[Any, ...] = ()
        if kind == "text":
            cells = cells_as_text(column)
            found = _learn_text(name, cells)
            digest = ("text", _digest(pandas.factorize(cells)[0]))
        elif kind:
            values = column_cells(name, column, kind)
            found = _learn_numbers(name, kind, column, values)
            digest = tuple(map(_digest, values.values()))
        if isinstance(found, Input):
            twin = first_with.setdefault(digest, name)
            if twin != name:
                found = f"equals {twin!r} in every row"
        if isinstance(found, Input):
            inputs.append(found)
        else:
            dropped[name] = found
    if not inputs:
        said = "; ".join(f"{name!r}: {reason}" for name, reason in list(dropped.items())[:5]) or "it has no column"
        raise ValueError(f"X has no usable input ({said}): give columns that vary")
    return FrameEncoder(tuple(inputs), dropped)


def _digest(values: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _learn_text(name: str, cells: np.ndarray) -> Input | str:
    """Return the input of a column of text, or why there is none."""
    from sklearn.preprocessing import OneHotEncoder

    least = max(_RARE_ROWS, int(np.ceil(_RARE_SHARE * len(cells))))
    one_hot = OneHotEncoder(min_frequency=least, max_categories=_MOST_LEVELS + 1, handle_unknown="infrequent_if_exist")
    one_hot.fit(cells[:, None])
    levels, rare = one_hot.categories_[0], one_hot.infrequent_categories_[0]
    if len(levels) == 1:
        return "constant"
    if len(levels) > max(20, len(cells) // 2):
        return f"looks like an identifier: {len(levels):,} levels in {len(cells):,} rows"
    rare = () if rare is None else tuple(rare)
    kept = tuple(level for level in levels if level not in set(rare))
    if not kept:
        return f"no two levels have {least} rows each"
    return Input(name, "text", levels=kept, rare=rare)


def _learn_numbers(name: str, kind: str, column: Any, cells: dict[str, np.ndarray]) -> Input | str:
    """Return the input of a column of numbers or dates, or why there is none."""
    missing = np.isnan(next(iter(cells.values())))
    indicator = bool(missing.mean() >= _MISSING_SHARE)
    there = {part: values[~missing] for part, values in cells.items()}
    varying = {part: values for part, values in there.items() if (values != values[0]).any()}
    if not varying and not indicator:
        return "constant"
    if kind == "number" and "" in varying and not missing.any() and _counts_rows(name, column.dtype, there[""]):
        return f"looks like an identifier: {len(column):,} whole numbers without a repeat; turn them into floats to keep them"
    used = varying or dict(list(there.items())[:1])
    fills = tuple(float(np.median(values)) for values in used.values())
    return Input(name, kind, tuple(part for part in used if part), fills, indicator)


def _counts_rows(name: str, dtype: Any, values: np.ndarray) -> bool:
    """Return whether whole numbers number the rows: no two alike, and called so or next to without gaps."""
    if dtype.kind not in "iu" or len(values) < _ENOUGH or len(np.unique(values)) < len(values):
        return False
    return bool(_IDENTIFIER.search(name)) or float(np.ptp(values)) < 2 * len(values)


def _imputer(read: Sequence[Input]) -> Any:
    """Return scikit-learn's imputer with the medians of some inputs, from rows that have them."""
    from sklearn.impute import SimpleImputer

    fills = np.array([fill for one in read for fill in one.fills])
    marked = np.array([one.indicator and not at for one in read for at in range(len(one.fills))])
    rows = np.stack([fills, fills, np.where(marked, np.nan, fills)])
    return SimpleImputer(strategy="median", add_indicator=True).fit(rows)


def _one_hot(words: Sequence[Input]) -> Any:
    """Return scikit-learn's encoder with the levels of some inputs, from rows that hold the frequent ones twice."""
    from sklearn.preprocessing import OneHotEncoder

    columns = [[*one.levels, *one.levels, *one.rare] for one in words]
    longest = max(map(len, columns))
    rows = np.array([[*cells, *[cells[0]] * (longest - len(cells))] for cells in columns], dtype=object).T
    one_hot = OneHotEncoder(
        min_frequency=2, handle_unknown="infrequent_if_exist", drop="if_binary", sparse_output=False, dtype=np.float64
    )
    return one_hot.fit(rows)


def _warn_unseen(words: Sequence[Input], cells: np.ndarray) -> None:
    """Warn of levels that count as none of those known."""
    for one, column in zip(words, cells.T):
        new = sorted(set(column) - {*one.levels, *one.rare})
        if new:
            rows, more = int(np.isin(column, new).sum()), ", …" if len(new) > 3 else ""
            shown = ", ".join(map(repr, new[:3])) + more
            base = f"the base level {one.levels[0]!r}" if len(one.levels) == 2 else "none of the levels"
            counted = f"the level {OTHER_LEVEL!r}" if one.rare else base
            warnings.warn(
                f"{rows} rows have a {one.name!r} unseen in training ({shown}): counted as {counted}", stacklevel=4
            )
