"""The keys of a run and what they mean, read off the dataclasses that hold them."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import re
import textwrap
from dataclasses import fields
from typing import Any

from bayesprune.train.config import RunConfig
from bayesprune.train.idle import refuse_idle
from bayesprune.train.settings import get, section_types


def key_list(pattern: str = "*", config: RunConfig | None = None) -> str:
    """Return keys by section, each with its value and meaning."""
    values = config or RunConfig()
    lines: list[str] = []
    for section, kind in section_types(values.sampler.method).items():
        texts = meanings(kind)
        rows = []
        for item in fields(kind):
            text = texts.get(item.name, "")
            if not _wanted(pattern, item.name, text) or (config is not None and _idle(config, item.name)):
                continue
            value = get(values, item.name)
            shown = "none" if value is None else ",".join(value) if isinstance(value, tuple) else value
            rows.append(f"  {item.name}={shown}  {text}")
        if rows:
            lines += [section, *rows]
    return "\n".join(lines)


def meanings(kind: Any) -> dict[str, str]:
    """Return the text under each field of a dataclass; none where its source cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for item, after in zip(body, body[1:]):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(text, str):
            found[item.target.id] = re.sub(r"\s+", " ", text).strip()
    return found


def _wanted(pattern: str, name: str, text: str) -> bool:
    if re.search(r"[*?\[]", pattern):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern in name or pattern.lower() in text.lower()


def _idle(config: RunConfig, name: str) -> bool:
    """Return whether setting a key changes nothing."""
    try:
        refuse_idle(config, name)
    except ValueError:
        return True
    return False
