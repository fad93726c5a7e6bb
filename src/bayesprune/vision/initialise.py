"""He initialisation shared by the networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def he_initialise_(model: nn.Module, *, head: nn.Module | None = None) -> nn.Module:
    """Draw convolutions and linear layers from He's normal law, in place; biases 0, BatchNorm (1, 0)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is head else "relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            continue
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return model
