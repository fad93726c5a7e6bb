from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines.sparse_reference import SHAPES, Twin, build, draw, pick, sgd, start_at_random, step_torch
from bayesprune.baselines.allocation import layer_counts
from bayesprune.baselines.set import SET


def renew(twin: Twin, share: float, generator: torch.Generator) -> None:
    """Box 2: a share of the positive and of the negative weights nearest to zero, as many at random."""
    old = twin.masks
    twin.masks = []
    for weight, mask in zip(twin.weights, old):
        positive, negative = mask & (weight >= 0), mask & (weight < 0)
        gone = pick(weight, positive, int(share * positive.sum())) | pick(
            -weight, negative, int(share * negative.sum())
        )
        twin.masks.append(mask & ~gone)
    twin.mask()
    twin.masks = [
        mask | draw(~mask, int(before.sum() - mask.sum()), generator) for mask, before in zip(twin.masks, old)
    ]


@pytest.mark.parametrize("sparsity", [0.4, 0.8])
def test_equation_a_run_equals_a_numpy_transcription(sparsity):
    model = build()
    twin = Twin(model)
    optimizer = sgd(model)
    masks = SET(model, optimizer, target_sparsity=sparsity, every=4, end_step=20, seed=7)
    counts = layer_counts(SHAPES, sparsity, "erk")
    generator = start_at_random(twin, counts, seed=7)
    returned = 0
    for step in range(1, 24):
        step_torch(model, optimizer, step)
        twin.descend(step)
        twin.mask()
        if step % 4 == 0 and step < 20:
            old = twin.masks
            renew(twin, 0.3, generator)
            returned += sum(((w == 0) & m & b).sum() for w, m, b in zip(twin.weights, twin.masks, old))
        twin.check(model, masks)
        assert [mask.sum() for mask in twin.masks] == counts  # no weight leaves its layer
        for param, momentum in zip(model.parameters(), twin.momenta):
            np.testing.assert_allclose(
                optimizer.state[param]["momentum_buffer"].numpy(), momentum, rtol=1e-12, atol=1e-14
            )
    assert returned > 0 or sparsity > 0.5  # some fell and grew at once: they too start at zero


def test_equation_each_sign_loses_its_share():
    model = nn.Linear(20, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    masks = SET(model, optimizer, target_sparsity=0.0, every=1)
    values = torch.tensor([[0.1 * i for i in range(1, 11)] + [-1.0 * i for i in range(1, 11)]])
    model.weight.data.copy_(values)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()  # dense: everything grows where it fell, at zero
    assert (model.weight == 0).nonzero()[:, 1].tolist() == [0, 1, 2, 10, 11, 12]
    assert masks.hard_sparsity == 0.0


def test_error_settings():
    model = build()
    with pytest.raises(ValueError, match=r"drop_fraction=0 must lie in \(0, 1\)"):
        SET(model, sgd(model), target_sparsity=0.5, every=2, drop_fraction=0)
