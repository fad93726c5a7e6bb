"""Channels on the last axis, under a GroupNorm, and of whole families of networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.compaction import compact
from bayesprune.sparsity import partition, trace_channels
from compact_families import network, pruned_at_random, train


class _Tokens(nn.Module):
    """Patches as tokens, hidden units on the last of three axes, tokens concatenated, a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.up, self.down = nn.Conv2d(2, 6, 2, stride=2), nn.Linear(6, 8), nn.Linear(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = F.gelu(self.up(x))
        x = torch.cat([x, x.mean(1, keepdim=True)], 1)
        return self.head(self.down(x).mean(dim=1))


def test_property_linear_layers_on_three_axes_have_their_channels_on_the_last():
    spaces = {s.writers[0]: s for s in trace_channels(_Tokens(), torch.zeros(2, 2, 6, 6)) if s.writers}
    assert [(s.channels, s.readers, s.pinned) for s in spaces.values()] == [
        (6, [("up", 1)], None), (8, [("down", 1)], None), (5, [("head", 1)], None), (3, [], "model output"),
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["densenet", "vit", "vit-linear"])
def test_property_what_is_switched_off_changes_nothing_whatever_its_readers_hold(family):
    model, example = network(family, 0)
    groups = partition(model.eval(), "channel", example_input=example)
    names = {part.name for each in groups for part in each.slices}
    if family == "densenet":
        assert "stem.weight" in names and "blocks.0.conv2.weight" in names and "head.weight" in names
    else:
        assert {"blocks.0.fc1.weight", "blocks.1.fc2.weight"} <= names
        reasons = {e.name: e.reason for e in groups.excluded}
        stream = next(reason for name, reason in reasons.items() if "blocks.0.fc2" in name)
        assert stream == "LayerNorm blocks.0.norm1 normalises over it"
    pruner = pruned_at_random(model, example, "channel", 0.5)
    with torch.no_grad():
        before = model.eval()(example)
        drop = {name: ~mask for name, mask in pruner.weight_masks().items()}
        for each in pruner.groups:
            gone = ~pruner.keep_masks[each.name]
            for part in each.slices:
                if part.axis == 1:  # columns of what is gone: any value will do
                    part.param.masked_fill_(~part.broadcast(~gone), 3.0)
        assert torch.allclose(model(example), before, atol=1e-5) and any(mask.any() for mask in drop.values())


class _Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 1)
        self.one, self.head = nn.GroupNorm(1, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.one(self.inner(F.relu(self.norm(self.stem(x))))).mean((2, 3)))


def test_property_channels_under_a_groupnorm_go_in_whole_groups():
    torch.manual_seed(1)
    model, example = _Grouped(), torch.randn(2, 3, 6, 6)
    groups = partition(model, "channel", example_input=example)
    assert [(g.name, g.count, g.size) for g in groups] == [("stem.weight", 4, 2 * 3 * 9 + 2 * 6)]
    assert {e.name: e.reason for e in groups.excluded}["channels of inner"] == "a single group of a GroupNorm"
    assert {p.name for p in groups[0].tied} == {"stem.bias", "norm.weight", "norm.bias"}
    pruner = pruned_at_random(model, example, "channel", 0.5)
    keep = pruner.keep_masks["stem.weight"]
    assert keep.any() and not keep.all()
    rows = (model.stem.weight == 0).flatten(1).all(1)
    assert rows.tolist() == (~keep).repeat_interleave(2).tolist()
    x = torch.randn(3, 3, 6, 6)
    small = compact(model, pruner, None, example)
    assert small.model.stem.out_channels == 2 * int(keep.sum()) and small.model.norm.num_groups == int(keep.sum())
    assert torch.allclose(small.model.eval()(x), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize("family", ["densenet", "vit", "vit-linear"])
def test_property_channel_groups_of_further_families_train_on_when_compact(family):
    model, example = network(family, 1)
    model, example = model.double(), example.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
    pruner = pruned_at_random(model, example, "channel", 0.4, optimizer)
    train(model, optimizer, example, 2)
    early = compact(model, pruner, optimizer, example)
    assert early.report.parameters[1] < early.report.parameters[0] and early.report.training == "exact"
    train(model, optimizer, example, 3, start=2)
    train(early.model, early.optimizer, example, 3, start=2)
    late = compact(model, pruner, optimizer, example)
    wanted, got = late.model.state_dict(), early.model.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            got[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert late.pruner.groups.total == early.pruner.groups.total
    for one, two in zip(late.pruner.groups, early.pruner.groups):
        torch.testing.assert_close(one.mean_square(), two.mean_square(), rtol=1e-5, atol=1e-7)
