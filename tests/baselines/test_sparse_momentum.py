from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from baselines.sparse_reference import DECAY, LR, SHAPES, Twin, build, pick, sgd, start_at_random, step_torch
from bayesprune.baselines.sparse_momentum import SparseMomentum, momentum_of
from bayesprune.samplers import CVAdam

END, EVERY = 18, 3


def renew(twin: Twin, step: int) -> None:
    """Algorithm 1, with the redistribution as a walk over the layers."""
    rate = 0.005 + 0.5 * (0.5 - 0.005) * (1 + math.cos(math.pi * step / END))
    means = np.array([np.abs(v)[m].mean() for v, m in zip(twin.momenta, twin.masks)])
    shares = means / means.sum()
    survivors, removed = [], 0
    for weight, mask, share in zip(twin.weights, twin.masks, shares):
        sparsity = 1 - mask.sum() / mask.size
        own = min(rate, sparsity) if sparsity < 0.2 and share > 1 / len(shares) else rate
        gone = pick(np.abs(weight), mask, min(math.ceil(own * mask.sum()), mask.sum() - 1))
        removed += gone.sum()
        survivors.append(mask & ~gone)
    room = np.array([(~mask).sum() for mask in survivors])
    quota = shares * removed
    while (quota > room).any():  # two layers: what one cannot hold is the other's
        over = np.maximum(quota - room, 0)
        quota = np.minimum(quota, room) + over[::-1]
    counts = np.floor(quota + 1e-9).astype(int)
    for i in np.argsort(-(quota - counts), kind="stable")[: removed - counts.sum()]:
        counts[i] += 1
    twin.masks = [mask | pick(-np.abs(v), ~mask, count) for mask, v, count in zip(survivors, twin.momenta, counts)]


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("closure", [False, True])
def test_equation_a_run_equals_a_numpy_transcription(sparsity, closure):
    model = build()
    twin = Twin(model)
    optimizer = sgd(model)
    masks = SparseMomentum(model, optimizer, target_sparsity=sparsity, every=EVERY, end_step=END, seed=7)
    sizes = [math.prod(shape) for shape in SHAPES]
    keep = sum(sizes) - round(sparsity * sum(sizes))
    first = round(sizes[0] * keep / sum(sizes))  # uniform
    start_at_random(twin, [first, keep - first], seed=7)
    twin.check(model, masks)
    moved = 0
    for step in range(1, END + 4):
        step_torch(model, optimizer, step, closure)
        twin.descend(step)
        twin.mask(momenta=False)  # the momentum is dense and goes on
        if step % EVERY == 0 and step < END:
            before = [mask.sum() for mask in twin.masks]
            renew(twin, step)
            twin.mask(momenta=False)
            moved += before[0] != twin.masks[0].sum()
        twin.check(model, masks)
        for param, momentum in zip(model.parameters(), twin.momenta):
            np.testing.assert_allclose(
                optimizer.state[param]["momentum_buffer"].numpy(), momentum, rtol=1e-12, atol=1e-14
            )
    assert moved >= 1  # weights went from one layer to the other


def test_property_a_weight_grown_starts_at_zero_and_moves_by_its_momentum():
    model = build()
    optimizer = sgd(model)
    masks = SparseMomentum(model, optimizer, target_sparsity=0.7, every=2, end_step=9)
    step_torch(model, optimizer, 1)
    before = [mask.clone() for mask in masks.keep_masks.values()]
    step_torch(model, optimizer, 2)
    grown = [mask & ~old for mask, old in zip(masks.keep_masks.values(), before)]
    momenta = [optimizer.state[param]["momentum_buffer"].clone() for param in masks.params]
    assert sum(int(mask.sum()) for mask in grown) > 0
    for param, mask, momentum in zip(masks.params, grown, momenta):
        assert (param[mask] == 0).all() and (momentum[mask] != 0).all()
    step_torch(model, optimizer, 3)
    for param, mask, momentum in zip(masks.params, grown, momenta):
        expected = -LR * (0.9 * momentum + param.grad)[mask]
        torch.testing.assert_close(param.detach()[mask], expected, rtol=1e-12, atol=0)


def one_update(shapes, kept, means):
    """Kept weights a layer after one update at drop fraction ½, from layers of equal |momentum| each."""
    model = nn.Sequential(*(nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    total = sum(p.numel() for p in model.parameters())
    masks = SparseMomentum(model, optimizer, target_sparsity=1 - sum(kept) / total, every=1, end_step=10**9)
    keep = [torch.arange(p.numel()).view(p.shape) < count for p, count in zip(masks.params, kept)]
    masks._set_keep_(keep)
    for param, mean in zip(masks.params, means):
        param.data.copy_(torch.arange(1.0, param.numel() + 1).view(param.shape))
        param.grad = torch.full_like(param, mean)
    optimizer.step()
    return [int(mask.sum()) for mask in masks.keep_masks.values()]


def test_equation_a_nearly_dense_layer_that_grows_prunes_at_most_its_sparsity():
    # 18 of 20 kept, mean 1.2 beside 1: prunes ⌈0.1·18⌉ = 2, the other ⌈½·6⌉ = 3; 5 in proportion 1.2 : 1 is 3 and 2
    assert one_update([(4, 5), (10, 4)], [18, 6], [1.2, 1.0]) == [18 - 2 + 3, 6 - 3 + 2]
    # with the smaller momentum it prunes ⌈½·18⌉ = 9; 12 in proportion 1 : 2 is 4 and 8
    assert one_update([(4, 5), (10, 4)], [18, 6], [1.0, 2.0]) == [18 - 9 + 4, 6 - 3 + 8]


def test_equation_what_a_layer_cannot_hold_goes_to_the_others_alike():
    # Each prunes half: 6 + 8 + 4 = 18, of which 8 : 1 : 3 would be 12, 1.5 and 4.5. The first holds 9: 3 over, 1.5 to
    # each of the others (in proportion it would be 0.75 and 2.25).
    kept = one_update([(3, 5), (8, 3), (6, 8)], [12, 16, 8], [8.0, 1.0, 3.0])
    assert kept == [12 - 6 + 9, 16 - 8 + 3, 8 - 4 + 6]


def test_property_no_layer_dies():
    model = build()
    masks = SparseMomentum(model, sgd(model), target_sparsity=0.97, every=1, end_step=40)
    for step in range(1, 40):
        step_torch(model, masks.optimizer, step)
        assert all(mask.any() for mask in masks.keep_masks.values())
        assert sum(int(mask.sum()) for mask in masks.keep_masks.values()) == 3


def test_equation_momentum_of_each_kind_of_optimizer():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    for optimizer, expected in (
        (torch.optim.SGD([weight], lr=0.0, momentum=0.5, weight_decay=DECAY), None),
        (torch.optim.Adam([weight], lr=0.0), "adam"),
        (CVAdam([weight], lr=0.1, num_data=10), "momentum"),
    ):
        assert torch.equal(momentum_of(optimizer, weight), torch.zeros(2))
        weight.grad = torch.tensor([0.5, 3.0])
        optimizer.step()
        found = momentum_of(optimizer, weight)
        if expected is None:
            torch.testing.assert_close(found, torch.tensor([0.5 + DECAY, 3.0 - 2 * DECAY]))
        elif expected == "adam":  # m/√v after one step: 0.1·g/(√0.001·|g|)
            torch.testing.assert_close(found, torch.full((2,), 0.1 / math.sqrt(1e-3)), rtol=1e-5, atol=0)
        else:
            assert found is optimizer.state[weight]["momentum"]


def test_error_an_optimizer_without_momentum():
    model = build()
    with pytest.raises(ValueError, match="momentum=0: sparse momentum grows weights by the optimizer's momentum"):
        SparseMomentum(model, sgd(model, momentum=0.0), target_sparsity=0.5, every=2, end_step=9)
    optimizer = torch.optim.Adagrad(model.parameters())
    SparseMomentum(model, optimizer, target_sparsity=0.5, every=1, end_step=9)
    with pytest.raises(ValueError, match="Adagrad keeps no momentum"):
        step_torch(model, optimizer, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_fraction": 1.0}, r"drop_fraction=1.0 must lie in \(0, 1\)"),
        ({"final_drop_fraction": 0.6}, r"final_drop_fraction=0.6 must lie in \[0, drop_fraction=0.5\]"),
    ],
)
def test_error_settings(settings, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        SparseMomentum(model, sgd(model), target_sparsity=0.5, every=2, end_step=9, **settings)
