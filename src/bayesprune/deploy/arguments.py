"""Arguments of graph nodes as JSON and back: numbers, strings, nodes, containers, dtypes, values that follow the mode."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
}
_FORMATS = {
    name: getattr(torch, name) for name in ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
}
_PART = re.compile(r"[A-Za-z0-9_-]+")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ByMode:
    """A value that was read from the model's train mode: one in training, another in evaluation."""

    train: Any
    evaluate: Any


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as a file has it."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: Any) -> torch.dtype:
    """The dtype of a name in a file."""
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def encode(value: Any, node: str) -> Any:
    """A node's argument as JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, ByMode):
        return {"mode": [encode(value.train, node), encode(value.evaluate, node)]}
    if isinstance(value, slice):
        return {"slice": [encode(part, node) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):  # torch.Size too
        return {"tuple": [encode(part, node) for part in value]}
    if isinstance(value, list):
        return [encode(part, node) for part in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(part, node) for key, part in value.items()}}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype) and dtype_name(value) in _DTYPES:
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        if value.type != "cpu":
            raise ValueError(
                f"node {node!r}: the device {value} is fixed in forward; use the device of an input (x.device) instead"
            )
        return {"device": "cpu"}
    raise ValueError(f"node {node!r}: an argument of type {type(value).__name__} cannot be written: {value!r:.80}")


def decode(value: Any, node: str, nodes: dict[str, fx.Node], by_mode: Callable[[Any, Any], Any]) -> Any:
    """A node's argument from JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value

    def again(part: Any) -> Any:
        return decode(part, node, nodes, by_mode)

    if isinstance(value, list):
        return [again(part) for part in value]
    if isinstance(value, dict) and len(value) == 1:
        kind, content = next(iter(value.items()))
        if kind == "node" and isinstance(content, str):
            if content in nodes:
                return nodes[content]
            raise ValueError(f"node {node!r}: reads {content!r}, which no earlier node gives")
        if kind == "mode" and isinstance(content, list) and len(content) == 2:
            return by_mode(again(content[0]), again(content[1]))
        if kind == "slice" and isinstance(content, list) and len(content) == 3:
            return slice(*(again(part) for part in content))
        if kind == "tuple" and isinstance(content, list):
            return tuple(again(part) for part in content)
        if kind == "dict" and isinstance(content, dict):
            return {key: again(part) for key, part in content.items()}
        if kind == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if kind == "ellipsis" and content is True:
            return Ellipsis
        if kind == "dtype":
            return dtype_of(content)
        if kind == "memory_format" and isinstance(content, str) and content in _FORMATS:
            return _FORMATS[content]
        if kind == "device" and content == "cpu":
            return torch.device("cpu")
    raise ValueError(f"node {node!r}: cannot read the argument {value!r:.80}")


def check_identifier(name: Any, what: str) -> str:
    """Refuse a name that could be more than a name where the graph becomes Python source."""
    plain = isinstance(name, str) and _IDENTIFIER.fullmatch(name) and not keyword.iskeyword(name)
    if not plain or name.startswith("__"):
        raise ValueError(f"{what} name {name!r} is not an identifier")
    return name


def check_path(path: Any, what: str) -> str:
    """Refuse a path of a module or tensor whose parts are more than names."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"{what} path {path!r} is not a dotted path")
    for part in path.split("."):
        if not _PART.fullmatch(part) or part.startswith("__"):
            raise ValueError(f"{what} path {path!r}: {part!r} is not a name of letters, digits, '_' and '-'")
    return path
