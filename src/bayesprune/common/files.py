"""The one way in which files and folders are written: whole under their name, or not at all."""

from __future__ import annotations

import csv
import ctypes
import io
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayesprune.common.lock import claim, locked, release

PARTIAL, OLD = ".partial", ".old"
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{8}(\.partial|\.old)")


@contextmanager
def replacing(path: str | os.PathLike[str], *, flush_name: bool = True) -> Iterator[Path]:
    """A temporary name beside a file; when the block ends well, its content is on the disk and takes the file's place."""
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, handle = _beside(target, PARTIAL), None
    try:
        handle = claim(temporary)
        assert handle is not None  # the name is new
        yield temporary
        os.fsync(handle)
        os.replace(temporary, target)
        if flush_name:
            sync_folder(target.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, temporary, str(temporary)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        if handle is not None:
            release(handle)
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder beside `path`; when the block ends well, it takes the place of what is there, in one step."""
    target = Path(path).absolute()
    with locked(target, beside=True):
        sweep(target.parent, of=target.name)
        work = _beside(target, PARTIAL)
        work.mkdir()
        handle = None if os.name == "nt" else claim(work, directory=True)
        try:
            yield work
            _sync_below(work)
            _take_place(work, target)
            sync_folder(target.parent)
        finally:
            if handle is not None:
                release(handle)
            shutil.rmtree(work, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file whole or not at all, as `replacing` does."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file in UTF-8, as `write_bytes` does."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write JSON, as `write_bytes` does; numbers that are not finite become null."""
    return write_text(path, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")


def csv_text(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table as CSV, its heads first."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([names, *rows])
    return out.getvalue()


def sweep(folder: str | os.PathLike[str], *, of: str | None = None) -> list[str]:
    """Remove what killed writers left in a folder; those that still write are left alone."""
    return [entry.name for entry in leftovers(folder, of=of) if _removed(entry)]


def leftovers(folder: str | os.PathLike[str], *, of: str | None = None) -> list[Path]:
    """The temporary names in a folder, of writers alive or dead."""
    found = []
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        match = _LEFTOVER.fullmatch(name)
        if match and (of is None or match[1] == of[:_LONGEST]):
            found.append(Path(folder) / name)
    return found


def contents(folder: Path) -> str:
    """What lies in a folder, for messages."""
    if not folder.is_dir():
        return "a file, not a folder" if folder.exists() else "nothing there"
    return listed(sorted(os.listdir(folder)), 8) or "an empty folder"


def listed(names: Sequence[str], most: int) -> str:
    """Names for a message, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def plain_name(name: Any) -> bool:
    """Whether a name that a file gives stays in its folder: one part, and neither . nor .."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Have a folder's names on the disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot; the names come there by themselves
        pass
    finally:
        os.close(handle)


_LONGEST = 200  # of a name, so that the temporary one fits


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name[:_LONGEST]}.{secrets.token_hex(4)}{ending}")


def _removed(entry: Path) -> bool:
    """Remove a leftover, or put it back as what it was, unless its writer lives."""
    handle = None
    try:
        if os.name != "nt":
            handle = claim(entry, directory=entry.is_dir(), create=False)
            if handle is None:
                return False
        whole = entry.with_name(re.sub(_LEFTOVER, r"\1", entry.name))
        if entry.suffix == OLD and not whole.exists():
            os.replace(entry, whole)
        elif entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    except OSError:  # gone meanwhile, or not ours to remove
        return False
    finally:
        if handle is not None:
            release(handle)
    return True


def _sync_below(folder: Path) -> None:
    for here, _, names in os.walk(folder):
        for name in names:
            with open(Path(here, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(here)


def _take_place(work: Path, target: Path) -> None:
    """Give the filled folder its name; what was there ends under the temporary one."""
    if not target.exists():
        os.replace(work, target)
    elif not _exchanged(work, target):
        old = _beside(target, OLD)
        os.replace(target, old)
        try:
            os.replace(work, target)
        except OSError:
            os.replace(old, target)
            raise
        os.replace(old, work)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step, where the system can (Linux's renameat2)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def finite(value: Any) -> Any:
    """A value as JSON takes it: what is not finite is None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
