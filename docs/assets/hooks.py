"""Turns tutorials in percent format into pages, and a room's public names into its API page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_ROOM = re.compile(r"^<!-- api: (\w+) -->$", re.MULTILINE)
_SCRIPT = re.compile(r"^<!-- script: (examples/\w+\.py) -->$", re.MULTILINE)


def as_page(script: str) -> str:
    """Markdown cells as text, code cells as code; a script without cells is one block."""
    if "# %%" not in script:
        return f"```python\n{script.rstrip()}\n```\n"
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            text = re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()
            parts.append(re.sub(r"^# .*\n", "", text))  # the page has its own title
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def public(room: str) -> dict[str, str]:
    """Every public name of a room and the module that holds it, read without importing anything."""
    tree = ast.parse((ROOT / "src" / "bayesprune" / room / "__init__.py").read_text(encoding="utf-8"))
    where: dict[str, str] = {}
    listed: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bayesprune."):
            where |= {alias.name: str(node.module) for alias in node.names}
        if isinstance(node, ast.Dict):
            for module, names in zip(node.keys, node.values):
                if isinstance(module, ast.Constant) and isinstance(names, ast.Constant) and "." in str(module.value):
                    where |= {name: str(module.value) for name in str(names.value).split()}
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            listed = ast.literal_eval(node.value)
    return {name: where[name] for name in listed}


def as_api(room: str) -> str:
    """The identifiers of a room's public names, for mkdocstrings."""
    return "\n\n".join(f"::: {module}.{name}" for name, module in public(room).items())


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for every page."""
    markdown = _ROOM.sub(lambda found: as_api(found[1]), markdown)
    return _SCRIPT.sub(lambda found: as_page((ROOT / found[1]).read_text(encoding="utf-8")), markdown)
