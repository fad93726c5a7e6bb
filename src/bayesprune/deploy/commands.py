"""The command `bayesprune profile DIR`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bayesprune.deploy.profile import profile
from bayesprune.deploy.unstructured import unstructured_report


def add_profile(commands: Any) -> None:
    """Add the command's arguments to a parser's subcommands.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_profile(parser.add_subparsers(dest="command"))
        >>> parser.parse_args(["profile", "compact"]).batch
        [1, 64]
    """
    parser = commands.add_parser("profile", help="size and speed of a compact model, dense beside compact")
    parser.add_argument("folder", metavar="DIR", help="folder that `bayesprune compact` wrote")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 64], help="batch sizes (default: 1 64)")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each batch size (default: 4)")
    parser.add_argument("--unstructured", action="store_true", help="also time layers with scattered zeros")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def profile_command(arguments: argparse.Namespace) -> int:
    """Measure a folder's model and print the result.

    Args:
        arguments: as parsed.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: if a batch size or the time is out of range.
        FileNotFoundError: if the folder holds no model.
    """
    if min(arguments.batch) < 1:
        raise ValueError(f"--batch {min(arguments.batch)}: must be at least 1")
    if arguments.seconds <= 0:
        raise ValueError(f"--seconds {arguments.seconds}: must be above 0")
    result = profile(arguments.folder, batch_sizes=arguments.batch, seconds=arguments.seconds)
    zeros = unstructured_report(seconds=arguments.seconds) if arguments.unstructured else None
    if arguments.json:
        print(json.dumps(result.as_dict() | ({"unstructured": zeros.as_dict()} if zeros else {}), indent=1))
    else:
        print(result)
        if zeros:
            print(zeros)
    return 0
