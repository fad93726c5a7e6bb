"""He initialisation shared by the networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def he_initialise_(model: nn.Module, *, head: nn.Module) -> None:
    """Draw a new model's convolutions and linear layers from He's normal law, in place; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is head else "relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
