from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesprune.baselines import gradual_channel_pruning
from bayesprune.sparsity import cubic_ramp

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def step(model, optimizer):
    optimizer.zero_grad()
    model(IMAGES).square().mean().backward()
    optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def test_limit_before_its_ramp_it_is_sgd():
    plain, pruned = network(), network()
    optimizers = [sgd(plain), sgd(pruned)]
    gradual_channel_pruning(
        pruned, optimizers[1], target_sparsity=0.5, start_step=50, end_step=60, example_input=IMAGES[:1]
    )
    for _ in range(5):
        step(plain, optimizers[0])
        step(pruned, optimizers[1])
    for one, other in zip(plain.parameters(), pruned.parameters()):
        torch.testing.assert_close(one, other)


def test_equation_the_smallest_channels_go_along_the_cubic_ramp_for_good():
    model = network()
    with torch.no_grad():  # channel 3 of the first layer is the smallest by far, in all tensors tied to it
        model[0].weight[3] *= 1e-3
        model[2].weight[:, 3] *= 1e-3
    optimizer = sgd(model)
    pruner = gradual_channel_pruning(
        model, optimizer, target_sparsity=0.5, start_step=0, end_step=8, every=2, example_input=IMAGES[:1]
    )
    gone = torch.zeros(8, dtype=torch.bool)
    for done in range(1, 11):
        step(model, optimizer)
        dead = model[0].weight.flatten(1).abs().sum(1) == 0
        assert bool((dead | ~gone).all())  # never back
        gone = dead
        if done == 2:
            assert bool(dead[3])
        if done % 2 == 0:
            assert pruner.hard_sparsity == pytest.approx(cubic_ramp(done, 0, 8, 0.5), abs=0.12)
    assert pruner.hard_sparsity == pytest.approx(0.5, abs=0.08) and pruner.soft_sparsity == 0.0
