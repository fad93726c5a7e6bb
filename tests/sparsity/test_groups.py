from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bayesprune.sparsity import TensorGroups, describe, partition, prunable_modules

SHAPES = [
    ("weight", 1, (4, 6, 3, 3), 1),
    ("kernel", 1, (4, 6, 1, 1), 9),
    ("input", 1, (1, 6, 1, 1), 36),
    ("output", 1, (4, 1, 1, 1), 54),
    ("weight", 2, (4, 6, 3, 3), 1),
    ("kernel", 2, (4, 6, 1, 1), 9),
    ("input", 2, (2, 1, 6, 1, 1), 18),
    ("output", 2, (4, 1, 1, 1), 54),
]


def _key(kind: str, conv_groups: int, shape: tuple[int, ...], place: tuple[int, ...]) -> tuple[int, ...]:
    """The group of one weight, said in words: the explicit loop below uses nothing else."""
    out, per_in = place[0], place[1]
    block = out // (shape[0] // conv_groups)
    return {
        "weight": place,
        "kernel": (out, per_in),
        "input": (block * shape[1] + per_in,),  # the number of the input channel itself
        "output": (out,),
    }[kind]


@pytest.mark.parametrize(("kind", "conv_groups", "mask_shape", "size"), SHAPES)
def test_equation_sum_squares_equals_an_explicit_loop(kind, conv_groups, mask_shape, size):
    torch.manual_seed(0)
    weight = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    groups = TensorGroups("w", weight, kind, conv_groups)
    assert tuple(groups.shape) == mask_shape
    assert groups.size == size
    assert groups.count * size == weight.numel()
    expected: dict[tuple[int, ...], float] = {}
    for place in torch.cartesian_prod(*[torch.arange(n) for n in weight.shape]).tolist():
        key = _key(kind, conv_groups, weight.shape, tuple(place))
        expected[key] = expected.get(key, 0.0) + float(weight[tuple(place)]) ** 2
    values = torch.tensor([expected[key] for key in sorted(expected)], dtype=torch.float64)
    torch.testing.assert_close(groups.sum_squares().reshape(-1), values)


@pytest.mark.parametrize(("kind", "conv_groups", "mask_shape", "size"), SHAPES)
def test_property_broadcast_mask_marks_exactly_its_group(kind, conv_groups, mask_shape, size):
    weight = torch.zeros(4, 6, 3, 3)
    groups = TensorGroups("w", weight, kind, conv_groups)
    for index in range(0, groups.count, max(1, groups.count // 7)):
        mask = torch.zeros(groups.shape, dtype=torch.bool)
        mask.view(-1)[index] = True
        small = groups.broadcast(mask)
        assert small.numel() <= weight.numel()
        marked = small.expand(weight.shape)
        keys = {_key(kind, conv_groups, weight.shape, tuple(place)) for place in marked.nonzero().tolist()}
        assert len(keys) == 1
        assert int(marked.sum()) == size


@pytest.mark.parametrize("conv_groups", [1, 2, 3])
def test_property_a_masked_input_group_is_an_input_channel_that_the_convolution_ignores(conv_groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, groups=conv_groups, bias=False)
    (groups,) = partition(conv, "input")
    inputs = torch.randn(2, 6, 5, 5)
    for channel in range(6):
        mask = groups.all_kept()
        mask.view(-1)[channel] = False
        with torch.no_grad():
            kept = conv.weight * groups.broadcast(mask)
            changed = inputs.clone()
            changed[:, channel] += 1.0
            same = torch.nn.functional.conv2d(inputs, kept, groups=conv_groups)
            assert torch.equal(same, torch.nn.functional.conv2d(changed, kept, groups=conv_groups))
            without = inputs.clone()
            without[:, channel] = 0.0
            torch.testing.assert_close(same, conv(without))


@given(
    kind=st.sampled_from(["weight", "kernel", "input", "output"]),
    conv_groups=st.integers(1, 3),
    per_in=st.integers(1, 3),
    per_out=st.integers(1, 3),
    kernel=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_property_groups_partition_the_weight(kind, conv_groups, per_in, per_out, kernel, seed):
    weight = torch.zeros(conv_groups * per_out, per_in, *kernel)
    groups = TensorGroups("w", weight, kind, conv_groups)
    assert groups.count * groups.size == weight.numel()
    mask = torch.rand(groups.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert int(groups.broadcast(mask).expand(weight.shape).sum()) == int(mask.sum()) * groups.size


def test_property_half_precision_is_summed_in_single():
    weight = torch.full((1, 64), 100.0, dtype=torch.float16)  # 64 · 10⁴ overflows float16
    assert float(TensorGroups("w", weight, "output").sum_squares()) == 640_000.0


def test_property_channels_last_weights_give_the_same_groups():
    torch.manual_seed(0)
    weight = torch.randn(4, 6, 3, 3)
    last = weight.contiguous(memory_format=torch.channels_last)
    for kind in ("weight", "kernel", "input", "output"):
        for conv_groups in (1, 2):
            a, b = TensorGroups("w", weight, kind, conv_groups), TensorGroups("w", last, kind, conv_groups)
            torch.testing.assert_close(a.sum_squares(), b.sum_squares())


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def test_property_prunable_are_linear_and_convolution_weights_and_the_rest_is_named():
    groups = partition(_net(), "weight")
    assert [g.name for g in groups] == ["0.weight", "1.0.weight", "4.weight"]
    assert [(e.name, e.reason) for e in groups.excluded] == [("2.weight", "transposed convolutions are not pruned")]
    assert groups.total == 4 * 27 + 16 + 16
    assert "left dense" in describe(groups) and "2.weight" in describe(groups)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["0"], ["1.0", "4"]),
        ("1", ["0", "4"]),  # a container stands for all below it
        (["1.*", nn.Linear], ["0"]),
        ([nn.Conv2d], ["4"]),
        (["4.weight"], ["0", "1.0"]),
    ],
)
def test_property_exclude_by_pattern_type_and_name(exclude, left):
    modules, excluded = prunable_modules(_net(), exclude)
    assert list(modules) == left
    assert {e.name for e in excluded} == {"0.weight", "1.0.weight", "2.weight", "4.weight"} - {
        f"{n}.weight" for n in left
    }


def test_property_exclude_by_module_and_tied_weights_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert list(prunable_modules(net, net[1])[0]) == ["0"]
    net[1].weight = net[0].weight
    assert partition(net, "weight").total == 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition(_net(), "filter"), "'filter' is unknown"),
        (lambda: partition(_net(), "kernel", exclude=["layer9.*"]), "'layer9.*' matches no module"),
        (lambda: partition(nn.ReLU(), "kernel"), "nothing to prune"),
        (lambda: partition(_net(), "kernel", coupling="group"), "kind='channel' only"),
        (lambda: partition(_net(), "channel"), "example_input is needed"),
        (lambda: TensorGroups("w", torch.zeros(2, 2), "channel"), "not a kind of one tensor"),
    ],
)
def test_error_names_the_argument_and_the_mend(call, message):
    with pytest.raises(ValueError, match=message.replace("*", r"\*").replace(".", r"\.")):
        call()


def test_error_exclude_of_a_wrong_type():
    with pytest.raises(TypeError, match="exclude entry 3"):
        prunable_modules(_net(), [3])
