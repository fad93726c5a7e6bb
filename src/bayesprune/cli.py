"""The command line: bayesprune demo | recipes | train | evaluate | report | select | predict | compact | profile."""

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

    recipes = commands.add_parser("recipes", help="list the recipes, or show one")
    recipes.add_argument("recipe", nargs="?", help="print this recipe's resolved configuration")

    train = commands.add_parser("train", help="train a recipe into a run folder")
    train.add_argument("recipe", help="a name from `bayesprune recipes`")
    train.add_argument("--out", required=True, help="run folder")
    train.add_argument("--data-dir", help="folder that holds the data set (or set BAYESPRUNE_DATA)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the recipe"
    )
    train.add_argument("--device", help="auto, cpu, cuda or mps")
    train.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    train.add_argument("--quiet", action="store_true", help="print only the result")

    evaluate = commands.add_parser("evaluate", help="evaluate a finished run")
    evaluate.add_argument("run", help="run folder")
    evaluate.add_argument("--data-dir", help="folder that holds the data set (or set BAYESPRUNE_DATA)")
    evaluate.add_argument("--split", default="test", choices=("test", "validation", "train"))
    evaluate.add_argument("--device", default="cpu")

    report = commands.add_parser("report", help="write one self-contained page about runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--out", default="report.html", help="file to write (default: report.html)")

    from bayesprune import compact_run, select
    from bayesprune.deploy.commands import add_profile

    select.add_commands(commands)
    compact_run.add_compact(commands)
    add_profile(commands)
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
    command = {"demo": _demo, "recipes": _recipes, "train": _train, "evaluate": _evaluate, "report": _report}
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


def _recipes(arguments: argparse.Namespace) -> int:
    from bayesprune.train import recipes
    from bayesprune.train.settings import as_dict

    if arguments.recipe:
        print(json.dumps(as_dict(recipes.recipe(arguments.recipe)), indent=1))
        return 0
    known = recipes.names()
    width = max(map(len, known))
    for name, text in known.items():
        print(f"{name:<{width}}  {text}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from bayesprune.report import load_run, results_table
    from bayesprune.train import recipe, train
    from bayesprune.train.idle import refuse_idle
    from bayesprune.train.parallel import launched

    device = [f"device={arguments.device}"] if arguments.device else []
    config = recipe(arguments.recipe, [*arguments.set, *device])
    for setting in arguments.set:
        refuse_idle(config, setting.partition("=")[0].strip())
    train(config, arguments.out, data_dir=arguments.data_dir, resume=arguments.resume, quiet=arguments.quiet)
    if launched()[0] == 0:
        print(results_table([load_run(arguments.out)], fmt="text"))
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
