"""Table 4 as a list of jobs: what is missing is run, and every finished row is a line of the ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayesprune.train.folder import environment
from paper.jobs import Job, Outcome, run_jobs
from paper.ledger import Ledger
from paper.table4_blocks import BATCHED, DESIGNS, METHODS, VARIANTS, Table4Design
from paper.table4_job import OUTSIDE, row_base, run_table4_job

OUTSIDE_CAP, BASELINE_CAP = 10.0, 60.0  # minutes a fit
_OURS_ONLY = ("dfp", "dpf", "true-inputs")


def run_table4(
    out: str | Path,
    *,
    examples: Sequence[int] = (1, 2, 3),
    repetitions: int = 10,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    jobs: int = 2,
    chunk: int = 5,
    budget_minutes: float | None = None,
    cap_minutes: float = OUTSIDE_CAP,
    retry: bool = False,
    sizes: dict[str, Any] | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is missing of Table 4; every row is a line of a ledger, and so is the record of every command.

    A row that is there is not run again, whether it is done, failed or timed out. Several commands may share the ledger.

    Args:
        out: the ledger, .jsonl (see `Ledger`).
        examples: which of the paper's examples.
        repetitions: data sets of each design.
        methods: some of `METHODS`; they run in that order of value.
        seed: root of all seeds.
        jobs: processes at once, one thread each.
        chunk: repetitions of our methods that are one batched computation.
        budget_minutes: no job is started after so long; None runs all.
        cap_minutes: after so long an outside method's fit is killed.
        retry: run failed and timed-out rows again.
        sizes: arguments of the designs to override, to try it small; belongs in a folder of its own.
        settings: by method, settings to override; likewise.
        quiet: print nothing.

    Returns:
        As `read_table4`.

    Raises:
        ValueError: an unknown method or example, or a number out of range.

    Example:
        >>> run_table4("table4.jsonl", examples=[4])
        Traceback (most recent call last):
        ...
        ValueError: examples=[4]: the table has examples 1, 2, 3
    """
    _check(examples, methods, {"repetitions": repetitions, "jobs": jobs, "chunk": chunk}, cap_minutes)
    ledger = ledger_of(out)
    blocks = [block for block in DESIGNS.values() if block.example in examples]
    have = ledger.rows()
    if retry:
        have = {key: row for key, row in have.items() if row["status"] == "done"}
    common = {"seed": seed, "sizes": sizes}
    todo = [
        job | common | {"settings": (settings or {}).get(job["method"])}
        for job in _missing(blocks, methods, repetitions, chunk, seed, have)
    ]
    begin, counts = time.monotonic(), {"done": 0, "failed": 0, "timed out": 0}
    told = environment("cpu") | {"threads": 1, "processes": jobs}

    def finished(job: Job, outcome: Outcome) -> None:
        rows = outcome.value or _rows_of_failure(job.argument, outcome)
        for row in rows:
            counts[row["status"]] += 1
            row["versions"] = {
                key: told[key] for key in ("bayesprune", "torch", "numpy", "python", "commit")
            } | _sklearn()
            row["cap_minutes"] = None if job.cap is None else job.cap / 60
            row["small"] = {key: value for key, value in job.argument.items() if key in ("sizes", "settings") and value}
        ledger.append(*rows)
        if not quiet:
            print(_line(job.argument, rows, outcome, time.monotonic() - begin), flush=True)

    caps = {"svbnn": 60 * BASELINE_CAP, "splbnn": 60 * BASELINE_CAP} | dict.fromkeys(OUTSIDE, 60 * cap_minutes)
    work = [Job(run_table4_job, job, caps.get(job["method"])) for job in todo]
    until = None if budget_minutes is None else 60 * budget_minutes
    left = len(work)
    try:
        left = run_jobs(work, jobs, finished, start_until=until)
    finally:
        if work:
            run = told | {"wall_seconds": time.monotonic() - begin, "jobs": len(work), "not_started": left}
            ledger.append({"command": run | {"rows": counts}})
    return read_table4(out)


def read_table4(out: str | Path) -> dict[str, Any]:
    """Return "rows", those of a ledger in the table's order, and "commands", the records of the commands that wrote them."""
    ledger = ledger_of(out)
    return {"rows": sorted(ledger.rows().values(), key=_order), "commands": ledger.commands()}


def ledger_of(out: str | Path) -> Ledger:
    """Return Table 4's ledger in a file."""
    return Ledger(Path(out), row_key)


def row_key(row: dict[str, Any]) -> str:
    """Return the name of a row.

    Example:
        >>> row_key({"design": "example2", "repetition": 3, "method": "dfp", "network": "paper's", "seed": 0})
        'example2.seed0.r03.dfp.papers'
    """
    network = row["network"].replace("'", "").replace(" ", "-")
    return f"{row['design']}.seed{row['seed']}.r{row['repetition']:02d}.{row['method']}.{network}"


def _missing(
    blocks: Sequence[Table4Design],
    methods: Sequence[str],
    repetitions: int,
    chunk: int,
    seed: int,
    have: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return the jobs whose rows are not all there, in order of value; chunks are the same in every command."""
    found = []
    for method in (name for name in METHODS if name in methods):
        size = chunk if method in BATCHED else 1
        for block in blocks:
            if block.ours_only and method not in _OURS_ONLY:
                continue
            for start in range(0, repetitions, size):
                job = {"design": block.key, "method": method, "seed": seed}
                lacking = [
                    repetition
                    for repetition in range(start, min(start + size, repetitions))
                    if any(row_key(row_base(job, repetition, name)) not in have for name in VARIANTS[method])
                ]
                if lacking:
                    found.append(job | {"repetitions": lacking})
    return found


def _rows_of_failure(job: dict[str, Any], outcome: Outcome) -> list[dict[str, Any]]:
    return [
        row_base(job, repetition, variant)
        | {
            "status": outcome.status,
            "reason": outcome.reason,
            "score": None,
            "selected": None,
            "seconds": outcome.seconds,
        }
        for repetition in job["repetitions"]
        for variant in VARIANTS[job["method"]]
    ]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    known = list(DESIGNS)
    variants = VARIANTS[row["method"]]
    return known.index(row["design"]), METHODS.index(row["method"]), variants.index(row["network"]), row["repetition"]


def _line(job: dict[str, Any], rows: list[dict[str, Any]], outcome: Outcome, elapsed: float) -> str:
    which = ", ".join(map(str, job["repetitions"]))
    head = f"[{elapsed / 60:6.1f} min] {job['design']} {job['method']} repetition {which}: "
    if outcome.status != "done":
        return f"{head}{outcome.status}: {outcome.reason}"
    scores: dict[str, list[str]] = {}
    for row in rows:
        exact = row["selected"] == row["true_inputs"]
        mark = "" if row["selected"] is None else f" ({len(row['selected'])}{' exact' if exact else ''})"
        scores.setdefault(row["network"], []).append(f"{row['score']:.4g}{mark}")
    text = "; ".join(f"{network} {', '.join(values)}" for network, values in scores.items())
    return f"{head}{text}; {outcome.seconds:.0f} s"


def _sklearn() -> dict[str, str]:
    import sklearn

    return {"scikit-learn": sklearn.__version__}


def _check(examples: Sequence[int], methods: Sequence[str], counts: dict[str, int], cap: float) -> None:
    known = sorted({block.example for block in DESIGNS.values()})
    if not examples or set(examples) - set(known):
        raise ValueError(f"examples={list(examples)}: the table has examples {', '.join(map(str, known))}")
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods={list(methods)}: choose some of {', '.join(METHODS)}")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    if not cap > 0:
        raise ValueError(f"cap_minutes={cap}: give more than 0")
