"""The command `bayesprune reproduce`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bayesprune.reproduce.worker import METHODS


def add_commands(commands: Any) -> None:
    """Add `reproduce` to the command line; each of its tables sets ``handler``, a function of the parsed arguments.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_commands(parser.add_subparsers())
        >>> parser.parse_args(["reproduce", "table4", "--examples", "2"]).examples
        [2]
    """
    reproduce = commands.add_parser("reproduce", help="run the paper's tables again")
    what = reproduce.add_subparsers(dest="what", required=True, metavar="WHAT")
    table4 = what.add_parser("table4", help="variable selection on simulated data, ten methods")
    table4.add_argument("--examples", type=int, nargs="+", default=[1, 2, 3], choices=(1, 2, 3))
    table4.add_argument("--repetitions", type=int, default=10, help="data sets of each design (default: 10)")
    table4.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD", help=" ".join(METHODS)
    )
    table4.add_argument("--seed", type=int, default=0, help="root of all seeds (default: 0)")
    table4.add_argument("--jobs", type=int, default=2, help="processes at once, one thread each (default: 2)")
    table4.add_argument("--chunk", type=int, default=5, help="repetitions of our methods in one batched computation")
    table4.add_argument(
        "--budget-minutes", type=float, metavar="M", help="start no job after so long; run again to go on"
    )
    table4.add_argument(
        "--cap-minutes", type=float, default=10.0, metavar="M", help="kill an outside method's fit after this"
    )
    table4.add_argument("--retry", action="store_true", help="run failed and timed-out rows again")
    table4.add_argument("--out", default="benchmarks/results/table4.json", metavar="FILE")
    table4.set_defaults(handler=_table4)


def _table4(arguments: argparse.Namespace) -> int:
    from bayesprune.reproduce.table4 import run_table4
    from bayesprune.reproduce.tables import table4_markdown

    result = run_table4(
        arguments.out,
        examples=arguments.examples,
        repetitions=arguments.repetitions,
        methods=arguments.methods,
        seed=arguments.seed,
        jobs=arguments.jobs,
        chunk=arguments.chunk,
        budget_minutes=arguments.budget_minutes,
        cap_minutes=arguments.cap_minutes,
        retry=arguments.retry,
    )
    print(table4_markdown(result))
    left = result["commands"][-1]["not_started"] if result["commands"] else 0
    if left:
        print(
            f"\n{left} jobs were not started; run the command again to go on. Rows: {Path(arguments.out).with_suffix('.rows')}"
        )
    return 0
