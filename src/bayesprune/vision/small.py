"""Small networks for quick runs: a plain CNN, a residual CNN for 8 x 8 digits, multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from bayesprune.vision.families import VGG
from bayesprune.vision.initialise import he_initialise_
from bayesprune.vision.resnet import BasicBlock, ResNet

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def small_cnn(*, num_classes: int, in_channels: int = 3, width: int = 16) -> VGG:
    """Return a plain CNN of four 3 x 3 convolutions (17,082 parameters for three channels and ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first two convolutions; the last two, behind a pooling, have twice as many.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> import torch
        >>> small_cnn(num_classes=4, in_channels=1)(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 4])
    """
    return VGG((2, 2), (width, 2 * width), num_classes=num_classes, in_channels=in_channels)


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
