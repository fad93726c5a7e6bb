"""Small networks for quick runs: a plain CNN, a residual CNN for 8 x 8 digits, multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from bayesprune.vision.initialise import he_initialise_
from bayesprune.vision.resnet import BasicBlock, ResNet

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class SmallCNN(nn.Module):
    """Four 3 x 3 convolutions with BatchNorm and ReLU, pooled after the second and averaged after the fourth.

    It has 17,082 parameters for three channels and ten classes.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first two convolutions; the last two have twice as many.

    Example:
        >>> import torch
        >>> SmallCNN(num_classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for i, out_channels in enumerate((width, width, 2 * width, 2 * width)):
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
            if i == 1:
                layers.append(nn.MaxPool2d(2))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        he_initialise_(self, head=self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `x` of shape (n, channels, height, width)."""
        return self.head(self.flatten(self.pool(self.features(x))))


small_cnn = SmallCNN
"""The class under the name by which `build` knows it."""


def digits_resnet(*, num_classes: int, in_channels: int = 1, width: int = 16, blocks: int = 1) -> ResNet:
    """Return a residual CNN of two stages for images as small as 8 x 8.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; the second has twice as many and half the image.
        blocks: Basic blocks in each stage.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> import torch
        >>> digits_resnet(num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return ResNet(BasicBlock, (blocks, blocks), (width, 2 * width), num_classes=num_classes, in_channels=in_channels)


def mlp(sizes: Sequence[int], *, activation: str = "relu") -> nn.Sequential:
    """Return a multilayer perceptron; inputs with more than one dimension are flattened.

    Args:
        sizes: Number of inputs, of units in each hidden layer, and of outputs.
        activation: "relu" or "tanh".

    Returns:
        A sequence of linear layers with the activation between them, He-initialised from torch's global generator.

    Raises:
        ValueError: Fewer than two sizes, a size below one or an unknown activation.

    Example:
        >>> import torch
        >>> mlp([64, 32, 10])(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes={list(sizes)}: give the inputs, the hidden layers and the outputs, each at least 1")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: use one of {', '.join(ACTIVATIONS)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        if i:
            layers.append(ACTIVATIONS[activation]())
        layers.append(nn.Linear(before, after))
    model = nn.Sequential(*layers)
    he_initialise_(model, head=layers[-1])
    return model
