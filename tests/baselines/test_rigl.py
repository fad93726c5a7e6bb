from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from baselines.sparse_reference import SHAPES, Twin, build, pick, sgd, start_at_random, step_torch
from bayesprune.baselines.allocation import layer_counts
from bayesprune.baselines.rigl import RigL

END, EVERY = 17, 4


def renew(twin: Twin, gradients: list[np.ndarray], step: int) -> list[np.ndarray]:
    """Algorithm 1 at a step of its own; returns what fell and grew at once."""
    fraction = 0.3 / 2 * (1 + math.cos(step * math.pi / END))
    masks, stayed = [], []
    for weight, mask, gradient in zip(twin.weights, twin.masks, gradients):
        count = int(fraction * mask.sum())
        gone = pick(np.abs(weight), mask, count)
        grown = pick(-np.abs(gradient), ~(mask & ~gone), count)
        masks.append((mask & ~gone) | grown)
        stayed.append(gone & grown)
    twin.masks = masks
    twin.mask()
    return stayed


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("sparsity", [0.4, 0.8])
def test_equation_a_run_equals_a_numpy_transcription(sparsity, closure):
    model = build()
    twin = Twin(model)
    optimizer = sgd(model)
    masks = RigL(model, optimizer, target_sparsity=sparsity, every=EVERY, end_step=END, seed=7)
    counts = layer_counts(SHAPES, sparsity, "erk")
    start_at_random(twin, counts, seed=7)
    renewals = stayed = 0
    for step in range(20):  # t of the paper: steps already made
        step_torch(model, optimizer, step, closure)
        if step > 0 and step % EVERY == 0 and step < END:
            before = twin.masks
            stayed += sum(mask.sum() for mask in renew(twin, twin.gradients(step), step))  # instead of a descent
            renewals += any((a != b).any() for a, b in zip(before, twin.masks))
        else:
            twin.descend(step)
            twin.mask()
        twin.check(model, masks)
        assert [mask.sum() for mask in twin.masks] == counts
        for param, momentum in zip(model.parameters(), twin.momenta):
            np.testing.assert_allclose(
                optimizer.state[param]["momentum_buffer"].numpy(), momentum, rtol=1e-12, atol=1e-14
            )
            assert param.grad is not None
    assert renewals >= 2
    assert stayed > 0 or sparsity > 0.5  # some fell and grew at once, and kept their values


def test_equation_grows_where_the_dense_gradient_is_largest():
    model = torch.nn.Linear(10, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    masks = RigL(model, optimizer, target_sparsity=0.5, every=1, end_step=10**9)
    for param in masks.params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    kept = masks.keep_masks["weight"].view(-1).nonzero().view(-1)
    vacant = (~masks.keep_masks["weight"]).view(-1).nonzero().view(-1)
    with torch.no_grad():
        model.weight.view(-1)[kept] = torch.arange(1.0, 11)
    gradient = torch.zeros(20)
    gradient[vacant[[1, 4, 7]]] = torch.tensor([0.5, -2.0, 1.0])
    gradient[kept[9]] = 50.0  # kept and not dropped: its gradient has no say
    model.weight.grad = gradient.view(2, 10).clone()
    optimizer.step()  # ⌊0.3·10⌋ = 3 fall
    assert math.floor(0.15 * (1 + math.cos(math.pi / 1e9)) * 10) == 3
    new = masks.keep_masks["weight"].view(-1)
    assert not new[kept[:3]].any() and new[kept[3:]].all() and new[vacant[[1, 4, 7]]].all()
    assert model.weight.view(-1)[kept[3:]].tolist() == [4, 5, 6, 7, 8, 9, 10]  # no step was made
    assert torch.equal(model.weight.grad.view(-1), gradient)  # and the gradient is back
    assert (model.weight.view(-1)[vacant] == 0).all()


def test_property_batch_norm_and_biases_stand_still_at_a_renewal():
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    RigL(model, optimizer, target_sparsity=0.5, every=2, end_step=9)
    for step in range(1, 6):
        before = [p.detach().clone() for p in (model[0].bias, model[1].weight, model[1].bias)]
        optimizer.zero_grad()
        model(torch.randn(3, 6, generator=torch.Generator().manual_seed(step))).pow(3).sum().backward()
        optimizer.step()
        still = [torch.equal(p, old) for p, old in zip((model[0].bias, model[1].weight, model[1].bias), before)]
        assert still == [step in (3, 5)] * 3


def test_error_settings():
    model = build()
    with pytest.raises(ValueError, match=r"drop_fraction=1.5 must lie in \(0, 1\)"):
        RigL(model, sgd(model), target_sparsity=0.5, end_step=9, drop_fraction=1.5)
