"""A network with BatchNorm and tied layers, and what tells its states apart, for the tests of samples."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """Convolution, BatchNorm (an int64 buffer among them), tied linear layers, a buffer that is not saved."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.norm(self.conv(images)).mean((2, 3))))


def randomise(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        else:
            tensor.fill_(seed)
    return model


def states_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(one.values(), other.values())
    )


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
