"""Which entries of a model's tensors are zero for good."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Zeros:
    """Answers which entries of a parameter are zero and will stay so."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None, trained: set[str]) -> None:
        self._masks = masks
        self._trained = trained
        self._names = {id(param): name for name, param in model.named_parameters()}

    def of(self, param: Tensor) -> Tensor:
        """True where ``param`` is zero for good."""
        zero = (param.detach() == 0).cpu()
        name = self._names.get(id(param))
        if self._masks is None or name is None or name not in self._trained:
            return zero
        mask = self._masks.get(name)
        return zero & ~mask.cpu() if mask is not None else torch.zeros_like(zero)
