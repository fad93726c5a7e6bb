"""Setting masked entries of a tensor to exactly zero, cheaply: it is done after every step."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesprune.samplers.layout import local_decay, local_part

_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


class Zeroing:
    """Sets the entries of a mask to +0, in any tensor that the mask broadcasts to."""

    def __init__(self, drop: Tensor) -> None:
        self.drop = drop
        self._words: dict[torch.dtype, Tensor] = {}
        self._rows: dict[int, Zeroing] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """Zero the masked entries of ``tensor`` in place and return it."""
        if hasattr(tensor, "to_local"):  # a shard: the mask's rows that belong to it
            local, offset = local_part(tensor)
            if offset not in self._rows:
                self._rows[offset] = Zeroing(local_decay(self.drop, tensor, offset))
            self._rows[offset](local)
            return tensor
        integer = _INTEGERS.get(tensor.dtype)
        if integer is None or tensor.device.type != "cpu":
            return tensor.masked_fill_(self.drop, 0)
        if integer not in self._words:
            self._words[integer] = self.drop.to(integer).sub_(1)  # drop: 0, keep: -1, all bits set
        tensor.view(integer).bitwise_and_(self._words[integer])
        return tensor
