"""Wide residual networks: pre-activation blocks, WRN-28-10 among them."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from bayesprune.vision.initialise import he_initialise_
from bayesprune.vision.resnet import residual_stages


class WideBlock(nn.Module):
    """BatchNorm, ReLU and a 3 x 3 convolution, twice, added to the shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride != 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        active = self.relu1(self.bn1(x))
        y = self.relu2(self.bn2(self.conv1(active)))
        y = self.conv2(self.dropout(y))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A wide residual network for 32 x 32 images, by default WRN-28-10.

    Args:
        depth: Number of convolutions, 6 k + 4: k blocks in each of three stages.
        widen_factor: The stages have 16, 32 and 64 times this many channels.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        dropout: Dropout rate inside the blocks.

    Raises:
        ValueError: A depth that is not 6 k + 4.

    Example:
        >>> sum(p.numel() for p in WideResNet(depth=16, widen_factor=4, num_classes=10).parameters())
        2748890

    Reference:
        Zagoruyko & Komodakis, "Wide residual networks", BMVC 2016; blocks of He et al., "Identity mappings", ECCV 2016.
    """

    def __init__(
        self, depth: int = 28, widen_factor: int = 10, *, num_classes: int, in_channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: use 6 k + 4 with k >= 1, such as 10, 16, 22 or 28")
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        widths = [16 * widen_factor * 2**stage for stage in range(3)]
        self.stages, channels = residual_stages(
            partial(WideBlock, dropout=dropout), [(depth - 4) // 6] * 3, widths, channels=16
        )
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        he_initialise_(self, head=self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `x` of shape (n, channels, height, width)."""
        x = self.relu(self.bn(self.stages(self.stem(x))))
        return self.head(self.flatten(self.pool(x)))


wide_resnet = WideResNet
"""The class under the name by which `build` knows it."""


def wrn28_10(*, num_classes: int, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """Return WRN-28-10 (36,479,194 parameters for ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        dropout: Dropout rate inside the blocks.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in wrn28_10(num_classes=10).parameters())
        36479194
    """
    return WideResNet(28, 10, num_classes=num_classes, in_channels=in_channels, dropout=dropout)
