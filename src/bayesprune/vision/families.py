"""Networks of further families: VGG-style, DenseNet-style, and a small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesprune.vision.initialise import he_initialise_


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions with BatchNorm and ReLU, max pooling between them, and a head of linear layers.

    Args:
        depths: Number of convolutions in each stage.
        widths: Channels of each stage.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        hidden: Units of the head's hidden layers.
        pool: The head reads a map of this many by this many positions, averaged from the last stage's.
        dropout: Dropout rate in the head.

    Raises:
        ValueError: As many depths as widths are needed.

    Example:
        >>> VGG((1, 2), (4, 8), num_classes=3, hidden=(6,))(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3])

    Reference:
        Simonyan & Zisserman, "Very deep convolutional networks", ICLR 2015; BatchNorm as in common use since.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        num_classes: int,
        in_channels: int = 3,
        hidden: Sequence[int] = (),
        pool: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(widths):
            raise ValueError(f"depths={tuple(depths)} and widths={tuple(widths)}: give one of each a stage")
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (depth, width) in enumerate(zip(depths, widths)):
            if stage:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU(inplace=True))
                channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.flatten = nn.Flatten()
        units, top = channels * pool * pool, []
        for width in hidden:
            top += [nn.Linear(units, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            units = width
        self.hidden = nn.Sequential(*top)
        self.head = nn.Linear(units, num_classes)
        he_initialise_(self, head=self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `x` of shape (n, channels, height, width)."""
        return self.head(self.hidden(self.flatten(self.pool(self.features(x)))))


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1 x 1 convolution, BatchNorm, ReLU, 3 x 3 convolution, appended to the input."""

    def __init__(self, in_channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, bottleneck * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with the new channels behind it."""
        y = self.conv1(self.relu1(self.bn1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.bn2(y)))], 1)


class DenseNet(nn.Module):
    """A densely connected network with bottlenecks and compression (DenseNet-BC) for 32 x 32 images.

    By default DenseNet-BC-100 with growth 12: 769,162 parameters for ten classes.

    Args:
        depths: Number of layers in each block.
        growth: Channels that each layer appends.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        bottleneck: Width of the 1 x 1 convolutions in multiples of `growth`.
        compression: Share of the channels that a transition passes on.

    Example:
        >>> DenseNet((1, 2), 4, num_classes=3)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3])

    Reference:
        Huang, Liu, van der Maaten & Weinberger, "Densely connected convolutional networks", CVPR 2017.
    """

    def __init__(
        self,
        depths: Sequence[int] = (16, 16, 16),
        growth: int = 12,
        *,
        num_classes: int,
        in_channels: int = 3,
        bottleneck: int = 4,
        compression: float = 0.5,
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            if stage:
                out = max(1, int(channels * compression))
                blocks += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, out, 1, bias=False)]
                blocks.append(nn.AvgPool2d(2))
                channels = out
            for _ in range(depth):
                blocks.append(DenseLayer(channels, growth, bottleneck))
                channels += growth
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        he_initialise_(self, head=self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `x` of shape (n, channels, height, width)."""
        x = self.relu(self.bn(self.blocks(self.stem(x))))
        return self.head(self.flatten(self.pool(x)))


class Attention(nn.Module):
    """Self-attention with one linear layer each for queries, keys and values; the number of heads is read off them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens of `x` of shape (n, tokens, width)."""
        q, k, v = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        attended = functional.scaled_dot_product_attention(q, k, v)
        return self.out(attended.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """LayerNorm and attention, LayerNorm and two linear layers, each added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, attention: str = "torch", dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = (
            nn.MultiheadAttention(width, heads, batch_first=True) if attention == "torch" else Attention(width, heads)
        )
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for tokens `x` of shape (n, tokens, width)."""
        y = self.norm1(x)
        own = isinstance(self.attention, Attention)
        x = x + self.dropout(self.attention(y) if own else self.attention(y, y, y, need_weights=False)[0])
        return x + self.dropout(self.fc2(self.act(self.fc1(self.norm2(x)))))


class VisionTransformer(nn.Module):
    """A vision transformer: patches, a class token, learned positions, pre-norm blocks.

    By default it is a small one for 32 x 32 images, of 2,693,578 parameters for ten classes. Images may be smaller than
    `image_size`: their patches then take the first positions.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        image_size: Largest height and width.
        patch: Height and width of a patch.
        width: Width of the tokens.
        depth: Number of blocks.
        heads: Number of heads a block.
        hidden: Hidden units a block; None: four times `width`.
        attention: "torch" is `nn.MultiheadAttention`, "linear" one linear layer each for queries, keys and values.
        dropout: Dropout rate.

    Raises:
        ValueError: A width that the heads do not divide, or an unknown attention.

    Example:
        >>> VisionTransformer(num_classes=3, width=16, depth=1, heads=2)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Reference:
        Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 6,
        hidden: int | None = None,
        attention: str = "torch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        if attention not in ("torch", "linear"):
            raise ValueError(f"attention={attention!r}: use 'torch' (nn.MultiheadAttention) or 'linear'")
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *[TransformerBlock(width, heads, hidden or 4 * width, attention, dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `x` of shape (n, channels, height, width)."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.position[:, : x.shape[1]]))
        return self.head(x[:, 0])


def vgg16(*, num_classes: int, in_channels: int = 3, width: int = 64) -> VGG:
    """Return VGG-16 with BatchNorm and a single linear head, for 32 x 32 images (14,724,042 parameters for ten classes).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; the others have two, four, eight and eight times as many.

    Returns:
        The network, He-initialised from torch's global generator.

    Example:
        >>> sum(p.numel() for p in vgg16(num_classes=10).parameters())
        14724042
    """
    widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
    return VGG((2, 2, 3, 3, 3), widths, num_classes=num_classes, in_channels=in_channels)


densenet = DenseNet
"""The class under the name by which `build` knows it."""
vit = VisionTransformer
"""The class under the name by which `build` knows it."""
