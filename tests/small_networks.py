"""Small networks of today, and pruners that dropped half of every group of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from compact_families import settle_
from sparsity.plain import forward_pruning


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width: int, squeezed: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.act, self.gate = (
            nn.Conv2d(width, squeezed, 1),
            nn.Conv2d(squeezed, width, 1),
            nn.SiLU(),
            gate,
        )

    def forward(self, x):
        return x * self.gate(self.up(self.act(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """MobileNetV2/V3 and EfficientNet's block."""

    def __init__(self, width: int, act: nn.Module, gate: nn.Module | None) -> None:
        super().__init__()
        inner = 3 * width
        layers = [
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), act,
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), act,
        ]  # fmt: skip
        layers += [] if gate is None else [Gate(inner, 4, gate)]
        self.body = nn.Sequential(*layers, nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return x + self.body(x)


def mobile(act: nn.Module, gate: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act, Inverted(8, act, gate),
        Inverted(8, act, gate), nn.Conv2d(8, 16, 1), act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


class ChannelsLast(nn.Module):
    """ConvNeXt's block: LayerNorm and linear layers on channels last, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.scale * self.down(F.gelu(self.up(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.blocks = nn.Sequential(ChannelsLast(8), ChannelsLast(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean([-2, -1]))


class Scaled(nn.Module):
    """Layer scale and a position embedding where nothing normalises over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.position = nn.Parameter(torch.randn(1, 8, 8, 8))
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("grid", torch.randn(8, 8, 8))
        self.mix, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.stem(x)) + self.position) + self.grid
        return self.head((x + self.scale * self.mix(x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up, self.last, self.out = (
            nn.ConvTranspose2d(12, 8, 2, stride=2),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, x):
        one = F.relu(self.one(x))
        two = F.relu(self.two(F.max_pool2d(one, 2)))
        x = F.relu(self.last(torch.cat([one, self.up(two)], 1)))
        return self.out(x).mean((2, 3))


class Decoder(nn.Module):
    """A generator: transposed convolutions, one of them on a stream that no other layer writes."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.one, self.norm = nn.Linear(8, 12 * 4), nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.BatchNorm2d(8)
        self.two, self.mix, self.head = (
            nn.ConvTranspose2d(8, 6, 4, 2, 1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Linear(6, 5),
        )

    def forward(self, x):
        x = self.start(x).view(-1, 12, 2, 2)
        x = F.leaky_relu(self.norm(self.one(torch.relu(x))))
        return self.head(torch.tanh(self.mix(F.softplus(self.two(x)))).mean((2, 3)))


class Gated(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.up, self.down, self.head, self.way = nn.Linear(6, 32), nn.Linear(16, 12), nn.Linear(12, 5), way

    def forward(self, x):
        x = self.up(x)
        if self.way == "glu":
            x = F.glu(x, -1)
        else:
            one, two = x.chunk(2, dim=-1)
            x = F.silu(one) * two
        return self.head(torch.cos(self.down(x)))


class Shuffle(nn.Module):
    """ShuffleNetV2: channels interleaved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.norm, self.deep, self.two = (
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Conv2d(16, 12, 1),
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.one(F.relu(self.stem(x)))))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        return self.head(F.hardswish(self.two(self.deep(x))).mean((2, 3)))


class ResNeXt(nn.Module):
    """Grouped convolutions: whole groups; and with a shuffle between two of them, none."""

    def __init__(self, shuffled: bool = False) -> None:
        super().__init__()
        self.stem, self.norm, self.one = (
            nn.Conv2d(3, 16, 1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 3, padding=1, groups=4),
        )
        self.two, self.out, self.head = (
            nn.Conv2d(16, 8, 1, groups=2 if shuffled else 1),
            nn.Conv2d(8, 16, 1),
            nn.Linear(16, 5),
        )
        self.shuffle = nn.ChannelShuffle(2) if shuffled else nn.Identity()

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.out(F.relu(self.two(self.shuffle(F.relu(self.one(x))))))
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.embed, self.encoder, self.head = (
            nn.Linear(6, 16),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(16, 5),
        )

    def forward(self, x, mask=None):
        return self.head(self.encoder(self.embed(x), mask).mean(1))


class Attention(nn.Module):
    """timm's attention: one packed projection, sizes computed from the stream's width, which may change too."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.qkv, self.proj, self.head = (
            nn.Linear(6, 16),
            nn.Linear(16, 48),
            nn.Linear(16, 16),
            nn.Linear(16, 5),
        )
        self.heads = 4

    def forward(self, x):
        x = self.up(x)
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        return self.head((x + self.proj(y)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.hidden, self.head = (
            nn.Linear(6, 8),
            nn.LSTM(8, 12, batch_first=True),
            nn.Linear(12, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x):
        out, _ = self.lstm(torch.relu(self.embed(x)))
        return self.head(torch.sigmoid(self.hidden(out[:, -1])))


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)
        self.shuffle, self.mix = nn.PixelShuffle(2), nn.ChannelShuffle(2)

    def forward(self, x):
        return self.head(F.softplus(self.up(self.mix(self.shuffle(F.elu(self.stem(x)))))).mean((2, 3)))


IMAGE, TOKENS = (2, 3, 8, 8), (2, 7, 6)
# Network, input, and the largest share of the parameters that may be left where half of every group is dropped.
NETWORKS = {
    "mobilenet_v2": (lambda: mobile(nn.ReLU6()), IMAGE, 0.45),
    "mobilenet_v3": (lambda: mobile(nn.Hardswish(), nn.Hardsigmoid()), IMAGE, 0.45),
    "efficientnet": (lambda: mobile(nn.SiLU(), nn.Sigmoid()), IMAGE, 0.45),
    "sigmoid": (lambda: mobile(nn.Sigmoid()), IMAGE, 0.45),
    "convnext": (ConvNeXt, IMAGE, 0.65),
    "layer scale, position": (Scaled, IMAGE, 0.55),
    "u-net": (UNet, IMAGE, 0.40),
    "glu": (lambda: Gated("glu"), (4, 6), 0.45),
    "swiglu": (lambda: Gated("chunk"), (4, 6), 0.45),
    "shufflenet": (Shuffle, IMAGE, 0.45),
    "resnext": (ResNeXt, IMAGE, 0.45),
    "transposed": (Decoder, (2, 8), 0.50),
    "transformer": (Encoder, TOKENS, 0.80),
    "transformer, norm first": (lambda: Encoder(True), TOKENS, 0.80),
    "attention": (Attention, TOKENS, 0.40),
    "lstm": (Recurrent, TOKENS, 0.90),
    "pixel shuffle": (Pixels, IMAGE, 0.50),
}  # fmt: skip


def network(name: str):
    make, shape, most = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
    settle_(model, torch.randn(8, *shape[1:]))
    return model, torch.randn(shape), most


def halved(model, example, optimizer=None):
    """A pruner that dropped half of every group."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    pruner = forward_pruning(model, optimizer, groups="channel", example_input=example)
    state = pruner.state_dict()
    for mask in state["keep"].values():
        order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(mask.numel()))
        mask.view(-1)[order[: mask.numel() // 2]] = False
    pruner.load_state_dict(state)
    pruner.apply_()
    return pruner, optimizer


def off(model, small, *inputs) -> float:
    with torch.no_grad():
        return max(float((model.eval()(x) - small.eval()(x)).abs().max()) for x in inputs)
