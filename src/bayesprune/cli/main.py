"""The command line: what `bayesprune` and `python -m bayesprune` run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bayesprune._version import __version__
from bayesprune.cli import completion, doctor, models, tables, training
from bayesprune.common.lazy import missing

_EPILOG = """examples:
  bayesprune demo                                                 everything once, on handwritten digits, in two minutes
  bayesprune train digits-emmcmc --out runs/digits                train, prune and sample by a recipe
  bayesprune select data.csv --target price --out found           the inputs that matter for a column of a table
  bayesprune COMMAND --help                                       a command's options and examples"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bayesprune",
        description="Bayesian deep learning and one-shot pruning in one training run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    training.add_commands(commands)
    tables.add_commands(commands)
    models.add_commands(commands)
    doctor.add_command(commands)
    completion.add_command(commands, parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        status = int(arguments.handler(arguments))
        sys.stdout.flush()  # a full disk is told here, not at the interpreter's end
        return status
    except KeyboardInterrupt:
        print("bayesprune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # its reader has read enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if os.environ.get("BAYESPRUNE_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError):
            extra = "tabular" if arguments.command in ("select", "predict") else None
            error = missing(error, f"bayesprune {arguments.command}", extra)
        print(f"bayesprune: {_said(error)}", file=sys.stderr)
        status = 130 if type(error).__name__ == "Interrupted" else 1
        if argv is None and "TORCHELASTIC_RUN_ID" in os.environ:
            _leave(status)
        return status


def _leave(status: int) -> None:
    """End a process of torchrun's at once: the interpreter takes seconds over torch, and the whole job waits for its end."""
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _said(error: BaseException) -> str:
    """An error's message; of one that the system gives, the file and what happened to it."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
