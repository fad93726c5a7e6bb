"""Every reader of files under many small damages: none may pass in silence, leave its errors' family, its folder or its memory.

    nice python -m benchmarks.fuzz_readers [--mutations 100000] [--seed 0] [--readers samples,checkpoint] [--json FILE]

A mutation changes one file of a small artefact (flips, cuts, insertions, doubled and swapped pieces, numbers and names replaced, a file
exchanged for its neighbour) and reads it again. What then comes back must be what was written, or an `ArtefactError`. A quarter of the
mutations is a forger's: the content is changed and its seal written anew; those may be read, but no more. The audit hook sees every file
that Python opens; peak memory is the process's own high-water mark, above what it held before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayesprune import ArtefactError
from bayesprune.train.folder import environment, write_json
from benchmarks.fuzz_artefacts import READERS, Reader, canonical
from benchmarks.fuzz_mutations import forge, mutate

RESULTS = Path(__file__).parent / "results" / "fuzz_readers.json"
SECONDS = 20  # a mutation


@dataclass
class Tally:
    """What became of one reader's mutations."""

    unchanged: int = 0
    refused: int = 0
    forged_and_read: int = 0
    silent: int = 0
    outside_family: int = 0
    outside_folder: int = 0
    too_long: int = 0
    peak_mb: float = 0.0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How often the reader broke its promise."""
        return self.silent + self.outside_family + self.outside_folder + self.too_long


def fuzz(reader: Reader, place: Path, mutations: int, seed: int) -> Tally:
    """Make an artefact, damage and read it so many times, and count."""
    rng, tally = random.Random(f"{reader.name} {seed}"), Tally()
    folder = place / "inside"
    folder.mkdir(parents=True)
    (place / "outside").mkdir()
    reader.make(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    expected = canonical(reader.read(folder))
    for path in files:
        shutil.copy(path, place / "outside" / path.name)
    shutil.copy(files[0], place / "outside" / "file")
    assert canonical(reader.read(folder)) == expected, f"{reader.name}: reads differ without a mutation"
    before, begun = _fresh_peak(), time.monotonic()
    for _ in range(mutations):
        path = rng.choice(files)
        forged = rng.random() < 0.25
        content = forge(whole[path], rng) if forged else mutate(whole[path], rng, [whole[each] for each in files])
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        doubled = path.suffix == ".gz" and content == 2 * whole[path]  # two gzip files in a row are one, by the format
        forged = forged or doubled or not reader.sealed
        try:
            with _watched(folder) as opened, _limited():
                found = canonical(reader.read(folder))
            if found == expected:
                tally.unchanged += 1
            elif forged:
                tally.forged_and_read += 1
            else:
                tally.silent += 1
                _example(tally, f"silent: {path.name}, {len(content or b'')} of {len(whole[path])} bytes")
        except ArtefactError:
            tally.refused += 1
        except TimeoutError:
            tally.too_long += 1
            _example(tally, f"too long: {path.name}: {traceback.format_exc(limit=-3)}")
        except Exception as error:
            if content is None and isinstance(error, FileNotFoundError):  # what the user named is not there
                tally.refused += 1
            else:
                tally.outside_family += 1
                _example(tally, f"{path.name}: {traceback.format_exc(limit=-4)}")
        if opened:
            tally.outside_folder += 1
            _example(tally, f"outside: {path.name}: {sorted(opened)[:3]}")
        path.write_bytes(whole[path])
    tally.seconds = round(time.monotonic() - begun, 2)
    tally.peak_mb = round(max(0.0, _peak() - before) / 1e6, 1)
    return tally


_watching: list[tuple[str, set[str]]] = []
_LIBRARIES = tuple(
    {sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), "/proc", "/sys", "/dev", "/usr", "/etc/ld"}
)
_SOURCE = str(Path(__file__).parent.parent)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in (
        "open",
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.listdir",
        "os.scandir",
        "shutil.rmtree",
    ):
        return
    folder, opened = _watching[-1]
    path = arguments[0]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or path.startswith("<"):
        return
    full = os.path.realpath(path)
    library = full.startswith(_LIBRARIES) or (full.startswith(_SOURCE) and full.endswith((".py", ".pyc")))
    if not full.startswith(folder) and not library:
        opened.add(f"{event} {full}")


@contextmanager
def _watched(folder: Path) -> Iterator[set[str]]:
    """The files outside a folder that are opened in the block."""
    if not getattr(sys, "_fuzz_audited", False):
        sys.addaudithook(_audit)
        sys._fuzz_audited = True  # type: ignore[attr-defined]
    opened: set[str] = set()
    _watching.append((os.path.realpath(folder), opened))
    try:
        yield opened
    finally:
        _watching.pop()


@contextmanager
def _limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _fresh_peak() -> float:
    """Forget the high-water mark and return the memory held now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM") or 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(key)), 0.0)


def _example(tally: Tally, said: str) -> None:
    if len(tally.examples) < 5:
        tally.examples.append(said[-1500:])


def scratch() -> Path:
    """A new folder, in memory where the system has one there."""
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def table(result: dict[str, Any]) -> str:
    """The result as a table in Markdown, one row a reader."""
    head = "| reader | mutations | refused | as written | forged, read | silent | foreign error | outside the folder | long | peak MB |"
    lines = [head, "|---|" + "---|" * 9]
    keys = (
        "mutations",
        "refused",
        "unchanged",
        "forged_and_read",
        "silent",
        "outside_family",
        "outside_folder",
        "too_long",
    )
    for name, row in {**result["readers"], "all": result["summary"]}.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:,}" for key in keys) + f" | {row['peak_mb']} |")
    commits = sorted({each for row in result["readers"].values() for each in row["commit"].split(", ")})
    return "\n".join(lines) + f"\n\nCommits {', '.join(commits)}; seed {result['seed']}."


def main() -> int:
    """Run the job; the exit status is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=100_000, help="over all readers (default: 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="readers at once, each in a process of its own")
    parser.add_argument("--readers", help="names, with commas; default: all")
    parser.add_argument(
        "--add", action="store_true", help="add to the counts of the file, with another seed; else replace"
    )
    parser.add_argument("--json", type=Path, help=f"file to write, for example {RESULTS}")
    arguments = parser.parse_args()
    chosen = [reader for reader in READERS if not arguments.readers or reader.name in arguments.readers.split(",")]
    each = -(-arguments.mutations // len(chosen))
    total: Counter[str] = Counter()
    rows: dict[str, Any] = {}
    print(
        f"{'reader':<18}{'mutations':>10}{'refused':>9}{'unchanged':>10}{'forged':>8}{'silent':>8}{'family':>8}{'folder':>8}{'long':>6}{'MB':>8}{'s':>8}"
    )
    work = [(reader.name, each, arguments.seed) for reader in chosen]
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=1) as pool:
        tallies = pool.imap(_one, work, chunksize=1)
        _report(chosen, each, tallies, rows, total)
    about = {"seed": arguments.seed, "jobs": arguments.jobs, "environment": environment("cpu")}
    rows = {name: {**row, "commit": about["environment"]["commit"]} for name, row in rows.items()}
    if arguments.json and arguments.json.exists() and (arguments.readers or arguments.add):
        held = json.loads(arguments.json.read_text())
        if arguments.add:
            rows = {name: _sum(held["readers"].get(name), row) for name, row in rows.items()}
            about["seed"] = f"{held['seed']}, {arguments.seed}"
        current = {reader.name for reader in READERS}  # of readers that are gone nothing is said
        rows = {name: row for name, row in {**held["readers"], **rows}.items() if name in current}
    summary = {key: sum(row[key] for row in rows.values()) for key in ("mutations", *total)}
    summary["peak_mb"] = max(row["peak_mb"] for row in rows.values())
    print(json.dumps(summary))
    if arguments.json:
        write_json(arguments.json, {"summary": summary, "readers": rows, **about})
    return 1 if total["silent"] + total["outside_family"] + total["outside_folder"] + total["too_long"] else 0


def _sum(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """The counts of two runs of one reader."""
    if one is None:
        return other
    added = {key: one[key] + value for key, value in other.items() if key not in ("peak_mb", "commit")}
    commits = sorted({*one["commit"].split(", "), other["commit"]})
    return {**added, "peak_mb": max(one["peak_mb"], other["peak_mb"]), "commit": ", ".join(commits)}


def _one(work: tuple[str, int, int]) -> Tally:
    """One reader's mutations, in a process of its own."""
    name, mutations, seed = work
    place = scratch()
    try:
        return fuzz(next(reader for reader in READERS if reader.name == name), place, mutations, seed)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _report(
    chosen: list[Reader], each: int, tallies: Iterator[Tally], rows: dict[str, Any], total: Counter[str]
) -> None:
    """Print a line a reader as they finish, and add them up."""
    for reader, tally in zip(chosen, tallies):
        rows[reader.name] = {"mutations": each, **vars(tally)}
        print(
            f"{reader.name:<18}{each:>10}{tally.refused:>9}{tally.unchanged:>10}{tally.forged_and_read:>8}{tally.silent:>8}"
            f"{tally.outside_family:>8}{tally.outside_folder:>8}{tally.too_long:>6}{tally.peak_mb:>8.1f}{tally.seconds:>8.1f}",
            flush=True,
        )
        for said in tally.examples:
            print("   ", said.replace("\n", "\n    "))
        total.update({key: value for key, value in vars(tally).items() if isinstance(value, int)})


if __name__ == "__main__":
    sys.exit(main())
