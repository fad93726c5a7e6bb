"""How a command is added to the parser: its help, its examples and its handler."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Handler = Callable[[argparse.Namespace], int]


def add(commands: Any, name: str, text: str, handler: Handler | None, *examples: str) -> argparse.ArgumentParser:
    """Add a command whose help ends with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="\n  ".join(["examples:", *examples]) if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_settings(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--set KEY=VALUE …``, which may be given more than once."""
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)


def add_own(parser: argparse.ArgumentParser) -> None:
    """Add ``--recipe FILE.py``, which says what a run's own network, data and task are."""
    parser.add_argument(
        "--recipe", metavar="FILE.py", help="the Python file that a run of your own network or data was trained by"
    )


def own_parts(path: str | None) -> dict[str, Any]:
    """Return the model, data and task that a Python file gives; nothing without a file."""
    if path is None:
        return {}
    from bayesprune.train.recipe_file import choose

    return choose(path).own
