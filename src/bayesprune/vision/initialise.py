"""He initialisation shared by the networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def he_initialise_(model: nn.Module, *, head: nn.Module | None = None) -> nn.Module:
    """Draw convolutions and linear layers from He's normal law, in place; biases 0, BatchNorm (1, 0).

    A convolution has standard deviation sqrt(2 / fan_out), a hidden linear layer sqrt(2 / fan_in) and the `head`,
    which no ReLU follows, sqrt(1 / fan_in).

    Args:
        model: The network to initialise.
        head: The layer that gives the outputs.

    Returns:
        The same network.

    Example:
        >>> he_initialise_(torch.nn.Linear(2, 3)).bias.sum().item()
        0.0

    Reference:
        He, Zhang, Ren & Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2.
    """
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
