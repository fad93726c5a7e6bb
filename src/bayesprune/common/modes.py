"""Evaluation mode, untouched weights and a number of threads for the length of a with block, and where a model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside the block; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def preserved(model: nn.Module) -> Iterator[nn.Module]:
    """Give the model back as it was: parameters, buffers (persistent or not) and every module's train mode.

    Args:
        model: the model; a copy of its tensors is held meanwhile.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> before = model.weight.clone()
        >>> with preserved(model):
        ...     _ = nn.init.zeros_(model.eval().weight)
        >>> torch.equal(model.weight, before) and model.training
        True
    """
    copies = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
    training = [(module, module.training) for module in model.modules()]
    try:
        yield model
    finally:
        with torch.no_grad():
            # Walked anew: `model.to(device)` replaces buffers by other objects.
            for tensor, copy in zip((*model.parameters(), *model.buffers()), copies):
                tensor.copy_(copy)
        for module, mode in training:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first tensor is; the CPU where it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use some threads inside the block; the number before comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
