from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from bayesprune.posterior import (
    MemorySamples,
    effective_temperature_of,
    health_report,
    noise_to_gradient_of,
    predict,
    weight_spread,
)


class Sampler:
    """An optimizer that states its temperature and noise."""

    def __init__(self, temperature: float, ratio: float, groups: int = 2) -> None:
        self.group = {"mean": temperature, "min": temperature / 2, "max": temperature * 2}
        self.ratio, self.groups = ratio, groups

    def effective_temperature(self):
        return [dict(self.group) for _ in range(self.groups)]

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
    one = {"mean": 0.5, "min": 0.1, "max": 1}
    for answer in (one, [one], {"group": one}):
        optimizer = type("O", (), {"effective_temperature": lambda self, a=answer: a})()
        assert effective_temperature_of(optimizer) == [one]
    plain = torch.optim.SGD([torch.ones(2)], lr=0.1)
    assert effective_temperature_of(plain) is None and noise_to_gradient_of(plain) is None
    assert noise_to_gradient_of(Sampler(1.0, 0.25)) == 0.25
    assert noise_to_gradient_of(Sampler(1.0, math.nan)) is None


def test_property_a_healthy_run_has_no_warning() -> None:
    model, samples = collect([[1.0], [0.0]], [[-1.0], [0.5]], [[0.2], [0.1]])
    prediction = predict(model, samples, torch.linspace(-1, 1, 20)[:, None])
    traces = {"loss": torch.randn(4, 500, generator=torch.Generator().manual_seed(0))}
    report = health_report(optimizer=Sampler(1.0, 2.0), samples=samples, prediction=prediction, traces=traces)
    assert report.ok and report.members == 3 and report.disagreement > 0.1 and report.epistemic > 0
    text = str(report)
    for words in (
        "effective temperature, group 1",
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
        "effective temperature 1e-06 in group 0",
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
    samplers = pytest.importorskip("bayesprune.samplers")
    if not hasattr(samplers, "CVAdam"):
        pytest.skip("no sampler yet")
    layer = nn.Linear(3, 2)
    layer(torch.randn(8, 3)).square().mean().backward()
    exact = samplers.CVAdam(layer.parameters(), lr=0.01, num_data=50_000, temperature=1.0, noise="exact")
    assert effective_temperature_of(exact)[0]["mean"] == pytest.approx(1.0)
    cold = samplers.CVAdam(layer.parameters(), lr=0.01, num_data=50_000, temperature=1 / 50_000, noise="paper")
    report = health_report(optimizer=cold)
    assert report.temperature[0]["mean"] == pytest.approx(
        0.056 / 50_000, rel=0.01
    )  # N·k²·τ·√l·(1+β₁²)/((1-β₁)·β₂), τ = ½
    assert report.noise_to_gradient is not None and not report.ok
