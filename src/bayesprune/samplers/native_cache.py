"""Where the compiled step lies between two processes, and what must hold before a library from there is loaded.

A wheel cannot carry it: it is compiled for the very processor (`-march=native`, twice the speed of a generic build), and
without a compiler torch's own operations do the same work. The folder is the user's alone (mode 0700); a library is
loaded if it and its folder belong to the user, nobody else can write them, and its SHA-256 is the one that was recorded
when it had passed its test in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

_FLAGS = (
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
    "-ffinite-math-only", "-fno-signed-zeros",  # a clamp is then one instruction; sums of NaN stay NaN
    "-shared", "-fPIC",
)  # fmt: skip
_TEST = Path(__file__).with_name("native_library.py")
_RUN = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"


class Unusable(Exception):
    """Why there is no library."""


def cache_folder() -> Path:
    """Return the folder of compiled libraries: BAYESPRUNE_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("BAYESPRUNE_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "bayesprune"


def compiler() -> str | None:
    """Return the C compiler that would be used, or None."""
    return next((c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None)


def trusted_library() -> Path:
    """Return a library that may be loaded, built and tested first where there is none."""
    source = Path(__file__).with_name("native.c")
    command = compiler()
    processor = platform.machine() + _cpu_flags()
    try:
        digest = hashlib.sha256(source.read_bytes() + repr((_FLAGS, command, processor)).encode()).hexdigest()[:16]
        folder = cache_folder()
        _own_folder(folder)
        target = folder / f"native-{digest}.so"
        if _recorded(target):
            return target
        if command is None:
            raise Unusable("no C compiler (cc, gcc or clang) is on the path")
        _build(source, command, target)
    except OSError as error:
        raise Unusable(f"the compiled step cannot be kept in {cache_folder()}: {error}") from error
    return target


def _own_folder(folder: Path) -> None:
    """Make the folder, or take it as it is if it is the user's; close it to others."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not hasattr(os, "geteuid"):  # no owners and modes to check
        return
    _check_own(folder, folder.lstat(), stat.S_ISDIR)
    folder.chmod(0o700)


def _check_own(path: Path, found: os.stat_result, kind: object) -> None:
    if not kind(found.st_mode):  # type: ignore[operator]
        raise Unusable(
            f"{path} is not what it should be (a link?); remove it, or set BAYESPRUNE_CACHE to another folder"
        )
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Unusable(
            f"{path} belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}: others may have written what "
            "would be run. Remove it, or set BAYESPRUNE_CACHE to a folder of your own"
        )


def _recorded(target: Path) -> bool:
    """Return whether a library is there, the user's own, and the one that passed its test."""
    record = target.with_suffix(".json")
    if not target.exists() or not record.exists():
        return False
    if hasattr(os, "geteuid"):
        _check_own(target, target.lstat(), stat.S_ISREG)
        _check_own(record, record.lstat(), stat.S_ISREG)
    try:
        wanted = json.loads(record.read_bytes()[:10_000])["sha256"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(hashlib.sha256(target.read_bytes()).hexdigest() == wanted)


def _build(source: Path, command: str, target: Path) -> None:
    """Compile, test and record; a record without its library, or the reverse, counts as none."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        built, record = Path(work) / "native.so", Path(work) / "native.json"
        try:
            subprocess.run(
                [command, *_FLAGS, "-o", str(built), str(source), "-lm"], check=True, capture_output=True, timeout=120
            )
        except subprocess.SubprocessError as error:
            details = getattr(error, "stderr", None)
            text = details.decode(errors="replace") if details else str(error)
            raise Unusable(f"{command} could not build native.c: {text}") from error
        _test(built)
        built.chmod(0o700)
        record.write_text(json.dumps({"sha256": hashlib.sha256(built.read_bytes()).hexdigest()}) + "\n")
        record.chmod(0o600)
        os.replace(built, target)
        os.replace(record, target.with_suffix(".json"))


def _test(library: Path) -> None:
    """Run the library's test in a process of its own, which it may kill; it finds numpy where this process does."""
    if not sys.executable:
        return
    command = [sys.executable, "-I", "-c", _RUN, json.dumps(sys.path), str(_TEST), str(library)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unusable(f"the compiled step could not be tested: {error}") from error
    if done.returncode:
        how = (
            f"signal {-done.returncode}" if done.returncode < 0 else done.stderr.decode(errors="replace").strip()[-300:]
        )
        raise Unusable(f"the compiled step failed its test ({how})")


def _cpu_flags() -> str:
    """Return the processor's feature line, so that a cache shared between machines never serves the wrong code."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
