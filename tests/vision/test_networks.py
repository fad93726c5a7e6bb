from __future__ import annotations

import math

import pytest
import torch
from torch import fx, nn

from bayesprune.vision import (
    BasicBlock,
    ResNet,
    WideResNet,
    build,
    digits_resnet,
    mlp,
    names,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    small_cnn,
    wide_resnet,
    wrn28_10,
)
from bayesprune.vision.resnet import PadShortcut

# name, arguments, shape of an input
SMALL_BUILDS = [
    ("resnet18", {"num_classes": 7}, (2, 3, 32, 32)),
    ("resnet20", {"num_classes": 7}, (2, 3, 32, 32)),
    ("resnet20", {"num_classes": 7, "shortcut": "A", "width": 8}, (2, 3, 32, 32)),
    ("resnet20_frn", {"num_classes": 7, "width": 8}, (2, 3, 32, 32)),
    ("resnet34", {"num_classes": 7}, (2, 3, 16, 16)),
    ("resnet50", {"num_classes": 7}, (2, 3, 64, 64)),
    ("wide_resnet", {"num_classes": 7, "depth": 10, "widen_factor": 2}, (2, 3, 32, 32)),
    ("wide_resnet", {"num_classes": 7, "depth": 10, "widen_factor": 1, "dropout": 0.3}, (2, 3, 32, 32)),
    ("small_cnn", {"num_classes": 7, "in_channels": 1}, (2, 1, 8, 8)),
    ("digits_resnet", {"num_classes": 7}, (2, 1, 8, 8)),
    ("mlp", {"sizes": [12, 5, 7]}, (2, 3, 2, 2)),
    ("vgg16", {"num_classes": 7, "width": 8}, (2, 3, 32, 32)),
    ("densenet", {"num_classes": 7, "growth": 4, "depths": (2, 2)}, (2, 3, 16, 16)),
    ("vit", {"num_classes": 7, "width": 24, "depth": 2, "heads": 3}, (2, 3, 32, 32)),
    ("whitened94", {"num_classes": 7, "width": 8}, (2, 3, 32, 32)),
    ("whitened95", {"num_classes": 7, "width": 8}, (2, 3, 32, 32)),
    ("whitened96", {"num_classes": 7, "width": 8}, (2, 3, 32, 32)),
]


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: resnet18(num_classes=10), 11_173_962),
        (lambda: resnet34(num_classes=10), 21_282_122),
        (lambda: resnet34(num_classes=100), 21_328_292),
        (lambda: resnet50(num_classes=1000), 25_557_032),
        (lambda: resnet20(num_classes=10, shortcut="A"), 269_722),
        (lambda: resnet20(num_classes=10), 272_474),
        (lambda: wrn28_10(num_classes=10), 36_479_194),
        (lambda: wrn28_10(num_classes=100), 36_536_884),
        (lambda: wide_resnet(num_classes=10, depth=16, widen_factor=4), 2_748_890),
        (lambda: small_cnn(num_classes=10), 9 * (3 * 16 + 16 * 16 + 16 * 32 + 32 * 32) + 2 * 96 + 330),
        (lambda: digits_resnet(num_classes=10), 19_706),
        (lambda: mlp([64, 32, 10]), 65 * 32 + 33 * 10),
    ],
)
def test_parity_parameter_count_is_the_published_one(make, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == parameters


@pytest.mark.parametrize(("name", "kwargs", "shape"), SMALL_BUILDS)
def test_property_traced_network_gives_the_same_logits(name, kwargs, shape):
    torch.manual_seed(0)
    model = build(name, **kwargs).eval()
    x = torch.randn(shape)
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        assert torch.equal(traced(x), logits)


@pytest.mark.parametrize(("name", "kwargs", "shape"), SMALL_BUILDS)
def test_property_every_parameter_gets_a_gradient(name, kwargs, shape):
    torch.manual_seed(0)
    model = build(name, **kwargs)
    nn.functional.cross_entropy(model(torch.randn(shape)), torch.tensor([1, 2])).backward()
    for parameter_name, parameter in model.named_parameters():
        learned = parameter.grad is not None and parameter.grad.isfinite().all()
        assert learned or not parameter.requires_grad, parameter_name


def test_every_name_is_built_in_the_trials():
    assert {name for name, _, _ in SMALL_BUILDS} | {"wrn28_10"} == set(names())


def test_property_channels_last_gives_the_same_logits():
    torch.manual_seed(0)
    model = resnet20(num_classes=10, width=8).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(x)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


def test_equation_he_initialisation():
    torch.manual_seed(0)
    model = resnet18(num_classes=100)
    conv = model.stages[3][0].conv1  # 256 channels to 512
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert model.head.weight.std().item() == pytest.approx(math.sqrt(1 / 512), rel=0.02)
    assert model.head.bias.abs().max() == 0
    hidden = mlp([400, 300, 10])[1]
    assert hidden.weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)


def test_property_same_seed_gives_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(digits_resnet(num_classes=10).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_limit_block_with_zero_convolutions_is_relu_of_the_input():
    block = BasicBlock(4, 4, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x.relu())


def test_limit_wide_network_with_zero_branches_keeps_the_stem():
    # Pre-activation: with the branches at zero, blocks of equal shape pass their input on, unrectified.
    model = WideResNet(10, 1, num_classes=3).eval()
    block = model.stages[0][0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)


def test_equation_wide_block_by_hand():
    # Zagoruyko & Komodakis, figure 1: where the shape changes, the shortcut too reads the activation.
    torch.manual_seed(0)
    block = WideResNet(10, 1, num_classes=3).stages[1][0].train()
    x = torch.randn(4, 16, 6, 6)
    f = nn.functional
    active = f.relu(f.batch_norm(x, None, None, training=True))
    y = f.relu(f.batch_norm(f.conv2d(active, block.conv1.weight, stride=2, padding=1), None, None, training=True))
    wanted = f.conv2d(y, block.conv2.weight, padding=1) + f.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), wanted)


def test_equation_pad_shortcut_by_hand():
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = PadShortcut(stride=2, extra=3)(x)
    assert y.shape == (1, 5, 2, 2)
    assert y[0, 1].tolist() == [[0, 2], [8, 10]]
    assert y[0, 2].tolist() == [[16, 18], [24, 26]]
    assert y[0, [0, 3, 4]].abs().max() == 0


def test_error_num_classes_has_no_default():
    for name in names():
        if name != "mlp":
            with pytest.raises(TypeError, match=rf"{name}: missing a required.*num_classes"):
                build(name)


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("ResNet-18", "resnet18"), ("wrn2810", "wrn28_10"), ("resnt20", "resnet20"), ("MLP", "mlp")]
)
def test_error_unknown_name_gives_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=rf"name='{wrong}' is no network: did you mean '{nearest}'"):
        build(wrong, num_classes=10)


def test_error_messages_of_the_networks():
    with pytest.raises(TypeError, match=r"resnet18: .*'widht'; its arguments are \(\*, num_classes"):
        build("resnet18", num_classes=10, widht=3)
    with pytest.raises(ValueError, match="shortcut='C': use 'A'"):
        resnet20(num_classes=10, shortcut="C")
    with pytest.raises(ValueError, match="stem='none': use 'cifar'"):
        ResNet(BasicBlock, (1,), (4,), num_classes=2, stem="none")
    with pytest.raises(ValueError, match=r"depth=20: use 6 k \+ 4"):
        wide_resnet(num_classes=2, depth=20)
    with pytest.raises(ValueError, match=r"sizes=\[3\]"):
        mlp([3])
    with pytest.raises(ValueError, match="activation='sigmoid': use one of relu, tanh"):
        mlp([3, 2], activation="sigmoid")
