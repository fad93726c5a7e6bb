"""Gradients that are not finite: told, left out or let through, by every way of stepping; nothing of them reaches a weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bayesprune.posterior import MemorySamples, health_report, loss_spikes
from bayesprune.samplers import SGHMC, CVAdam, NonFiniteGradientError, native
from bayesprune.samplers.guard import not_finite
from bayesprune.sparsity import ForwardPruning

WAYS = [
    pytest.param(dict(foreach=False, fused=False), id="plain"),
    pytest.param(dict(foreach=True), id="foreach"),
    pytest.param(
        dict(fused=True), id="native", marks=pytest.mark.skipif(not native.available(), reason="no C compiler")
    ),
]
BAD = (float("nan"), float("inf"), float("-inf"))


def built(bad: float | None, place: int = 5000, **settings):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(100, 100)), nn.Parameter(torch.randn(7))]
    optimizer = CVAdam([("weight", params[0]), ("bias", params[1])], lr=1e-3, num_data=10, seed=0, **settings)
    for param in params:
        param.grad = torch.randn(param.shape)
    if bad is not None:
        params[0].grad.view(-1)[place] = bad
    return params, optimizer


def content(optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    return state, [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def assert_same(one, other):
    for mine, theirs in zip(one[1], other[1]):
        assert torch.equal(mine, theirs)
    assert one[0]["state"].keys() == other[0]["state"].keys()
    for key, held in one[0]["state"].items():
        for name, value in held.items():
            theirs = other[0]["state"][key][name]
            assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs, name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("before", [0, 2])
def test_error_a_bad_gradient_stops_the_step_and_reaches_no_weight(way, bad, before):
    params, optimizer = built(None, **way)
    for _ in range(before):
        optimizer.step()
    params[0].grad.view(-1)[5000] = bad
    with pytest.raises(NonFiniteGradientError, match=r"weight of shape \(100, 100\).*nonfinite='skip'"):
        optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert all(bool(tensor.isfinite().all()) for tensor in (*params, *held))
    assert {state["step"] for state in optimizer.state.values()} == {before}
    params[0].grad.view(-1)[5000] = 0.0
    optimizer.step()  # it can go on
    assert all(bool(param.isfinite().all()) for param in params)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [0, 2])
def test_property_skip_moves_nothing_and_counts(way, before):
    params, optimizer = built(None, nonfinite="skip", **way)
    for _ in range(before):
        optimizer.step()
    good, first = params[1].grad.clone(), content(optimizer)
    params[1].grad[3] = torch.inf
    optimizer.step()
    assert optimizer.skipped == 1
    assert_same(first, content(optimizer))
    params[1].grad.copy_(good)
    optimizer.step()
    other, straight = built(None, **way)
    for _ in range(before + 1):
        straight.step()
    for mine, theirs in zip(params, other):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("way", WAYS)
def test_property_ignore_lets_it_through(way):
    params, optimizer = built(float("nan"), nonfinite="ignore", **way)
    optimizer.step()
    assert not bool(params[0].isfinite().all())


@pytest.mark.skipif(not native.available(), reason="no C compiler")
def test_property_the_guard_changes_no_bit_of_a_step():
    results = []
    for nonfinite in ("raise", "ignore"):
        optimizer = built(None, nonfinite=nonfinite, fused=True)[1]
        for _ in range(3):
            optimizer.step()
        results.append(content(optimizer))
    assert_same(*results)


def test_error_unknown_choice():
    with pytest.raises(ValueError, match="nonfinite='stop'"):
        built(None, nonfinite="stop")


def test_property_a_step_that_grad_scaler_skips_moves_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = SGHMC(model.parameters(), lr=0.1, num_data=10, seed=0)
    pruner = ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=0, groups="weight", every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale(factor * model(torch.ones(2, 6)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    before, count, masks = content(optimizer), pruner.step_count, {k: m.clone() for k, m in pruner.keep_masks.items()}
    step(float("inf"))
    assert_same(before, content(optimizer))
    assert pruner.step_count == count and all(torch.equal(m, masks[k]) for k, m in pruner.keep_masks.items())


def test_error_pruner_and_samples_refuse_weights_that_are_not_finite():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=0, groups="weight", every=1)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weights of 0\.weight are not finite"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"weights of 0\.weight are not finite"):
        pruner.finish_()
    samples = MemorySamples()
    with pytest.raises(ValueError, match=r"0\.weight holds NaN or infinity"):
        samples.collect(model)
    assert len(samples) == 0


def test_property_health_names_the_steps_at_which_the_loss_leapt():
    losses = [1.0, 0.8, 0.7, 0.6, 5.0, 0.5, float("nan"), 0.5]
    assert loss_spikes(losses) == [4, 6]
    assert loss_spikes([2.0, 1.0, 0.9, 0.5, 0.45, 0.4, 0.6]) == []
    report = health_report(losses={10 * step: loss for step, loss in enumerate(losses)})
    assert report.spikes == [40, 60]
    assert "the training loss leapt at 40, 60" in str(report)


def test_property_gradients_whose_sum_overflows_are_finite():
    large, spoilt = torch.full((9,), 3e38), torch.tensor([float("inf"), -float("inf")])
    assert not_finite([large, torch.ones(2), spoilt, torch.zeros(0), large.half()]) == [2, 4]
    assert not_finite([]) == []
