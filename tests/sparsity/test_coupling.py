from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.sparsity import partition, trace_channels

EXAMPLE = torch.zeros(2, 2, 6, 6)


def _spaces(model, example=EXAMPLE):
    return {space.writers[0]: space for space in trace_channels(model, example) if space.writers}


def test_property_residual_streams_couple_writers_readers_and_norms(residual):
    spaces = _spaces(residual())
    assert list(spaces) == ["stem", "conv1", "conv3", "head"]
    stream = spaces["stem"]
    assert sorted(stream.writers) == ["conv2", "stem"]
    assert sorted(stream.norms) == ["bn2", "stem_bn"]
    assert sorted(stream.readers) == [("conv1", 1), ("conv3", 1), ("short", 1)]
    assert spaces["conv1"].writers == ["conv1"] and spaces["conv1"].readers == [("conv2", 1)]
    assert sorted(spaces["conv3"].writers) == ["conv3", "short"]
    assert spaces["conv3"].readers == [("head", 1)]
    assert spaces["head"].pinned == "model output"


def test_property_group_coupling_ties_rows_columns_biases_and_norm_pairs(residual):
    groups = {g.name: g for g in partition(residual(), "channel", example_input=EXAMPLE)}
    stream = groups["stem.weight"]
    assert {(p.name, p.mask_view[0] == 6) for p in stream.slices} == {
        ("stem.weight", True), ("conv2.weight", True), ("conv1.weight", False), ("conv3.weight", False),
        ("short.weight", False),
    }  # fmt: skip
    assert {p.name for p in stream.tied} == {
        "stem.bias", "stem_bn.weight", "stem_bn.bias", "bn2.weight", "bn2.bias",
    }  # fmt: skip
    assert stream.size == 2 * 9 + 6 * 9 + 6 * 9 + 12 * 9 + 12
    assert "head.weight" not in groups
    columns = [p.name for g in groups.values() for p in g.slices if p.name == "head.weight"]
    assert columns == ["head.weight"]


def test_property_no_coupling_ties_rows_to_their_own_norm_and_leaves_streams_out(residual):
    groups = partition(residual(), "channel", coupling="none", example_input=EXAMPLE)
    assert [g.name for g in groups] == ["conv1.weight"]
    assert [p.name for p in groups[0].slices] == ["conv1.weight"]
    assert {p.name for p in groups[0].tied} == {"bn1.weight", "bn1.bias"}
    reasons = {e.name: e.reason for e in groups.excluded}
    assert "coupled with other layers" in reasons["channels of stem, conv2"]


def test_equation_statistics_and_zeros_of_overlapping_groups_by_an_explicit_loop(residual):
    model = residual().double()
    groups = partition(model, "channel", example_input=EXAMPLE.double())
    keep = [torch.rand(g.shape, generator=torch.Generator().manual_seed(3)) > 0.4 for g in groups]
    zeroed = {name: param.detach().clone() for name, param in model.named_parameters()}
    for g, mask in zip(groups, keep):
        for c in (~mask).nonzero().flatten().tolist():
            for part in g.slices:
                if part.mask_view[0] == 1:
                    zeroed[part.name][:, c] = 0
                else:
                    zeroed[part.name][c] = 0
    assert groups.zeros(keep) == sum(int((zeroed[name] == 0).sum()) for name in groups.weights())
    inner = next(g for g in groups if g.name == "conv1.weight")
    for c in range(6):
        total = model.conv1.weight[c].square().sum() + model.conv2.weight[:, c].square().sum()
        torch.testing.assert_close(inner.sum_squares()[c], total.detach())


def test_equation_a_weight_that_writes_and_reads_its_own_channel_counts_once():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _Body()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    class _Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(2, 4, 1)
            self.mix = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return x + self.mix(x)

    torch.manual_seed(0)
    model = Head().double()
    (groups,) = partition(model, "channel", example_input=EXAMPLE.double())
    mix = model.body.mix.weight.detach()
    for c in range(4):
        distinct = torch.zeros_like(mix, dtype=torch.bool)
        distinct[c] = True
        distinct[:, c] = True
        total = mix[distinct].square().sum() + model.body.stem.weight[c].square().sum()
        total = total + model.head.weight[:, c].square().sum()
        torch.testing.assert_close(groups.sum_squares()[c], total.detach())
        assert groups.size == int(distinct.sum()) + 2 + 2
    keep = [torch.tensor([True, False, True, False])]
    assert partition(model, "channel", example_input=EXAMPLE.double()).zeros(keep) == 2 * 2 + 2 * 2 + 9 * (16 - 4)


def test_property_flatten_gives_each_channel_its_block_of_columns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5))
    (groups,) = partition(model, "channel", example_input=EXAMPLE)
    columns = groups.slices[1]
    mask = torch.tensor([True, False, True])
    small = columns.broadcast(mask)
    assert small.shape == (1, 48)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0
        before = model(torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)))
        model[3].weight.masked_fill_(~small, 7.0)
        after = model(torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, after)
    assert groups.size == 2 * 9 + 5 * 16


def test_property_depthwise_convolutions_pass_channels_on_and_other_grouped_ones_tie_whole_groups():
    def net(groups):
        return nn.Sequential(
            nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, groups=groups), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip

    deep = _spaces(net(8))["0"]
    assert (deep.depthwise, deep.norms, deep.readers, deep.pinned) == (["1"], ["2"], [("3", 1)], None)
    groups = partition(net(8), "channel", example_input=EXAMPLE)
    assert [(p.name, p.mask_view[0] == 8) for p in groups[0].slices] == [
        ("0.weight", True), ("1.weight", True), ("3.weight", False),
    ]  # fmt: skip
    two = partition(net(2), "channel", example_input=EXAMPLE)
    assert [(g.name, g.count) for g in two] == [("0.weight", 2), ("3.weight", 4)]
    assert [(p.name, p.axis, p.length) for p in two[0].slices] == [
        ("0.weight", 0, 8), ("1.weight", 0, 8), ("3.weight", 1, 8),
    ]  # fmt: skip


def test_property_excluded_readers_keep_their_columns_and_excluded_writers_pin_the_channels(residual):
    by_reader = {g.name: g for g in partition(residual(), "channel", exclude=["head"], example_input=EXAMPLE)}
    assert "head.weight" not in {p.name for g in by_reader.values() for p in g.slices}
    assert "conv3.weight" in by_reader
    by_writer = partition(residual(), "channel", exclude=["stem"], example_input=EXAMPLE)
    assert [g.name for g in by_writer] == ["conv1.weight", "conv3.weight"]
    assert ("channels of stem, conv2", "written by stem, which is excluded") in [
        (e.name, e.reason) for e in by_writer.excluded
    ]


class _Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.back, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1), nn.Linear(2, 2)

    def forward(self, x):
        return self.head((self.back(F.relu(self.inner(x))) + x).mean((2, 3)))


def test_property_what_is_added_to_the_model_input_stays():
    groups = partition(_Skip(), "channel", example_input=EXAMPLE)
    assert [g.name for g in groups] == ["inner.weight"]
    assert ("channels of back", "model input") in [(e.name, e.reason) for e in groups.excluded]


class _Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)
        self.offset = nn.Parameter(torch.ones(2, 4, 6, 6))

    def forward(self, x):
        return self.head(F.relu(self.outer(self.inner(x) + self.offset)).mean((2, 3)))


def test_property_a_bare_parameter_that_is_added_is_tied():
    groups = partition(_Offset(), "channel", example_input=EXAMPLE)
    assert [g.name for g in groups] == ["inner.weight", "outer.weight"]
    assert {(p.name, p.axis) for p in groups[0].tied} == {("inner.bias", 0), ("offset", 1)}


class _Cat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1)
        self.norm = nn.BatchNorm2d(7)
        self.inner = nn.Conv2d(7, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.head(F.relu(self.inner(F.relu(self.norm(x)))).mean((-2, -1)))


def test_property_concatenated_channels_keep_their_columns_and_norm_entries():
    spaces = _spaces(_Cat())
    assert spaces["a"].readers == spaces["b"].readers == [("inner", 1)]
    assert spaces["a"].starts == {"norm": 0, "inner": 0} and spaces["b"].starts == {"norm": 3, "inner": 3}
    assert spaces["inner"].starts == {}
    model = _Cat().eval()
    groups = {g.name: g for g in partition(model, "channel", example_input=EXAMPLE)}
    b = groups["b.weight"]
    assert {(p.name, p.window) for p in [*b.slices, *b.tied]} == {
        ("b.weight", None), ("b.bias", None), ("inner.weight", (3, 4)), ("norm.weight", (3, 4)), ("norm.bias", (3, 4)),
    }  # fmt: skip
    assert b.size == 2 + 5
    total = model.b.weight[2].square().sum() + model.inner.weight[:, 5].square().sum()
    torch.testing.assert_close(b.sum_squares()[2], total.detach())
    keep = torch.tensor([True, False, True, False])
    column = next(p for p in b.slices if p.name == "inner.weight")
    assert column.broadcast(keep).flatten().tolist() == [True, True, True, True, False, True, False]
    ((running, norm),) = b.norms
    assert norm is model.norm and running.broadcast(keep).tolist() == [True, True, True, True, False, True, False]
    masks = [keep if each is b else each.all_kept() for each in groups.values()]
    assert partition(model, "channel", example_input=EXAMPLE).zeros(masks) == 2 * (2 + 5)


class _Sort(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu(self.inner(self.a(x).flip(1))).mean((-2, -1)))


def test_property_an_operation_that_is_not_known_pins_what_it_touches_and_says_so():
    groups = partition(_Sort(), "channel", example_input=EXAMPLE)
    assert [g.name for g in groups] == ["inner.weight"]
    reasons = {e.name: e.reason for e in groups.excluded}
    assert "flip is not known" in reasons["channels of a"]
    assert reasons["a.weight"] == "no removable channel"


def test_property_the_same_channels_twice_in_a_concatenation_have_two_windows():
    class Doubled(_Sort):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(6, 4, 1)

        def forward(self, x):
            x = self.a(x)
            return self.head(F.relu(self.inner(torch.cat((x, x), dim=1))).mean((-2, -1)))

    groups = partition(Doubled(), "channel", example_input=EXAMPLE)
    assert [g.name for g in groups] == ["a.weight", "inner.weight"]
    assert [(p.name, p.window) for p in groups[0].slices] == [
        ("a.weight", None), ("inner.weight", (0, 3)), ("inner.weight", (3, 3)),
    ]  # fmt: skip


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu(self.again(F.relu(self.again(self.stem(x))))).mean((2, 3)))


def test_property_a_layer_called_twice_couples_its_inputs_and_outputs():
    space = _spaces(_Twice())["stem"]
    assert space.writers == ["stem", "again"] and space.readers == [("again", 1), ("head", 1)] and space.joined


class _Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def test_error_what_cannot_be_traced_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="cannot be traced by torch"):
        partition(_Branch(), "channel", example_input=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="example_input does not run"):
        partition(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "channel", example_input=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no channel of the model can be removed"):
        partition(nn.Sequential(nn.Linear(2, 2)), "channel", example_input=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="coupling='all' is unknown"):
        partition(nn.Sequential(nn.Linear(2, 2)), "channel", coupling="all", example_input=torch.zeros(1, 2))


def test_property_tracing_leaves_modes_and_statistics(residual):
    model = residual().train()
    model.bn2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace_channels(model, torch.randn(4, 2, 6, 6))
    assert model.training and model.bn1.training and not model.bn2.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["digits_resnet", "resnet20", "small_cnn", "wide_resnet", "mlp"])
def test_property_the_project_networks_can_be_traced_and_nothing_but_the_head_is_left_out(name):
    from bayesprune.vision import networks

    settings = {
        "digits_resnet": {"num_classes": 4},
        "resnet20": {"num_classes": 4},
        "small_cnn": {"in_channels": 1, "num_classes": 4},
        "wide_resnet": {"depth": 10, "widen_factor": 1, "num_classes": 4},
        "mlp": {"sizes": (64, 8, 8, 4)},
    }[name]
    model = networks.build(name, **settings)
    example = torch.zeros(2, {"resnet20": 3, "wide_resnet": 3}.get(name, 1), 8, 8)
    groups = partition(model, "channel", example_input=example.flatten(1) if name == "mlp" else example)
    assert [e.reason for e in groups.excluded] == ["model output"]
    prunable = partition(model, "weight").total
    assert groups.total == prunable
