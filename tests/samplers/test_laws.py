"""Stationary laws: exactly, by the Lyapunov equation of the implemented step, and by simulation."""

from __future__ import annotations

import pytest
import torch

from bayesprune.samplers import SGHMC, CVAdam, dynamics
from scenarios import (
    MOMENTUM,
    SAMPLERS,
    banana_gradient,
    banana_moments,
    banana_statistics,
    frozen_sampler,
    gaussian,
    lyapunov_variance,
    run_chains,
    variance_with_error,
)

TAUS, BETAS = (0.1, 0.5, 0.9), (0.1, 0.5, 0.9)


@pytest.mark.parametrize("lr", [0.0001, 0.01])
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("beta1", BETAS)
@pytest.mark.parametrize("name", MOMENTUM)
def test_target_exact_noise_gives_the_posterior(name, lr, tau, beta1):
    number, temperature, curvature, beta2 = 200.0, 0.7, 1.0, 1.3
    tau = 1.0 if name in ("CVAdam none", "SGHMC") else tau
    settings = dict(lr=lr, num_data=number, betas=(beta1, beta2), weight_decay=0.01, temperature=temperature)
    variance, _, _ = lyapunov_variance(name, curvature, tau, **settings)
    assert variance / (temperature / (number * curvature)) == pytest.approx(1.0, abs=0.03)
    std = dynamics.exact_noise_std(temperature, number, lr, beta1, beta2, tau)
    closed = dynamics.stationary_variance(curvature, tau, lr, beta1, beta2, std)
    assert variance == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("name", ["SGLD", "PSGLD"])
def test_target_exact_noise_gives_the_posterior_without_momentum(name):
    number, tau = 200.0, 1.0 if name == "SGLD" else 0.3
    variance, _, _ = lyapunov_variance(name, 2.0, tau, lr=0.01, num_data=number, weight_decay=0.01)
    std = dynamics.exact_noise_std(1.0, number, 0.01, 0.0, 1.0, tau)
    assert variance == pytest.approx(dynamics.stationary_variance(2.0, tau, 0.01, 0.0, 1.0, std), rel=1e-9)
    assert variance * number * 2 == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("beta1", BETAS)
def test_target_paper_noise_has_the_predicted_temperature(tau, beta1):
    number, curvature, lr, beta2 = 200.0, 1.0, 0.01, 1.3
    settings = dict(lr=lr, num_data=number, betas=(beta1, beta2), weight_decay=0.01, noise="paper")
    variance, _, _ = lyapunov_variance("CVAdam paper", curvature, tau, **settings)
    predicted = tau * lr**0.5 * (1 + beta1**2) / ((1 - beta1) * beta2)  # N·k² = 1
    assert variance * number * curvature / predicted == pytest.approx(1.0, abs=0.03)
    std = dynamics.paper_noise_std(dynamics.paper_noise_scale(1.0, number), lr, beta1)
    assert dynamics.injected_temperature(std, tau, lr, beta1, beta2, number) == pytest.approx(predicted, rel=1e-12)
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    said = frozen_sampler("CVAdam paper", weight, tau, **settings).injected_temperature()[0]
    assert said["mean"] == pytest.approx(predicted, rel=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_equation_kinetic_temperature_of_the_law_is_that_of_small_steps(name):
    """E[v²] of the Lyapunov equation is the temperature T up to the step size, and the class's running mean is E[τv²]."""
    tau, beta1 = (0.5, 0.6) if name.startswith("CVAdam") and name != "CVAdam none" else (1.0, 0.6)
    beta1 = beta1 if name in MOMENTUM else 0.0
    settings = dict(lr=1e-4, num_data=50.0, betas=(beta1, 1.0), weight_decay=0.0, temperature=0.3)
    _, momentum, _ = lyapunov_variance(name, 1.0, tau, **settings)
    assert dynamics.kinetic_temperature(momentum, tau, 1e-4, beta1, 1.0, 50.0) == pytest.approx(0.3, rel=1e-3)
    weight = torch.nn.Parameter(torch.zeros(20_000))
    optimizer = frozen_sampler(name, weight, tau, **(settings | {"lr": 0.02}), seed=4)
    for _ in range(300):
        torch.mul(weight.detach(), 1.0, out=weight.grad)
        optimizer.step()
    measured = dynamics.kinetic_temperature(
        float(optimizer.state[weight]["momentum"].square().mean()), tau, 0.02, beta1, 1.0, 50.0
    )
    shown = optimizer.kinetic_temperature()[0]
    assert shown["mean"] == pytest.approx(measured, rel=0.05)  # one step of 20,000 chains: 4 standard errors are 4 %
    assert shown["mean"] == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(("tau", "beta1"), [(0.1, 0.5), (0.5, 0.1), (0.9, 0.9)])
@pytest.mark.parametrize("name", ["CVAdam paper", "CVAdam rms"])
def test_target_simulated_chains_have_the_posterior_variance(name, tau, beta1):
    """2,000 chains from 0; tolerance 4 standard errors (about 1 % each) around the exact discrete-time law."""
    number, decay, lr = 50.0, 0.05, 0.01
    relaxation = int((1 - beta1) / (tau * lr)) + 1
    states = run_chains(
        torch.zeros(2000), lambda w: (1 - decay) * w, steps=12 * relaxation, burn_in=4 * relaxation, sampler=name,
        keep_every=2 * relaxation, tau=tau, lr=lr, num_data=number, betas=(beta1, 1.0), weight_decay=decay, seed=11,
    )  # fmt: skip
    variance, error = variance_with_error(states)
    std = dynamics.exact_noise_std(1.0, number, lr, beta1, 1.0, tau)
    law = dynamics.stationary_variance(1.0, tau, lr, beta1, 1.0, std)
    assert abs(variance - law) < 4 * error
    assert error / law < 0.02
    assert variance * number == pytest.approx(1.0, abs=0.03 + 4 * error * number)


@pytest.mark.parametrize("name", ["SGHMC", "SGLD"])
def test_target_gradient_noise_heats_by_the_formula(name):
    """Independent gradient noise of variance V: the law of `stationary_variance`; tolerance 4 standard errors."""
    number, lr, noise = 50.0, 0.2, 0.3
    generator = torch.Generator().manual_seed(5)
    states = run_chains(
        torch.zeros(4000), lambda w: w + noise**0.5 * torch.randn(4000, generator=generator), sampler=name,
        steps=400, burn_in=100, keep_every=50, lr=lr, num_data=number, weight_decay=0.0, seed=6,
    )  # fmt: skip
    beta1 = 0.9 if name == "SGHMC" else 0.0
    variance, error = variance_with_error(states)
    std = dynamics.exact_noise_std(1.0, number, lr, beta1, 1.0, 1.0)
    law = dynamics.stationary_variance(1.0, 1.0, lr, beta1, 1.0, std, gradient_variance=noise)
    assert abs(variance - law) < 4 * error
    assert error < 0.02 * law
    assert law * number > 2  # it does matter here


def test_target_correlated_gaussian_in_ten_dimensions():
    """Mean and covariance, with a preconditioner that differs between the coordinates; tolerance 4.5 standard errors,
    65 tests.
    """
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


def test_target_learned_and_then_frozen_rms_has_the_posterior():
    """The step scale is learned from the chains' own gradients and stands still for the samples: three decades of curvature,
    each variance within 4 standard errors plus 1 %.
    """
    number = 100.0
    curvature = torch.tensor([1.0, 30.0, 1000.0])
    weight = torch.nn.Parameter(
        torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)) / (number * curvature).sqrt()
    )
    optimizer = CVAdam([weight], lr=1e-3, num_data=number, weight_decay=0.0, scale_decay=0.99, seed=8)
    squares, kept = torch.zeros(3000, 3, dtype=torch.float64), 0
    for step in range(1500):
        optimizer.param_groups[0]["adapt"] = step < 500
        weight.grad = weight.detach() * curvature
        optimizer.step()
        if step >= 700 and step % 20 == 0:
            with optimizer.midpoint():
                squares, kept = squares + weight.detach().double().square(), kept + 1
    ratio = squares / kept * (number * curvature)
    error = ratio.std(0) / 3000**0.5
    assert ((ratio.mean(0) - 1).abs() < 4 * error + 0.01).all()
    assert error.max() < 0.03
    tau = optimizer.tau(weight).median(0).values * (curvature / number).sqrt()
    assert ((tau > 0.5) & (tau < 2)).all()  # τ ∝ 1/√(H/N): the scale sees curvature


def test_property_one_seed_one_path_and_the_noise_of_a_step_can_be_drawn_again():
    def run(seed):
        weight = torch.nn.Parameter(torch.zeros(50))
        optimizer = SGHMC([weight], lr=0.1, num_data=10, weight_decay=0.0, betas=(0.0, 1.0), seed=seed)
        weight.grad = torch.zeros(50)
        optimizer.step()
        return weight.detach(), optimizer.last_noise(weight)

    weight, noise = run(3)
    assert torch.equal(weight, run(3)[0])
    assert not torch.equal(weight, run(4)[0])
    torch.testing.assert_close(weight, noise * dynamics.exact_noise_std(1.0, 10, 0.1, 0.0, 1.0, 1.0))


def test_error_unstable_step_is_named():
    with pytest.raises(ValueError, match="lower lr"):
        dynamics.stationary_variance(100.0, 0.9, 1.0, 0.1, 1.0, 0.1)
