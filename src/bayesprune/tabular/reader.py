"""A data frame from a file: CSV, Parquet or NumPy's .npz."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from bayesprune.common.artefact import ArtefactError, reading
from bayesprune.common.bounded import DATA_LIMIT, opened_bytes, opened_text, zip_members

FORMATS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq", ".npz")
# What spreadsheets, R, pandas and SQL write for "no value".
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "<NA>", "?", ".")
_DELIMITERS = ",;\t|"
_BLOCKS = (1 << 20, 1 << 25, (1 << 31) - 1)  # bytes that Arrow takes in at once; a row must fit into a block


def read_frame(
    path: str | os.PathLike[str],
    *,
    only: Collection[str] | None = None,
    drop: Collection[str] = (),
    text: Collection[str] = (),
    keep: Collection[str] = (),
    strict: bool = True,
    limit: int = DATA_LIMIT,
) -> Any:
    """Read a data frame of at most ``limit`` bytes, unpacked; the name's ending says how."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data={str(path)!r}: no such file")
    readers: dict[str, Callable[..., Any]] = {".parquet": _read_parquet, ".pq": _read_parquet, ".npz": _read_npz}
    readers |= dict.fromkeys((".csv", ".tsv", ".csv.gz", ".tsv.gz"), _read_csv)
    reader = next((reader for ending, reader in readers.items() if path.name.lower().endswith(ending)), None)
    if reader is None or path.is_dir():
        raise ValueError(f"data={str(path)!r}: expected a file whose name ends in one of {', '.join(FORMATS)}")
    seen: list[str] = []
    lacking: list[str] = []

    def wanted(names: list[str]) -> list[str]:
        seen.extend(names)
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise ArtefactError(path, f"the name {twice!r} stands for {names.count(twice)} columns; rename all but one")
        lacking.extend(name for name in (*drop, *text, *keep) if strict and name not in names)
        return [name for name in names if (only is None or name in only) and name not in drop]

    try:
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(f'reading {path.name} needs pandas and pyarrow: pip install "bayesprune[tabular]"') from error
    kind = {_read_parquet: "a Parquet file", _read_npz: "arrays X (n, p), y (n,), names (p,) in .npz, without pickle"}
    with reading(path, kind.get(reader, "a table as CSV, as UTF-8 text")):
        frame = reader(path, wanted, text, limit)
    if lacking:
        raise ValueError(absent(lacking[0], seen, path.name))
    if "" in frame.columns:
        first = frame.pop("")
        if (
            seen.index("") > 0
            or first.dtype.kind not in "iu"
            or (first.diff()[1:] != 1).any()
            or first[0] not in (0, 1)
        ):
            raise ArtefactError(path, f"column {seen.index('') + 1} has no name", mend="give it one in the header")
    if not len(frame):
        raise ArtefactError(path, "holds a header and no rows")
    frame = frame.astype({name: "category" for name in text if name in frame.columns})
    return frame.astype({name: "float64" for name in keep if name in frame.columns})


def absent(name: str, names: Collection[str], source: str) -> str:
    """Say that a column is not there, and which name comes nearest."""
    near = difflib.get_close_matches(name, names, n=1) or [one for one in names if one.lower() == name.lower()][:1]
    guess = f"; did you mean {near[0]!r}? It" if near else "; it"
    listed = ", ".join(list(names)[:8]) + (", …" if len(names) > 8 else "")
    return f"{source} has no column {name!r}{guess} has {len(names)} columns: {listed}"


def _delimiter(line: str) -> str:
    """Return what separates the names of a header: of the marks that stand outside quotes the most frequent."""
    bare = re.sub(r'"(?:[^"]|"")*"', "", line)
    return max(_DELIMITERS, key=lambda mark: (bare.count(mark), mark == ","))


def _read_csv(path: Path, wanted: Callable[[list[str]], list[str]], text: Collection[str], limit: int) -> Any:
    import pyarrow.csv as arrow
    from pyarrow import ArrowInvalid

    with opened_text(path, limit=limit) as lines:
        line = next(lines, "")
        if not line.strip():
            raise ArtefactError(path, "is empty; its first line must name the columns")
        tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
        mark = "\t" if tabs else _delimiter(line)
        header = next(csv.reader(itertools.chain([line], lines), delimiter=mark, strict=True))
    names = [name.strip() for name in header]
    if all(re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", name) for name in names):
        raise ArtefactError(
            path, f"the first line holds only numbers ({', '.join(names[:3])}, …); it must name the columns"
        )
    kept = set(wanted(names))
    read = kept or set(names)  # Arrow reads all columns where none is named
    raw = dict(zip(names, header))
    parsed = arrow.ParseOptions(delimiter=mark, newlines_in_values=True)
    converted = arrow.ConvertOptions(
        include_columns=[raw[name] for name in names if name in read],
        column_types={raw[name]: "string" for name in text if name in kept},
        null_values=list(MISSING),
        strings_can_be_null=True,
    )
    for size in _BLOCKS:
        options = arrow.ReadOptions(use_threads=False, block_size=size)
        try:
            with opened_bytes(path, limit=limit) as raw_bytes:
                table = arrow.read_csv(raw_bytes, options, parsed, converted)
            break
        except ArrowInvalid as error:  # a row that is longer than a block
            if size == _BLOCKS[-1] or "block" not in str(error):
                raise
    return _from_arrow(table.rename_columns([name for name in names if name in read]))[[n for n in names if n in kept]]


def _read_parquet(path: Path, wanted: Callable[[list[str]], list[str]], text: Collection[str], limit: int) -> Any:
    import pyarrow.parquet as arrow

    kept = [name for name in wanted(arrow.read_schema(path).names) if not re.fullmatch(r"__index_level_\d+__", name)]
    about = arrow.read_metadata(path)
    stored = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    if max(stored, 8 * about.num_rows * len(kept)) > limit:  # equal values in a row take next to nothing in the file
        raise ArtefactError(path, f"unpacks to more than {limit} bytes", mend="raise limit if you trust it")
    table = arrow.read_table(path, columns=kept)
    table.validate(full=True)  # that texts are UTF-8: else pandas finds out later, elsewhere
    return _from_arrow(table)


def _from_arrow(table: Any) -> Any:
    """Return a data frame of numbers, dates and stripped text."""
    from pyarrow import types

    for at, (name, column) in enumerate(zip(table.column_names, table.columns)):
        if types.is_decimal(column.type):
            table = table.set_column(at, name, column.cast("float64"))
        elif types.is_time(column.type):  # in the unit that the file has
            table = table.set_column(at, name, column.cast("int32" if types.is_time32(column.type) else "int64"))
    frame = table.replace_schema_metadata(None).to_pandas(date_as_object=False)
    for name, kind in zip(table.column_names, table.schema.types):
        if types.is_string(kind) or types.is_large_string(kind):
            stripped = frame[name].str.strip()
            frame[name] = stripped.mask(stripped.isin(MISSING))
    return frame


def _read_npz(path: Path, wanted: Callable[[list[str]], list[str]], text: Collection[str], limit: int) -> Any:
    import pandas

    parts, held = zip_members(path, ("X.npy", "y.npy", "names.npy"), limit=limit)
    arrays = {name[:-4]: np.lib.format.read_array(io.BytesIO(part), allow_pickle=False) for name, part in parts.items()}
    if "X" not in arrays:
        raise ArtefactError(
            path,
            f"holds {', '.join(name.removesuffix('.npy') for name in held) or 'nothing'}; "
            "expected arrays X (n, p), y (n,) and names (p,)",
        )
    X, y = arrays["X"], arrays.get("y")
    if X.ndim != 2 or X.dtype.kind not in "fiub" or not X.size:
        raise ArtefactError(path, f"X is {X.dtype} of shape {X.shape}; expected numbers of shape (n, p)")
    names = [str(name) for name in arrays.get("names", [f"x{i}" for i in range(1, X.shape[1] + 1)])]
    if len(names) != X.shape[1]:
        raise ArtefactError(path, f"{len(names)} names for the {X.shape[1]} columns of X")
    if y is not None and (y.shape != (len(X),) or y.dtype.kind not in "fiubU"):
        raise ArtefactError(path, f"y is {y.dtype} of shape {y.shape}; expected numbers or text of shape ({len(X)},)")
    kept = wanted(names if y is None else [*names, "y"])
    frame = pandas.DataFrame(X, columns=names)
    if y is not None:
        frame["y"] = y
        if y.dtype.kind == "U":
            frame["y"] = frame["y"].mask(frame["y"].isin(MISSING))
    return frame[kept]
