"""One writer a folder: a lock that ends with its process, and says who holds it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no locks, one command at a time
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_held: set[int] = set()


class FolderInUseError(RuntimeError):
    """Another process writes to the folder; the message names it."""


@contextmanager
def locked(folder: str | os.PathLike[str], *, beside: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Hold a folder for the length of the block, against other processes and other holders in this one."""
    path = Path(folder).absolute()
    place, made = lock_file(path, beside=beside), not path.exists()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileExistsError(f"{str(place.parent)!r} is a file; name a folder") from None
    until = time.monotonic() + wait
    while (handle := claim(place)) is None:
        if time.monotonic() >= until:
            found = holder(path, beside=beside)
            who = f"process {found['pid']} on {found['host']} since {found['since']}" if found else "another process"
            what = f" ({found['command']})" if found.get("command") else ""
            raise FolderInUseError(f"{folder} is in use by {who}{what}; wait until it ends, or name another folder.")
        time.sleep(0.02)
    try:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        command = " ".join(Path(word).name for word in sys.argv[:3])
        told = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": command}
        os.pwrite(handle, json.dumps(told).encode(), 0)
        yield
    finally:
        place.unlink(missing_ok=True)
        release(handle)
        if made and not beside:
            with suppress(OSError):  # something was written to it
                path.rmdir()


def lock_file(folder: Path, *, beside: bool = False) -> Path:
    """Where a folder's lock lies."""
    return folder.with_name(f".{folder.name}{NAME}") if beside else folder / NAME


def holder(folder: str | os.PathLike[str], *, beside: bool = False) -> dict[str, Any]:
    """Process, machine, time and command of who holds a folder, as its lock file tells; empty if there is none."""
    try:
        with open(lock_file(Path(folder).absolute(), beside=beside), "rb") as file:
            told = json.loads(file.read(4096))
        return {key: str(told[key]) for key in ("host", "since", "command")} | {"pid": int(told["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def claim(path: Path, *, directory: bool = False, create: bool = True) -> int | None:
    """An open handle with the lock on a file or folder, or None if another handle has it."""
    flags = os.O_RDONLY if directory else os.O_RDWR | (os.O_CREAT if create else 0)
    while True:
        handle = os.open(path, flags, 0o666)
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return None
            except OSError:  # this file system knows no locks
                pass
        try:
            mine, there = os.fstat(handle), os.stat(path)
        except FileNotFoundError:
            there = None
        if there is not None and (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
            _held.add(handle)
            if not directory and create:
                os.ftruncate(handle, 0)
            return handle
        os.close(handle)  # its last holder removed the name meanwhile
        if not create:
            return None


def release(handle: int) -> None:
    """Close a handle of `claim`."""
    _held.discard(handle)
    os.close(handle)


def _forget() -> None:
    """In a forked child: a worker that outlives its parent must not hold the parent's folders."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
