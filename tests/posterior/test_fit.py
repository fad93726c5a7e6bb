"""The fit check: members against a T = 0 reference and a constant prediction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayesprune.posterior import MemorySamples, fit_check


def toy() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = (x[:, 0] > 0.67).long()  # a quarter of the labels are 1
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 2)), list(
        zip(x.split(64), y.split(64))
    )


def test_equation_losses_by_hand() -> None:
    model, batches = toy()
    samples = MemorySamples()
    nn.init.zeros_(model[3].weight), nn.init.zeros_(model[3].bias)
    samples.collect(model)
    fit = fit_check(model, samples, batches, epochs=1)
    share = torch.cat([y for _, y in batches]).double().mean().item()
    assert fit.members == pytest.approx(math.log(2))
    assert fit.constant == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share), rel=1e-5)


def test_limit_labels_that_the_loss_ignores_do_not_count() -> None:
    model, batches = toy()
    samples = MemorySamples()
    samples.collect(model)
    padded = [(torch.cat([x, x[:8]]), torch.cat([y, torch.full((8,), -100)])) for x, y in batches]
    wanted = fit_check(model, samples, batches, epochs=1).constant
    assert fit_check(model, samples, padded, epochs=1).constant == pytest.approx(wanted, rel=1e-5)


def test_property_an_unfit_member_is_told_from_a_fitted_one() -> None:
    model, batches = toy()
    start, trained = MemorySamples(), MemorySamples()
    start.collect(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, y in batches * 40:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    trained.collect(model)
    assert "do not fit" in fit_check(model, start, batches, lr=1e-2, epochs=20).warning
    assert fit_check(model, trained, batches, lr=1e-2, epochs=20).warning is None


def test_property_the_model_is_left_as_it_was() -> None:
    model, batches = toy()
    model.eval()
    samples = MemorySamples()
    samples.collect(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_check(model, samples, batches, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_limit_regression_has_the_mean_as_its_constant() -> None:
    model = nn.Linear(1, 1)
    x = torch.linspace(-1, 1, 50)[:, None]
    samples = MemorySamples()
    samples.collect(model)
    fit = fit_check(model, samples, [(x, 3 * x)], loss=nn.functional.mse_loss, epochs=200, lr=0.1)
    assert fit.constant == pytest.approx(float((3 * x).var(unbiased=False)), rel=1e-5) and fit.reference < 1e-3


def test_error_without_samples_or_batches() -> None:
    model, batches = toy()
    with pytest.raises(ValueError, match="samples is empty"):
        fit_check(model, MemorySamples(), batches)
    samples = MemorySamples()
    samples.collect(model)
    with pytest.raises(ValueError, match="batches is empty"):
        fit_check(model, samples, [])


def test_property_batches_by_name_are_those_of_predict() -> None:
    class Named(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.body(x)}

    model, batches = toy()
    named, plain, ours = Named(model), MemorySamples(), MemorySamples()
    plain.collect(model), ours.collect(named)
    by_name = [{"x": x, "labels": y} for x, y in batches]
    assert fit_check(named, ours, by_name, epochs=2) == fit_check(model, plain, batches, epochs=2)
    with pytest.raises(ValueError, match="no labels"):
        fit_check(named, ours, [{"x": x} for x, _ in batches])
