"""Nested state — dicts, lists, numbers, strings, tensors — in one safetensors file, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

from bayesprune.common.artefact import reading
from bayesprune.common.bounded import parse_json
from bayesprune.common.tensors import read_tensors, write_tensors

_FORMAT, _OLDER = "bayesprune-tree-2", "bayesprune-tree-1"


def save_tree(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a nested state atomically: to a temporary name, flushed to disk, then renamed.

    Args:
        path: File to write.
        tree: Dicts (keys str or int), lists, tuples, numbers, strings, booleans, None, tensors.

    Raises:
        TypeError: Anything else in the tree; the message says where.

    Example:
        >>> import tempfile, torch
        >>> file = tempfile.mkdtemp() + "/state.safetensors"
        >>> save_tree(file, {"step": 3, "weights": [torch.ones(2)]})
        >>> load_tree(file)
        {'step': 3, 'weights': [tensor([1., 1.])]}
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _strip(tree, "", tensors)
    write_tensors(path, tensors, _FORMAT, {"tree": json.dumps(skeleton)})


def load_tree(path: str | os.PathLike[str]) -> Any:
    """Read what `save_tree` wrote, tensors on the CPU.

    Args:
        path: File to read.

    Returns:
        The state.

    Raises:
        ArtefactError: The file is not one of ours, or is damaged.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tree(f"{folder}/state.safetensors", {"step": 3, "weights": [torch.ones(2)]})
        ...     load_tree(f"{folder}/state.safetensors")["step"]
        3
    """
    tensors, metadata, _ = read_tensors(path, [_FORMAT], older=[_OLDER])
    with reading(path, "a state that save_tree wrote", "restore it from a copy, or delete it and start again"):
        return _build(parse_json(metadata["tree"]), tensors.__getitem__)


def _strip(node: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors)}{where}"  # the number keeps names apart where keys do not
        tensors[name] = node.detach()  # written in row-major order: the strides come back on loading into a parameter
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
