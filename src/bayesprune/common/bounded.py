"""Readers of text, JSON and packed files that take no more memory than they were allowed."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from bayesprune.common.artefact import REWRITE, ArtefactError, MissingArtefactError, reading

TEXT_LIMIT = 1 << 26
"""Bytes of a JSON file or another text that is read at once: 64 MiB."""
DATA_LIMIT = 1 << 33
"""Bytes that a table or archive may come to, unpacked: 8 GiB."""
_LINE = 1 << 26  # characters


def read_bytes(path: str | os.PathLike[str], *, limit: int = TEXT_LIMIT) -> bytes:
    """The content of a file of at most ``limit`` bytes."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingArtefactError(path, "there is no such file") from None
    except IsADirectoryError:
        raise ArtefactError(path, "is a folder", "a file") from None
    if len(content) > limit:
        raise ArtefactError(path, f"has more than {limit} bytes", mend="raise the limit if you trust it")
    return content


def read_json(path: str | os.PathLike[str], kind: type = dict) -> Any:
    """The content of a JSON file of at most `TEXT_LIMIT` bytes; errors as `read_bytes`."""
    text = read_bytes(path)
    with reading(path, "JSON in UTF-8", REWRITE):
        content = parse_json(text.decode("utf-8"))
    if not isinstance(content, kind):
        wanted = "an object" if kind is dict else "a list"
        raise ArtefactError(path, f"holds {content!r:.80}", wanted)
    return content


def parse_json(text: str) -> Any:
    """The value of a JSON text in which no key comes twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key comes twice in an object")
        return found

    return json.loads(text, object_pairs_hook=once)


class _Bounded(io.RawIOBase):
    """A stream that is read to at most a limit, and whose lines end."""

    def __init__(self, file: IO[bytes], path: Path, limit: int) -> None:
        self.file, self.path, self.limit, self.left = file, path, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with reading(self.path, "a whole gzip file", "fetch it again"):
            found = self.file.read(min(len(buffer), max(self.left, 0) + 1))
        self.left -= len(found)
        if self.left < 0:
            raise ArtefactError(
                self.path, f"unpacks to more than {self.limit} bytes", mend="raise limit if you trust it"
            )
        buffer[: len(found)] = found
        return len(found)


@contextmanager
def opened_bytes(path: Path, *, limit: int = DATA_LIMIT) -> Iterator[BinaryIO]:
    """A file, unpacked if it is gzip by name or first bytes, of at most ``limit`` bytes; its end compares the checksum."""
    with open(path, "rb") as plain:
        packed = path.suffix.lower() in (".gz", ".tgz") or plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        source: IO[bytes] = gzip.GzipFile(fileobj=plain) if packed else plain  # type: ignore[assignment]
        yield io.BufferedReader(_Bounded(source, path, limit), 1 << 16)  # type: ignore[misc]


@contextmanager
def opened_text(path: Path, *, limit: int = DATA_LIMIT) -> Iterator[Iterator[str]]:
    """The lines of a UTF-8 text file, unpacked if it is gzip, line ends kept; errors as `opened_bytes`."""
    with opened_bytes(path, limit=limit) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")

        def lines() -> Iterator[str]:
            try:
                while line := text.readline(_LINE):
                    if len(line) == _LINE:
                        raise ArtefactError(path, f"has a line of {_LINE} characters or more", "a table with line ends")
                    yield line
            except UnicodeDecodeError as error:
                where = f"{error.reason} at byte {error.start}"
                raise ArtefactError(path, f"is not UTF-8 text ({where})", mend="save it as UTF-8") from error

        yield lines()


def zip_members(path: Path, names: tuple[str, ...], *, limit: int = DATA_LIMIT) -> tuple[dict[str, bytes], list[str]]:
    """Some members of a zip file, checksums compared, and the names of all."""
    with reading(path, "a whole zip file", "fetch it again"), zipfile.ZipFile(path) as file:
        members = {info.filename: info for info in file.infolist()}
        if not _whole(file):
            raise ArtefactError(path, "its directory does not list all that it holds", mend="fetch it again")
        if sum(members[name].file_size for name in names if name in members) > limit:
            raise ArtefactError(path, f"unpacks to more than {limit} bytes", mend="raise limit if you trust it")
        return {name: file.read(members[name]) for name in names if name in members}, list(members)


def _whole(file: zipfile.ZipFile) -> bool:
    """Whether the members that a zip file lists lie under their names, one behind the other up to the list."""
    raw, at = file.fp, 0
    assert raw is not None
    for info in sorted(file.infolist(), key=lambda each: each.header_offset):
        if not 0 <= info.header_offset - at <= _DESCRIPTOR:
            return False
        raw.seek(info.header_offset + 26)
        name, extra = int.from_bytes(raw.read(2), "little"), int.from_bytes(raw.read(2), "little")
        if raw.read(name).decode("utf-8" if info.flag_bits & 0x800 else "cp437") != info.orig_filename:
            return False
        at = info.header_offset + 30 + name + extra + info.compress_size
    return 0 <= file.start_dir - at <= _DESCRIPTOR


_DESCRIPTOR = 24  # bytes that may follow a member's data


def tar_members(path: Path, wanted: Callable[[str], bool], *, limit: int = DATA_LIMIT) -> dict[str, bytes]:
    """The files of a tar archive (plain or gzip) whose base name is wanted, by that name; nothing is unpacked to disk."""
    found: dict[str, bytes] = {}
    with reading(path, "a whole tar archive", "fetch it again"), opened_bytes(path, limit=limit) as raw:
        with tarfile.open(fileobj=raw, mode="r|") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if not member.isfile() or not wanted(name):
                    continue
                if name in found:
                    raise ArtefactError(path, f"holds {name!r} twice", "the official archive")
                stream = archive.extractfile(member)
                content = stream.read() if stream is not None and 0 <= member.size <= limit else b""
                if len(content) != member.size:
                    raise ArtefactError(path, f"{name!r} is cut off", mend="fetch it again")
                found[name] = content
        while raw.read(1 << 16):  # to the end, where the checksum lies
            pass
    return found
