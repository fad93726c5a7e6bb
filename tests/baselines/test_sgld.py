"""cSGLD and cSGHMC: the published update by hand, the exact discrete-time law, resuming bit for bit."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from bayesprune.baselines import PUBLISHED_TEMPERATURE, CyclicalNoise, CyclicalSGHMC, CyclicalSGLD, sghmc_variance
from bayesprune.posterior import health_report
from bayesprune.samplers import CycleClock, CyclicalLR
from bayesprune.train import load_tree, save_tree
from scenarios import variance_with_error


def noise_of(shape, seed, steps):
    """Return what the optimizer's generator draws for one float64 tensor."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.empty(shape, dtype=torch.float64).normal_(generator=generator).numpy() for _ in range(steps)]


@pytest.mark.parametrize("alpha", [0.9, 0.3, 1.0])
@pytest.mark.parametrize("inject", [True, False])
def test_equation_steps_are_the_published_script(alpha, inject):
    """d = g + wd·w; buf = (1−α)buf − lr·d [+ √(2·lr·α·T/N)·ε]; w += buf, in NumPy."""
    rng, lr, decay, number, temperature = np.random.default_rng(0), 0.3, 0.02, 50.0, 0.7
    start = rng.normal(size=(4, 3))
    weight = torch.nn.Parameter(torch.tensor(start))
    settings = dict(lr=lr, num_data=number, temperature=temperature, weight_decay=decay, inject=inject, seed=5)
    kind = CyclicalSGLD if alpha == 1 else CyclicalSGHMC
    optimizer = kind([weight], **settings, **({} if alpha == 1 else {"alpha": alpha}))
    w, buf = start.copy(), np.zeros_like(start)
    for eps in noise_of(start.shape, 5, 20):
        g = rng.normal(size=start.shape)
        buf = (1 - alpha) * buf - lr * (g + decay * w)
        if inject:
            buf = buf + math.sqrt(2 * lr * alpha * temperature / number) * eps
        w = w + buf
        weight.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12, atol=1e-13)


def test_limit_without_noise_it_is_torch_sgd_with_momentum():
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).clone()) for _ in range(2)]
    ours = CyclicalSGHMC(parameters[:1], lr=0.2, num_data=10, temperature=0.0, alpha=0.9, weight_decay=0.01)
    torchs = torch.optim.SGD(parameters[1:], lr=0.2, momentum=0.1, weight_decay=0.01)
    for step in range(30):
        for parameter, optimizer in zip(parameters, (ours, torchs)):
            parameter.grad = (parameter.detach() - step).cos()
            optimizer.step()
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-12, atol=1e-13)


def lyapunov(curvature, lr, alpha, temperature, number):
    """Return the stationary variance of w by solving C = ACAᵀ + bbᵀ for A, b read off the optimizer itself."""
    columns = []
    for start, momentum, noisy in ((1.0, 0.0, False), (0.0, 1.0, False)):
        weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
        optimizer = CyclicalSGHMC(
            [weight], lr=lr, num_data=number, temperature=temperature, alpha=alpha, weight_decay=0.0, inject=noisy
        )
        weight.grad = curvature * weight.detach()
        if alpha < 1:
            optimizer.state[weight]["momentum"] = torch.tensor([momentum], dtype=torch.float64)
        optimizer.step()
        after = weight.detach()
        columns.append([float(after), float(optimizer.state[weight].get("momentum", after - start))])
    if alpha == 1:  # no state: the momentum has no effect
        columns[1] = [0.0, 0.0]
    std = math.sqrt(2 * lr * alpha * temperature / number)
    step, kick = np.array(columns).T, np.array([std, std])
    return np.linalg.solve(np.eye(4) - np.kron(step, step), np.outer(kick, kick).reshape(-1))[0]


@pytest.mark.parametrize("temperature", [PUBLISHED_TEMPERATURE, 1 / 200, 1.0])
@pytest.mark.parametrize("alpha", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("lr", [1e-3, 0.5, 1.6])
def test_target_law_is_the_lyapunov_equations(lr, alpha, temperature):
    number, curvature = 50_000.0, 1.2
    law = sghmc_variance(curvature, lr, alpha=alpha, temperature=temperature, num_data=number)
    assert lyapunov(curvature, lr, alpha, temperature, number) == pytest.approx(law, rel=1e-9)
    closed = temperature / (number * curvature) / (1 - lr * curvature / (2 * (2 - alpha)))
    assert law == pytest.approx(closed, rel=1e-12)


def chains(kind, *, lr, curvature, decay, number, temperature, steps, burn_in, keep_every, **settings):
    """Return the kept states of 4,000 chains from 0 in one tensor."""
    weight = torch.nn.Parameter(torch.zeros(4000))
    optimizer = kind([weight], lr=lr, num_data=number, temperature=temperature, weight_decay=decay, seed=3, **settings)
    kept = []
    for step in range(1, steps + 1):
        weight.grad = (curvature - decay) * weight.detach()
        optimizer.step()
        if step > burn_in and (step - burn_in) % keep_every == 0:
            kept.append(weight.detach().clone())
    return torch.stack(kept)


@pytest.mark.parametrize(
    ("kind", "settings"), [(CyclicalSGHMC, {"alpha": 0.9}), (CyclicalSGHMC, {"alpha": 0.1}), (CyclicalSGLD, {})]
)
@pytest.mark.parametrize(("lr", "temperature"), [(0.05, 1.0), (0.8, 1 / 200)])
def test_target_simulated_chains_have_the_exact_variance(kind, settings, lr, temperature):
    """4,000 chains; tolerance 4 standard errors (each below 2 %) around the discrete-time law."""
    number, curvature, decay = 50.0, 1.5, 0.1
    relaxation = math.ceil(1 / (lr * curvature)) + math.ceil(1 / settings.get("alpha", 1.0))
    states = chains(
        kind, lr=lr, curvature=curvature, decay=decay, number=number, temperature=temperature,
        steps=20 * relaxation, burn_in=10 * relaxation, keep_every=2 * relaxation, **settings,
    )  # fmt: skip
    variance, error = variance_with_error(states)
    law = sghmc_variance(curvature, lr, alpha=settings.get("alpha", 1.0), temperature=temperature, num_data=number)
    assert abs(variance - law) < 4 * error
    assert error / law < 0.02
    nominal = temperature / (number * curvature)
    if lr == 0.8:  # far from the limit the nominal temperature is refuted by the same chains
        assert abs(variance - nominal) > 4 * error


def test_target_minibatch_noise_adds_to_the_temperature():
    """Gaussian gradient noise of variance V; tolerance 4 standard errors around the law with V."""
    number, curvature, lr, alpha, spread = 50.0, 1.0, 0.1, 0.5, 0.4
    weight, generator = torch.nn.Parameter(torch.zeros(4000)), torch.Generator().manual_seed(1)
    optimizer = CyclicalSGHMC(
        [weight], lr=lr, num_data=number, temperature=PUBLISHED_TEMPERATURE, alpha=alpha, weight_decay=0.0
    )
    kept = []
    for step in range(200):
        weight.grad = curvature * weight.detach() + spread * torch.randn(4000, generator=generator)
        optimizer.step()
        if step >= 100 and step % 20 == 0:
            kept.append(weight.detach().clone())
    variance, error = variance_with_error(torch.stack(kept))
    settings = dict(alpha=alpha, temperature=PUBLISHED_TEMPERATURE, num_data=number)
    assert abs(variance - sghmc_variance(curvature, lr, gradient_variance=spread**2, **settings)) < 4 * error
    assert variance > 1000 * sghmc_variance(curvature, lr, **settings)  # the injected noise is not what one sees


def test_property_noise_comes_in_the_last_epochs_of_each_cycle():
    """The published `(epoch % 50) + 1 > 45`, in steps of 7 an epoch, beside the clock's step size."""
    per_epoch, epochs = 7, 200
    clock = CycleClock(total_steps=epochs * per_epoch, cycles=4)
    optimizer = CyclicalSGHMC([torch.nn.Parameter(torch.zeros(1))], lr=0.5, num_data=10, temperature=1.0)
    noise, rate = CyclicalNoise(optimizer, clock, window=5 * per_epoch), CyclicalLR(optimizer, clock)
    for step in range(clock.total_steps):
        assert optimizer.param_groups[0]["inject"] == ((step // per_epoch) % 50 + 1 > 45)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(clock.lr(step, 0.5))
        optimizer.step()
        noise.step()
        rate.step()


def test_property_no_noise_is_drawn_while_it_is_off_or_cold():
    for settings in ({"inject": False}, {"temperature": 0.0}):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = CyclicalSGHMC([weight], lr=0.1, num_data=10, **{"temperature": 1.0, **settings})
        weight.grad = torch.zeros(3)
        optimizer.step()
        assert not optimizer._generators and optimizer.effective_temperature()[0]["mean"] == 0.0
        assert optimizer.noise_to_gradient() == 0.0


def test_property_unused_parameters_and_global_generators_are_left_alone():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = CyclicalSGHMC([used, unused], lr=0.1, num_data=10, temperature=1.0)
    used.grad = torch.ones(2)
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(unused, torch.ones(2)) and not torch.equal(used, torch.ones(2))


def network_and_optimizer(kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    optimizer = kind(model.parameters(), lr=0.1, num_data=20, temperature=1.0, seed=9)
    clock = CycleClock(total_steps=12, cycles=2)
    return model, optimizer, CyclicalNoise(optimizer, clock, window=3)


def train(model, optimizer, noise, steps):
    images = torch.linspace(-1, 1, 30).view(6, 5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        noise.step()


@pytest.mark.parametrize("kind", [CyclicalSGHMC, CyclicalSGLD])
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


def test_roundtrip_copy_goes_on_with_the_same_noise():
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = CyclicalSGHMC([weight], lr=0.1, num_data=10, temperature=1.0, seed=2)
    weight.grad = torch.zeros(4)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    other = twin.param_groups[0]["params"][0]
    other.grad = torch.zeros(4)  # a copied parameter has no gradient
    optimizer.step()
    twin.step()
    assert other is not weight and torch.equal(other, weight)


def test_property_health_report_names_the_published_temperature_cold():
    optimizer = CyclicalSGHMC(
        [torch.nn.Parameter(torch.ones(2))], lr=0.5, num_data=50_000, temperature=PUBLISHED_TEMPERATURE
    )
    report = health_report(optimizer=optimizer)
    assert report.temperature == [{"mean": 2e-5, "min": 2e-5, "max": 2e-5}] and not report.ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"num_data": 0}, "num_data=0"),
    ],
)
def test_error_names_the_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        CyclicalSGHMC([torch.ones(1)], lr=0.1, **{"num_data": 10, "temperature": 1.0, **settings})


def test_error_other_states_and_half_weights_are_refused():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="float16"):
        CyclicalSGLD([weight.detach().half()], lr=0.1, num_data=10, temperature=1.0)
    optimizer = CyclicalSGLD([weight], lr=0.1, num_data=10, temperature=1.0)
    with pytest.raises(ValueError, match="'noise'"):
        optimizer.load_state_dict(torch.optim.SGD([weight], lr=0.1).state_dict())
    with pytest.raises(ValueError, match="lower lr"):
        sghmc_variance(10.0, 1.0, alpha=0.9, temperature=1.0, num_data=10)
