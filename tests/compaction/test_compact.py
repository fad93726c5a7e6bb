"""What goes, what stays and why, layer by layer; what a smaller model keeps of the one it was given."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.compaction import compact
from bayesprune.vision import BasicBlock, ResNet, resnet20
from compact_families import largest_difference, residual, settle_, zero_

IMAGE = torch.zeros(2, 3, 8, 8)


def _net(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * 0.3)
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def _head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def test_property_unread_channels_go_back_to_the_first_layer():
    model = _net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Tanh(), *_head(5))
    zero_(model[6].weight, slice(None), [0, 1, 2, 3])  # only channel 4 is read
    zero_(model[2].weight, 4, [0, 3])  # and it reads channels 1 and 2 only
    result = compact(model, example_input=IMAGE)
    assert (result.model[0].out_channels, result.model[2].in_channels, result.model[2].out_channels) == (2, 2, 1)
    assert result.report.why("0", 0) == "went: no reader uses it"
    assert result.report.why("0", 1) == "stayed: read by 2"
    assert torch.equal(result.slices["2.weight"][1][1], torch.tensor([1, 2]))


def test_equation_a_constant_before_global_pooling_goes_into_the_bias():
    model = _net(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), *_head(4))
    zero_(model[0].weight, [1, 2])
    with torch.no_grad():
        model[1].bias[1], model[1].bias[2] = (
            9.0,
            -9.0,
        )  # channel 1 is a positive constant, channel 2 is zero behind ReLU
    norm = model[1]
    constant = (0 - norm.running_mean[1]) / (norm.running_var[1] + norm.eps).sqrt() * norm.weight[1] + norm.bias[1]
    result = compact(model, example_input=IMAGE)
    wanted = model[5].bias + model[5].weight[:, 1] * constant
    torch.testing.assert_close(result.model[5].bias, wanted)
    assert result.model[0].out_channels == 2
    assert result.report.why("0", 1) == "went: a constant, folded into 5"
    assert result.report.why("0", 2) == "went: exactly zero at every reader"
    assert result.report.training == "evaluation only"


def test_equation_an_unpadded_convolution_before_batch_norm_folds_into_its_running_mean():
    model = _net(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), *_head(4))
    zero_(model[0].weight, 1)
    constant = torch.tanh(model[0].bias[1])
    result = compact(model, example_input=IMAGE)
    shift = constant * model[2].weight[:, 1].sum((1, 2))
    torch.testing.assert_close(result.model[3].running_mean, model[3].running_mean - shift)
    assert result.model[2].bias is None and result.model[0].out_channels == 3
    assert "running mean of 3" in result.report.constants[0]


def test_property_a_layer_without_bias_or_batch_norm_gets_a_bias():
    model = _net(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, bias=False), nn.Tanh(), *_head(2))
    zero_(model[0].weight, [0, 2])
    result = compact(model, example_input=IMAGE)
    assert result.model[2].bias is not None and result.model[0].out_channels == 2
    assert largest_difference(model, result.model, torch.randn(2, 3, 9, 7)) <= 1e-5


def test_equation_a_padded_convolution_reads_all_constants_from_one_carrier():
    model = _net(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), *_head(4))
    zero_(model[0].weight, [0, 2, 5])
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.5, 1.0, 2.0, 1.0, 1.0, -1.0]))
    result = compact(model, example_input=IMAGE)
    # 0 and 2 are constants 0.5 and 2, 5 is zero behind ReLU: 2 carries both.
    kept = result.slices["0.weight"][0][1].tolist()
    assert kept == [1, 2, 3, 4]
    wanted = model[2].weight[:, 2] + model[2].weight[:, 0] * 0.25
    torch.testing.assert_close(result.model[2].weight[:, 1], wanted)
    assert result.report.why("0", 0) == "went: a constant, carried for 2 by another channel"
    assert result.report.why("0", 2) == "stayed: carries the constant channels that 2 reads"
    # Put into the bias instead, the constants are wrong by this much at the border.
    folded = model[2].bias + model[2].weight.sum((2, 3)) @ torch.tensor([0.5, 0, 2, 0, 0, 0])
    naive = F.conv2d(F.relu(model[0](IMAGE + 1))[:, [1, 3, 4]], model[2].weight[:, [1, 3, 4]], folded, padding=1)
    assert (naive - model[2](F.relu(model[0](IMAGE + 1)))).abs().max() > 4e-2


def test_property_reflected_padding_folds():
    model = _net(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), *_head(4)
    )
    zero_(model[0].weight, 0)
    with torch.no_grad():
        model[0].bias[0] = 2.0
    assert compact(model, example_input=IMAGE).model[0].out_channels == 3


def test_property_constants_that_train_stay_where_training_goes_on():
    model = _net(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), *_head(4))
    zero_(model[0].weight, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert compact(model, None, optimizer, IMAGE).model[0].out_channels == 4
    assert compact(model, None, optimizer, IMAGE, constants="fold").model[0].out_channels == 3
    with torch.no_grad():
        model[1].weight[1] = model[1].bias[1] = 0
    assert compact(model, None, optimizer, IMAGE).model[0].out_channels == 4  # they move with the next step
    for param in (model[0].weight, model[1].weight, model[1].bias):
        param.requires_grad_(False)
    result = compact(model, None, optimizer, IMAGE)
    assert result.model[0].out_channels == 3 and result.report.training == "exact"
    assert result.report.gradients <= 1e-7


def test_property_a_scale_that_starts_at_zero_is_no_mask():
    """Residual branches often start with a BatchNorm scale of zero: they will wake up."""
    from sparsity.plain import forward_pruning

    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1), (4, 6), num_classes=3)
    for block in (model.stages[0][0], model.stages[1][0]):
        nn.init.zeros_(block.bn2.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = forward_pruning(model, optimizer, groups="channel", example_input=IMAGE)
    result = compact(model, pruner, None, IMAGE)
    assert result.report.parameters[0] == result.report.parameters[1] and result.kind == "modules"
    assert compact(model, example_input=IMAGE).report.parameters[1] < result.report.parameters[1]


def test_property_flattened_maps_go_in_blocks():
    model = _net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7), nn.ReLU(), nn.Linear(7, 2))
    zero_(model[3].weight, slice(None), slice(36, 72))
    result = compact(model, example_input=IMAGE)
    assert (result.model[0].out_channels, result.model[3].in_features) == (3, 3 * 36)


def test_property_grouped_convolutions_go_in_whole_groups():
    model = _net(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12),
        nn.ReLU(), *_head(12),
    )  # fmt: skip
    zero_(model[8].weight, slice(None), [3, 4, 5, 6])  # all of group 1, a part of group 2
    result = compact(model, example_input=IMAGE)
    conv = result.model[3]
    assert (conv.groups, conv.in_channels, conv.out_channels) == (3, 6, 9)
    assert result.model[0].out_channels == 6
    assert result.report.why("3", 6) == "stayed: read by 8"  # its group is


def test_property_depthwise_convolutions_pass_removal_on():
    model = _net(
        nn.Conv2d(3, 6, 1),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, groups=6, padding=1),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
        *_head(4),
    )
    zero_(model[4].weight, slice(None), [0, 5])
    result = compact(model, example_input=IMAGE)
    assert (result.model[0].out_channels, result.model[2].groups, result.model[4].in_channels) == (4, 4, 4)


def test_property_group_norm_keeps_or_loses_whole_groups_and_layer_norm_keeps_all():
    model = _net(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), *_head(8))
    zero_(model[5].weight, slice(None), [0, 1, 2])
    result = compact(model, example_input=IMAGE)
    assert (result.model[1].num_groups, result.model[1].num_channels) == (3, 6)
    model = _net(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    zero_(model[3].weight, slice(None), [0, 1, 2])
    result = compact(model, example_input=torch.zeros(2, 5))
    assert result.model[0].out_features == 8
    assert result.report.why("0", 0) == "stayed: LayerNorm 1 normalises over it"


class _Cat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.mix, self.head = nn.Conv2d(7, 5, 1), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(F.relu(self.mix(F.relu(torch.cat([self.a(x), self.b(x)], 1)))).mean((2, 3)))


def test_property_concatenated_channels_go_from_where_they_come():
    torch.manual_seed(0)
    model = _Cat()
    zero_(model.mix.weight, slice(None), [1, 2, 5])
    result = compact(model, example_input=IMAGE)
    assert (result.model.a.out_channels, result.model.b.out_channels, result.model.mix.in_channels) == (2, 2, 4)
    assert type(result.model) is _Cat and result.kind == "modules"


def test_property_the_last_channel_stays():
    model = _net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), *_head(4))
    zero_(model[2].weight)
    zero_(model[0].weight)
    result = compact(model, example_input=IMAGE)
    assert (result.model[0].out_channels, result.model[2].in_channels, result.model[2].out_channels) == (1, 1, 1)
    assert result.report.why("0", 0) == "stayed: floor of one channel"
    assert result.model[6].out_features == 3  # outputs stay, read or not
    assert result.report.why("6", 2) == "stayed: model output"


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_property_counts_are_rounded_up_to_a_multiple(multiple):
    torch.manual_seed(1)
    model = resnet20(num_classes=4, width=16)
    settle_(model, torch.randn(8, 3, 8, 8))
    for block in model.stages.modules():
        if isinstance(block, BasicBlock):
            zero_(block.conv2.weight, slice(None), torch.rand(block.conv2.in_channels) < 0.7)
    result = compact(model, example_input=IMAGE, round_to=multiple)
    counts = [block.conv1.out_channels for block in result.model.stages.modules() if isinstance(block, BasicBlock)]
    assert all(count % multiple == 0 for count in counts) and min(counts) < 16
    reasons = {reason for layer in result.report.layers for reason in layer.stayed}
    assert f"rounded up to a multiple of {multiple}" in reasons


def test_property_modes_formats_types_and_hooks_are_kept():
    torch.manual_seed(0)
    model = resnet20(num_classes=4, width=16).to(memory_format=torch.channels_last).train()
    settle_(model, torch.randn(8, 3, 8, 8))
    model.stages[1].eval()
    model.stem[0].weight.requires_grad_(False)
    seen = []
    model.stages[0][0].conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    for block in (model.stages[0][0], model.stages[2][1]):
        zero_(block.conv2.weight, slice(None), [0, 3, 4])
    result = compact(model, example_input=IMAGE.to(memory_format=torch.channels_last))
    small = result.model
    assert type(small) is type(model) and not seen
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert small.stages[0][0].conv1.out_channels == 13
    assert small.stages[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.stem[0].weight.requires_grad and small.head.weight.requires_grad
    small(torch.randn(2, 3, 8, 8))
    assert seen == [13]
    for name, param in small.named_parameters():
        assert param.dtype == torch.float32 and isinstance(param, nn.Parameter), name
    half = compact(model.bfloat16(), example_input=IMAGE.bfloat16())
    assert half.model.head.weight.dtype == torch.bfloat16


def test_property_strided_pointwise_layers_keep_eight_channels_in_channels_last():
    """torch's CPU kernel writes past its buffer below eight input channels."""
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1), (12, 12), num_classes=3)
    settle_(model, torch.randn(8, 3, 8, 8))
    zero_(model.stages[0][0].conv1.weight, slice(None), slice(2, 12))
    zero_(model.stages[1][0].conv1.weight, slice(None), slice(2, 12))
    zero_(model.stages[1][0].shortcut[0].weight, slice(None), slice(2, 12))
    plain = compact(model, example_input=IMAGE)
    assert plain.model.stem[0].out_channels < 8
    last = compact(
        model.to(memory_format=torch.channels_last), example_input=IMAGE.to(memory_format=torch.channels_last)
    )
    assert last.model.stages[1][0].shortcut[0].in_channels == 8


def test_property_what_is_not_known_stays_and_says_why():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.softmax(self.conv(x), 1).mean((2, 3)))

    model = Odd()
    zero_(model.head.weight, slice(None), [0, 1])
    result = compact(model, example_input=IMAGE)
    assert result.model.conv.out_channels == 4
    assert result.report.why("conv", 0) == "stayed: operation softmax is not known to act on each channel alone"
    weights = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), weights, nn.ReLU(), nn.Linear(4, 2))
    zero_(model[4].weight, slice(None), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained = compact(model, None, optimizer, torch.zeros(2, 3))
    assert "linear layer 2 (its weight is computed by weight_norm)" in trained.report.why("0", 0)
    baked = compact(model, example_input=torch.zeros(2, 3))
    assert baked.model[2].out_features == 3 and "2: weight_norm replaced" in baked.report.notes[0]


def test_property_the_given_model_is_left_as_it_is():
    model = residual()
    zero_(model.head.weight, slice(None), [0, 1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    compact(model, example_input=IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]


def test_property_the_report_reads_and_is_plain():
    import json

    model = residual()
    zero_(model.head.weight, slice(None), [0, 1])
    report = compact(model, example_input=IMAGE, check_inputs=[torch.randn(1, 3, 21, 10)]).report
    text = str(report)
    assert "verified on 1x3x21x10" in text and "verified in float64" in text and "no reader uses it" in text
    assert json.loads(json.dumps(report.as_dict()))["kind"] == "modules"
    assert {(2, 3, 8, 8), (2, 3, 9, 11)} <= {shape for shape, _ in report.evaluated}
    with pytest.raises(KeyError, match="the layers are"):
        report.why("nowhere", 0)


def test_property_layers_that_share_a_weight_stay_whole():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    zero_(model[4].weight, slice(None), [0, 1])
    result = compact(model, example_input=torch.zeros(2, 4))
    assert result.model[2].out_features == 4 and result.model[2].weight is result.model[0].weight
    assert result.report.why("2", 0) == "stayed: layers 0 and 2 share their weight"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_property_it_works_where_the_model_is():
    model = residual().cuda()
    zero_(model.head.weight, slice(None), [0, 1])
    zero_(model.stages[0][1].conv2.weight, slice(None), [2, 3])
    for coupling in ("intersection", "indexed"):
        result = compact(model, example_input=IMAGE.cuda(), coupling=coupling, tolerance=1e-4)
        assert {p.device.type for p in result.model.state_dict().values()} == {"cuda"}
