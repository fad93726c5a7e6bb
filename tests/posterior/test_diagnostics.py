from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bayesprune.posterior import bulk_ess, ess, rank_rhat, split_rhat


def ar1(phi: float, chains: int, draws: int, quantities: int, seed: int = 0) -> torch.Tensor:
    """Stationary chains x_t = φ·x_{t-1} + √(1-φ²)·ε_t with variance 1; (chains, draws, quantities)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, chains, quantities, generator=generator, dtype=torch.float64)
    x = [noise[0]]
    for t in range(1, draws):
        x.append(phi * x[-1] + math.sqrt(1 - phi**2) * noise[t])
    return torch.stack(x).transpose(0, 1)


@pytest.mark.parametrize("estimator", [ess, bulk_ess])
@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.9])
def test_target_ess_of_ar1_chains(phi: float, estimator) -> None:
    """ESS = S·(1-φ)/(1+φ), averaged over 100 independent quantities (the standard error is printed on failure).

    On top of 4 standard errors, 2 % are allowed for the bias of the truncation rule and of finite chains.
    """
    chains, draws, quantities = 4, 4000, 100
    truth = chains * draws * (1 - phi) / (1 + phi)
    ratio = estimator(ar1(phi, chains, draws, quantities)) / truth
    standard_error = ratio.std().item() / math.sqrt(quantities)
    assert standard_error < 0.02
    assert abs(ratio.mean().item() - 1) < 4 * standard_error + 0.02, (ratio.mean().item(), standard_error)


def test_target_ess_predicts_the_error_of_the_mean() -> None:
    """The variance of the pooled mean over 2000 replicates is 1/ESS; its standard error is √(2/2000) of it."""
    draws = ar1(0.6, 2, 500, 2000, seed=1)
    observed = draws.mean((0, 1)).var().item()
    predicted = (1 / ess(draws)).median().item()
    assert abs(observed / predicted - 1) < 4 * math.sqrt(2 / 2000) + 0.03


def plain_ess(chains: np.ndarray) -> float:
    """The published recipe with loops, for one quantity."""
    half = chains.shape[1] // 2
    x = np.concatenate([chains[:, :half], chains[:, -half:]])
    m, n = x.shape
    within = x.var(axis=1, ddof=1).mean()
    pooled = (n - 1) / n * within + x.mean(axis=1).var(ddof=1)
    centred = x - x.mean(axis=1, keepdims=True)
    rho = [1.0]
    for t in range(1, n):
        covariance = np.mean([np.dot(c[:-t], c[t:]) / (n - 1) for c in centred])
        rho.append(1 - (within - covariance) / pooled)
    time, previous, k = -1.0, math.inf, 0
    while 2 * k + 1 < n and rho[2 * k] + rho[2 * k + 1] > 0:
        previous = min(previous, rho[2 * k] + rho[2 * k + 1])
        time += 2 * previous
        k += 1
    if 2 * k + 1 < n:
        time += max(rho[2 * k], 0.0)
    return m * n / max(time, 1 / math.log10(m * n))


@pytest.mark.parametrize(("phi", "draws"), [(0.7, 300), (-0.8, 301), (0.999, 40), (0.0, 4)])
def test_equation_ess_line_by_line(phi: float, draws: int) -> None:
    x = ar1(phi, 3, draws, 5, seed=2)
    expected = [plain_ess(x[..., q].numpy()) for q in range(5)]
    assert ess(x).tolist() == pytest.approx(expected, rel=1e-9)


def test_equation_rhat_by_hand() -> None:
    # Halves (0, 2), (0, 2), (4, 6), (4, 6): W = 2, B/n = variance of (1, 1, 5, 5) = 16/3, n = 2.
    chains = torch.tensor([[0.0, 2.0, 0.0, 2.0], [4.0, 6.0, 4.0, 6.0]])
    assert split_rhat(chains).item() == pytest.approx(math.sqrt((0.5 * 2 + 16 / 3) / 2))


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_target_rhat_of_shifted_chains(shift: float) -> None:
    """Two chains of N(0, 1) and N(shift, 1): the halves' means have variance shift²/3: R-hat → √(1 + shift²/3)."""
    generator = torch.Generator().manual_seed(0)
    chains = torch.randn(2, 10_000, 30, generator=generator, dtype=torch.float64)
    chains[1] += shift
    value = split_rhat(chains)
    assert abs(value.mean().item() - math.sqrt(1 + shift**2 / 3)) < 4 * value.std().item() / math.sqrt(30) + 1e-3
    assert rank_rhat(chains).min() > 1.02


def test_property_rhat_sees_drift_spread_and_place_but_not_good_chains() -> None:
    good = torch.randn(4, 2000, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert rank_rhat(good).max() < 1.01 and split_rhat(good).max() < 1.01
    drifting = good + torch.linspace(-1, 1, 2000)[None, :, None]
    assert split_rhat(drifting).min() > 1.05  # all chains drift alike: only the split sees it
    spread = good.clone()
    spread[0] *= 3
    assert split_rhat(spread).max() < 1.01 < 1.05 < rank_rhat(spread).min()
    cauchy = torch.tan(math.pi * (torch.special.ndtr(good) - 0.5))
    cauchy[0] += 4
    assert split_rhat(cauchy).median() < 1.01 < 1.1 < rank_rhat(cauchy).min()


def test_property_rank_versions_ignore_monotone_maps_and_shapes_are_kept() -> None:
    draws = ar1(0.5, 3, 200, 6)
    torch.testing.assert_close(bulk_ess(draws), bulk_ess(draws.exp()))
    cube = draws.reshape(3, 200, 2, 3)
    for function in (split_rhat, rank_rhat, ess, bulk_ess):
        assert function(cube).shape == (2, 3)
        torch.testing.assert_close(function(cube).flatten(), function(draws))
        torch.testing.assert_close(function(draws[..., 0]), function(draws)[0])
        torch.testing.assert_close(function(draws.numpy()), function(draws))
    affine = 3 * draws - 7
    torch.testing.assert_close(ess(affine), ess(draws))
    torch.testing.assert_close(split_rhat(affine), split_rhat(draws))


def test_limit_constant_and_stuck_chains() -> None:
    assert split_rhat(torch.ones(2, 10)).isnan() and ess(torch.ones(2, 10)).isnan()
    stuck = torch.tensor([[0.0] * 10, [1.0] * 10])
    assert split_rhat(stuck).item() == math.inf
    # Chains that sit apart are worth about one draw each, however long they are.
    apart = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) + 100 * torch.arange(4.0)[:, None]
    assert ess(apart).item() < 10


@pytest.mark.parametrize("function", [split_rhat, rank_rhat, ess, bulk_ess])
def test_error_messages(function) -> None:
    with pytest.raises(ValueError, match=r"shape \(10,\)"):
        function(torch.zeros(10))
    with pytest.raises(ValueError, match="at least 4 draws"):
        function(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        function(torch.tensor([[0.0, 1.0, math.nan, 2.0]]))
