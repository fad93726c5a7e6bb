"""completion: the script that lets a shell complete commands and options."""

from __future__ import annotations

import argparse
from typing import Any

from bayesprune.cli.parsing import add


def add_command(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    parser = add(
        commands, "completion", "print a script that completes commands and options in a shell", _completion,
        "bayesprune completion bash > ~/.local/share/bash-completion/completions/bayesprune",
        "bayesprune completion zsh > ~/.zfunc/_bayesprune",
    )  # fmt: skip
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    from bayesprune.cli.main import build_parser

    print(shtab.complete(build_parser(), arguments.shell))
    return 0
