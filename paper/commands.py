"""The command line `python -m paper`: the tables and figures, and training by their recipes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper.table4_blocks import METHODS

_MERGE = "take in the rows of other machines' ledgers; run nothing"
_LIBRARY = ("train", "recipes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status as `bayesprune` does: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.

    Args:
        argv: the words behind ``python -m paper``; None: those of this process. `train` and `recipes` are the library's,
            with the paper's recipes beside its own.

    Example:
        >>> main(["table3", "--list", "--seeds", "1", "--only", "*-sgd"])
        imagenet-resnet50-sgd.seed0
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in _LIBRARY:
        import paper.recipes  # noqa: F401 - they register
        from bayesprune import cli

        return cli.main(words)
    arguments = parser().parse_args(words)
    try:
        return int(arguments.handler(arguments))
    except KeyboardInterrupt:
        print("paper: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("BAYESPRUNE_DEBUG"):
            raise
        print(f"paper: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 1


def parser() -> argparse.ArgumentParser:
    """Return the parser; each table and figure sets ``handler``, a function of the parsed arguments.

    Example:
        >>> parser().parse_args(["table4", "--examples", "2"]).examples
        [2]
    """
    top = argparse.ArgumentParser(prog="python -m paper", description="The paper's tables and figures, run again.")
    what = top.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, text in zip(_LIBRARY, ("train by a recipe", "list the recipes")):
        what.add_parser(name, help=f"{text}: as `bayesprune {name}`, with the paper's recipes", add_help=False)
    table4 = what.add_parser("table4", help="variable selection on simulated data, nine methods")
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
    table4.add_argument(
        "--out", default="benchmarks/results/table4.jsonl", metavar="FILE", help="the ledger of its rows"
    )
    table4.add_argument("--merge", nargs="+", default=[], metavar="FILE", help=_MERGE)
    table4.set_defaults(handler=_table4)
    for name, text in (
        ("table1", "CIFAR-10: accuracy dense and sparse"),
        ("table2", "CIFAR-100: accuracy dense and sparse"),
        ("table3", "ImageNet: accuracy dense and sparse"),
    ):
        table = what.add_parser(name, help=text)
        _add_run_options(table, f"benchmarks/results/{name}.jsonl")
        table.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="cells by recipe; patterns with *")
        table.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each cell (default: 3)")
        table.add_argument("--list", action="store_true", help="print the cells in their order and run nothing")
        table.add_argument("--merge", nargs="+", default=[], metavar="FILE", help=_MERGE)
        table.set_defaults(handler=_table)
    for name, text in (("figure1", "sample paths of channels"), ("figure2", "accuracy and sparsity over epochs")):
        figure = what.add_parser(name, help=text)
        _add_run_options(figure, f"{name}.png")
        figure.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="draw these runs instead")
        figure.set_defaults(handler=_figure)
    return top


def _add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--budget-minutes", type=float, metavar="M", help="stop with checkpoints after so long")
    parser.add_argument("--data-dir", help="folder that holds the data set (or set BAYESPRUNE_DATA)")
    parser.add_argument("--out", default=out, metavar="FILE", help=f"what is written (default: {out})")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="run folders (default: runs)")
    parser.add_argument("--epochs", type=int, metavar="E", help="other than the paper's; these cells stand apart")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys")
    parser.add_argument("--device", help="auto, cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument("--quiet", action="store_true", help="print only the result")


def _settings(arguments: argparse.Namespace) -> list[str]:
    more = [f"epochs={arguments.epochs}"] if arguments.epochs else []
    return [*arguments.set, *more, *([f"device={arguments.device}"] if arguments.device else [])]


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("runs", "data_dir", "budget_minutes", "jobs", "retry", "quiet")
    return {name: getattr(arguments, name) for name in names}


def _table(arguments: argparse.Namespace) -> int:
    from paper.cells import run_cells, standing
    from paper.image_tables import paper_table_markdown
    from paper.ledger import Ledger
    from paper.published import table_cells

    cells = table_cells(arguments.what, arguments.seeds, _settings(arguments), arguments.only)
    if arguments.list:
        print("\n".join(cell.name for cell in cells))
        return 0
    if arguments.merge:
        print(f"{Ledger(Path(arguments.out)).merge(*arguments.merge)} new rows")
        result = standing(arguments.out)
    else:
        result = run_cells(cells, arguments.out, **_how(arguments))
    print(paper_table_markdown(arguments.what, result))
    names = {row["name"] for row in result["rows"]}
    left = sum(cell.name not in names for cell in cells)
    if left:
        print(f"\n{left} of {len(cells)} cells are missing; run the command again to go on.")
    return 0


def _figure(arguments: argparse.Namespace) -> int:
    from paper.figures import run_figure

    settings = _settings(arguments)
    drawn = run_figure(arguments.what, arguments.out, recipes=arguments.only, settings=settings, **_how(arguments))
    print("\n".join(map(str, drawn)) or "not drawn: its runs are unfinished; run the command again to go on.")
    return 0


def _table4(arguments: argparse.Namespace) -> int:
    from paper.table4 import ledger_of, read_table4, run_table4
    from paper.table4_page import table4_markdown

    if arguments.merge:
        print(f"{ledger_of(arguments.out).merge(*arguments.merge)} new rows")
        print(table4_markdown(read_table4(arguments.out)))
        return 0
    names = ("examples", "repetitions", "methods", "seed", "jobs", "chunk", "budget_minutes", "cap_minutes", "retry")
    result = run_table4(arguments.out, **{name: getattr(arguments, name) for name in names})
    print(table4_markdown(result))
    left = result["commands"][-1]["not_started"] if result["commands"] else 0
    if left:
        print(f"\n{left} jobs were not started; run the command again to go on. Rows: {arguments.out}")
    return 0
