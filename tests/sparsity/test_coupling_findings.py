"""Networks of today: which of their channels a pruner may take, and that what it takes is removed exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.compaction import compact
from bayesprune.sparsity import partition
from compact_families import settle_, train
from sparsity.plain import forward_pruning


class _Gate(nn.Module):
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


class _Inverted(nn.Module):
    """MobileNetV2/V3 and EfficientNet's block."""

    def __init__(self, width: int, act: nn.Module, gate: nn.Module | None) -> None:
        super().__init__()
        inner = 3 * width
        layers = [
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), act,
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), act,
        ]  # fmt: skip
        layers += [] if gate is None else [_Gate(inner, 4, gate)]
        self.body = nn.Sequential(*layers, nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return x + self.body(x)


def _mobile(act: nn.Module, gate: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act, _Inverted(8, act, gate),
        _Inverted(8, act, gate), nn.Conv2d(8, 16, 1), act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


class _ChannelsLast(nn.Module):
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


class _ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.blocks = nn.Sequential(_ChannelsLast(8), _ChannelsLast(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean([-2, -1]))


class _Scaled(nn.Module):
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


class _UNet(nn.Module):
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


class _Decoder(nn.Module):
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


class _Gated(nn.Module):
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


class _Shuffle(nn.Module):
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


class _ResNeXt(nn.Module):
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


class _Encoder(nn.Module):
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


class _Attention(nn.Module):
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


class _Recurrent(nn.Module):
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


class _Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)
        self.shuffle, self.mix = nn.PixelShuffle(2), nn.ChannelShuffle(2)

    def forward(self, x):
        return self.head(F.softplus(self.up(self.mix(self.shuffle(F.elu(self.stem(x)))))).mean((2, 3)))


IMAGE, TOKENS = (2, 3, 8, 8), (2, 7, 6)
# Network, input, and the largest share of the parameters that may be left where half of every group is dropped.
NETWORKS = {
    "mobilenet_v2": (lambda: _mobile(nn.ReLU6()), IMAGE, 0.45),
    "mobilenet_v3": (lambda: _mobile(nn.Hardswish(), nn.Hardsigmoid()), IMAGE, 0.45),
    "efficientnet": (lambda: _mobile(nn.SiLU(), nn.Sigmoid()), IMAGE, 0.45),
    "sigmoid": (lambda: _mobile(nn.Sigmoid()), IMAGE, 0.45),
    "convnext": (_ConvNeXt, IMAGE, 0.65),
    "layer scale, position": (_Scaled, IMAGE, 0.55),
    "u-net": (_UNet, IMAGE, 0.40),
    "glu": (lambda: _Gated("glu"), (4, 6), 0.45),
    "swiglu": (lambda: _Gated("chunk"), (4, 6), 0.45),
    "shufflenet": (_Shuffle, IMAGE, 0.45),
    "resnext": (_ResNeXt, IMAGE, 0.45),
    "transposed": (_Decoder, (2, 8), 0.50),
    "transformer": (_Encoder, TOKENS, 0.80),
    "transformer, norm first": (lambda: _Encoder(True), TOKENS, 0.80),
    "attention": (_Attention, TOKENS, 0.40),
    "lstm": (_Recurrent, TOKENS, 0.90),
    "pixel shuffle": (_Pixels, IMAGE, 0.50),
}  # fmt: skip


def _network(name: str):
    make, shape, most = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
    settle_(model, torch.randn(8, *shape[1:]))
    return model, torch.randn(shape), most


def _halved(model, example, optimizer=None):
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


def _off(model, small, *inputs) -> float:
    with torch.no_grad():
        return max(float((model.eval()(x) - small.eval()(x)).abs().max()) for x in inputs)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_property_half_of_every_group_is_removed_exactly(name):
    model, example, most = _network(name)
    pruner, optimizer = _halved(model, example)
    result = compact(model, pruner, optimizer, example)
    before, after = result.report.parameters
    assert _off(model, result.model, example, torch.randn(3, *example.shape[1:])) <= 1e-5
    assert result.report.training == "exact" and after <= most * before, f"{after / before:.3f}"
    # What is switched off is nothing but that: no zero of a pruned layer is left.
    assert not any("zero rows" in reason or "zero columns" in reason for reason in result.report.leftovers.reasons())


@pytest.mark.parametrize("name", ["efficientnet", "layer scale, position", "u-net", "swiglu", "shufflenet"])
def test_property_training_goes_on_as_the_masked_networks_would(name):
    model, example, _ = _network(name)
    model, example = model.double(), example.double()
    pruner, optimizer = _halved(model, example)
    train(model, optimizer, example, 2)
    early = compact(model, pruner, optimizer, example)
    train(model, optimizer, example, 3, start=2)
    train(early.model, early.optimizer, example, 3, start=2)
    late = compact(model, pruner, optimizer, example)
    wanted, got = late.model.state_dict(), early.model.state_dict()
    assert list(wanted) == list(got)
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", list(NETWORKS))
def test_equation_statistics_and_zeros_by_an_explicit_count(name):
    model, example, _ = _network(name)
    model = model.double()
    groups = partition(model, "channel", example_input=example.double())
    for each in groups:
        total = torch.zeros(each.count, dtype=torch.float64)
        size = torch.zeros(each.count, dtype=torch.long)
        for name_of in {part.name for part in each.slices}:
            parts = [part for part in each.slices if part.name == name_of]
            for g in range(each.count):
                keep = torch.ones(each.count, dtype=torch.bool)
                keep[g] = False
                dropped = torch.zeros_like(parts[0].param, dtype=torch.bool)
                for part in parts:
                    dropped |= ~part.broadcast(keep).expand_as(part.param)
                total[g] += parts[0].param.detach()[dropped].square().sum()
                size[g] += int(dropped.sum())
        torch.testing.assert_close(each.sum_squares().reshape(-1), total)
        assert size.tolist() == [each.size] * each.count


ELEMENTWISE = [
    nn.Sigmoid(), nn.Hardsigmoid(), nn.Softplus(), nn.LogSigmoid(), nn.Hardtanh(), nn.Threshold(0.1, 0.3), nn.Tanhshrink(),
    nn.Softshrink(), nn.PReLU(), nn.PReLU(8), nn.ELU(), nn.Mish(), torch.exp, torch.cos, torch.sin, torch.square, torch.erf,
    torch.sigmoid, F.hardswish, F.softplus, F.logsigmoid, lambda x: x.abs(), lambda x: x**2, lambda x: x.clamp(min=0.2),
    lambda x: x.sigmoid() * x, lambda x: torch.pow(x, 3), lambda x: 1 - x, lambda x: x * 2 + 3, lambda x: x.exp().log1p(),
    lambda x: F.dropout(x, 0.0), lambda x: (x.square() + 1).sqrt(), lambda x: x.softmax(-1),
]  # fmt: skip


class _Between(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.stem, self.norm, self.last, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.Linear(6, 5),
        )
        self.function = function

    def forward(self, x):
        return self.head(F.relu(self.last(self.function(self.norm(self.stem(x))))).mean((2, 3)))


@pytest.mark.parametrize("function", ELEMENTWISE, ids=range(len(ELEMENTWISE)))
def test_property_any_elementwise_function_may_stand_between_coupled_layers(function):
    torch.manual_seed(0)
    model = _Between(function)
    settle_(model, torch.randn(8, *IMAGE[1:]))
    pruner, optimizer = _halved(model, torch.randn(IMAGE))
    result = compact(model, pruner, optimizer, torch.randn(IMAGE))
    assert (result.model.stem.out_channels, result.model.last.out_channels) == (4, 3)
    assert _off(model, result.model, torch.randn(3, 3, 5, 7)) <= 1e-5


@pytest.mark.parametrize(
    ("function", "removable"), [(F.relu, True), (torch.tanh, True), (torch.sigmoid, False), (torch.cos, False)]
)
def test_property_where_a_reader_keeps_its_columns_the_channel_must_be_zero_there(function, removable):
    model = _Between(function)
    groups = partition(model, "channel", exclude=["last"], example_input=torch.zeros(IMAGE)) if removable else None
    if removable:
        assert [g.name for g in groups] == ["stem.weight"]
        return
    with pytest.raises(
        ValueError, match="read by last, which would see something else than zero and keeps its columns"
    ):
        partition(model, "channel", exclude=["last"], example_input=torch.zeros(IMAGE))
    alone = partition(model, "channel", coupling="none", example_input=torch.zeros(IMAGE))
    assert [g.name for g in alone] == ["last.weight"]  # ReLU behind it
    assert "read by last" in {e.name: e.reason for e in alone.excluded}["channels of stem"]


def test_property_channels_that_two_groupings_cross_stay_or_go_in_blocks_that_fit_both():
    torch.manual_seed(0)
    model = _ResNeXt(shuffled=True)
    settle_(model, torch.randn(8, *IMAGE[1:]))
    pruner, optimizer = _halved(model, torch.randn(IMAGE))
    result = compact(model, pruner, optimizer, torch.randn(IMAGE))
    assert _off(model, result.model, torch.randn(3, 3, 5, 7)) <= 1e-5


class _Positions(nn.Module):
    """A part of a longer embedding, one that a function bends, and a buffer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.embed, self.down, self.head, self.way = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 5), way
        self.long, self.bent = nn.Parameter(torch.randn(1, 20, 16)), nn.Parameter(torch.randn(7, 16))
        self.register_buffer("fixed", torch.randn(20, 16))

    def forward(self, x):
        x = self.embed(x)
        if self.way == "part":
            x = x + self.long[:, : x.shape[1]]
        elif self.way == "bent":
            x = x + torch.sigmoid(self.bent)
        else:
            x = x * self.fixed[: x.shape[1]]
        return self.head(torch.relu(self.down(x)).mean(1))


@pytest.mark.parametrize(("way", "removable"), [("part", True), ("bent", False), ("buffer", True)])
def test_property_embeddings_that_are_added_or_multiplied(way, removable):
    torch.manual_seed(0)
    model, example = _Positions(way), torch.randn(TOKENS)
    pruner, optimizer = _halved(model, example)
    assert ("embed.weight" in {g.name for g in pruner.groups}) == removable
    for constants in ("keep", "fold"):
        small = compact(model, pruner, optimizer, example, constants=constants).model
        assert small.embed.out_features == (8 if removable else 16) and small.down.out_features == 6
        assert _off(model, small, example, torch.randn(3, 7, 6)) <= 1e-5
        if way == "part":
            assert small.long.shape == (1, 20, 8) and _off(model, small, torch.randn(2, 9, 6)) <= 1e-5


def test_property_a_hook_that_mixes_channels_pins_them():
    model = _Between(F.relu)
    free = {g.name for g in partition(model, "channel", example_input=torch.zeros(IMAGE))}
    model.norm.register_forward_hook(lambda module, args, out: out.flip(1))
    held = partition(model, "channel", example_input=torch.zeros(IMAGE))
    assert free - {g.name for g in held} == {"stem.weight"}
    assert "flip is not known" in {e.name: e.reason for e in held.excluded}["channels of stem"]


def test_property_optional_arguments_and_dicts_are_traced():
    groups = partition(_Encoder(), "channel", example_input={"x": torch.zeros(TOKENS)})
    assert {"encoder.layers.0.linear1.weight", "encoder.layers.1.linear1.weight"} == {g.name for g in groups}
    reasons = {e.name: e.reason for e in groups.excluded}
    assert any("LayerNorm" in reason for reason in reasons.values()) and math.isfinite(groups.total)
