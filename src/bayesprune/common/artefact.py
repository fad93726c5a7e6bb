"""What is wrong with a file or folder, said in one way by every reader."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

REWRITE = "restore it from a copy, or write it again"


class ArtefactError(ValueError):
    """A file or folder that cannot be read as what it should be; nothing of it was taken in.

    Args:
        path: the file or folder.
        fault: what is wrong with it.
        expected: what was expected instead; "" where the fault says it.
        mend: what to do.

    Example:
        >>> raise ArtefactError("a.json", "it ends in the middle", mend="copy it again")
        Traceback (most recent call last):
            ...
        bayesprune.ArtefactError: a.json: it ends in the middle; copy it again
    """

    def __init__(self, path: str | os.PathLike[str], fault: str, expected: str = "", mend: str = "") -> None:
        super().__init__(str(path), fault, expected, mend)
        self.path, self.fault, self.expected, self.mend = str(path), fault, expected, mend

    def __str__(self) -> str:
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.path}: {self.fault}{expected}" + (f"; {self.mend}" if self.mend else "")


ArtefactError.__module__ = "bayesprune"  # the name under which it is caught


class MissingArtefactError(ArtefactError, FileNotFoundError):
    """A file that should be there and is not: an `ArtefactError` and a FileNotFoundError."""


@contextmanager
def reading(path: str | os.PathLike[str], expected: str = "", mend: str = "") -> Iterator[None]:
    """Let whatever a file's content makes go wrong inside the block come out as an `ArtefactError`."""
    try:
        yield
    except ArtefactError:
        raise
    except Exception as error:  # a damaged file raises nearly anything, from many libraries
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a place before the file's start
            raise
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ArtefactError(path, f"cannot be read ({said[:300]})", expected, mend) from error
