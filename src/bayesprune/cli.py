"""The command line: one function a command, those of a field in a file of their own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from bayesprune._version import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesprune", description="Bayesian deep learning and one-shot pruning in one training run."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train, prune and compact on real handwritten digits, print one table")
    demo.add_argument("--out", default="demo", help="folder to write (default: demo)")
    demo.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of both trainings"
    )
    demo.add_argument(
        "--processes", type=int, help="trainings at once, one thread each (default: one a core, at most 5)"
    )

    evaluate = commands.add_parser("evaluate", help="evaluate a finished run")
    evaluate.add_argument("run", help="run folder")
    evaluate.add_argument("--data-dir", help="folder that holds the data set (or set BAYESPRUNE_DATA)")
    evaluate.add_argument("--split", default="test", choices=("test", "validation", "train"))
    evaluate.add_argument("--device", default="cpu")

    report = commands.add_parser("report", help="write one self-contained page about runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--out", default="report.html", help="file to write (default: report.html)")

    from bayesprune import compact_run, recipe_commands, reproduce, select, shard_command
    from bayesprune.deploy.commands import add_profile

    recipe_commands.add_commands(commands)
    select.add_commands(commands)
    compact_run.add_compact(commands)
    add_profile(commands)
    reproduce.add_commands(commands)
    shard_command.add_shards(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.

    BAYESPRUNE_DEBUG=1 in the environment shows the traceback of a failure.

    Example:
        >>> main(["recipes", "digits-sgd"])  # doctest: +ELLIPSIS
        {
        ...
        0
    """
    arguments = _parser().parse_args(argv)
    command = {"demo": _demo, "evaluate": _evaluate, "report": _report}
    command |= {"compact": _compact, "profile": _profile}
    try:
        handler = getattr(arguments, "handler", None) or command[arguments.command]
        return handler(arguments)
    except KeyboardInterrupt:
        print("bayesprune: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("BAYESPRUNE_DEBUG"):
            raise
        print(f"bayesprune: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 1


def _demo(arguments: argparse.Namespace) -> int:
    from bayesprune.demo import run_demo

    run_demo(arguments.out, arguments.set, processes=arguments.processes)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from bayesprune.train import evaluate

    result = evaluate(arguments.run, data_dir=arguments.data_dir, split=arguments.split, device=arguments.device)
    print(json.dumps(result, indent=1))
    return 0


def _compact(arguments: argparse.Namespace) -> int:
    from bayesprune.compact_run import compact_command

    return compact_command(arguments)


def _profile(arguments: argparse.Namespace) -> int:
    from bayesprune.deploy.commands import profile_command

    return profile_command(arguments)


def _report(arguments: argparse.Namespace) -> int:
    from bayesprune.report import load_run, write_report

    print(write_report([load_run(run) for run in arguments.runs], arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
