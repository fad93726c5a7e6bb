"""Runs of a table as cells: what is missing is run, what was stopped goes on, and every finished cell is a line of the ledger."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paper.recipes  # noqa: F401 - they register
from bayesprune.common.lock import FolderInUseError
from bayesprune.train.folder import CHECKPOINT, CONFIG, HISTORY, RESULT, read_json
from bayesprune.train.settings import locate
from paper.jobs import Job, Outcome, run_jobs
from paper.ledger import Ledger

KEPT = (
    *("recipe", "method", "dataset", "network", "epochs", "seed", "num_samples", "accuracy_single", "accuracy_mean"),
    *(
        "nll_single",
        "views",
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
        >>> Cell("digits-sgd", 1, ("epochs=2", "threads=1")).name
        'digits-sgd.epochs=2.seed1'
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
    measure: Callable[[Path], dict[str, Any]] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is missing of some cells, in their order; every finished one is a line of a ledger.

    A cell whose row is there is not run again. A cell that was stopped goes on from the checkpoint in its run folder.
    Several commands may share ledger and run folders: a cell that another one is running is passed over.

    Args:
        cells: what to run, first things first.
        out: the ledger, .jsonl (see `Ledger`).
        runs: folder of the run folders.
        data_dir: folder of the data set.
        budget_minutes: after so long the runs stop between two steps, with a checkpoint; None runs all.
        jobs: runs at once, each in a process of its own where there are several.
        retry: run failed cells again, from their beginning.
        discard: remove the run folder of a cell once its row is written.
        need_runs: run a cell whose run folder does not hold a finished run, even if its row is there.
        measure: what else a row holds, a function of the run folder of a finished cell, called where the cell ran; with
            several jobs importable by name.
        quiet: print nothing.

    Returns:
        "rows", all of the ledger's in the order of their names; "unfinished", how far the others of `cells` have come; and
        "command", what this one did.

    Raises:
        RuntimeError: a cell ended with an error other than a loss that is not finite; its message says which.
        ValueError: a number out of range, or an `out` of another ending.

    Example:
        >>> import tempfile
        >>> run_cells([], Path(tempfile.mkdtemp()) / "table.jsonl")["rows"]
        []
    """
    if jobs < 1 or not (budget_minutes is None or budget_minutes > 0):
        raise ValueError(f"jobs={jobs}, budget_minutes={budget_minutes}: give at least 1, and more than 0")
    ledger, runs, begin = Ledger(Path(out)), Path(runs), time.time()
    until = None if budget_minutes is None else begin + 60 * budget_minutes
    have = ledger.rows()
    todo = []
    for cell in dict.fromkeys(cells):
        row = have.get(cell.name)
        if retry and row is not None and row["status"] == "failed":
            ledger.append(row | {"status": "withdrawn"})
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
            ledger.append(row)
            if discard:
                shutil.rmtree(runs / cell.name, ignore_errors=True)
        elif status == "error":
            errors.append(f"{cell.name}: {row['reason']}")
        if not quiet:
            print(f"[{(time.time() - begin) / 60:6.1f} min] {cell.name}: {_said(row)}", flush=True)

    arguments: list[dict[str, Any]] = [
        {
            "cell": cell, "runs": str(runs), "data_dir": None if data_dir is None else str(data_dir), "until": until,
            "measure": measure,
        }
        for cell in todo
    ]  # fmt: skip
    started = 0
    if jobs == 1:
        for argument in arguments:
            if errors or (until is not None and time.time() >= until):
                break
            if not quiet:
                print(f"[{(time.time() - begin) / 60:6.1f} min] {argument['cell'].name}", flush=True)
            started += 1
            finished(argument["cell"], run_cell(argument | {"quiet": quiet}))
    else:
        work = [Job(run_cell, argument | {"quiet": True}) for argument in arguments]
        seconds = None if budget_minutes is None else 60 * budget_minutes
        started = len(work) - run_jobs(work, jobs, _after(finished), start_until=seconds, grace=60.0)
    if errors:
        raise RuntimeError("; ".join(errors))
    command = {
        "budget_minutes": budget_minutes, "jobs": jobs, "cells": len(todo), "not_started": len(todo) - started,
        "wall_seconds": round(time.time() - begin, 1), **counts,
    }  # fmt: skip
    return standing(out) | {"unfinished": _unfinished(cells, runs, ledger), "command": command}


def standing(out: str | Path) -> dict[str, Any]:
    """Return what tables are drawn from: "rows", those of a ledger in the order of their names."""
    rows = Ledger(Path(out)).rows()
    return {"rows": [rows[name] for name in sorted(rows)]}


def run_cell(job: dict[str, Any]) -> dict[str, Any]:
    """Run one cell to its end, or until its time is up.

    Args:
        job: "cell", "runs", "data_dir", "until" (a time, or None), "measure" and "quiet".

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
        more = {} if job.get("measure") is None else job["measure"](folder)
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
    done = {"recipe": cell.recipe, "status": "done", "members": result.get("members"), "curves": curves}
    return more | row | kept | done


def _unfinished(cells: Sequence[Cell], runs: Path, ledger: Ledger) -> dict[str, str]:
    """Say of every cell that was begun how far it has come."""
    have, found = ledger.rows(), {}
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
