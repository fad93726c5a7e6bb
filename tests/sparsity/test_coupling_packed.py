"""Heads of attention and hidden units of recurrent layers as channel groups: pruned, then removed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayesprune import ForwardPruning, compact
from bayesprune.sparsity import partition


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.into, self.out = nn.Linear(5, 32), nn.Linear(32, 3)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.into(x)).mean(1))


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.cell = kind(16, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(self.words(x))[0][:, -1])


class Heads(nn.Module):
    """A classifier with an auxiliary head that evaluation does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 32), nn.Linear(32, 32)
        self.aux, self.out = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3)), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self.first(x).relu()
        y = self.out(self.second(hidden).relu())
        return (y, self.aux(hidden)) if self.training else y


FLOATS, WORDS = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12).view(2, 6)
CASES = {
    "attention": (Encoder, FLOATS, 0.55),
    "lstm": (lambda: Tagger(nn.LSTM), WORDS, 0.5),
    "gru": (lambda: Tagger(nn.GRU), WORDS, 0.5),
    "rnn": (lambda: Tagger(nn.RNN), WORDS, 0.5),
    "auxiliary head": (Heads, FLOATS[:, 0], 0.55),
}


@pytest.mark.parametrize("name", list(CASES))
def test_property_half_is_pruned_and_goes(name):
    torch.manual_seed(0)
    build, x, most = CASES[name]
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = ForwardPruning(
        model, optimizer, sparsity=0.5, example_input=x, warmup_steps=1, ramp_end_step=3, every=1, prior=None
    )
    for _ in range(4):
        optimizer.zero_grad()
        out = model(x)
        sum(each.square().mean() for each in (out if isinstance(out, tuple) else (out,))).backward()
        optimizer.step()
    small = compact(model, pruner, example_input=x)
    before, after = small.report.parameters
    assert after <= most * before and small.report.kind == "modules"
    assert torch.allclose(small.model.eval()(x), model.eval()(x), atol=1e-6)


def test_equation_a_unit_of_an_lstm_is_its_rows_columns_and_reader():
    model = Tagger(nn.LSTM)
    (groups,) = partition(model, "channel", example_input=WORDS)
    names = {(part.name, part.axis, part.length) for part in groups.slices}
    assert groups.count == 32 and ("cell.weight_ih_l0", 0, 32) in names and ("out.weight", 1, 32) in names
    assert sum(part.name == "cell.weight_hh_l1" and part.axis == 0 for part in groups.slices) == 4  # gates
    assert sum(part.name == "cell.weight_ih_l1" and part.axis == 1 for part in groups.slices) == 2  # directions
    # Without the unit: 31 of 32 rows and columns of every weight.
    one_less = torch.arange(32) > 0
    kept = sum((4 * 31 * (16 if layer == 0 else 62) + 4 * 31 * 31) * 2 for layer in (0, 1)) + 3 * 62
    partition_ = partition(model, "channel", example_input=WORDS)
    assert partition_.total - partition_.zeros([one_less]) == kept


def test_property_other_groups_say_what_they_leave():
    reasons = {each.name: each.reason for each in partition(Encoder(), "weight").excluded}
    assert reasons["layers.layers.0.self_attn"] == "only groups='channel' prunes it"
    excluded = partition(Tagger(nn.GRU), "weight").excluded
    assert ("cell", 2 * 3 * 32 * (16 + 32 + 64 + 32)) in {(each.name, each.weights) for each in excluded}


def test_property_an_excluded_layer_keeps_its_units():
    with pytest.raises(ValueError, match="written by cell, which is excluded"):
        partition(Tagger(nn.LSTM), "channel", exclude=["cell"], example_input=WORDS)
    assert {groups.name for groups in partition(Encoder(), "channel", exclude=["*.self_attn"], example_input=FLOATS)} == {
        "layers.layers.0.linear1.weight", "layers.layers.1.linear1.weight"
    }  # fmt: skip


def test_property_three_heads_do_not_keep_the_default_from_its_target():
    class Vision(Encoder):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(48, 3, 192, batch_first=True)
            self.into, self.out = nn.Linear(5, 48), nn.Linear(48, 3)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    model = Vision()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    settings = {"example_input": FLOATS, "warmup_steps": 1, "ramp_end_step": 2, "every": 1}
    pruner = ForwardPruning(model, optimizer, sparsity=0.9, **settings)
    reasons = {each.name: each.reason for each in pruner.groups.excluded}
    assert reasons["layers.layers.0.self_attn"] == "too few channels for sparsity=0.9"
    assert all("linear1" in groups.name for groups in pruner.groups)
    for _ in range(3):
        optimizer.zero_grad()
        model(FLOATS).square().mean().backward()
        optimizer.step()
    assert pruner.hard_sparsity == pytest.approx(0.9, abs=0.01)
    pruner.detach()
    half = ForwardPruning(model, optimizer, sparsity=0.5, **settings)  # within reach: heads too
    assert any("self_attn" in groups.name for groups in half.groups)
    half.detach()
    with pytest.raises(ValueError, match="out of reach"):  # asked for by name, nothing is left out
        ForwardPruning(model, optimizer, sparsity=0.9, groups="channel", **settings)
