"""The keys of a run: what they mean, read off the dataclasses that hold them, and which change nothing, which is refused."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import re
import textwrap
from dataclasses import fields
from typing import Any

from bayesprune.train.config import RunConfig
from bayesprune.train.registry import method
from bayesprune.train.settings import get, locate, section_types

_NEEDS: dict[str, tuple[str, Any]] = {
    "scale_decay": ("preconditioner", "rms"),
    "dual_lr": ("preconditioner", "paper"),
    "global_scale": ("preconditioner", "paper"),
    "round_to": ("scope", "layer"),
    "target_sparsity": ("hard_threshold", None),
    **dict.fromkeys(("crop_scale", "padding", "flip", "alternate", "padding_mode", "cutout"), ("augment", True)),
}
_HELD = {"digits", "cifar10", "cifar100", "folder"}  # in memory
_DATA_KEYS: dict[str, set[str]] = {
    "fold": {"digits"},
    "image_size": {"folder", "images"},
    **{key: {"images"} for key in ("crop_scale", "workers")},
    **{key: _HELD for key in ("padding", "padding_mode", "alternate", "cutout")},
    **{key: _HELD | {"images"} for key in ("augment", "flip")},
}


def refuse_idle(config: RunConfig, key: str) -> None:
    """Raise ValueError if setting `key` changes nothing under the configuration's method or data set."""
    section, name = locate(key, config.sampler.method)
    dataset = config.data.dataset
    if dataset not in _DATA_KEYS.get(name, {dataset}):
        raise ValueError(
            f"{key} changes nothing with dataset={dataset}; take a recipe that uses it, or set dataset too."
        )
    decided = section in ("sampler", "schedule", "pruning", "baseline") and name != "method"
    if decided and name not in method(config.sampler.method).keys:
        raise ValueError(
            f"{key} changes nothing with method={config.sampler.method}; take a recipe that uses it, or set method too."
        )
    other, wanted = _NEEDS.get(name, ("", None))
    if other and (found := get(config, other)) != wanted:
        raise ValueError(f"{key} changes nothing with {other}={found}; set {other}={str(wanted).lower()}.")


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
