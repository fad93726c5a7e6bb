"""What stands between two layers: elementwise functions, embeddings, hooks, optional arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.compaction import compact
from bayesprune.sparsity import ForwardPruning, partition
from compact_families import settle_
from small_networks import IMAGE, TOKENS, Encoder, ResNeXt, halved, off

ELEMENTWISE = [
    nn.Sigmoid(), nn.Hardsigmoid(), nn.Softplus(), nn.LogSigmoid(), nn.Hardtanh(), nn.Threshold(0.1, 0.3), nn.Tanhshrink(),
    nn.Softshrink(), nn.PReLU(), nn.PReLU(8), nn.ELU(), nn.Mish(), torch.exp, torch.cos, torch.sin, torch.square, torch.erf,
    torch.sigmoid, F.hardswish, F.softplus, F.logsigmoid, lambda x: x.abs(), lambda x: x**2, lambda x: x.clamp(min=0.2),
    lambda x: x.sigmoid() * x, lambda x: torch.pow(x, 3), lambda x: 1 - x, lambda x: x * 2 + 3, lambda x: x.exp().log1p(),
    lambda x: F.dropout(x, 0.0), lambda x: (x.square() + 1).sqrt(), lambda x: x.softmax(-1),
    lambda x: x.double().type_as(x), lambda x: x + torch.zeros(x.shape[0], 1, 1, 1, device=x.device),
    lambda x: x * torch.ones((x.shape[0], 1, 1, 1), dtype=x.dtype), lambda x: x + torch.arange(x.shape[-1], device=x.device),
    lambda x: x * torch.tensor([x.shape[0]]), lambda x: x * torch.full((1,), torch.finfo(x.dtype).eps, device=x.device),
    lambda x: x * torch.randint(2, 3, (1,), device=x.device), lambda x: x + torch.normal(2.0, 0.0, (1,), device=x.device),
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
    pruner, optimizer = halved(model, torch.randn(IMAGE))
    result = compact(model, pruner, optimizer, torch.randn(IMAGE))
    assert (result.model.stem.out_channels, result.model.last.out_channels) == (4, 3)
    assert off(model, result.model, torch.randn(3, 3, 5, 7)) <= 1e-5


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
    model = ResNeXt(shuffled=True)
    settle_(model, torch.randn(8, *IMAGE[1:]))
    pruner, optimizer = halved(model, torch.randn(IMAGE))
    result = compact(model, pruner, optimizer, torch.randn(IMAGE))
    assert off(model, result.model, torch.randn(3, 3, 5, 7)) <= 1e-5


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
    pruner, optimizer = halved(model, example)
    assert ("embed.weight" in {g.name for g in pruner.groups}) == removable
    for constants in ("keep", "fold"):
        small = compact(model, pruner, optimizer, example, constants=constants).model
        assert small.embed.out_features == (8 if removable else 16) and small.down.out_features == 6
        assert off(model, small, example, torch.randn(3, 7, 6)) <= 1e-5
        if way == "part":
            assert small.long.shape == (1, 20, 8) and off(model, small, torch.randn(2, 9, 6)) <= 1e-5


def test_property_a_hook_that_mixes_channels_pins_them():
    model = _Between(F.relu)
    free = {g.name for g in partition(model, "channel", example_input=torch.zeros(IMAGE))}
    model.norm.register_forward_hook(lambda module, args, out: out.flip(1))
    held = partition(model, "channel", example_input=torch.zeros(IMAGE))
    assert free - {g.name for g in held} == {"stem.weight"}
    assert "flip is not known" in {e.name: e.reason for e in held.excluded}["channels of stem"]


def test_property_optional_arguments_and_dicts_are_traced():
    groups = partition(Encoder(), "channel", example_input={"x": torch.zeros(TOKENS)})
    assert {g.name for g in groups} == {
        f"encoder.layers.{n}.{name}" for n in (0, 1) for name in ("linear1.weight", "self_attn.in_proj_weight")
    }
    reasons = {e.name: e.reason for e in groups.excluded}
    assert any("LayerNorm" in reason for reason in reasons.values()) and math.isfinite(groups.total)


class _Normalised(nn.Module):
    """A hidden width that a norm takes its mean over, called as a layer or as a function."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 16), nn.Linear(16, 24), nn.Linear(24, 3)
        self.name = norm
        self.norm = nn.RMSNorm(16) if "RMS" in norm else nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if self.name == "layer_norm":
            hidden = F.layer_norm(hidden, (16,), self.norm.weight, self.norm.bias)
        elif self.name == "rms_norm":
            hidden = F.rms_norm(hidden, normalized_shape=(16,))
        else:
            hidden = self.norm(hidden)
        return self.last(self.inner(hidden).relu())


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm", "layer_norm", "rms_norm"])
def test_property_a_norm_over_the_channels_keeps_them_by_name(norm):
    groups = partition(_Normalised(norm), "channel", example_input=torch.zeros(2, 4))
    assert [each.name for each in groups] == ["inner.weight"]
    reason = {each.name: each.reason for each in groups.excluded}["channels of first"]
    assert norm in reason and "normalises over it" in reason


def test_property_what_a_mode_dependent_forward_counts_by_a_number_stays_and_the_rest_goes():
    """Attention as many write it: split(width), and a dropout of the scores in training only."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.project = nn.Linear(16, 48), nn.Linear(16, 16)
            self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x):
            size = x.shape
            parts = [part.view(*size[:2], -1, 4).transpose(1, 2) for part in self.attend(x).split(16, dim=2)]
            mixed = F.scaled_dot_product_attention(*parts, dropout_p=0.1 if self.training else 0.0)
            x = x + self.project(mixed.transpose(1, 2).reshape(*size[:2], -1))
            return x + self.narrow(F.gelu(self.wide(x)))

    torch.manual_seed(0)
    model, x = Block(), torch.randn(2, 5, 16)
    pruner = ForwardPruning(
        model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5, warmup_steps=0, ramp_end_step=1, every=1, example_input=x
    )  # fmt: skip
    pruner.finish_()
    assert [groups.name for groups in pruner.groups] == ["wide.weight"]
    assert "split (split) names their number" in pruner.describe()
    small = compact(model, pruner, example_input=x)
    assert small.kind == "modules" and small.model.wide.out_features == 32 and small.model.attend.out_features == 48
    torch.testing.assert_close(small.model.eval()(x[:, :3]), model.eval()(x[:, :3]))


class _Heads(nn.Module):
    """Attention of four heads of width 4, in which a literal width stays what it is when whole heads go."""

    def __init__(self, mask) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.mask = mask

    def forward(self, x, use_cache=True):
        q, k, v = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mask = torch.zeros(self.mask, device=x.device).masked_fill(torch.tensor(False), torch.finfo(k.dtype).min)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.1 if self.training else 0.0)
        out = self.o(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))
        return (out, object()) if use_cache else out


def test_property_whole_heads_go_where_their_width_is_a_number_and_a_cache_is_left_out():
    torch.manual_seed(0)
    model, x = _Heads((5, 5)), torch.randn(2, 5, 16)
    pruner = ForwardPruning(
        model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5, warmup_steps=0, ramp_end_step=1, every=1, example_input=x
    )  # fmt: skip
    assert [(groups.name, groups.count) for groups in pruner.groups] == [("q.weight", 4)]
    pruner.finish_()
    small = compact(model, pruner, example_input=x)
    assert small.kind == "modules" and small.model.q.out_features == 8
    torch.testing.assert_close(small.model.eval()(x)[0], model.eval()(x)[0])


def test_property_heads_under_a_mask_of_their_own_stay():
    with pytest.raises(ValueError, match="attention under a mask of its own for each head"):
        partition(_Heads((4, 5, 5)), "channel", example_input=torch.randn(2, 5, 16))


class _Sums(_Heads):
    """Heads whose shapes are sums of sizes and numbers, as in transformers."""

    def forward(self, x):
        q, k, v = (y.view(y.size()[:-1] + (4, 4)).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))  # noqa: RUF005
        mixed = ((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v).transpose(1, 2).contiguous()
        return self.o(mixed.view(mixed.size()[:-2] + (16,)))  # noqa: RUF005


def test_property_heads_go_where_numbers_stand_behind_sizes():
    torch.manual_seed(0)
    model, x = _Sums(None), torch.randn(2, 5, 16)
    pruner = ForwardPruning(
        model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5, warmup_steps=0, ramp_end_step=1, every=1, example_input=x
    )  # fmt: skip
    pruner.finish_()
    small = compact(model, pruner, example_input=x)
    assert small.model.q.out_features == 8
    other = torch.randn(3, 7, 16)
    torch.testing.assert_close(small.model.eval()(other), model.eval()(other))
