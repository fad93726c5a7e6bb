"""Nested state — dicts, lists, numbers, strings, tensors — in one safetensors file, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_FORMAT = "bayesprune-tree-1"


def save_tree(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a nested state atomically: to a temporary name, flushed to disk, then renamed.

    Args:
        path: File to write.
        tree: Dicts (keys str or int), lists, tuples, numbers, strings, booleans, None, tensors.

    Raises:
        TypeError: Anything else in the tree; the message says where.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_tree(file, {"step": 3, "weights": [torch.ones(2)]})
        >>> load_tree(file)
        {'step': 3, 'weights': [tensor([1., 1.])]}
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, "", tensors)
    save_tensors(Path(path), tensors, {"format": _FORMAT, "tree": json.dumps(skeleton)})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name as safetensors, atomically."""
    temporary = path.with_name(path.name + ".partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_tree(path: str | os.PathLike[str]) -> Any:
    """Read what `save_tree` wrote, tensors on the CPU.

    Raises:
        ValueError: The file is not one of ours, or is damaged.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tree(f"{folder}/state.safetensors", {"step": 3, "weights": [torch.ones(2)]})
        ...     load_tree(f"{folder}/state.safetensors")["step"]
        3
    """
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"{path} was not written by save_tree (format {metadata.get('format')!r}).")
            return _build(json.loads(metadata["tree"]), file.get_tensor)
    except ValueError:
        raise
    except Exception as error:  # safetensors raises its own types
        raise ValueError(
            f"{path} cannot be read: {error}; restore it from a copy, or delete it and start again."
        ) from error


def _strip(node: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors)}{where}"  # the number keeps names apart where keys do not
        # A copy in row-major order: safetensors refuses shared or permuted memory. The strides come back on loading into a parameter.
        tensors[name] = node.detach().cpu().contiguous().clone()
        return {"t": name}
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise TypeError(
                    f"{where or 'the tree'} has a key of type {type(key).__name__}; keys are strings or integers."
                )
        return {"d": [[key, _strip(value, f"{where}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        kind = "l" if isinstance(node, list) else "u"
        return {kind: [_strip(value, f"{where}/{i}", tensors) for i, value in enumerate(node)]}
    if node is None or isinstance(node, (bool, int, float, str)):
        return {"v": node}
    raise TypeError(
        f"{where or 'the tree'} holds a {type(node).__name__}; use dicts, lists, numbers, strings and tensors."
    )


def _build(node: dict[str, Any], tensor: Callable[[str], Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "t":
        return tensor(value)
    if kind == "d":
        return {key: _build(child, tensor) for key, child in value}
    if kind in ("l", "u"):
        children = [_build(child, tensor) for child in value]
        return children if kind == "l" else tuple(children)
    return value
