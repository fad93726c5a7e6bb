"""Small networks of every family that is exported, with an example input each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesprune import vision
from bayesprune.vision.resnet import Bottleneck, ResNet


class DenseBlocks(nn.Module):
    """DenseNet-like: every layer reads the concatenation of all before it; a transition halves."""

    def __init__(self, growth: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.layers = nn.ModuleList()
        for index in range(depth):
            channels = 6 + index * growth
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, growth, 3, padding=1, bias=False)
                )
            )
        channels = 6 + depth * growth
        self.transition = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 8, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, dim=1)))
        return self.head(F.adaptive_avg_pool2d(self.transition(torch.cat(parts, 1)), 1).flatten(1))


class Block(nn.Module):
    """A pre-norm transformer block with torch's own attention, or its projections as linear layers."""

    def __init__(self, width: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.heads, self.packed, self.rate = heads, packed, 0.1
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if packed:
            self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        else:
            self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.packed:
            x = x + self.attention(y, y, y, need_weights=False)[0]
        else:
            n, length, width = y.shape
            q, k, v = self.qkv(y).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate if self.training else 0.0)
            x = x + F.dropout(self.project(y.transpose(1, 2).reshape(n, length, width)), 0.1, self.training)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, a learned position for each, picked by an index buffer, two blocks."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.register_buffer("order", torch.arange(17), persistent=False)
        self.blocks = nn.Sequential(Block(16, 4, packed), Block(16, 2, packed))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1) + self.position[:, self.order]
        return self.head(self.norm(self.blocks(x))[:, 0])


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((3, 6), (6, 8)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 5))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: vision.build("resnet20", num_classes=5, width=4),
    "resnet20-a": lambda: vision.build("resnet20", num_classes=5, width=4, shortcut="A"),
    "bottleneck": lambda: ResNet(Bottleneck, (1, 1), (4, 6), num_classes=5, stem="imagenet"),
    "wide": lambda: vision.build("wide_resnet", num_classes=5, depth=10, widen_factor=1, dropout=0.2),
    "vgg": vgg,
    "densenet": DenseBlocks,
    "mlp": lambda: vision.mlp([3 * 256, 24, 12, 5], activation="tanh"),
    "vit": lambda: ViT(packed=True),
    "vit-linear": lambda: ViT(packed=False),
}


@torch.no_grad()
def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and running statistics that differ from any default."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


@pytest.fixture(params=list(FAMILIES))
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return settle(FAMILIES[request.param]())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make() -> Callable[[str, int], nn.Module]:
    """A member of a family, by its name and a seed."""

    def build(name: str, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return settle(FAMILIES[name](), seed)

    return build
