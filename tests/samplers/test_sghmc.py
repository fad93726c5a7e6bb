"""SGHMC and SGLD as csgmcmc runs them: the published update by hand, the exact discrete-time law, the noise window, resuming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bayesprune.posterior import health_report
from bayesprune.samplers import (
    PUBLISHED_TEMPERATURE,
    SGHMC,
    SGLD,
    CycleClock,
    CyclicalLR,
    CyclicalNoise,
    exact_noise_std,
    stationary_variance,
)
from bayesprune.train import load_tree, save_tree
from optimizer_table import network
from scenarios import lyapunov_variance, variance_with_error


def csgmcmc(params, *, alpha=1.0, **settings):
    """Return the sampler of csgmcmc's friction α = 1 − β₁; at α = 1 it is SGLD."""
    return SGLD(params, **settings) if alpha == 1 else SGHMC(params, betas=(1 - alpha, 1.0), **settings)


def law(curvature, lr, *, alpha, temperature, number, gradient_variance=0.0):
    """Return the exact stationary variance."""
    std = exact_noise_std(temperature, number, lr, 1 - alpha, 1.0, 1.0)
    return stationary_variance(curvature, 1.0, lr, 1 - alpha, 1.0, std, gradient_variance=gradient_variance)


@pytest.mark.parametrize("alpha", [0.9, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_equation_steps_are_the_published_script(alpha, temperature):
    """d = g + wd·w; buf = (1−α)buf − lr·d [+ √(2·lr·α·T/N)·ε]; w += buf, in NumPy."""
    rng, lr, decay, number = np.random.default_rng(0), 0.3, 0.02, 50.0
    start = rng.normal(size=(4, 3))
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = csgmcmc([weight], alpha=alpha, lr=lr, num_data=number, temperature=temperature, weight_decay=decay)
    w, buf = start.copy(), np.zeros_like(start)
    for _ in range(20):
        g = rng.normal(size=start.shape)
        weight.grad = torch.tensor(g)
        optimizer.step()
        buf = (1 - alpha) * buf - lr * (g + decay * w)
        buf = buf + math.sqrt(2 * lr * alpha * temperature / number) * optimizer.last_noise(weight).numpy()
        w = w + buf
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12, atol=1e-13)


def test_limit_without_noise_it_is_torch_sgd_with_momentum():
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).clone()) for _ in range(2)]
    ours = SGHMC(parameters[:1], lr=0.2, num_data=10, temperature=0.0, betas=(0.1, 1.0), weight_decay=0.01)
    torchs = torch.optim.SGD(parameters[1:], lr=0.2, momentum=0.1, weight_decay=0.01)
    for step in range(30):
        for parameter, optimizer in zip(parameters, (ours, torchs)):
            parameter.grad = (parameter.detach() - step).cos()
            optimizer.step()
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("temperature", [PUBLISHED_TEMPERATURE, 1 / 200, 1.0])
@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("lr", [1e-3, 0.5, 1.6])
def test_target_law_is_the_lyapunov_equations(lr, alpha, temperature):
    """As read off the optimizer; T/(NH) / (1 − lH/(2(2−α))) in closed form."""
    number, curvature = 50_000.0, 1.2
    expected = law(curvature, lr, alpha=alpha, temperature=temperature, number=number)
    name, betas = ("SGLD", (0.0, 1.0)) if alpha == 1 else ("SGHMC", (1 - alpha, 1.0))
    found, _, _ = lyapunov_variance(
        name, curvature, None, lr=lr, betas=betas, num_data=number, temperature=temperature, weight_decay=0.0
    )
    assert found == pytest.approx(expected, rel=1e-8)
    closed = temperature / (number * curvature) / (1 - lr * curvature / (2 * (2 - alpha)))
    assert expected == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.9, 0.1, 1.0])
@pytest.mark.parametrize(("lr", "temperature"), [(0.05, 1.0), (0.8, 1 / 200)])
def test_target_simulated_chains_have_the_exact_variance(alpha, lr, temperature):
    """4,000 chains; tolerance 4 standard errors (each below 2 %) around the discrete-time law."""
    number, curvature, decay = 50.0, 1.5, 0.1
    relaxation = math.ceil(1 / (lr * curvature)) + math.ceil(1 / alpha)
    weight, kept = torch.nn.Parameter(torch.zeros(4000)), []
    optimizer = csgmcmc(
        [weight], alpha=alpha, lr=lr, num_data=number, temperature=temperature, weight_decay=decay, seed=3
    )
    for step in range(1, 20 * relaxation + 1):
        weight.grad = (curvature - decay) * weight.detach()
        optimizer.step()
        if step > 10 * relaxation and step % (2 * relaxation) == 0:
            kept.append(weight.detach().clone())
    variance, error = variance_with_error(torch.stack(kept))
    expected = law(curvature, lr, alpha=alpha, temperature=temperature, number=number)
    assert abs(variance - expected) < 4 * error
    assert error / expected < 0.02
    if lr == 0.8:  # far from the limit the nominal temperature is refuted by the same chains
        assert abs(variance - temperature / (number * curvature)) > 4 * error


def test_target_minibatch_noise_adds_to_the_temperature():
    """Gaussian gradient noise of variance V; tolerance 4 standard errors around the law with V."""
    number, curvature, lr, alpha, spread = 50.0, 1.0, 0.1, 0.5, 0.4
    weight, generator = torch.nn.Parameter(torch.zeros(4000)), torch.Generator().manual_seed(1)
    optimizer = csgmcmc(
        [weight], alpha=alpha, lr=lr, num_data=number, temperature=PUBLISHED_TEMPERATURE, weight_decay=0.0, seed=0
    )
    kept = []
    for step in range(200):
        weight.grad = curvature * weight.detach() + spread * torch.randn(4000, generator=generator)
        optimizer.step()
        if step >= 100 and step % 20 == 0:
            kept.append(weight.detach().clone())
    variance, error = variance_with_error(torch.stack(kept))
    settings = dict(alpha=alpha, temperature=PUBLISHED_TEMPERATURE, number=number)
    assert abs(variance - law(curvature, lr, gradient_variance=spread**2, **settings)) < 4 * error
    assert variance > 1000 * law(curvature, lr, **settings)  # the injected noise is not what one sees


def test_property_noise_comes_in_the_last_epochs_of_each_cycle():
    """The published `(epoch % 50) + 1 > 45`, in steps of 7 an epoch, beside the clock's step size."""
    per_epoch, epochs = 7, 200
    clock = CycleClock(total_steps=epochs * per_epoch, cycles=4)
    optimizer = SGHMC([torch.nn.Parameter(torch.zeros(1))], lr=0.5, num_data=10, temperature=0.3)
    noise, rate = CyclicalNoise(optimizer, clock, window=5 * per_epoch), CyclicalLR(optimizer, clock)
    for step in range(clock.total_steps):
        inside = (step // per_epoch) % 50 + 1 > 45
        assert optimizer.param_groups[0]["temperature"] == (0.3 if inside else 0.0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(clock.lr(step, 0.5))
        optimizer.step()
        noise.step()
        rate.step()


def test_property_no_noise_is_drawn_while_it_is_cold():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = SGHMC([weight], lr=0.1, num_data=10, temperature=0.0)
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert not optimizer.last_noise(weight).any() and optimizer.injected_temperature()[0]["mean"] == 0.0
    assert optimizer.noise_to_gradient() == 0.0


def network_and_optimizer(kind):
    model = network()
    optimizer = kind(model.parameters(), lr=0.1, num_data=20, temperature=1.0, seed=9)
    return model, optimizer, CyclicalNoise(optimizer, CycleClock(total_steps=12, cycles=2), window=3)


def train(model, optimizer, noise, steps):
    images = torch.linspace(-1, 1, 36).view(6, 6)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        noise.step()


@pytest.mark.parametrize("kind", [SGHMC, SGLD])
@pytest.mark.parametrize("cut", [2, 5, 10])
def test_roundtrip_resumed_run_is_bit_exact(kind, cut, tmp_path):
    straight = network_and_optimizer(kind)
    train(*straight, 12)
    first = network_and_optimizer(kind)
    train(*first, cut)
    save_tree(tmp_path / "state.safetensors", {"optimizer": first[1].state_dict(), "noise": first[2].state_dict()})
    state = load_tree(tmp_path / "state.safetensors")
    second = network_and_optimizer(kind)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(state["optimizer"])
    second[2].load_state_dict(state["noise"])
    train(*second, 12 - cut)
    for ours, theirs in zip(second[0].parameters(), straight[0].parameters()):
        assert torch.equal(ours, theirs)


def test_property_health_report_names_the_published_temperature_cold():
    optimizer = SGHMC([torch.nn.Parameter(torch.ones(2))], lr=0.5, num_data=50_000, temperature=PUBLISHED_TEMPERATURE)
    report = health_report(optimizer=optimizer)
    assert report.temperature == [{"mean": 2e-5, "min": 2e-5, "max": 2e-5}] and not report.ok


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SGHMC, {"betas": (-0.5, 1.0)}, r"betas\[0\]=-0.5"),
        (SGHMC, {"betas": (1.0, 1.0)}, r"betas\[0\]=1.0"),
        (SGHMC, {"betas": (0.9, 0.0)}, r"betas\[1\]=0.0"),
        (SGLD, {"temperature": -1}, "temperature=-1"),
        (SGLD, {"num_data": 0}, "num_data=0"),
    ],
)
def test_error_names_the_setting(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind([torch.ones(1)], lr=0.1, **{"num_data": 10, **settings})


def test_error_unstable_step():
    with pytest.raises(ValueError, match="lower lr"):
        law(30.0, 1.0, alpha=0.9, temperature=1.0, number=10)
