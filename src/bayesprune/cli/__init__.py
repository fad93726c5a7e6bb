"""The command line, one file a theme. Parsers need the standard library alone; a command imports what it does when it runs."""

from bayesprune.cli.main import main

__all__ = ["main"]
