"""The kinetic temperature against the true one under minibatches, the suggested step size, and the warnings."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.minibatch_temperature import SETTINGS, logistic, network, run

from bayesprune.posterior import health_report
from bayesprune.samplers import SGHMC, SGLD, CVAdam

LENGTHS = {"logistic, β₁ .1, T 1": (1000, 200), "logistic, β₁ .9, T 1": (1400, 500), "logistic, β₁ .1, T .01": (1000, 200),
           "network, β₁ .9, T 1": (4000, 1500)}  # fmt: skip
"""Steps and burn-in: at least 20 and 5 relaxation times of the mean direction."""


@pytest.fixture(scope="module", params=SETTINGS)
def hot(request):
    """One of the four settings, run on batches drawn independently: name, target, settings, figures and the sampler."""
    make, settings = SETTINGS[request.param]
    target, (steps, burn_in) = make(), LENGTHS[request.param]
    settings = {"preconditioner": "paper", **settings}
    return request.param, target, settings, run(target, kind="independent", steps=steps, burn_in=burn_in, **settings)


def test_target_kinetic_temperature_is_the_true_one_within_a_quarter(hot):
    """4 standard errors of the truth, over chains, are below a tenth."""
    _, _, _, found = hot
    assert found["true"] > 1.5
    assert found["kinetic"] / found["true"] == pytest.approx(1, abs=0.25)
    assert 4 * found["true_error"] < 0.1 * found["true"]


def test_target_equipartition_is_the_variance_over_the_posteriors(hot):
    """The two definitions of the true temperature agree where the posterior is next to Gaussian: 10 %, at 75 T too."""
    name, _, _, found = hot
    if name.startswith("logistic"):
        assert found["true"] == pytest.approx(found["laplace"], rel=0.1)
    else:
        assert found["laplace"] is None


def test_property_a_hot_run_is_warned_of_and_told_a_smaller_step(hot):
    _, _, _, found = hot
    optimizer = found["optimizer"]
    report = health_report(optimizer=optimizer)
    assert not report.ok
    assert any(f"{optimizer.suggest_lr()[0]:.2g}" in text for text in report.warnings)


def test_target_the_suggested_step_has_the_wanted_excess(hot):
    """Kinetic temperature at the suggested step: T·(1 + excess), to a fifth of the excess."""
    _, target, settings, found = hot
    lr = found["optimizer"].suggest_lr(0.2)[0]
    assert 0 < lr < settings["lr"]
    again = run(target, kind="independent", steps=1200, burn_in=600, seed=3, **(settings | {"lr": lr}))
    assert again["kinetic"] - 1 == pytest.approx(0.2, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic, β₁ .1, T 1", "logistic, β₁ .9, T 1"])
def test_target_the_suggested_step_has_the_wanted_true_excess(name):
    make, settings = SETTINGS[name]
    target, settings = make(), {"preconditioner": "paper", **settings}
    hot = run(target, kind="independent", steps=600, burn_in=300, **settings)
    settings["lr"] = hot["optimizer"].suggest_lr(0.5)[0]
    found = run(target, kind="independent", steps=12_000, burn_in=2000, **settings)
    assert found["true"] - 1 == pytest.approx(0.5, abs=0.1 + 4 * found["true_error"])


@pytest.mark.parametrize("kind", ["independent", "shuffled"])
@pytest.mark.parametrize("name", ["logistic, β₁ .9, T 1", "network, β₁ .9, T 1"])
def test_target_rms_at_its_default_step(name, kind):
    """Within a quarter for independent batches; an upper bound, plus 4 standard errors, for shuffled epochs."""
    make, settings = SETTINGS[name]
    settings = {key: value for key, value in settings.items() if key != "lr"}
    found = run(make(), kind=kind, steps=4000, burn_in=1500, preconditioner="rms", **settings)
    if kind == "independent":
        assert found["kinetic"] / found["true"] == pytest.approx(1, abs=0.25)
    else:
        assert found["kinetic"] > found["true"] - 4 * found["true_error"]


@pytest.mark.parametrize("make", [logistic, network])
@pytest.mark.parametrize("preconditioner", ["paper", "rms"])
def test_property_a_full_batch_run_is_at_its_temperature_and_not_warned_of(make, preconditioner):
    lr = 0.1 if preconditioner == "paper" else 1e-3
    steps = 500 if make is logistic else 3000  # from the prior: the start is hot
    found = run(make(), kind="full", steps=steps, burn_in=steps // 2, chains=16, lr=lr, preconditioner=preconditioner)
    assert found["kinetic"] == pytest.approx(1, abs=0.1)
    assert health_report(optimizer=found["optimizer"]).warnings == []


@pytest.mark.parametrize("sampler", [SGHMC, SGLD])
@pytest.mark.parametrize("noise", [0.0, 0.5, 4.0])
def test_target_kinetic_temperature_follows_the_formula(sampler, noise):
    """T + N·l·V/(2(1−β₁)) up to the step size, 4 standard errors below 3 %."""
    number, lr, generator = 50.0, 0.02, torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.zeros(5000))
    optimizer = sampler([weight], lr=lr, num_data=number, weight_decay=0.0, seed=2)
    for _ in range(400):
        weight.grad = weight.detach() + noise**0.5 * torch.randn(5000, generator=generator)
        optimizer.step()
    beta1 = 0.9 if sampler is SGHMC else 0.0
    assert optimizer.kinetic_temperature()[0]["mean"] == pytest.approx(
        1 + number * lr * noise / (2 * (1 - beta1)), rel=0.03
    )


def test_property_every_group_has_a_temperature_of_its_own_and_none_before_a_step():
    hot, cold, still = (torch.nn.Parameter(torch.ones(20_000)) for _ in range(3))
    optimizer = CVAdam(
        [{"params": [hot], "temperature": 1.0}, {"params": [cold], "temperature": 0.0}, {"params": [still]}],
        lr=0.01, num_data=1000, weight_decay=0.0, preconditioner="none", betas=(0.5, 1.0), seed=0,
    )  # fmt: skip
    assert all(math.isnan(group["mean"]) for group in optimizer.kinetic_temperature())
    for _ in range(1500):  # the way from 1 to the minimum is hot
        hot.grad, cold.grad = hot.detach().clone(), torch.zeros_like(cold)
        optimizer.step()
    measured = [group["mean"] for group in optimizer.kinetic_temperature()]
    assert measured[0] == pytest.approx(1, abs=0.03)
    assert measured[1] == 0
    assert math.isnan(measured[2])
    suggested = optimizer.suggest_lr()
    assert math.isnan(suggested[1]) and math.isnan(suggested[2])


def test_error_excess_must_be_above_zero():
    with pytest.raises(ValueError, match="excess"):
        SGLD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, num_data=1).suggest_lr(0.0)
