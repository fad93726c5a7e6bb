"""The paper's tables run again, resumable, with its figures beside ours."""

from bayesprune.reproduce.commands import add_commands

__all__ = ["add_commands"]
