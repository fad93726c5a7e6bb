"""Which values of a trace come from the numbers in a tensor, so that no branch in Python may hang on them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

# What asks a tensor for its shape, type or place alone.
_OF_SHAPE = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "type", "is_floating_point", "is_complex",
    "is_contiguous", "get_device", "element_size", "storage_offset", "is_tensor", "zeros_like", "ones_like",
    "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full",
}  # fmt: skip
# What returns as many entries as the numbers say.
_OF_VALUES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}


class Decisions:
    """Per node: do its numbers come from tensors' values, and does its size?"""

    def __init__(self) -> None:
        self._valued: set[fx.Node] = set()
        self._sized: set[fx.Node] = set()

    def forbid(self, node: fx.Node, value: Any) -> bool:
        """Whether a decision on the value of a node would hang on a tensor's values."""
        if isinstance(value, (Mapping, list, tuple)) and not isinstance(value, torch.Size):
            return node in self._sized or (node in self._valued and not _holds_tensors(value))
        return node in self._valued and value is not None and not isinstance(value, (str, torch.dtype, torch.device))

    def sized(self, node: fx.Node) -> bool:
        """Whether the number of entries hangs on a tensor's values."""
        return node in self._sized

    def note(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        """Learn of a new node; ``values`` holds its own value and those of the nodes before."""
        value = values[node]
        if node.op in ("placeholder", "get_attr"):
            # A model's only number, a flag or a scale, and its masks are taken for settings of it.
            setting = isinstance(value, Tensor) and (value.numel() == 1 or value.dtype == torch.bool)
            if not (node.op == "get_attr" and setting):
                self._valued.add(node)
            return
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        inputs = node.all_input_nodes
        of_first = first is not None and isinstance(values.get(first), Tensor)
        shape = name in _OF_SHAPE or (node.target is getattr and not _holds_tensors(value))
        valued = node.op == "call_module" or any(
            each in (self._sized if shape and each is first and of_first else self._valued) for each in inputs
        )
        sized = any(each in self._sized for each in inputs) or (valued and self._by_values(node, name, inputs, values))
        if isinstance(value, Tensor) and value.dim() == 0:
            sized = False
        if valued:
            self._valued.add(node)
            if first is not None and (node.target is operator.setitem or name.endswith("_")):
                self._valued.add(first)
        if sized:
            self._sized.add(node)

    def _by_values(self, node: fx.Node, name: str, inputs: list[fx.Node], values: Mapping[fx.Node, Any]) -> bool:
        if name in _OF_VALUES or (name == "where" and len(node.args) + len(node.kwargs) == 1):
            return True
        if name == "repeat_interleave":
            repeats = node.kwargs.get("repeats", node.args[min(1, len(node.args) - 1)])
            return isinstance(repeats, fx.Node) and repeats in self._valued
        if node.target is not operator.getitem:
            return False
        index = [each for each in inputs if each is not node.args[0] and each in self._valued]
        return any(isinstance(held := values.get(each), Tensor) and held.dtype == torch.bool for each in index)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensors, value)))
