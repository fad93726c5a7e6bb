"""Runs of a table as cells: what is missing is run, what was stopped goes on, and every finished cell is one small JSON."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayesprune.common.artefact import ArtefactError
from bayesprune.common.files import write_json
from bayesprune.common.lock import FolderInUseError
from bayesprune.reproduce.processes import Job, Outcome, run_jobs
from bayesprune.train.folder import CHECKPOINT, CONFIG, HISTORY, RESULT, read_json
from bayesprune.train.settings import locate

KEPT = (
    *("recipe", "method", "dataset", "network", "epochs", "seed", "num_samples", "accuracy_single", "accuracy_mean"),
    *(
        "nll_single",
        "nll",
        "brier",
        "ece",
        "ece_single",
        "sparsity_prunable",
        "sparsity_all",
        "sparsity_madds",
        "madds",
    ),
    *("madds_dense", "parameters", "seconds", "disagreement", "environment", "config"),
)
_CURVES = ("epoch", "lr", "train_loss", "accuracy", "nll", "soft_sparsity", "hard_sparsity", "target_sparsity")


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Args:
        recipe: its recipe, which names it.
        seed: its seed.
        settings: "key=value" overrides.

    Example:
        >>> Cell("twin-sgd", 1, ("epochs=2", "threads=1")).name
        'twin-sgd.epochs=2.seed1'
    """

    recipe: str
    seed: int = 0
    settings: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """The overrides that make it another experiment: all but those of where and how it runs."""
        return tuple(sorted(each for each in self.settings if locate(each.partition("=")[0].strip())[0] != "runtime"))

    @property
    def name(self) -> str:
        """Name of its row and of its run folder."""
        return ".".join([self.recipe, *self.changes, f"seed{self.seed}"]).replace("/", "-")


def run_cells(
    cells: Sequence[Cell],
    out: str | Path,
    *,
    runs: str | Path = "runs",
    data_dir: str | Path | None = None,
    budget_minutes: float | None = None,
    jobs: int = 1,
    retry: bool = False,
    discard: bool = False,
    need_runs: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is missing of some cells, in their order, and merge all rows into a JSON.

    Rows are kept one file each in the folder "OUT without .json" + ".rows"; a cell whose row is there is not run again. A
    cell that was stopped goes on from the checkpoint in its run folder. Several commands may share both folders: a cell
    that another one is running is passed over.

    Args:
        cells: what to run, first things first.
        out: the JSON.
        runs: folder of the run folders.
        data_dir: folder of the data set.
        budget_minutes: after so long the runs stop between two steps, with a checkpoint; None runs all.
        jobs: runs at once, each in a process of its own where there are several.
        retry: run failed cells again, from their beginning.
        discard: remove the run folder of a cell once its row is written.
        need_runs: run a cell whose run folder does not hold a finished run, even if its row is there.
        quiet: print nothing.

    Returns:
        What was written: "rows" and "unfinished", and of this command "commands".

    Raises:
        RuntimeError: a cell ended with an error other than a loss that is not finite; its message says which.
        ValueError: a number out of range.

    Example:
        >>> import tempfile
        >>> run_cells([], Path(tempfile.mkdtemp()) / "table.json")["rows"]
        []
    """
    if jobs < 1 or not (budget_minutes is None or budget_minutes > 0):
        raise ValueError(f"jobs={jobs}, budget_minutes={budget_minutes}: give at least 1, and more than 0")
    out, runs, begin = Path(out), Path(runs), time.time()
    folder, until = out.with_suffix(".rows"), None if budget_minutes is None else begin + 60 * budget_minutes
    have = read_rows(folder)
    todo = []
    for cell in dict.fromkeys(cells):
        row = have.get(cell.name)
        if retry and row is not None and row["status"] == "failed":
            (folder / f"{cell.name}.json").unlink()
            shutil.rmtree(runs / cell.name, ignore_errors=True)
        elif row is not None and not (need_runs and not (runs / cell.name / RESULT).exists()):
            continue
        todo.append(cell)
    counts: dict[str, int] = {}
    errors: list[str] = []

    def finished(cell: Cell, row: dict[str, Any]) -> None:
        status = row["status"]
        counts[status] = counts.get(status, 0) + 1
        if status in ("done", "failed"):
            write_json(folder / f"{cell.name}.json", row)
            if discard:
                shutil.rmtree(runs / cell.name, ignore_errors=True)
        elif status == "error":
            errors.append(f"{cell.name}: {row['reason']}")
        if not quiet:
            print(f"[{(time.time() - begin) / 60:6.1f} min] {cell.name}: {_said(row)}", flush=True)

    arguments: list[dict[str, Any]] = [
        {"cell": cell, "runs": str(runs), "data_dir": None if data_dir is None else str(data_dir), "until": until}
        for cell in todo
    ]
    started = 0
    try:
        if jobs == 1:
            for argument in arguments:
                if until is not None and time.time() >= until:
                    break
                if not quiet:
                    print(f"[{(time.time() - begin) / 60:6.1f} min] {argument['cell'].name}", flush=True)
                started += 1
                finished(argument["cell"], run_cell(argument | {"quiet": quiet}))
                if errors:
                    break
        else:
            work = [Job(run_cell, argument | {"quiet": True}) for argument in arguments]
            seconds = None if budget_minutes is None else 60 * budget_minutes
            started = len(work) - run_jobs(work, jobs, _after(finished), start_until=seconds, grace=60.0)
    finally:
        command = {
            "budget_minutes": budget_minutes, "jobs": jobs, "cells": len(todo), "not_started": len(todo) - started,
            "wall_seconds": round(time.time() - begin, 1), **counts,
        }  # fmt: skip
        result = merged(out, [command] if todo else [], _unfinished(cells, runs, folder))
    if errors:
        raise RuntimeError("; ".join(errors))
    return result


def run_cell(job: dict[str, Any]) -> dict[str, Any]:
    """Run one cell to its end, or until its time is up.

    Args:
        job: "cell", "runs", "data_dir", "until" (a time, or None) and "quiet".

    Returns:
        Its row; "status" is done, failed, stopped, or busy where another process runs it.

    Raises:
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    from bayesprune.train import Interrupted, NonFiniteLoss, recipe, train

    cell, until = job["cell"], job["until"]
    folder = Path(job["runs"]) / cell.name
    row: dict[str, Any] = {"name": cell.name, "recipe": cell.recipe, "seed": cell.seed, "changes": list(cell.changes)}

    def late() -> bool:
        return until is not None and time.time() >= until

    try:
        config = recipe(cell.recipe, [*cell.settings, f"seed={cell.seed}"])
        result = train(config, folder, data_dir=job["data_dir"], resume=True, quiet=job.get("quiet", True), stop=late)
    except Interrupted as stopped:
        reason = str(stopped).partition(";")[0]
        if not late():
            raise Interrupted(f"{cell.name}: {reason}; run the command again to go on.") from None
        return row | {"status": "stopped", "reason": reason}
    except NonFiniteLoss as error:
        return row | {"status": "failed", "reason": str(error)}
    except FolderInUseError:
        return row | {"status": "busy"}
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return row | {"status": "error", "reason": f"{type(error).__name__}: {error}"}
    history = read_json(folder / HISTORY, list)
    last = [each for each in history if each.get("accuracy") is not None]
    kept = {key: result[key] for key in KEPT if key in result}
    curves = {key: [each.get(key) for each in last] for key in _CURVES}
    return row | kept | {"recipe": cell.recipe, "status": "done", "members": result.get("members"), "curves": curves}


def read_rows(*places: str | Path) -> dict[str, dict[str, Any]]:
    """Return rows by name, of folders of rows or of merged JSONs; a file that is not whole is not a row.

    Where several places hold a row of one name, a finished one wins, then the first.

    Raises:
        FileNotFoundError: a merged JSON that is not there.
        ArtefactError: a file that holds no rows.

    Example:
        >>> read_rows("/nowhere")
        {}
    """
    found: dict[str, dict[str, Any]] = {}
    for place in map(Path, places):
        for row in _rows_of(place):
            before = found.get(row["name"])
            if before is None or (before["status"] != "done" and row["status"] == "done"):
                found[row["name"]] = row
    return found


def take_in(out: str | Path, places: Iterable[str | Path]) -> int:
    """Copy the rows of other machines beside ours; return how many were new.

    Args:
        out: the JSON of `run_cells`.
        places: merged JSONs, folders of rows, or folders of either.
    """
    folder = Path(out).with_suffix(".rows")
    have, found = read_rows(folder), {}
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"merge: {place} is not there; name a merged JSON or a folder of rows.")
        nested = (
            [place, *sorted(each for each in place.rglob("*.rows") if each.is_dir())] if place.is_dir() else [place]
        )
        for name, row in read_rows(*nested).items():
            mine = have.get(name)
            if mine is None or (mine["status"] != "done" and row["status"] == "done"):
                found[name] = row
    for name, row in found.items():
        write_json(folder / f"{name}.json", row)
    return len(found)


def merged(out: str | Path, commands: Sequence[dict[str, Any]] = (), unfinished: Any = None) -> dict[str, Any]:
    """Write all rows of the folder beside `out` into it and return what was written."""
    out = Path(out)
    before = read_json(out) if out.exists() else {}
    rows = read_rows(out.with_suffix(".rows"))
    result = {
        "rows": [rows[name] for name in sorted(rows)],
        "commands": [*before.get("commands", []), *commands],
        "unfinished": before.get("unfinished", {}) if unfinished is None else unfinished,
    }
    if result != before:
        write_json(out, result)
    return result


def _rows_of(place: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(place.glob("*.json")) if place.is_dir() else [place] if place.exists() else []:
        try:
            content = read_json(file, object)
        except ArtefactError:
            if place.is_dir():
                continue
            raise
        rows = content.get("rows", [content]) if isinstance(content, dict) else []
        if not place.is_dir() and (not isinstance(content, dict) or not isinstance(content.get("rows"), list)):
            raise ArtefactError(file, "holds no rows", mend="it was not written by `reproduce`")
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and isinstance(row.get("name"), str) and isinstance(row.get("status"), str):
                yield row


def _unfinished(cells: Sequence[Cell], runs: Path, folder: Path) -> dict[str, str]:
    """Say of every cell that was begun how far it has come."""
    have, found = read_rows(folder), {}
    for cell in dict.fromkeys(cells):
        place = runs / cell.name
        if cell.name not in have and (place / CONFIG).exists():
            done = len(read_json(place / HISTORY, list)) if (place / HISTORY).exists() else 0
            epochs = read_json(place / CONFIG)["schedule"]["epochs"]
            held = "a checkpoint" if (place / CHECKPOINT).exists() else "no checkpoint"
            found[cell.name] = f"{done} of {epochs} epochs, {held}"
    return found


def _after(finished: Callable[[Cell, dict[str, Any]], None]) -> Callable[[Job, Outcome], None]:
    def report(job: Job, outcome: Outcome) -> None:
        cell = job.argument["cell"]
        finished(cell, outcome.value or {"name": cell.name, "status": "error", "reason": outcome.reason})

    return report


def _said(row: dict[str, Any]) -> str:
    if row["status"] == "busy":
        return "another process runs it"
    if row["status"] != "done":
        return row["reason"] if row["status"] == "stopped" else f"{row['status']}: {row['reason']}"
    return (
        f"{100 * row['accuracy_single']:.2f} % single, {100 * row['accuracy_mean']:.2f} % averaged over "
        f"{row['num_samples']}, {100 * row['sparsity_prunable']:.1f} % zero, {row['seconds']:.0f} s"
    )
