from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from bayesprune.posterior import (
    Fit,
    MemorySamples,
    health_report,
    noise_to_gradient_of,
    predict,
    temperature_of,
    weight_spread,
)
from bayesprune.samplers import SGHMC, CVAdam


class Sampler:
    """An optimizer that states its temperatures and noise."""

    def __init__(self, temperature: float, ratio: float, groups: int = 2, measured: float = math.nan) -> None:
        self.group = {"mean": temperature, "min": temperature / 2, "max": temperature * 2}
        self.ratio, self.measured, self.param_groups = ratio, measured, [{"lr": 0.5}] * groups

    def injected_temperature(self):
        return [dict(self.group) for _ in self.param_groups]

    def kinetic_temperature(self):
        return [{"mean": self.measured} for _ in self.param_groups]

    def suggest_lr(self):
        return [0.125 for _ in self.param_groups]

    def noise_to_gradient(self):
        return self.ratio


def collect(*weights: list[list[float]]) -> tuple[nn.Module, MemorySamples]:
    samples, model = MemorySamples(), nn.Linear(len(weights[0][0]), len(weights[0]), bias=False)
    for weight in weights:
        model.weight.data = torch.tensor(weight)
        samples.collect(model)
    return model, samples


def test_equation_weight_spread_by_hand() -> None:
    _, samples = collect([[1.0, 0.0]], [[3.0, 0.0]], [[2.0, 0.0]])  # standard deviation 1 about 2; a pruned weight
    overall, by_tensor = weight_spread(samples)
    assert overall == pytest.approx(0.5) and by_tensor == {"weight": overall}


def test_equation_weight_spread_against_torch_and_without_buffers() -> None:
    torch.manual_seed(0)
    samples, states = MemorySamples(), []
    for scale in range(6):
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        nn.init.normal_(model[1].bias)
        model[1].running_mean.fill_(1000.0 * scale)  # a buffer: must play no part
        samples.collect(model)
        states.append({name: p.detach().double().clone() for name, p in model.named_parameters()})
    overall, by_tensor = weight_spread(samples)
    assert set(by_tensor) == set(states[0])
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    for name, value in stacked.items():
        expected = (value.var(0).sum() / value.mean(0).square().sum()).sqrt().item()
        assert by_tensor[name] == pytest.approx(expected, rel=1e-5)
    variance = sum(v.var(0).sum() for v in stacked.values())
    assert overall == pytest.approx(
        math.sqrt(variance / sum(v.mean(0).square().sum() for v in stacked.values())), rel=1e-5
    )


def test_limit_weight_spread() -> None:
    assert weight_spread(collect([[1.0]], [[1.0]])[1])[0] == 0.0
    assert weight_spread(collect([[0.0]], [[0.0]])[1])[0] == 0.0
    assert weight_spread(collect([[1.0]], [[-1.0]])[1])[0] == math.inf
    with pytest.raises(ValueError, match="at least two"):
        weight_spread(collect([[1.0]])[1])


def test_property_optimizers_are_asked_by_their_methods() -> None:
    one = {"mean": 0.5, "min": 0.1, "max": 1.0}
    optimizer = type("O", (), {"injected_temperature": lambda self: [one]})()
    assert temperature_of(optimizer) == [one]
    measured = {"mean": 1.0, "min": 0.5, "max": 2.0, "kinetic": 3.0, "lr": 0.5, "suggested_lr": 0.125}
    assert temperature_of(Sampler(1.0, 1.0, groups=1, measured=3.0)) == [measured]
    plain = torch.optim.SGD([torch.ones(2)], lr=0.1)
    assert temperature_of(plain) is None and noise_to_gradient_of(plain) is None
    assert noise_to_gradient_of(Sampler(1.0, 0.25)) == 0.25
    assert noise_to_gradient_of(Sampler(1.0, math.nan)) is None


def test_property_a_chain_hotter_than_it_says_is_named_with_a_step_size() -> None:
    assert health_report(optimizer=Sampler(1.0, 1.0, measured=1.49)).ok
    text = health_report(optimizer=Sampler(1.0, 1.0, groups=1, measured=5.3)).warnings[0]
    assert "measured temperature 5.3 in group 0, set 1:" in text and "At lr=0.12 instead of 0.5" in text
    assert health_report(optimizer=Sampler(1.0, 1.0, measured=5.3), max_excess=10.0).ok


def test_limit_the_readme_temperature_is_not_called_an_optimizer() -> None:
    # float32 .00999… was below the threshold of .01
    assert health_report(optimizer=Sampler(float(torch.tensor(0.01)), 1.0)).ok


def test_property_a_healthy_run_has_no_warning() -> None:
    model, samples = collect([[1.0], [0.0]], [[-1.0], [0.5]], [[0.2], [0.1]])
    prediction = predict(model, samples, torch.linspace(-1, 1, 20)[:, None])
    traces = {"loss": torch.randn(4, 500, generator=torch.Generator().manual_seed(0))}
    report = health_report(
        optimizer=Sampler(1.0, 2.0, measured=1.1), samples=samples, prediction=prediction, traces=traces
    )
    assert report.ok and report.members == 3 and report.disagreement > 0.1 and report.epistemic > 0
    text = str(report)
    for words in (
        "temperature, group 1: injected",
        "temperature, group 1: measured",
        "noise-to-gradient",
        "relative spread",
        "R-hat of loss",
        "ESS of loss",
    ):
        assert words in text
    assert "warning" not in text


def test_property_each_sign_of_a_snapshot_run_is_named() -> None:
    model, samples = collect([[1.0], [0.0]], [[1.0], [0.0]])
    prediction = predict(model, samples, torch.linspace(-1, 1, 20)[:, None])
    generator = torch.Generator().manual_seed(0)
    bad = {"apart": torch.randn(2, 50, 3, generator=generator) + torch.tensor([0.0, 9.0])[:, None, None]}
    bad["stuck"] = torch.ones(2, 50)
    report = health_report(optimizer=Sampler(1e-6, 1e-4), samples=samples, prediction=prediction, traces=bad)
    text = "\n".join(report.warnings)
    for words in (
        "injected temperature 1e-06 in group 0",
        "in group 1",
        "noise is 0.0001 of the gradient",
        "same weights",
        "members choose different classes in 0",
        "R-hat of apart",
        "bulk ESS of apart",
        "R-hat of stuck",
    ):
        assert words in text
    assert "in effect an optimizer with snapshots" in text and not report.ok
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))  # NaN of the stuck trace included
    assert content["rhat"]["stuck"] is None and content["temperature"][0]["mean"] == 1e-6


def test_limit_partial_reports() -> None:
    assert health_report().ok and str(health_report()) == "posterior health"
    assert "does not say" in health_report(optimizer=torch.optim.SGD([torch.ones(1)], lr=0.1)).warnings[0]
    assert "no posterior average" in health_report(samples=collect([[1.0]])[1]).warnings[0]
    assert health_report(optimizer=Sampler(math.nan, math.nan)).ok  # learning rate 0: nothing can be said
    model, samples = collect([[1.0]], [[2.0]])
    regression = predict(model, samples, torch.ones(3, 1), task="regression")
    report = health_report(prediction=regression)
    assert report.epistemic == pytest.approx(0.25) and report.disagreement is None and report.ok


def test_parity_with_the_sampler_of_the_package() -> None:
    """Paper noise with k = 1/N is an optimizer with snapshots; exact noise at T = 1 reports T = 1."""
    layer = nn.Linear(3, 2)
    layer(torch.randn(8, 3)).square().mean().backward()
    exact = CVAdam(layer.parameters(), lr=0.01, num_data=50_000)
    assert temperature_of(exact) == [{"mean": 1.0, "min": 1.0, "max": 1.0}]  # nothing is measured before a step
    cold = CVAdam(
        layer.parameters(), lr=0.01, num_data=50_000, temperature=1 / 50_000, noise="paper", betas=(0.1, 1.0),
        preconditioner="paper",
    )  # fmt: skip
    report = health_report(optimizer=cold)
    expected = 0.056 / 50_000  # N·k²·τ·√l·(1+β₁²)/((1-β₁)·β₂), τ = ½
    assert report.temperature[0]["mean"] == pytest.approx(expected, rel=0.01)
    assert report.noise_to_gradient is not None and not report.ok
    exact.step()
    assert temperature_of(exact)[0]["kinetic"] > 0


def test_property_an_unfit_chain_is_named() -> None:
    unfit = Fit(members=1.9, reference=0.1, constant=2.3)
    assert unfit.gap == pytest.approx(1.8 / 2.2)
    report = health_report(fit=unfit)
    assert "members do not fit" in report.warnings[0] and report.fit["reference"] == 0.1
    assert "training loss, members" in str(report)
    assert health_report(fit=Fit(members=0.2, reference=0.1, constant=2.3)).ok
    assert health_report(fit=Fit(members=9.0)).ok  # without a constant there is nothing to compare with


def test_property_chains_of_one_seed_are_named() -> None:
    """A chain that loads the state of a warm one has its noise: R-hat of copies is below 1."""
    torch.manual_seed(0)
    start, traces = None, {"copies": [], "chains": []}
    for kind, seeds in {"copies": (None, None), "chains": (5, 6)}.items():
        for seed in seeds:
            weight = nn.Parameter(torch.ones(3))
            optimizer = SGHMC([weight], lr=0.5, num_data=10, betas=(0.1, 1.0), seed=4)
            start = start or optimizer.state_dict()
            optimizer.load_state_dict(start)
            if seed is not None:
                optimizer.param_groups[0]["seed"] = seed
            draws = []
            for _ in range(400):
                weight.grad = weight.detach().clone()
                optimizer.step()
                draws.append(weight.detach().clone())
            traces[kind].append(torch.stack(draws))
    report = health_report(traces={kind: torch.stack(chains) for kind, chains in traces.items()})
    assert report.rhat["copies"] < 1.01
    assert [text for text in report.warnings if "one seed" in text] == [
        "chains of copies are the same, draw for draw: they have one seed. A loaded optimizer state brings its own: set "
        "group['seed'] of each chain after it"
    ]


def test_property_losses_may_be_an_array() -> None:
    for losses in (np.array([1.0, 0.9, 0.8, 9.0, 0.7]), torch.tensor([1.0, 0.9, 0.8, 9.0, 0.7])):
        assert health_report(losses=losses).spikes == [3]
