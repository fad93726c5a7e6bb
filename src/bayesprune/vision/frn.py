"""Filter response normalisation, and ResNet-20 with it: a residual network whose likelihood does not depend on the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesprune.vision.resnet import ResNet


class FilterResponseNorm(nn.Module):
    r"""Divide each channel of each image by its own root mean square, then scale and shift it.

        y = γ · x / √(mean over height and width of x² + eps) + β

    Nothing is shared between the images of a batch and nothing is averaged over steps, so that the likelihood of an
    image is a function of the weights alone, as a posterior over weights needs. All is computed in the type of γ and β: in
    float32 also where autocast hands over `x` in half precision.

    Args:
        channels: Channels of the images.
        eps: The constant in the root, above 0.

    Raises:
        ValueError: `eps` is not above 0.

    Example:
        >>> FilterResponseNorm(1)(torch.full((1, 1, 2, 2), 3.0)).flatten()
        tensor([1.0000, 1.0000, 1.0000, 1.0000], grad_fn=<...>)

    Reference:
        Singh & Krishnan, "Filter response normalization layer", CVPR 2020, equations 1 and 2; without their threshold.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps={eps!r}: give a number above 0")
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images, in the type of `x`."""
        wide = x.type_as(self.weight)
        factor = torch.rsqrt(wide.square().mean((2, 3), keepdim=True) + self.eps) * self.weight.view(1, -1, 1, 1)
        return torch.addcmul(self.bias.view(1, -1, 1, 1), wide, factor).type_as(x)

    def extra_repr(self) -> str:
        """Return what `print` shows between the brackets."""
        return f"{self.channels}, eps={self.eps:g}"


class FRNBlock(nn.Module):
    """Two 3 x 3 convolutions with filter response normalisation and a shortcut, SiLU after the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.norm1 = FilterResponseNorm(channels)
        self.act1 = nn.SiLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = FilterResponseNorm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, 1, stride=stride)
            self.shortcut = nn.Sequential(conv, FilterResponseNorm(channels))
        self.act2 = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet20_frn(*, num_classes: int, in_channels: int = 3, width: int = 16) -> ResNet:
    """Return the 20-layer network on which Izmailov et al. ran full-batch Hamiltonian Monte Carlo (SiLU, no buffers).

    As theirs it has biases in its convolutions and 1 x 1 convolutions as shortcuts where shapes differ; unlike theirs
    it has no threshold behind the normalisation.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; the others have two and four times as many.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> sum(p.numel() for p in resnet20_frn(num_classes=10).parameters())
        273258

    Reference:
        Izmailov, Vikram, Hoffman & Wilson, "What are Bayesian neural network posteriors really like?", ICML 2021.
    """
    conv = nn.Conv2d(in_channels, width, 3, padding=1)
    stem = nn.Sequential(conv, FilterResponseNorm(width), nn.SiLU())
    return ResNet(FRNBlock, (3, 3, 3), (width, 2 * width, 4 * width), num_classes=num_classes, stem=stem)
