from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from baselines.sparse_reference import SHAPES, Twin, build, pick, sgd, step_torch
from bayesprune.baselines.allocation import erdos_renyi_kernel, layer_counts
from bayesprune.baselines.magnitude import GradualMagnitudePruning
from bayesprune.sparsity import ForwardPruning

SIZES = [math.prod(shape) for shape in SHAPES]
START, END, EVERY, TARGET = 2, 13, 3, 0.9


def renew(twin: Twin, step: int, distribution: str) -> None:
    """Equation 1, and the smallest weights of each layer (or of all) masked."""
    share = TARGET * (1 - (1 - (step - START) / (END - START)) ** 3)
    keep = sum(SIZES) - round(share * sum(SIZES))
    if distribution == "global":
        both = np.concatenate([np.where(m, np.abs(w), -1).ravel() for w, m in zip(twin.weights, twin.masks)])
        order = np.argsort(both, kind="stable")[sum(SIZES) - keep :]
        flat = np.zeros(sum(SIZES), dtype=bool)
        flat[order] = True
        twin.masks = [part.reshape(s) for part, s in zip(np.split(flat, [SIZES[0]]), SHAPES)]
    else:
        density = (
            [keep / sum(SIZES)] * 2 if distribution == "uniform" else erdos_renyi_kernel(SHAPES, keep / sum(SIZES))
        )
        quota = [d * n for d, n in zip(density, SIZES)]
        counts = [math.floor(q + 1e-9) for q in quota]
        if sum(counts) < keep:
            counts[int(np.argmax([q - c for q, c in zip(quota, counts)]))] += 1
        twin.masks = [m & ~pick(np.abs(w), m, m.sum() - c) for w, m, c in zip(twin.weights, twin.masks, counts)]
    twin.mask()


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_equation_a_run_equals_a_numpy_transcription(distribution):
    model = build()
    twin = Twin(model)
    optimizer = sgd(model)
    masks = GradualMagnitudePruning(
        model, optimizer, target_sparsity=TARGET, start_step=START, end_step=END, every=EVERY, distribution=distribution
    )
    twin.check(model, masks)  # dense at first
    kept = []
    for step in range(1, 18):
        step_torch(model, optimizer, step)
        twin.descend(step)
        twin.mask()
        if step in (5, 8, 11, 13):
            renew(twin, step, distribution)
        twin.check(model, masks)
        for param, momentum in zip(model.parameters(), twin.momenta):
            np.testing.assert_allclose(
                optimizer.state[param]["momentum_buffer"].numpy(), momentum, rtol=1e-12, atol=1e-14
            )
        kept.append(sum(mask.sum() for mask in twin.masks))
    assert len(set(kept)) == 5 and kept[-1] == sum(SIZES) - round(TARGET * sum(SIZES))


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_property_what_is_pruned_never_returns_and_no_layer_dies(distribution):
    model = build()
    optimizer = sgd(model)
    masks = GradualMagnitudePruning(
        model, optimizer, target_sparsity=0.97, end_step=30, every=1, distribution=distribution
    )
    before = list(masks.keep_masks.values())
    for step in range(1, 34):
        step_torch(model, optimizer, step)
        now = list(masks.keep_masks.values())
        assert not any((new & ~old).any() for new, old in zip(now, before))
        assert all(mask.any() for mask in now)
        assert masks.groups.zeros(now) == round(masks.target_now * sum(SIZES))
        before = now
    assert masks.target_now == 0.97


def test_property_no_weight_returns_where_rounding_would_bring_one_back():
    # Of 25, 25 and 10 weights largest remainders give 22, 22, 8 of 52 but 21, 21, 9 of 51: the third must not grow.
    assert layer_counts([(25,), (25,), (10,)], 8 / 60) == [22, 22, 8]
    assert layer_counts([(25,), (25,), (10,)], 9 / 60) == [21, 21, 9]
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(5, outputs, bias=False) for outputs in (5, 5, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    masks = GradualMagnitudePruning(model, optimizer, target_sparsity=0.9, end_step=200, every=1)
    before = [25, 25, 10]
    for _ in range(200):
        optimizer.step()
        now = [int(mask.sum()) for mask in masks.keep_masks.values()]
        assert all(a <= b for a, b in zip(now, before)) and 60 - sum(now) == round(60 * masks.target_now)
        before = now


def test_property_finish_before_the_end_of_the_ramp_reaches_the_target():
    model = build()
    masks = GradualMagnitudePruning(model, sgd(model), target_sparsity=0.8, end_step=100, every=1)
    for step in range(1, 10):
        step_torch(model, masks.optimizer, step)
    assert 0 < masks.hard_sparsity < 0.8
    masks.finish_()
    assert sum(int((p == 0).sum()) for p in masks.params) == round(0.8 * sum(SIZES))


@pytest.mark.parametrize("optimizer", [sgd, lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2)])
def test_parity_it_is_forward_pruning_without_a_prior(optimizer):
    models = [build(), build()]
    optimizers = [optimizer(model) for model in models]
    GradualMagnitudePruning(
        models[0], optimizers[0], target_sparsity=0.8, start_step=2, end_step=9, every=3, distribution="global"
    )
    ForwardPruning(
        models[1], optimizers[1], sparsity=0.8, warmup_steps=2, ramp_end_step=9, every=3, groups="weight", scope="global",
        prior=None, keep_ends=False,
    )  # fmt: skip
    for step in range(14):
        for model, each in zip(models, optimizers):
            step_torch(model, each, step)
    assert all(torch.equal(a, b) and (a == 0).any() for a, b in zip(models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"end_step": 9, "distribution": "local"},
            "distribution='local' is unknown; choose one of uniform, erk, global",
        ),
        ({"end_step": 9, "start_step": 9}, r"start_step=9 must lie in \[0, end_step=9\)"),
        ({"end_step": 9, "target_sparsity": 0.99}, "sparsity=0.99 is out of reach: with min_groups=1"),
        (
            {"end_step": 9, "target_sparsity": 0.99, "distribution": "global"},
            "sparsity=0.99 is out of reach: with min_groups=1",
        ),
    ],
)
def test_error_settings(settings, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        GradualMagnitudePruning(model, sgd(model), **{"target_sparsity": 0.5, **settings})
