"""The commands `bayesprune recipes`, `keys` and `train`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the commands' arguments to a parser's subcommands.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_commands(parser.add_subparsers(dest="command"))
        >>> parser.parse_args(["train", "mine.toml", "--out", "runs/a", "--set", "lr=1"]).set
        ['lr=1']
    """
    recipes = commands.add_parser("recipes", help="list the recipes, or show one")
    recipes.add_argument(
        "recipe", nargs="?", metavar="RECIPE|PATTERN",
        help="print this recipe's resolved configuration; or list the recipes that match (*-dfp, or a word of the name)",
    )  # fmt: skip
    recipes.set_defaults(handler=recipes_command)

    keys = commands.add_parser("keys", help="list what --set and a TOML file can set, and what it means")
    keys.add_argument(
        "pattern", nargs="?", default="*", help="only keys that match (prune_*), or a word of their meaning"
    )
    keys.add_argument("--recipe", metavar="RECIPE|FILE", help="its values, and only what changes something under it")
    keys.set_defaults(handler=keys_command)

    train = commands.add_parser(
        "train", help="train a recipe into a run folder", epilog="`bayesprune keys` lists what --set can set."
    )
    train.add_argument(
        "recipe", metavar="RECIPE|FILE",
        help="a name from `bayesprune recipes`, a TOML file of settings, or a Python file with a recipe (FILE.py:NAME)",
    )  # fmt: skip
    train.add_argument("--out", required=True, help="run folder")
    train.add_argument("--data-dir", help="folder that holds the data set (or set BAYESPRUNE_DATA)")
    train.add_argument("--config", metavar="FILE", help="TOML file of settings upon the recipe")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of recipe and file"
    )
    train.add_argument("--device", help="auto, cpu or cuda")
    train.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    train.add_argument(
        "--fast-dev-run", action="store_true",
        help="a few steps of everything, evaluation, files and report among them: to see that it runs, not what comes out",
    )  # fmt: skip
    train.add_argument("--quiet", action="store_true", help="print only the result")
    train.set_defaults(handler=train_command)


def recipes_command(arguments: argparse.Namespace) -> int:
    """Show a recipe, or list those that match."""
    from bayesprune.train import recipes
    from bayesprune.train.registry import method
    from bayesprune.train.settings import as_dict

    known = recipes.names()
    if arguments.recipe in known:
        print(json.dumps(as_dict(recipes.recipe(arguments.recipe)), indent=1))
        return 0
    found = recipes.names(arguments.recipe or "*")
    if not found:
        print(
            json.dumps(as_dict(recipes.recipe(arguments.recipe)), indent=1)
        )  # "-80", or an error that names the nearest
        return 0
    rows = [("recipe", "data", "network", "method", "epochs", "")]
    for name, text in found.items():
        config = recipes.recipe(name)
        place = config.data.dataset, config.network.network
        rows.append((name, *place, method(config.sampler.method).name, str(config.schedule.epochs), text))
    widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip())
    return 0


def keys_command(arguments: argparse.Namespace) -> int:
    """List the keys of a run."""
    from bayesprune.train.key_list import key_list
    from bayesprune.train.recipe_file import choose

    config = choose(arguments.recipe).config if arguments.recipe else None
    listed = key_list(arguments.pattern, config)
    if not listed:
        raise ValueError(f"no key matches {arguments.pattern!r}: `bayesprune keys` lists them all.")
    print(listed)
    return 0


def train_command(arguments: argparse.Namespace) -> int:
    """Train, and print the run's line of results."""
    from bayesprune.report import load_run, results_table, write_report
    from bayesprune.train import train
    from bayesprune.train.parallel import launched
    from bayesprune.train.recipe_file import choose

    device = [f"device={arguments.device}"] if arguments.device else []
    chosen = choose(arguments.recipe, [*arguments.set, *device], arguments.config)
    train(
        chosen.config, arguments.out, data_dir=arguments.data_dir, resume=arguments.resume, quiet=arguments.quiet,
        trial=arguments.fast_dev_run, **chosen.own,
    )  # fmt: skip
    if launched()[0] == 0:
        run = load_run(arguments.out)
        print(results_table([run], fmt="text"))
        if arguments.fast_dev_run:
            page = write_report([run], Path(arguments.out) / "report.html")
            print(f"everything ran, up to {page}; the numbers mean nothing", file=sys.stderr)
    return 0
