"""Stationary laws: exactly, by the Lyapunov equation of the implemented step, and by simulation."""

from __future__ import annotations

import pytest
import torch

from bayesprune.samplers import dynamics
from bayesprune.samplers.functional import single_tensor_cv_adam
from scenarios import (
    banana_gradient,
    banana_moments,
    banana_statistics,
    frozen_rho,
    gaussian,
    run_chains,
    variance_with_error,
)

TAUS, BETAS = (0.1, 0.5, 0.9), (0.1, 0.5, 0.9)


def implemented_map(curvature, decay, tau, lr, beta1, beta2, noise_std, exact):
    """Return the matrices A, b of the linear step (w, v) ← A(w, v) + b·ε, read off the implementation itself."""
    columns = []
    for w, v, noise in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        weight, momentum = torch.tensor([w], dtype=torch.float64), torch.tensor([v], dtype=torch.float64)
        single_tensor_cv_adam(
            weight, (curvature - decay) * weight, momentum, frozen_rho(tau).view(1), weight_decay=decay,
            noise=torch.tensor([noise], dtype=torch.float64), previous_noise=0.0, lr=lr, beta1=beta1, beta2=beta2,
            dual_lr=0.0, num_data=1.0, alpha=0.0, noise_std=noise_std, exact=exact,
        )  # fmt: skip
        columns.append(torch.cat([weight, momentum]))
    return torch.stack(columns[:2], dim=1), columns[2]


def lyapunov_variance(step, noise):
    """Return the stationary variance of w: vec(C) = (I − A⊗A)⁻¹ vec(bbᵀ)."""
    system = torch.eye(4, dtype=torch.float64) - torch.kron(step, step)
    return float(torch.linalg.solve(system, torch.outer(noise, noise).reshape(-1))[0])


@pytest.mark.parametrize("delta_t", [0.01, 0.1])
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("beta1", BETAS)
def test_target_exact_noise_gives_the_posterior(delta_t, tau, beta1):
    number, temperature, curvature, lr = 200.0, 0.7, 1.0, delta_t**2
    std = dynamics.exact_noise_std(temperature, number, lr, beta1, 1.0, 1.0)
    variance = lyapunov_variance(*implemented_map(curvature, 0.01, tau, lr, beta1, 1.0, std, True))
    assert variance / (temperature / (number * curvature)) == pytest.approx(1.0, abs=0.03)
    closed = dynamics.stationary_variance(curvature, tau, lr, beta1, 1.0, std / tau**0.5)
    assert variance == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("beta1", BETAS)
def test_target_paper_noise_has_the_predicted_temperature(tau, beta1):
    number, curvature, lr, beta2 = 200.0, 1.0, 0.01, 1.3
    std = dynamics.paper_noise_std(dynamics.paper_noise_scale(1.0, number), lr, beta1)
    variance = lyapunov_variance(*implemented_map(curvature, 0.01, tau, lr, beta1, beta2, std, False))
    predicted = tau * lr**0.5 * (1 + beta1**2) / ((1 - beta1) * beta2)  # N·k² = 1
    assert variance * number * curvature / predicted == pytest.approx(1.0, abs=0.03)
    assert dynamics.effective_temperature(std, tau, lr, beta1, beta2, number) == pytest.approx(predicted, rel=1e-12)


@pytest.mark.parametrize(("tau", "beta1"), [(0.1, 0.5), (0.5, 0.1), (0.9, 0.9)])
def test_target_simulated_chains_have_the_posterior_variance(tau, beta1):
    """2,000 chains from 0; tolerance 4 standard errors (about 1 % each) around the exact discrete-time law."""
    number, decay, lr = 50.0, 0.05, 0.01
    relaxation = int((1 - beta1) / (tau * lr)) + 1
    states = run_chains(
        torch.zeros(2000), lambda w: (1 - decay) * w, steps=12 * relaxation, burn_in=4 * relaxation,
        keep_every=2 * relaxation, tau=tau, lr=lr, num_data=number, betas=(beta1, 1.0), weight_decay=decay, seed=11,
    )  # fmt: skip
    variance, error = variance_with_error(states)
    std = dynamics.exact_noise_std(1.0, number, lr, beta1, 1.0, tau)
    law = dynamics.stationary_variance(1.0, tau, lr, beta1, 1.0, std)
    assert abs(variance - law) < 4 * error
    assert error / law < 0.02
    assert variance * number == pytest.approx(1.0, abs=0.03 + 4 * error * number)


def test_target_correlated_gaussian_in_ten_dimensions():
    """Mean and covariance, with a preconditioner that differs between the coordinates; tolerance 4.5 standard errors,
    65 tests."""
    dim, chains, number, decay, lr = 10, 1500, 30.0, 0.1, 0.01
    precision = gaussian(dim, seed=4)
    centre = torch.linspace(-1, 1, dim, dtype=torch.float64)
    tau = torch.linspace(0.3, 0.8, dim, dtype=torch.float64)

    def gradient(weight):
        return ((weight.double() - centre) @ precision).float()

    states = run_chains(
        centre.float().expand(chains, dim), gradient, steps=6000, burn_in=3000, keep_every=600, tau=tau, lr=lr,
        num_data=number, betas=(0.5, 1.0), weight_decay=decay, seed=2,
    ).double()  # fmt: skip
    posterior = precision + decay * torch.eye(dim, dtype=torch.float64)
    mean = torch.linalg.solve(posterior, precision @ centre)
    covariance = torch.linalg.inv(posterior) / number
    chain_mean = states.mean(0)
    error = chain_mean.std(0) / chains**0.5
    assert ((chain_mean.mean(0) - mean).abs() < 4.5 * error).all()
    products = torch.einsum("tci,tcj->cij", states - mean, states - mean) / len(states)
    error = products.std(0) / chains**0.5
    assert ((products.mean(0) - covariance).abs() < 4.5 * error + 0.01 * covariance.abs()).all()
    assert float(error.max() / covariance.diagonal().max()) < 0.03


def test_target_banana_against_quadrature():
    """Five moments of a bent target; tolerance 4 standard errors plus 1 % for the step size."""
    number, decay = 2.0, 0.05
    states = run_chains(
        torch.zeros(4000, 2), banana_gradient, steps=6000, burn_in=2000, keep_every=200, tau=0.6, lr=0.01,
        num_data=number, betas=(0.6, 1.0), weight_decay=decay, seed=3,
    )  # fmt: skip
    truth = banana_moments(number, decay)
    for name, (value, error) in banana_statistics(states).items():
        assert abs(value - truth[name]) < 4 * error + 0.01 * abs(truth[name]), name
        assert error < 0.03 * abs(truth[name]), name


def test_error_unstable_step_is_named():
    with pytest.raises(ValueError, match="lower lr"):
        dynamics.stationary_variance(100.0, 0.9, 1.0, 0.1, 1.0, 0.1)
