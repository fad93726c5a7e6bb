from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesprune.samplers import CVAdam, VariationalCVAdam


def test_target_fixed_point_is_the_mean_field_optimum():
    """σ² = 1/(N(H + weight_decay)) for each of 200 replicates of four curvatures; μ at the minimum. Tolerance: 4
    standard errors of the mean."""
    number, decay, alpha = 25.0, 0.1, 0.5
    curvature = torch.tensor([0.4, 1.0, 3.0, 8.0], dtype=torch.float64)
    mean = nn.Parameter(torch.zeros(200, 4, dtype=torch.float64))
    optimizer = VariationalCVAdam(
        [mean], lr=0.02, num_data=number, global_scale=alpha, dual_lr=0.02, weight_decay=decay,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    centre = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    kept_std, kept_mean = [], []
    for step in range(9000):
        with optimizer.sampled():
            mean.grad = curvature * (mean.detach() - centre)
        optimizer.step()
        if step >= 6000 and step % 20 == 0:
            kept_std.append(optimizer.std(mean).clone())
            kept_mean.append(mean.detach().clone())
    optimum = (1 / (number * (curvature + decay))).sqrt()
    assert (optimum < alpha).all()
    variance = torch.stack(kept_std).square().mean(0)  # (200, 4)
    error = variance.std(0) / 200**0.5
    # the mirror step's own noise spreads τ a little: 3 % of the variance
    assert ((variance.mean(0) - optimum**2).abs() < 4 * error + 0.03 * optimum**2).all()
    posterior_mean = curvature * centre / (curvature + decay)
    per_chain = torch.stack(kept_mean).mean(0)
    assert ((per_chain.mean(0) - posterior_mean).abs() < 4 * per_chain.std(0) / 200**0.5 + 1e-9).all()


def test_limit_flat_loss_drives_sigma_up_to_alpha():
    mean = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = VariationalCVAdam([mean], lr=0.01, num_data=10, global_scale=0.01, dual_lr=0.15)
    for _ in range(500):
        with optimizer.sampled():
            mean.grad = 0.1 * mean.detach()
        optimizer.step()
    assert (optimizer.std(mean) < 0.01).all() and (optimizer.std(mean) > 0.0098).all()


def test_target_explicit_mean_and_random_walk_have_different_spreads():
    """Frozen τ on a quadratic: Algorithm 1's weights spread by (ατ)² around a mean that hardly moves, Algorithm 2's by
    its T_eff.

    Composing Algorithm 1's steps gives noise increments ε_t − ε_{t−1} that cancel; Algorithm 2 takes them as
    independent. 2,000 chains, tolerance 4 standard errors (13 %) of a variance.
    """
    number, lr, chains = 10.0, 0.01, 2000
    scale = (1 / number) ** 0.5
    explicit, implicit = nn.Parameter(torch.zeros(chains)), nn.Parameter(torch.zeros(chains))
    first = VariationalCVAdam(
        [explicit], lr=lr, num_data=number, global_scale=scale * lr**0.75, dual_lr=0.0, weight_decay=0.0,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    second = CVAdam(
        [implicit], lr=lr, num_data=number, betas=(0.1, 1.0), preconditioner="paper", noise="paper", dual_lr=0.0,
        weight_decay=0.0, seed=1,
    )  # fmt: skip
    for _ in range(1000):
        with first.sampled():
            explicit.grad = explicit.detach().clone()
        first.step()
        implicit.grad = implicit.detach().clone()
        second.step()
    with first.sampled():
        spread = explicit.detach().var()
    assert spread == pytest.approx((scale * lr**0.75 * 0.5) ** 2, rel=0.13)
    assert implicit.detach().var() == pytest.approx(0.5 * lr**0.5 * 1.01 / 0.9 / number, rel=0.13)


def test_property_parameters_hold_the_mean_outside_and_the_sample_inside():
    weight = nn.Parameter(torch.ones(50))
    optimizer = VariationalCVAdam([weight], lr=0.1, num_data=10, global_scale=0.5)
    with pytest.raises(ZeroDivisionError), optimizer.sampled():
        assert not torch.equal(weight.detach(), torch.ones(50))
        raise ZeroDivisionError
    assert torch.equal(weight.detach(), torch.ones(50))


def test_error_step_inside_sampled():
    weight = nn.Parameter(torch.ones(1))
    optimizer = VariationalCVAdam([weight], lr=0.1, num_data=10, global_scale=0.5)
    with optimizer.sampled(), pytest.raises(RuntimeError, match="after the with block"):
        optimizer.step()
