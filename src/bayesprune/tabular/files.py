"""A table from a file: CSV, Parquet or NumPy's .npz, as columns of numbers and columns of text."""

from __future__ import annotations

import difflib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.common.artefact import ArtefactError, reading
from bayesprune.common.bounded import DATA_LIMIT, zip_members
from bayesprune.tabular.csv_file import MISSING, read_csv

FORMATS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq", ".npz")


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length under distinct names.

    Args:
        source: where it was read from, for messages.
        columns: a column of numbers is float64 with NaN for missing; a column of text is an object array of str, with
            None for missing.

    Example:
        >>> table = Table("memory", {"age": np.array([31.0, 40.0]), "city": np.array(["Oslo", None], dtype=object)})
        >>> table.rows, table.is_text("city")
        (2, True)
    """

    source: str
    columns: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), ()))

    def is_text(self, name: str) -> bool:
        """Return whether a column holds text.

        Args:
            name: of a column.
        """
        return self.columns[name].dtype == object

    def take(self, rows: np.ndarray) -> Table:
        """Return the table of some rows.

        Args:
            rows: indices or a boolean mask.
        """
        return Table(self.source, {name: column[rows] for name, column in self.columns.items()})

    def missing(self, name: str) -> np.ndarray:
        """Return where a column has no value.

        Args:
            name: of a column.

        Returns:
            (rows,) booleans.
        """
        column = self.columns[name]
        if column.dtype == object:
            return np.array([cell is None for cell in column], dtype=bool)
        return np.isnan(column)

    def check_finite(self, name: str) -> None:
        """Refuse infinite numbers.

        Args:
            name: of a column.

        Raises:
            ValueError: the column holds one; the message says in which row.
        """
        column = self.columns[name]
        if column.dtype != object and np.isinf(column).any():
            at = np.flatnonzero(np.isinf(column))
            raise ValueError(
                f"column {name!r} of {self.source} holds {column[at[0]]} in data row {at[0] + 1} ({len(at)} in all): "
                "write a finite number, or leave the cell empty if the value is unknown"
            )


def read_table(
    path: str | os.PathLike[str],
    *,
    only: Collection[str] | None = None,
    drop: Collection[str] = (),
    text: Collection[str] = (),
    strict: bool = True,
    limit: int = DATA_LIMIT,
) -> Table:
    """Read a table; the name's ending says how.

    - ``.csv``, ``.tsv`` (also with ``.gz``): a header line, then rows; see `read_csv` for types and missing values. A
      nameless first column that counts the rows, as pandas writes it, is left out.
    - ``.parquet``, ``.pq``: numbers and decimals become numbers; strings, categories and booleans become text. Needs
      pyarrow.
    - ``.npz``: arrays ``X`` (n, p) and optionally ``y`` (n,) and ``names`` (p,); without names the columns are x1, x2,
      … The response becomes the column "y".

    Args:
        path: the file.
        only: names of the columns to read, those that exist; the default is all.
        drop: names of columns to leave out.
        text: names of columns that hold text even if all their cells are numbers (codes, for example).
        strict: refuse names in `drop` and `text` that are not there.
        limit: the most bytes that the file's data may come to, unpacked.

    Returns:
        The table.

    Raises:
        FileNotFoundError: there is no such file.
        ArtefactError: a damaged file, or one that is larger than allowed.
        ValueError: an unknown ending, a name that is empty or given twice, a column of another kind, or `drop` or
            `text` names a column that is not there.
        ImportError: pyarrow is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder) / "a.npz", X=np.zeros((5, 2)), y=np.arange(5))
        ...     table = read_table(Path(folder) / "a.npz")
        >>> list(table.columns), table.rows
        (['x1', 'x2', 'y'], 5)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data={str(path)!r}: no such file")
    seen: list[str] = []

    def wanted(name: str) -> bool:
        seen.append(name)
        return (only is None or name in only) and name not in drop

    readers = {".parquet": _read_parquet, ".pq": _read_parquet, ".npz": _read_npz}
    readers |= dict.fromkeys((".csv", ".tsv", ".csv.gz", ".tsv.gz"), read_csv)
    reader = next((reader for ending, reader in readers.items() if path.name.lower().endswith(ending)), None)
    if reader is None or path.is_dir():
        raise ValueError(f"data={str(path)!r}: expected a file whose name ends in one of {', '.join(FORMATS)}")
    columns = reader(path, wanted, text, limit)
    for name in [name for name in (*drop, *text) if strict and name not in seen]:
        raise ValueError(absent(name, seen, str(path)))
    twice = [name for name, count in Counter(seen).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: the name {twice[0]!r} stands for {seen.count(twice[0])} columns; rename all but one")
    if "" in columns:
        first = columns.pop("")
        counts_rows = first.dtype != object and (np.diff(first) == 1).all() and first[0] in (0, 1)
        if seen.index("") > 0 or not counts_rows:
            raise ValueError(f"{path}: column {seen.index('') + 1} has no name; give it one in the header")
    return Table(path.name, columns)


def absent(name: str, names: Collection[str], source: str) -> str:
    """Say that a column is not there, and which name comes nearest.

    Args:
        name: what was asked for.
        names: what is there.
        source: the file.

    Example:
        >>> absent("prize", ["price", "size"], "a.csv")
        "a.csv has no column 'prize'; did you mean 'price'? It has 2 columns: price, size"
    """
    near = difflib.get_close_matches(name, names, n=1) or [one for one in names if one.lower() == name.lower()][:1]
    guess = f"; did you mean {near[0]!r}? It" if near else "; it"
    listed = ", ".join(list(names)[:8]) + (", …" if len(names) > 8 else "")
    return f"{source} has no column {name!r}{guess} has {len(names)} columns: {listed}"


def _read_parquet(
    path: Path, wanted: Callable[[str], bool], text: Collection[str], limit: int
) -> dict[str, np.ndarray]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('reading Parquet needs pyarrow: pip install "bayesprune[tabular]"') from error
    with reading(path, "a Parquet file", "fetch it again"):
        file = pyarrow.parquet.ParquetFile(path)
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
        if sum(groups) > limit:
            raise ValueError(f"it unpacks to more than {limit} bytes")
        names = file.schema_arrow.names
        keep = [name for name in names if wanted(name) and not re.fullmatch(r"__index_level_\d+__", name)]
        table = file.read(columns=keep) if len(set(names)) == len(names) else None
    if table is None:
        return {}  # the caller names the double
    if table.num_rows == 0:
        raise ArtefactError(path, "holds no rows")
    with reading(path, "a Parquet file", "fetch it again"):
        return {name: _from_arrow(name, table.column(name), path, name in text) for name in keep}


def _from_arrow(name: str, column: Any, path: Path, as_text: bool) -> np.ndarray:
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind):
        values = [None if value is None else str(value).strip() for value in column.to_pylist()]
        return np.array([None if value in MISSING else value for value in values], dtype=object)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        numbers = column.cast("float64", safe=False).to_numpy().astype(np.float64)
        return _written(numbers) if as_text else numbers
    raise ArtefactError(
        path, f"column {name!r} holds {column.type} values",
        mend="turn them into numbers (days since a date, for example) or text, or leave the column out with --drop "
        + name,
    )  # fmt: skip


def _read_npz(path: Path, wanted: Callable[[str], bool], text: Collection[str], limit: int) -> dict[str, np.ndarray]:
    parts, held = zip_members(path, tuple(f"{name}.npy" for name in ("X", "y", "names")), limit=limit)
    with reading(path, "arrays in .npz, without pickle"):
        arrays = {name.removesuffix(".npy"): _array(content) for name, content in parts.items()}
    if "X" not in arrays:
        shown = ", ".join(name.removesuffix(".npy") for name in held) or "nothing"
        raise ArtefactError(path, f"holds {shown}", "arrays X (n, p), y (n,) and names (p,)")
    inputs = arrays["X"]
    if inputs.ndim != 2 or inputs.dtype.kind not in "fiub" or not inputs.size:
        raise ArtefactError(path, f"X is {inputs.dtype} of shape {inputs.shape}", "numbers of shape (n, p)")
    names = [str(name) for name in np.ravel(arrays.get("names", [f"x{i}" for i in range(1, inputs.shape[1] + 1)]))]
    if len(names) != inputs.shape[1]:
        raise ArtefactError(path, f"{len(names)} names for the {inputs.shape[1]} columns of X")
    columns: dict[str, np.ndarray] = {}
    for i, name in enumerate(names):
        if wanted(name):
            numbers = inputs[:, i].astype(np.float64)
            columns[name] = _written(numbers) if name in text else numbers
    if "y" in arrays and wanted("y"):
        response = arrays["y"]
        if response.shape != (len(inputs),) or response.dtype.kind not in "fiubU":
            raise ArtefactError(
                path, f"y is {response.dtype} of shape {response.shape}", f"numbers or text of shape ({len(inputs)},)"
            )
        if response.dtype.kind in "Ub":
            columns["y"] = np.array([None if value in MISSING else value for value in map(str, response)], dtype=object)
        else:
            numbers = response.astype(np.float64)
            columns["y"] = _written(numbers) if "y" in text else numbers
    return columns


def _array(content: bytes) -> np.ndarray:
    """The array of a .npy file, whose header must tell the size that it has."""
    stream = io.BytesIO(content)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = header[np.lib.format.read_magic(stream)](stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"an array of {dtype}{list(shape)} in {len(content)} bytes")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)


def _written(numbers: np.ndarray) -> np.ndarray:
    """Write numbers as text, whole ones without a point, as a CSV file would hold them."""
    return np.array([None if np.isnan(v) else np.format_float_positional(v, trim="-") for v in numbers], dtype=object)
