"""demo, recipes, keys, train, evaluate and report: from data to a run folder, and what is read from it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bayesprune.cli.parsing import add, add_own, add_settings, own_parts

_DATA_DIR = "folder that holds the data set (or set BAYESPRUNE_DATA)"


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subcommands."""
    demo = add(
        commands, "demo", "train, prune and compact on real handwritten digits, and print one table", _demo,
        "bayesprune demo --out demo",
    )  # fmt: skip
    demo.add_argument("--out", default="demo", metavar="DIR", help="folder to write (default: demo)")
    add_settings(demo, "settings of both trainings that replace the demo's")
    demo.add_argument(
        "--processes", type=int, help="trainings at once, one thread each (default: one for each core, at most 5)"
    )

    recipes = add(
        commands, "recipes", "list the recipes, or show one", _recipes,
        "bayesprune recipes", "bayesprune recipes 'digits-*'", "bayesprune recipes cifar10-resnet20",
    )  # fmt: skip
    recipes.add_argument(
        "recipe", nargs="?", metavar="RECIPE",
        help="a name prints all its settings; a part of a name, or a pattern with * and ?, lists what matches",
    )  # fmt: skip

    keys = add(
        commands, "keys", "list what --set and a file of settings can set, and what it means", _keys,
        "bayesprune keys 'prune_*'", "bayesprune keys --recipe digits-emmcmc",
    )  # fmt: skip
    keys.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="list only what matches: a pattern, or a word of the key or of its meaning",
    )
    keys.add_argument("--recipe", help="show this recipe's values, and only the keys that change something under it")

    train = add(
        commands, "train", "train a recipe into a run folder", _train,
        "bayesprune train digits-emmcmc --out runs/digits",
        "bayesprune train cifar10-resnet20 --out runs/a --data-dir DATA --set epochs=20 lr=0.5",
        "bayesprune train cifar10-resnet20 --out runs/a --data-dir DATA --resume",
        "bayesprune train mine.toml --out runs/b --fast-dev-run",
    )  # fmt: skip
    train.add_argument(
        "recipe", help="a name that `bayesprune recipes` lists, a TOML file of settings, or a Python file with a recipe"
    )
    train.add_argument("--out", required=True, metavar="RUN", help="run folder to write")
    train.add_argument("--data-dir", help=_DATA_DIR)
    train.add_argument("--config", metavar="FILE", help="TOML file whose settings replace the recipe's")
    add_settings(train, "settings that replace those of recipe and file (`bayesprune keys` lists them)")
    train.add_argument("--device", help="auto, cpu or cuda")
    train.add_argument(
        "--chains", type=int, metavar="N", help="run N chains with seeds of their own into one sample store"
    )
    train.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    train.add_argument(
        "--fast-dev-run", action="store_true",
        help="a few steps of everything, files and report included, to see that it runs",
    )  # fmt: skip
    train.add_argument("--quiet", action="store_true", help="print only the result")

    evaluate = add(
        commands, "evaluate", "evaluate a finished run", _evaluate,
        "bayesprune evaluate runs/a --data-dir DATA --split validation",
        "bayesprune evaluate runs/digits --keep && bayesprune report runs/digits",
    )  # fmt: skip
    evaluate.add_argument("run", metavar="RUN", help="run folder")
    evaluate.add_argument("--data-dir", help=_DATA_DIR)
    evaluate.add_argument(
        "--split", default="test", choices=("test", "validation", "train"), help="which examples (default: test)"
    )
    add_own(evaluate)
    evaluate.add_argument("--device", default="cpu", help="auto, cpu or cuda (default: cpu)")
    evaluate.add_argument(
        "--keep",
        action="store_true",
        help="also keep the test predictions and the doubtful images for `bayesprune report`",
    )

    report = add(
        commands, "report", "write one self-contained page about runs", _report,
        "bayesprune report runs/a runs/b --out report.html",
    )  # fmt: skip
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--out", default="report.html", metavar="FILE", help="file to write (default: report.html)")


def _demo(arguments: argparse.Namespace) -> int:
    from bayesprune.demo import run_demo

    run_demo(arguments.out, arguments.set, processes=arguments.processes)
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    from bayesprune.train import recipes
    from bayesprune.train.settings import as_dict

    found = recipes.names(arguments.recipe or "*")
    if arguments.recipe in recipes.names() or not found:
        shown = as_dict(recipes.recipe(arguments.recipe))  # "-80" too, or an error that names the nearest
        print(json.dumps(shown, indent=1))
        return 0
    rows = [("recipe", "data", "network", "method", "epochs", "")]
    for name, text in found.items():
        config = recipes.recipe(name)
        place = config.data.dataset, config.network.network
        rows.append((name, *place, config.sampler.method, str(config.schedule.epochs), text))
    widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip())
    return 0


def _keys(arguments: argparse.Namespace) -> int:
    from bayesprune.train.key_list import key_list

    config = None
    if arguments.recipe:
        from bayesprune.train.recipe_file import choose

        config = choose(arguments.recipe).config
    listed = key_list(arguments.pattern, config)
    if not listed:
        raise ValueError(f"no key matches {arguments.pattern!r}: `bayesprune keys` lists them all.")
    print(listed)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from bayesprune.report import load_run, results_table, write_report
    from bayesprune.train import train, train_chains
    from bayesprune.train.folder import PAGE
    from bayesprune.train.memory import keep_freed_memory
    from bayesprune.train.parallel import launched
    from bayesprune.train.recipe_file import choose

    device = [f"device={arguments.device}"] if arguments.device else []
    chosen = choose(arguments.recipe, [*arguments.set, *device], arguments.config)
    keep_freed_memory()  # this process is the command's own
    how = {"data_dir": arguments.data_dir, "resume": arguments.resume, "quiet": arguments.quiet}
    if arguments.chains is not None:
        if chosen.own or arguments.fast_dev_run:
            raise ValueError(
                "--chains takes a recipe by its own data and network, and no --fast-dev-run; leave one out."
            )
        found = train_chains(chosen.config, arguments.out, arguments.chains, **how)
        if launched()[0] == 0:
            print(json.dumps(found, indent=1))
        return 0
    train(chosen.config, arguments.out, trial=arguments.fast_dev_run, **how, **chosen.own)
    if launched()[0] == 0:
        run = load_run(arguments.out)
        print(results_table([run], fmt="text"))
        if arguments.fast_dev_run:
            page = write_report([run], Path(arguments.out) / PAGE)
            print(f"everything ran, up to {page}; the numbers mean nothing", file=sys.stderr)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from bayesprune.train import evaluate

    how = {"data_dir": arguments.data_dir, "device": arguments.device, **own_parts(arguments.recipe)}
    print(json.dumps(evaluate(arguments.run, split=arguments.split, **how), indent=1))
    if arguments.keep:
        from bayesprune.demo.letters import letter_images
        from bayesprune.report import load_run
        from bayesprune.train.evaluation import keep_predictions

        digits = load_run(arguments.run).dataset == "digits"  # held against drawn letters
        keep_predictions(arguments.run, other=letter_images() if digits else None, **how)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from bayesprune.report import load_run, write_report

    print(write_report([load_run(run) for run in arguments.runs], arguments.out))
    return 0
