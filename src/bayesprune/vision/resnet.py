"""Residual networks with post-activation blocks: ResNet-18, -34 and -20 for 32 x 32 images, ResNet-50 for ImageNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from bayesprune.vision.initialise import he_initialise_


class PadShortcut(nn.Module):
    """Subsample in space and append zero channels: the parameter-free shortcut (option A) of He et al. (2016)."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride = stride
        self.front, self.back = extra // 2, extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the subsampled, zero-padded images."""
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.front, self.back))


def residual_stages(
    block: Callable[[int, int, int], nn.Module],
    depths: Sequence[int],
    widths: Sequence[int],
    channels: int,
    expansion: int = 1,
) -> tuple[nn.Sequential, int]:
    """Return stages of blocks (input channels, channels, stride), each after the first at half the size, and the last one's channels."""
    stages = nn.Sequential()
    for stage, (depth, width) in enumerate(zip(depths, widths)):
        blocks = nn.Sequential()
        for i in range(depth):
            blocks.append(block(channels, width, 2 if stage > 0 and i == 0 else 1))
            channels = width * expansion
        stages.append(blocks)
    return stages, channels


def _shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(stride, out_channels - in_channels)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, ReLU after the addition.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        shortcut: "B", a 1 x 1 convolution where shapes differ, or "A", zero padding.

    Example:
        >>> import torch
        >>> BasicBlock(4, 8, stride=2)(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, shortcut)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; the stride sits on the 3 x 3 one.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the two inner layers; the output has four times as many.
        stride: Stride of the 3 x 3 convolution and of the shortcut.
        shortcut: "B", a 1 x 1 convolution where shapes differ, or "A", zero padding.

    Example:
        >>> import torch
        >>> Bottleneck(4, 2, stride=1)(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str = "B") -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network with post-activation blocks (He et al., 2016a).

    Args:
        block: `BasicBlock`, `Bottleneck`, or another that is made of input channels, channels and stride.
        depths: Number of blocks in each stage; every stage after the first halves the image.
        widths: Channels of each stage (before the block's expansion).
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        stem: "cifar", one 3 x 3 convolution, or "imagenet", a 7 x 7 convolution of stride 2 and max pooling; or a module.
        stem_stride: Stride of the "cifar" stem; 2 trains in a third of the time, on features of half the size.
        shortcut: "B" (1 x 1 convolution) or "A" (zero padding, no parameters) where a block changes the shape.

    Raises:
        ValueError: An unknown stem or shortcut.

    Example:
        >>> import torch
        >>> model = ResNet(BasicBlock, (1, 1), (4, 8), num_classes=3)
        >>> model(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3])

    Reference:
        He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016.
    """

    def __init__(
        self,
        block: Callable[..., nn.Module],
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        num_classes: int,
        in_channels: int = 3,
        stem: str | nn.Module = "cifar",
        stem_stride: int = 1,
        shortcut: str = "B",
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r}: use 'A' (zero padding) or 'B' (1 x 1 convolution)")
        if isinstance(stem, nn.Module):
            self.stem = stem
        elif stem == "cifar":
            conv = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
            self.stem = nn.Sequential(conv, nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True))
        elif stem == "imagenet":
            conv = nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False)
            pool = nn.MaxPool2d(3, stride=2, padding=1)
            self.stem = nn.Sequential(conv, nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True), pool)
        else:
            raise ValueError(f"stem={stem!r}: use 'cifar' or 'imagenet'")
        make = block if shortcut == "B" else partial(block, shortcut=shortcut)
        self.stages, channels = residual_stages(make, depths, widths, widths[0], getattr(block, "expansion", 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        he_initialise_(self, head=self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `x` of shape (n, channels, height, width)."""
        x = self.stages(self.stem(x))
        return self.head(self.flatten(self.pool(x)))


def resnet18(*, num_classes: int, in_channels: int = 3) -> ResNet:
    """Return ResNet-18 with the 3 x 3 stem for 32 x 32 images (11,173,962 parameters for ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> sum(p.numel() for p in resnet18(num_classes=10).parameters())
        11173962
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), num_classes=num_classes, in_channels=in_channels)


def resnet34(*, num_classes: int, in_channels: int = 3) -> ResNet:
    """Return ResNet-34 with the 3 x 3 stem for 32 x 32 images (21,282,122 parameters for ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> sum(p.numel() for p in resnet34(num_classes=10).parameters())
        21282122
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), (64, 128, 256, 512), num_classes=num_classes, in_channels=in_channels)


def resnet20(
    *, num_classes: int, in_channels: int = 3, width: int = 16, shortcut: str = "B", stem_stride: int = 1
) -> ResNet:
    """Return the 20-layer CIFAR network of He et al. (section 4.2): three stages of three basic blocks.

    The default shortcut is the 1 x 1 convolution ("B", 272,474 parameters for ten classes), whose rows can be coupled
    with the block's when whole channels are pruned. The paper's own has no parameters ("A", 269,722).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; the others have two and four times as many.
        shortcut: "A" or "B".
        stem_stride: Stride of the first convolution.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> sum(p.numel() for p in resnet20(num_classes=10).parameters())
        272474
    """
    widths = (width, 2 * width, 4 * width)
    return ResNet(
        BasicBlock, (3, 3, 3), widths, num_classes=num_classes, in_channels=in_channels, shortcut=shortcut,
        stem_stride=stem_stride,
    )  # fmt: skip


def resnet50(*, num_classes: int, in_channels: int = 3) -> ResNet:
    """Return ResNet-50 with the 7 x 7 stem and max pooling (25,557,032 parameters for a thousand classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> sum(p.numel() for p in resnet50(num_classes=1000).parameters())
        25557032
    """
    depths, widths = (3, 4, 6, 3), (64, 128, 256, 512)
    return ResNet(Bottleneck, depths, widths, num_classes=num_classes, in_channels=in_channels, stem="imagenet")
