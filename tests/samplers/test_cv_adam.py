"""CV-Adam against its equations: the paper's step in NumPy, SGD in the limit, decay per group, its own hyper-parameters."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bayesprune.samplers import CVAdam, dynamics
from optimizer_table import WAYS, needs_native, run, ways
from parity import NumpyCVAdam
from scenarios import frozen_sampler

PAPER = dict(preconditioner="paper", betas=(0.1, 1.0))


@pytest.mark.parametrize("steps", [1, 100])
@ways
def test_equation_paper_step_is_the_numpy_transcription(steps, way):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    settings = dict(num_data=50.0, lr=0.3, betas=(0.1, 1.0), dual_lr=0.2, weight_decay=0.02, temperature=0.7)
    weight = nn.Parameter(start.clone())
    optimizer = CVAdam([weight], noise="paper", preconditioner="paper", **settings, **WAYS[way])
    reference = NumpyCVAdam(start.numpy(), **settings)
    for _ in range(steps):
        gradient = torch.randn(3, 7, generator=generator, dtype=torch.float64) + weight.detach()
        weight.grad = gradient
        optimizer.step()
        reference.step(gradient.numpy(), optimizer.last_noise(weight).numpy())
    for name, value in (("momentum", reference.v), ("rho", reference.rho)):
        np.testing.assert_allclose(optimizer.state[weight][name].numpy(), value, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weight.detach().numpy(), reference.w, rtol=0, atol=1e-12)
    assert np.abs(reference.rho).max() > 1e-3  # the dual variable did move


def test_equation_rms_step_in_numpy():
    """ν starts at the first gradient's mean square, then is a running mean of (g + weight_decay·w)²."""
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(3, 7, generator=generator, dtype=torch.float64))
    number, lr, beta1, beta2, decay, keep, temperature = 50.0, 0.03, 0.8, 1.5, 0.02, 0.9, 0.7
    optimizer = CVAdam(
        [weight],
        lr,
        num_data=number,
        betas=(beta1, beta2),
        weight_decay=decay,
        scale_decay=keep,
        temperature=temperature,
    )
    w, v, nu = weight.detach().numpy().copy(), 0.0, None
    for step in range(20):
        optimizer.param_groups[0]["adapt"] = step < 15
        weight.grad = torch.randn(3, 7, generator=generator, dtype=torch.float64) + weight.detach()
        g = weight.grad.numpy()
        optimizer.step()
        nu = np.full_like(w, (g**2).mean()) if nu is None else nu
        nu = keep * nu + (1 - keep) * (g + decay * w) ** 2 if step < 15 else nu
        tau = 1 / (np.sqrt(nu) + 1e-8 + np.sqrt(decay / number))
        std = np.sqrt(2 * (1 - beta1) * beta2 * lr * temperature / (tau * number))
        v = beta1 * v - beta2 * lr * (g + decay * w) + std * optimizer.last_noise(weight).numpy()
        w = w + tau * v
    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=0, atol=1e-12)
    np.testing.assert_allclose(optimizer.tau(weight).detach().numpy(), tau, rtol=1e-12)


@pytest.mark.parametrize("noise", ["exact", "paper"])
@pytest.mark.parametrize("tau", [0.5, 0.8])
@pytest.mark.parametrize("beta1", [0.0, 0.1, 0.9])
def test_limit_cold_frozen_is_sgd_with_momentum(noise, tau, beta1):
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = dict(lr=0.2, num_data=10, betas=(beta1, 1.5), weight_decay=0.01, temperature=0.0, noise=noise)
    optimizer = frozen_sampler("CVAdam paper", ours, tau, **settings)
    sgd = torch.optim.SGD([theirs], lr=tau * 1.5 * 0.2, momentum=beta1, weight_decay=0.01)
    run(optimizer, [ours], 50)
    run(sgd, [theirs], 50)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@ways
def test_property_decay_tensor_acts_per_group(way):
    """Each group decays as if it were alone with its own number."""
    start = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    for shape in [(4, 6, 1, 1), (1, 6, 1, 1), (4, 1, 1, 1), (4, 6, 3, 3), (1, 1, 3, 1), (4, 1, 3, 1), (6, 1, 3), ()]:
        decay = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            weight = nn.Parameter(start.clone(memory_format=memory_format))
            optimizer = CVAdam([weight], 0.5, num_data=9, temperature=0.0, dual_lr=0.0, **PAPER, **WAYS[way])
            optimizer.set_weight_decay(weight, decay)
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            torch.testing.assert_close(weight.detach(), start - 0.5 * 0.5 * decay * start, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("preconditioner", "values"), [("rms", 2), ("paper", 2), ("none", 1)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_property_state_is_two_values_a_weight(preconditioner, values, dtype):
    weight = nn.Parameter(torch.randn(30, 20))
    optimizer = CVAdam([weight], num_data=10, preconditioner=preconditioner, state_dtype=dtype)
    run(optimizer, [weight], 3)
    tensors = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor) and v.dim()]
    assert sum(t.numel() for t in tensors) == values * weight.numel()
    assert all(t.dtype == (dtype or torch.float32) for t in tensors)


@pytest.mark.parametrize("preconditioner", ["rms", "paper", "none"])
def test_roundtrip_bfloat16_state_goes_on_bit_for_bit(preconditioner):
    settings = dict(num_data=10, preconditioner=preconditioner, state_dtype=torch.bfloat16)
    first = nn.Parameter(torch.ones(7))
    optimizer = CVAdam([first], **settings)
    run(optimizer, [first], 3)
    second = nn.Parameter(first.detach().clone())
    resumed = CVAdam([second], **settings)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state[second]["momentum"].dtype == torch.bfloat16
    run(optimizer, [first], 3, seed=1)
    run(resumed, [second], 3, seed=1)
    assert torch.equal(first, second)


def test_property_version_counter_tells_autograd_of_the_write():
    weight = nn.Parameter(torch.ones(3))
    optimizer = CVAdam([weight], num_data=10)
    loss = (weight * weight).sum()
    weight.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_property_schedule_of_global_scale_is_called_and_survives_loading():
    seen = []

    def schedule(lr, step):
        seen.append((lr, step))
        return 0.01 * step

    weight = nn.Parameter(torch.ones(3))
    optimizer = CVAdam([weight], 0.1, num_data=10, global_scale=schedule, **PAPER)
    run(optimizer, [weight], 3)
    assert seen == [(0.1, 1), (0.1, 2), (0.1, 3)]
    state = optimizer.state_dict()
    assert state["param_groups"][0]["global_scale"] == "schedule"
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["global_scale"] is schedule
    with pytest.raises(ValueError, match="same callable"):
        CVAdam([nn.Parameter(torch.ones(3))], num_data=10, **PAPER).load_state_dict(state)


def test_equation_injected_temperature_of_the_paper_rule():
    weight = nn.Parameter(torch.ones(3))
    number, lr, beta1 = 50_000, 0.01, 0.1
    optimizer = CVAdam([weight], lr, num_data=number, noise="paper", temperature=1.0, **PAPER)
    report = optimizer.injected_temperature()[0]
    assert report["mean"] == pytest.approx(0.5 * lr**0.5 * (1 + beta1**2) / (1 - beta1), rel=1e-6)
    assert report["mean"] == pytest.approx(0.056, abs=5e-4)


def test_equation_suggested_rate_is_of_the_temperature_that_the_paper_rule_injects():
    """T_kin − T_inj is proportional to l; T_inj, not the nominal temperature, is what the excess is a share of."""
    weight = nn.Parameter(torch.zeros(20_000))
    optimizer = CVAdam([weight], 0.01, num_data=100, noise="paper", dual_lr=0.0, weight_decay=0.0, **PAPER)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        weight.grad = weight.detach() + torch.randn(20_000, generator=generator)
        optimizer.step()
    injected = optimizer.injected_temperature()[0]["mean"]
    noise = 100 * 0.5 * 0.01 / (2 * 0.9)  # N·τβ₂lV/(2(1−β₁))
    assert optimizer.suggest_lr(0.2)[0] == pytest.approx(0.01 * 0.2 * injected / noise, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr=-1.0 is out of range"),
        ({"num_data": 0}, r"num_data=0 is out of range"),
        ({"betas": (1.0, 1.0)}, r"betas\[0\]=1.0"),
        ({"betas": (0.9,)}, r"betas=\(0.9,\) must be two numbers"),
        ({"betas": 0.9}, r"betas=\(0.9,\) must be two numbers"),
        ({"temperature": "1e-2"}, r"temperature='1e-2' is not a number"),  # as YAML reads it
        ({"num_data": "10"}, r"num_data='10' is not a number"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"noise": "exakt"}, r"did you mean 'exact'"),
        ({"preconditioner": "rsm"}, r"did you mean 'rms'"),
        ({"scale_decay": 1.0}, r"scale_decay=1.0 is out of range"),
        ({"state_dtype": torch.float16}, r"state_dtype=torch.float16 is neither"),
        ({"global_scale": "papr"}, r"did you mean 'paper'"),
    ],
)
def test_error_names_argument_and_value(settings, message):
    with pytest.raises(ValueError, match=message):
        CVAdam([nn.Parameter(torch.ones(2))], **{"num_data": 10, **settings})


def test_error_weight_decay_that_does_not_fit():
    weight = nn.Parameter(torch.ones(4, 2))
    optimizer = CVAdam([weight], num_data=10)
    with pytest.raises(ValueError, match="not in this optimizer"):
        optimizer.set_weight_decay(nn.Parameter(torch.ones(1)), 0.1)
    for shape in [(3,), (5, 4, 2)]:
        with pytest.raises(ValueError, match=r"does not broadcast"):
            optimizer.set_weight_decay(weight, torch.ones(shape))
    for value in (-torch.ones(4, 1), torch.full((4, 1), torch.nan)):
        with pytest.raises(ValueError, match=r"negative or non-finite"):
            optimizer.set_weight_decay(weight, value)
    with pytest.raises(ValueError, match=r"weight_decay=-1 is out of range"):
        optimizer.set_weight_decay(weight, -1)


def test_property_weight_decay_of_returns_what_is_applied():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = CVAdam([weight], num_data=10, weight_decay=0.3)
    assert optimizer.weight_decay_of(weight) == 0.3
    decay = torch.tensor([[0.1], [0.2]])
    optimizer.set_weight_decay(weight, decay)
    assert torch.equal(optimizer.weight_decay_of(weight), decay)
    optimizer.set_weight_decay(weight, None)
    assert optimizer.weight_decay_of(weight) == 0.3


def test_property_a_new_decay_tensor_is_obeyed_and_one_changed_in_place_too():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = CVAdam([weight], 1.0, num_data=10, temperature=0.0, preconditioner="none", betas=(0.0, 1.0))
    decay = torch.zeros(2, 1)
    optimizer.set_weight_decay(weight, decay)
    for value in (0.0, 0.5):
        decay.fill_(value)
        before, weight.grad = weight.detach().clone(), torch.zeros(2, 3)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), before * (1 - value))


@pytest.mark.parametrize("noise", ["exact", "paper"])
def test_equation_noise_to_gradient(noise):
    weight = nn.Parameter(torch.full((1000,), 2.0, dtype=torch.float64))
    optimizer = CVAdam([weight], 0.1, num_data=10, temperature=0.5, weight_decay=0.1, noise=noise, **PAPER)
    assert np.isnan(optimizer.noise_to_gradient())
    weight.grad = torch.full_like(weight, 3.0)
    exact = (2 * 0.9 * 0.1 * 0.5 / (0.5 * 10)) ** 0.5
    std = exact if noise == "exact" else dynamics.paper_noise_std(0.05**0.5, 0.1, 0.1)
    assert optimizer.noise_to_gradient() == pytest.approx(std / (0.1 * (3.0 + 0.1 * 2.0)))


@needs_native
def test_parity_threads_do_not_change_a_bit():
    outcomes, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            params = [nn.Parameter(torch.ones(150_001)), nn.Parameter(torch.ones(7))]
            optimizer = CVAdam(params, num_data=10, fused=True, seed=0)
            run(optimizer, params, 3)
            outcomes.append(torch.cat([p.detach() for p in params]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("preconditioner", ["rms", "paper"])
def test_property_a_step_at_rate_0_draws_and_remembers_no_noise_and_learns_nothing(preconditioner):
    weight = nn.Parameter(torch.ones(5))
    optimizer = CVAdam([weight], 0.0, num_data=10, preconditioner=preconditioner)
    run(optimizer, [weight], 1)
    tau = optimizer.tau(weight).clone()
    run(optimizer, [weight], 2, seed=1)
    assert torch.equal(optimizer.tau(weight), tau) and torch.equal(weight, torch.ones(5))
    assert not optimizer.last_noise(weight).any()
    optimizer.param_groups[0]["lr"] = 0.1
    run(optimizer, [weight], 1)
    assert optimizer.last_noise(weight).all() and optimizer.state[weight]["step"] == 1


def test_property_native_source_ships_with_the_package():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    assert (importlib.resources.files("bayesprune") / "samplers" / "native.c").is_file()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "samplers/*.c" in project["tool"]["setuptools"]["package-data"]["bayesprune"]
