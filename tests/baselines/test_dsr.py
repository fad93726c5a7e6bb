from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from baselines.sparse_reference import SHAPES, Twin, build, draw, sgd, start_at_random, step_torch
from bayesprune.baselines.dsr import DynamicSparseReparameterization


def renew(twin: Twin, threshold: float, wanted: int, generator: torch.Generator) -> tuple[float, int]:
    """Algorithm 1; returns the new threshold and how many weights moved."""
    survivors = [mask & (np.abs(weight) >= threshold) for weight, mask in zip(twin.weights, twin.masks)]
    for i, (survivor, mask) in enumerate(zip(survivors, twin.masks)):
        if not survivor.any():
            survivors[i] = mask & (np.abs(twin.weights[i]) == np.abs(twin.weights[i])[mask].max())
    moved = int(sum(m.sum() for m in twin.masks) - sum(m.sum() for m in survivors))
    if moved < 0.9 * wanted:
        threshold *= 2
    elif moved > 1.1 * wanted:
        threshold /= 2
    left = np.array([m.sum() for m in survivors], dtype=float)
    room = np.array([(~m).sum() for m in survivors])
    quota = moved * left / left.sum()
    over = np.maximum(quota - room, 0)
    quota = np.minimum(quota, room) + over[::-1]  # two layers: what one cannot hold is the other's
    counts = np.floor(quota + 1e-9).astype(int)
    for i in np.argsort(-(quota - counts), kind="stable")[: moved - counts.sum()]:
        counts[i] += 1
    twin.masks = survivors  # weights and momenta of what fell are zero before anything grows
    twin.mask()
    twin.masks = [mask | draw(~mask, count, generator) for mask, count in zip(survivors, counts)]
    return threshold, moved


@pytest.mark.parametrize("sparsity", [0.4, 0.8])
@pytest.mark.parametrize("first_threshold", [1e-3, 0.5])
def test_equation_a_run_equals_a_numpy_transcription(sparsity, first_threshold):
    model = build()
    twin = Twin(model)
    optimizer = sgd(model)
    masks = DynamicSparseReparameterization(
        model, optimizer, target_sparsity=sparsity, every=3, end_step=25, threshold=first_threshold, wanted=5, seed=7
    )
    sizes = [math.prod(shape) for shape in SHAPES]
    keep = sum(sizes) - round(sparsity * sum(sizes))
    first = round(sizes[0] * keep / sum(sizes))  # uniform
    generator = start_at_random(twin, [first, keep - first], seed=7)
    threshold, thresholds, moves, placed = first_threshold, [], [], set()
    for step in range(1, 30):
        step_torch(model, optimizer, step)
        twin.descend(step)
        twin.mask()
        if step % 3 == 0 and step < 25:
            threshold, moved = renew(twin, threshold, 5, generator)
            thresholds.append(threshold)
            moves.append(moved)
        twin.check(model, masks)
        for param, momentum in zip(model.parameters(), twin.momenta):
            np.testing.assert_allclose(
                optimizer.state[param]["momentum_buffer"].numpy(), momentum, rtol=1e-12, atol=1e-14
            )
        assert masks.threshold == threshold
        placed.add(twin.masks[0].sum())
    assert len(thresholds) == 8 and len(set(thresholds)) > 1 and max(moves) > 0
    assert len(placed) > 1  # weights went from one layer to the other


@pytest.mark.parametrize(
    ("moved", "factor"), [(17, 2.0), (18, 1.0), (20, 1.0), (22, 1.0), (23, 0.5)]
)  # wanted 20 ± 10 %
def test_equation_threshold_doubles_and_halves_outside_ten_percent(moved, factor):
    model = nn.Linear(60, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    masks = DynamicSparseReparameterization(model, optimizer, target_sparsity=0.5, every=1, wanted=20, threshold=1.0)
    kept = masks.keep_masks["weight"].view(-1).nonzero().view(-1)
    with torch.no_grad():
        model.weight.view(-1)[kept] = 2.0
        model.weight.view(-1)[kept[:moved]] = -0.5
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert masks.threshold == factor
    assert int(masks.keep_masks["weight"].sum()) == 60
    assert int((model.weight == 2.0).sum()) == 60 - moved and int((model.weight != 0).sum()) == 60 - moved


def test_property_a_layer_below_the_threshold_keeps_its_largest_weight():
    model = build()
    optimizer = sgd(model)
    masks = DynamicSparseReparameterization(
        model, optimizer, target_sparsity=0.5, every=1, threshold=1e6, wanted=40, tolerance=0.5
    )
    largest = [int(param.abs().argmax()) for param in masks.params]
    for param in masks.params:
        param.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    for param, place in zip(masks.params, largest):
        assert param.detach().view(-1).nonzero().view(-1).tolist() == [place]
    assert sum(int(mask.sum()) for mask in masks.keep_masks.values()) == 91 - round(0.5 * 91)


def test_property_the_period_may_change():
    model = build()
    periods = [(6, 4), (0, 2), (12, 5)]
    masks = DynamicSparseReparameterization(model, sgd(model), target_sparsity=0.5, every=periods, end_step=30)
    due = []
    for step in range(1, 33):
        masks.step_count = step
        due += [step] if masks._due() else []
    assert due == [2, 4, 8, 15, 20, 25]


def test_equation_the_wanted_number_of_weights():
    # 1.5 % of 100,000 weights; at 99 % sparsity 15 % of the 1,000 kept
    for sparsity, wanted in ((0.5, 1500), (0.9, 1500), (0.99, 150)):
        model = nn.Linear(1000, 100)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert DynamicSparseReparameterization(model, optimizer, target_sparsity=sparsity).wanted == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0 must be positive"),
        ({"wanted": 0}, "wanted=0 must be at least 1"),
        ({"tolerance": 1.0}, r"tolerance=1.0 must lie in \[0, 1\)"),
        ({"every": []}, r"every=\[\] must be at least 1"),
        ({"every": [(0, 5), (3, 0)]}, "must be at least 1"),
    ],
)
def test_error_settings(settings, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        DynamicSparseReparameterization(model, sgd(model), target_sparsity=0.5, **settings)
