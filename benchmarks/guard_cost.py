"""What the guard against NaN and infinity costs a step: with it and without it, and by the library before there was one.

    python -m benchmarks.guard_cost [--before CHECKOUT] [--rounds 40] [--steps 10] [--out FILE]

CV-Adam on ResNet-18's 11.2 M weights, one thread, gradients that stay as they are. A round takes each kind's steps in turn, in
an order that turns with the rounds, so that what else the machine does falls on all alike. A step's time is that of the
thread's own work on the processor (what the machine gives to others does not count); the clock's is written beside it. The
ratios are those within a round, their mean with its standard error. `--before` adds another checkout's step, in a process
of its own, taken in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bayesprune.samplers import CVAdam
from bayesprune.train.folder import environment, write_json
from bayesprune.vision import resnet18
from benchmarks.save_load import Process

RESULTS = Path(__file__).parent / "results" / "guard_cost.json"
KINDS = ("ignore", "raise", "skip")
NAMES = {
    "ignore": "no guard", "raise": 'guard (nonfinite="raise", the default)', "skip": 'nonfinite="skip"', "before": "before the guard",
}  # fmt: skip


def optimizer(kind: str | None) -> CVAdam:
    """CV-Adam on a fresh ResNet-18 with gradients; None: of a library without the keyword."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    for param in model.parameters():
        param.grad = torch.randn_like(param) * 1e-3
    settings: dict[str, Any] = {} if kind is None else {"nonfinite": kind}
    return CVAdam(model.parameters(), lr=1e-4, num_data=50_000, betas=(0.9, 1.0), seed=0, **settings)


def timed(step: Callable[[], Any], steps: int) -> tuple[float, float]:
    """Milliseconds a step, of the thread's own work and by the clock."""
    work, clock = time.thread_time(), time.perf_counter()
    for _ in range(steps):
        step()
    return 1e3 * (time.thread_time() - work) / steps, 1e3 * (time.perf_counter() - clock) / steps


def worker() -> None:
    """Answer a number of steps on standard input with their two times on standard output."""
    torch.set_num_threads(1)
    step = optimizer(None).step
    for line in sys.stdin:
        print(*timed(step, int(line.split()[0])), flush=True)


def measure(rounds: int, steps: int, before: Path | None) -> dict[str, list[tuple[float, float]]]:
    """The times of every kind, round by round; two rounds of warm-up are dropped."""
    own = {kind: optimizer(kind).step for kind in KINDS}
    kinds: dict[str, Callable[[], tuple[float, float]]] = {
        kind: (lambda step=step: timed(step, steps))  # type: ignore[misc]
        for kind, step in own.items()
    }
    process = Process(before, "benchmarks.guard_cost") if before is not None else None
    if process is not None:

        def asked() -> tuple[float, float]:
            work, clock = process.ask(steps, "").split()
            return float(work), float(clock)

        kinds["before"] = asked
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    order = list(kinds)
    try:
        for number in range(rounds + 2):
            turn = number % len(order)
            for kind in order[turn:] + order[:turn]:
                found = kinds[kind]()
                if number >= 2:
                    times[kind].append(found)
    finally:
        if process is not None:
            process.close()
    return times


def ratio(times: dict[str, list[tuple[float, float]]], kind: str, base: str) -> dict[str, float]:
    """The mean of the rounds' ratios of work, and its standard error."""
    ratios = [one[0] / other[0] for one, other in zip(times[kind], times[base])]
    return {"mean": statistics.fmean(ratios), "standard_error": statistics.stdev(ratios) / math.sqrt(len(ratios))}


def summary(times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Rows a kind, and the ratios that matter."""
    rows = {
        kind: {"work_ms": statistics.median(each[0] for each in found), "clock_ms": statistics.median(each[1] for each in found)}
        for kind, found in times.items()
    }  # fmt: skip
    ratios = {f"{kind} / ignore": ratio(times, kind, "ignore") for kind in ("raise", "skip")}
    if "before" in times:
        ratios["raise / before"] = ratio(times, "raise", "before")
    return {"rows": rows, "ratios": ratios}


def table(result: dict[str, Any]) -> str:
    """The result as a table in Markdown."""
    lines = ["| step of CV-Adam on ResNet-18 | ms of work | ms by the clock |", "|---|---|---|"]
    lines += [
        f"| {NAMES[kind]} | {row['work_ms']:.2f} | {row['clock_ms']:.2f} |" for kind, row in result["rows"].items()
    ]
    told = "; ".join(
        f"{name} {found['mean']:.3f} ± {found['standard_error']:.3f}" for name, found in result["ratios"].items()
    )
    return "\n".join(lines) + f"\n\nRatios of work, mean ± standard error over {result['rounds']} rounds: {told}."


def main() -> int:
    """Measure, print and write; the exit status is 1 if the guard's cost lies above the noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of the library, from before the guard")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker:
        worker()
        return 0
    commit = ""
    if arguments.before is not None:
        git = ["git", "-C", str(arguments.before), "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    times = measure(arguments.rounds, arguments.steps, arguments.before and arguments.before.resolve())
    result = {
        **summary(times), "rounds": arguments.rounds, "steps": arguments.steps, "before": commit, "times": times,
        "environment": environment("cpu"),
    }  # fmt: skip
    write_json(arguments.out, result)
    print(table(result))
    print(json.dumps(result["ratios"], indent=1))
    found = result["ratios"].get("raise / before", result["ratios"]["raise / ignore"])
    return 0 if found["mean"] - 1 <= 2 * found["standard_error"] else 1


if __name__ == "__main__":
    sys.exit(main())
