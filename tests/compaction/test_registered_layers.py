"""Layers whose inside cannot be traced: refused or kept by themselves, cut through once their kind is registered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune.compaction import forget_layer, register_layer


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


class Cube(nn.Module):
    """A function of each entry, by a kernel that the tracer cannot look into."""

    def forward(self, x):
        return Cubed.apply(x)


class ScaledCube(Cube):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.scale * Cubed.apply(x)


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for kind in (Cube, ScaledCube):
        forget_layer(kind)


def network(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight[:, 3:].zero_()
    return model


def test_property_channels_go_through_a_registered_layer():
    model, x = network(Cube()), torch.randn(5, 4)
    register_layer(Cube, nn.ReLU)
    small = bp.compact(model, example_input=x)
    assert small.model[0].out_features == 3 and isinstance(small.model[1], Cube)
    torch.testing.assert_close(small.model(x), model(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = bp.ForwardPruning(
        model, optimizer, sparsity=0.5, warmup_steps=0, ramp_end_step=2, example_input=x, keep_ends=False, min_groups=1
    )
    assert pruner.groups.kind == "channel" and sum(each.count for each in pruner.groups) == 8


def test_property_a_rule_of_one_s_own_is_asked():
    asked = []

    def cubes(analysis, node, module):
        asked.append(type(module))
        source = analysis.read(node, node.args[0])
        return source.with_const(source.const**3)

    register_layer(Cube, cubes)
    x = torch.randn(5, 4)
    assert bp.compact(network(Cube()), example_input=x).model[0].out_features == 3
    assert set(asked) == {Cube}


def test_property_weights_of_a_layer_s_own_keep_its_channels():
    register_layer(ScaledCube, nn.ReLU)
    small = bp.compact(network(ScaledCube(8)), example_input=torch.randn(5, 4))
    assert small.model[0].out_features == 8 and "ScaledCube" in str(small.report)


def test_error_what_is_no_layer_and_no_rule():
    with pytest.raises(TypeError, match="kind=3 is no class of modules"):
        register_layer(3, nn.ReLU)
    with pytest.raises(TypeError, match=r"rule=<class .*Cube'> is no layer of torch"):
        register_layer(ScaledCube, Cube)
    with pytest.raises(TypeError, match="rule='relu' is neither a layer of torch"):
        register_layer(Cube, "relu")
