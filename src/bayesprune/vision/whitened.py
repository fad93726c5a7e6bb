"""Networks that learn CIFAR in minutes: a whitening stem, convolutions that begin near the identity, fast biases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_FAST = 64.0  # step size of a bias over that of a weight


class WhitenedCNN(nn.Module):
    r"""A fixed whitening convolution, three groups of 3 × 3 convolutions, one maximum over what is left, a linear head.

    The stem maps every 2 × 2 patch \( p \) to \( \pm \Lambda^{-1/2} V^\top p \), with \( V \Lambda V^\top \) the patches'
    covariance (`whiten_`): it is computed, not learned, and only its bias moves. Every group halves the image after its
    first convolution. A convolution's first filters begin as the identity, BatchNorm has a bias and no scale, and biases
    take 64 times the step of the weights (`parameter_groups`).

    Args:
        widths: Channels of the three groups.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        convolutions: Convolutions in a group, 2 or 3; with 3, the last two stand on a shortcut.

    Example:
        >>> WhitenedCNN((8, 16, 16), num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Reference:
        Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, sections 3.1 to 3.4.
    """

    def __init__(
        self, widths: tuple[int, int, int], *, num_classes: int, in_channels: int = 3, convolutions: int = 2
    ) -> None:
        super().__init__()
        stem = 8 * in_channels
        self.whiten = nn.Conv2d(in_channels, stem, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.activation = nn.GELU()
        befores = (stem, *widths[:2])
        self.groups = nn.Sequential(*(_Group(*channels, convolutions) for channels in zip(befores, widths)))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(widths[2], num_classes, bias=False)
        self.scale = 1 / 9

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `x` of shape (n, channels, height, width)."""
        return self.head(self.flatten(self.pool(self.groups(self.activation(self.whiten(x)))))) * self.scale

    @torch.no_grad()
    def whiten_(self, images: Tensor, damping: float = 5e-4) -> WhitenedCNN:
        """Set the stem from normalised images, in place.

        Args:
            images: Images (n, channels, height, width), normalised as in training; 5,000 are enough.
            damping: Added to the eigenvalues.

        Returns:
            The same network.
        """
        channels, size = self.whiten.in_channels, self.whiten.kernel_size[0]
        windows = images.double().unfold(2, size, 1).unfold(3, size, 1)  # (n, channels, rows, columns, size, size)
        patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * size * size)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        vectors = vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # an eigenvector has no sign of its own
        filters = (vectors / (values + damping).sqrt()).T.flip(0).reshape(-1, channels, size, size)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        return self

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the learned parameters in two groups: the weights, and the biases at 64 times the step and a 64th of the decay."""
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": weight_decay, "lr_scale": 1.0},
            {"params": [p for p in learned if p.ndim == 1], "weight_decay": weight_decay / _FAST, "lr_scale": _FAST},
        ]


class _Group(nn.Module):
    """Convolutions of one width, the first before a pooling, the others at half the size."""

    def __init__(self, before: int, width: int, convolutions: int) -> None:
        super().__init__()
        self.first = _convolution(before, width)
        self.pool = nn.MaxPool2d(2)
        self.norms = nn.ModuleList(_norm(width) for _ in range(convolutions))
        self.convolutions = nn.ModuleList(_convolution(width, width) for _ in range(convolutions - 1))
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = entry = self.activation(self.norms[0](self.pool(self.first(x))))
        last = len(self.convolutions)
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms[1:]), start=1):  # type: ignore[arg-type]
            x = norm(convolution(x))
            x = self.activation(x + entry if i == last and last > 1 else x)
        return x


def _convolution(before: int, width: int) -> nn.Conv2d:
    """Return a 3 × 3 convolution whose first filters are the identity."""
    layer = nn.Conv2d(before, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[: min(before, width)])
    return layer


def _norm(width: int) -> nn.BatchNorm2d:
    """Return BatchNorm with a learned bias and a scale that stays 1."""
    layer = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def whitened94(*, num_classes: int, in_channels: int = 3, width: int = 64) -> WhitenedCNN:
    """Return the network of widths 64, 256, 256 (1.97 million weights for ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first group; the others have four times as many.

    Example:
        >>> sum(p.numel() for p in whitened94(num_classes=10).parameters()) // 10_000
        197
    """
    return WhitenedCNN((width, 4 * width, 4 * width), num_classes=num_classes, in_channels=in_channels)


def whitened95(*, num_classes: int, in_channels: int = 3, width: int = 128) -> WhitenedCNN:
    """Return the network of widths 128, 384, 384 (4.6 million weights for ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first group; the others have three times as many.

    Example:
        >>> sum(p.numel() for p in whitened95(num_classes=10).parameters()) // 10_000
        460
    """
    return WhitenedCNN((width, 3 * width, 3 * width), num_classes=num_classes, in_channels=in_channels)


def whitened96(*, num_classes: int, in_channels: int = 3, width: int = 128) -> WhitenedCNN:
    """Return the network of widths 128, 384, 512 with three convolutions a group (9.9 million weights for ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first group; the others have three and four times as many.

    Example:
        >>> sum(p.numel() for p in whitened96(num_classes=10).parameters()) // 10_000
        991
    """
    return WhitenedCNN((width, 3 * width, 4 * width), num_classes=num_classes, in_channels=in_channels, convolutions=3)
