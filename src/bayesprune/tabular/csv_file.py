"""Reading comma-separated text into typed columns with the standard library alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from bayesprune.common.artefact import ArtefactError, reading
from bayesprune.common.bounded import DATA_LIMIT, opened_text

# What spreadsheets, R, pandas and SQL write for "no value".
MISSING = frozenset(
    {"", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "<NA>", "?", "."}
)
_CELLS = 1_000_000  # cells held as text at a time
_DELIMITERS = ",;\t|"


def read_csv(
    path: Path,
    wanted: Callable[[str], bool] = lambda name: True,
    text: Collection[str] = (),
    limit: int = DATA_LIMIT,
) -> dict[str, np.ndarray]:
    r"""Read a CSV file with a header line into columns of numbers or of text.

    A column whose cells are all numbers or missing (see `MISSING`) is float64 with NaN for missing; any other holds
    its cells as text, stripped, with None for missing. The file is read a second time for the text columns, so that
    the text of the numbers is never held as a whole. The delimiter (comma, semicolon, tab or bar) is taken from the
    header; a ".gz" file is unpacked on the way.

    Args:
        path: the file, in UTF-8.
        wanted: which columns to keep, by name.
        text: names of columns to keep as text even if they hold numbers.
        limit: the most bytes that the text may come to, unpacked.

    Returns:
        The columns by name, in the file's order.

    Raises:
        ArtefactError: the file is empty, has no header, a line of another length, is not text or too large.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.csv"
        ...     _ = path.write_text("age,city\n31,Oslo\n,Bergen\n")
        ...     columns = read_csv(path)
        >>> columns["age"].tolist(), columns["city"].tolist()
        ([31.0, nan], ['Oslo', 'Bergen'])
    """
    with reading(path, "a table as CSV"):
        return _read(path, wanted, text, limit)


def _read(path: Path, wanted: Callable[[str], bool], text: Collection[str], limit: int) -> dict[str, np.ndarray]:
    names, delimiter = _header(path, limit)
    keep = [i for i, name in enumerate(names) if wanted(name)]
    as_text = {i for i in keep if names[i] in text}
    chunks: list[dict[int, np.ndarray]] = []
    for rows in _chunks(path, delimiter, len(names), limit):
        cells = list(zip(*rows))
        chunk = {}
        for i in keep:
            if i not in as_text:
                numbers = _numbers(cells[i])
                if numbers is None:
                    as_text.add(i)
                else:
                    chunk[i] = numbers
        chunks.append(chunk)
    if not chunks:
        raise ArtefactError(path, "holds a header and no rows")
    words: dict[int, list[str | None]] = {i: [] for i in as_text}
    if as_text:
        known: dict[str, str] = {}  # one object a distinct text
        for rows in _chunks(path, delimiter, len(names), limit):
            for row in rows:
                for i, column in words.items():
                    cell = row[i].strip()
                    column.append(None if cell in MISSING else known.setdefault(cell, cell))
    return {
        names[i]: np.array(words[i], dtype=object) if i in as_text else np.concatenate([part[i] for part in chunks])
        for i in keep
    }


def _header(path: Path, limit: int) -> tuple[list[str], str]:
    """Names of the columns, and the delimiter."""
    with opened_text(path, limit=limit) as file:
        line = next(file, "")
    if not line.strip():
        raise ArtefactError(path, "is empty", mend="its first line must name the columns")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    delimiter = "\t" if ".tsv" in suffixes[-2:] else max(_DELIMITERS, key=lambda mark: (line.count(mark), mark == ","))
    with opened_text(path, limit=limit) as file:
        names = [name.strip() for name in next(csv.reader(file, delimiter=delimiter, strict=True))]
    if all(_is_number(name) for name in names):
        shown = ", ".join(names[:3])
        raise ArtefactError(path, f"the first line holds only numbers ({shown}, …)", mend="it must name the columns")
    return names, delimiter


def _chunks(path: Path, delimiter: str, width: int, limit: int) -> Iterator[list[list[str]]]:
    """Data rows, some at a time; blank lines are skipped."""
    most, rows = max(1, _CELLS // width), []
    with opened_text(path, limit=limit) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        next(reader)
        for row in reader:
            if not row:
                continue
            if len(row) != width:
                raise ArtefactError(
                    path, f"line {reader.line_num} has {len(row)} cells where the header names {width} columns"
                )
            rows.append(row)
            if len(rows) == most:
                yield rows
                rows = []
    if rows:
        yield rows


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    """The cells as float64 with NaN for missing, or None if one is neither."""
    try:
        if "_" in "".join(cells):  # Python reads 1_000 as a number, no other program does
            return None
        return np.array(list(map(float, cells)))
    except ValueError:
        pass
    try:
        return np.array([math.nan if cell.strip() in MISSING else float(cell) for cell in cells])
    except ValueError:
        return None


def _is_number(cell: str) -> bool:
    return cell not in MISSING and _numbers([cell]) is not None
