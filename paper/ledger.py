"""The ledger of a table: a JSON Lines file, one line a row, that many processes append to and that no kill harms."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bayesprune.common.artefact import ArtefactError, reading
from bayesprune.common.bounded import DATA_LIMIT, read_bytes

Row = dict[str, Any]


def name_of(row: Row) -> str:
    """Return the name that a cell's row carries."""
    return str(row["name"])


@dataclass(frozen=True)
class Ledger:
    """Rows of a table, appended as they finish and never rewritten.

    A line is a row, which has a "status" ("done" or the name of a failure), or the record of a command, {"command": {…}}.
    Of several rows of one key the last counts, but never one that is not done in place of one that is; a row that is
    "withdrawn" counts no more. Lines are appended whole, under the system's lock on the file, and are on the disk when
    `append` returns; what a kill left of a line is not read, and the next `append` takes it away.

    Args:
        path: the file, .jsonl; made by the first `append`.
        key: what tells rows apart.

    Raises:
        ValueError: a path of another ending.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = Ledger(Path(folder) / "table.jsonl")
        ...     ledger.append({"name": "a", "status": "failed"}, {"name": "b", "status": "done"})
        ...     ledger.append({"name": "a", "status": "done"})
        ...     {name: row["status"] for name, row in ledger.rows().items()}
        {'a': 'done', 'b': 'done'}
    """

    path: Path
    key: Callable[[Row], str] = name_of

    def __post_init__(self) -> None:
        """Refuse the merged JSON of old."""
        object.__setattr__(self, "path", Path(self.path))
        if self.path.suffix != ".jsonl":
            raise ValueError(f"out={str(self.path)!r}: rows are kept as JSON Lines; give a file that ends in .jsonl")

    def rows(self) -> dict[str, Row]:
        """Return the rows that count, by key, in the order in which their keys came first."""
        found: dict[str, Row] = {}
        for record in self._records():
            if "status" in record:
                with reading(self.path, "rows with a name"):
                    name = self.key(record)
                if not (name in found and found[name]["status"] == "done" and record["status"] != "done"):
                    found[name] = record
        return {name: row for name, row in found.items() if row["status"] != "withdrawn"}

    def commands(self) -> list[dict[str, Any]]:
        """Return the records of commands, first things first."""
        return [record["command"] for record in self._records() if "status" not in record]

    def append(self, *records: Row) -> None:
        """Write rows, or records of commands, at the end; numbers that are not finite become null.

        Args:
            *records: any number of them; one call writes all its lines at once.
        """
        lines = "".join(_line(record) for record in records).encode()
        with _locked(self.path) as file:
            whole, begun = _split(file.read())
            kept = len(whole)
            if begun and _parsed(begun) is not None:  # an editor left out the last line's end
                kept, lines = kept + len(begun), b"\n" + lines
            file.truncate(kept)
            try:
                file.seek(kept)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # a full disk: nothing of it stays
                file.truncate(kept)
                raise

    def merge(self, *places: str | Path) -> int:
        """Take in the rows of other machines; return how many were new.

        Args:
            *places: their ledgers. A row is taken where there is none of its key, or where it is done and ours is not.

        Raises:
            FileNotFoundError: a ledger that is not there.
        """
        have: dict[str, Row] = self.rows()
        new: dict[str, Row] = {}
        for place in map(Path, places):
            if not place.exists():
                raise FileNotFoundError(f"merge: {place} is not there; name the table.jsonl of another machine")
            for name, row in Ledger(place, self.key).rows().items():
                mine = new.get(name, have.get(name))
                if mine is None or (mine["status"] != "done" and row["status"] == "done"):
                    new[name] = row
        if new:
            self.append(*new.values())
        return len(new)

    def _records(self) -> Iterator[Row]:
        """Give every line that is whole; only the last may be none."""
        if not self.path.exists():
            return
        whole, begun = _split(read_bytes(self.path, limit=DATA_LIMIT))
        for number, line in enumerate(whole.splitlines(), 1):
            record = _parsed(line)
            if record is None:
                raise ArtefactError(
                    self.path, f"line {number} is no row",
                    mend="restore the file from a copy, or take the line out; its cell is run again",
                )  # fmt: skip
            yield record
        record = _parsed(begun)
        if record is not None:
            yield record


def _line(record: Row) -> str:
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    if _parsed(json.dumps(finite).encode()) is None:
        raise ValueError(f"{record!r:.200} is neither a row with a status nor the record of a command")
    return json.dumps(finite, ensure_ascii=False, separators=(",", ":")) + "\n"


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Return the lines that have an end, and what stands behind them."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _parsed(line: bytes) -> Row | None:
    """Return a line's record; None if it is not a whole one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and (isinstance(record.get("status"), str) or isinstance(record.get("command"), dict)):
        return record
    return None


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read and write, alone."""
    try:
        import fcntl
    except ImportError:  # Windows: one command at a time
        fcntl = None  # type: ignore[assignment]
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        with open(handle, "r+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            there = os.stat(path) if path.exists() else None
            if there is None or there.st_ino != os.fstat(handle).st_ino:
                continue  # replaced while it was waited for, as by a checkout
            yield file
            return
