"""Lets the site read the docstrings' sections: an Example is code with its output, a Reference is a note."""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMES = {"Example:": "Examples:", "Reference:": "Note: Reference"}


class Sections(griffe.Extension):
    """Renames the headings that griffe has under another name."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called once for every object that has been read."""
        if obj.docstring:
            pattern = re.compile("^(" + "|".join(_NAMES) + ")$", re.MULTILINE)
            obj.docstring.value = pattern.sub(lambda found: _NAMES[found[1]], obj.docstring.value)
