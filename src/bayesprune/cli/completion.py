"""completion: the script that lets a shell complete commands and options."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from bayesprune.cli.parsing import add


def add_command(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Add the command to the subcommands of the parser that it completes."""
    parser = add(
        commands, "completion", "print a script that completes commands and options in a shell", partial(_complete, whole),
        "bayesprune completion bash > ~/.local/share/bash-completion/completions/bayesprune",
        "bayesprune completion zsh > ~/.zfunc/_bayesprune",
    )  # fmt: skip
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _complete(whole: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(whole, arguments.shell))
    return 0
