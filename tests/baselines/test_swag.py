"""SWAG: its moments by hand, the law of its samples, re-estimated BatchNorm statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from bayesprune.baselines import SWAG, refresh_batch_norm_, swag_lr
from bayesprune.posterior import MemorySamples, predict
from bayesprune.train import load_tree, save_tree


def collected(rank, count=6, seed=0, dtype=torch.float64):
    """Return a SWAG of random iterates of a small layer, and those iterates as rows (bias, then weight)."""
    generator = torch.Generator().manual_seed(seed)
    model, swag, rows = nn.Linear(2, 1, dtype=dtype), SWAG(rank), []
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
        rows.append(flat(model.state_dict()))
        swag.collect(model)
    return swag, torch.stack(rows)


def flat(state):
    return torch.cat([state["bias"].reshape(-1), state["weight"].reshape(-1)])


def test_equation_moments_and_deviations():
    swag, rows = collected(rank=3)
    torch.testing.assert_close(flat(swag.mean), rows.mean(0))
    torch.testing.assert_close(flat(swag.second_moment), rows.square().mean(0))
    torch.testing.assert_close(flat(swag.variance), rows.square().mean(0) - rows.mean(0).square())
    running = rows.cumsum(0) / torch.arange(1, 7, dtype=torch.float64).unsqueeze(1)
    columns = torch.stack([flat(column) for column in swag.deviations])
    torch.testing.assert_close(columns, (rows - running)[-3:])


def test_limit_variance_survives_float32():
    """Weights of 1000 ± 1e-3: the difference of two float32 moments would be noise of the size of 60."""
    model, swag = nn.Linear(1, 1, bias=False), SWAG(rank=0)
    for value in (1000.001, 999.999) * 10:
        nn.init.constant_(model.weight, value)
        swag.collect(model)
    assert float(swag.variance["weight"]) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize(("rank", "scale"), [(0, 1.0), (3, 1.0), (4, 0.5), (20, 1.0)])
def test_target_samples_have_mean_and_covariance(rank, scale):
    """4,000 draws: each entry of mean and covariance within 4.5 standard errors (9 tests at once)."""
    swag, rows = collected(rank)
    generator, draws = torch.Generator().manual_seed(1), 4000
    covariance = torch.diag(rows.square().mean(0) - rows.mean(0).square())
    running = rows.cumsum(0) / torch.arange(1, 7, dtype=torch.float64).unsqueeze(1)
    if rank:
        columns = (rows - running)[-rank:]
        covariance = covariance / 2 + columns.T @ columns / (2 * (len(columns) - 1))
    covariance = scale * covariance
    sample = torch.stack([flat(swag.sample(generator, scale=scale)) for _ in range(draws)])
    centred = sample - rows.mean(0)
    error = (covariance.diagonal() / len(sample)).sqrt()
    assert (centred.mean(0).abs() < 4.5 * error).all()
    products = torch.einsum("si,sj->sij", centred, centred)
    error = products.std(0) / math.sqrt(len(sample))
    assert ((products.mean(0) - covariance).abs() < 4.5 * error).all()
    assert float(error.max() / covariance.diagonal().max()) < 0.03


def test_limit_scale_zero_is_swa():
    swag, rows = collected(rank=3)
    torch.testing.assert_close(flat(swag.sample(scale=0.0)), rows.mean(0))


def test_roundtrip_state_gives_the_same_samples(tmp_path):
    swag, _ = collected(rank=3, dtype=torch.float32)
    save_tree(tmp_path / "swag.safetensors", swag.state_dict())
    again = SWAG(rank=3)
    again.load_state_dict(load_tree(tmp_path / "swag.safetensors"))
    for model_value in (0.1, -0.2):  # and it goes on collecting
        model = nn.Linear(2, 1)
        nn.init.constant_(model.weight, model_value)
        nn.init.constant_(model.bias, model_value)
        swag.collect(model)
        again.collect(model)
    ours, theirs = (s.sample(torch.Generator().manual_seed(4)) for s in (swag, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2), nn.BatchNorm1d(2),
    )  # fmt: skip


def test_parity_refreshed_statistics_are_torchs_update_bn():
    ours, theirs = convolutional(), convolutional()
    for model in (ours, theirs):
        model[3] = nn.Identity()
    batches = [torch.randn(8, 1, 6, 6) for _ in range(3)]
    refresh_batch_norm_(ours.eval(), [(batch, torch.zeros(8)) for batch in batches])
    update_bn(batches, theirs)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    assert not any(module.training for module in ours.modules()) and ours[1].momentum == 0.1


def test_property_refreshing_leaves_dropout_off_and_weights_alone():
    model, batches = convolutional().train(), [torch.randn(8, 1, 6, 6)]
    weights = [parameter.clone() for parameter in model.parameters()]
    first = refresh_batch_norm_(model, batches)[7].running_mean.clone()
    assert torch.equal(refresh_batch_norm_(model, batches)[7].running_mean, first)
    assert model[3].training and all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))


def test_property_drawn_samples_predict_with_their_own_statistics():
    model, swag, samples = convolutional(), SWAG(rank=2), MemorySamples()
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        swag.collect(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [torch.randn(16, 1, 6, 6) for _ in range(2)]
    swag.draw(samples, model, 4, batches, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()) and model.training
    assert len(samples) == 4
    assert not torch.equal(samples[0]["1.running_mean"], samples[1]["1.running_mean"])
    assert int(samples[0]["1.num_batches_tracked"]) == 2
    prediction = predict(model, samples, batches[0])
    torch.testing.assert_close(prediction.probabilities.sum(1), torch.ones(16, dtype=torch.float64))


def test_property_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    swag = SWAG(rank=2)
    for _ in range(2):
        nn.init.normal_(model[0].weight)
        swag.collect(model)
    sample = swag.sample()
    assert torch.equal(sample["0.weight"], sample["1.weight"])
    model.load_state_dict(sample)


def test_error_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="rank=1"):
        SWAG(rank=1)
    swag = SWAG()
    swag.collect(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="1 models were collected"):
        swag.sample()
    with pytest.raises(ValueError, match="tensor 'weight'"):
        swag.collect(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="the state has rank 20"):
        SWAG(rank=5).load_state_dict(swag.state_dict())
    with pytest.raises(ValueError, match="no batch"):
        refresh_batch_norm_(nn.BatchNorm1d(2), [])
    swag.collect(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="only once"):
        swag.draw(MemorySamples(), nn.Linear(2, 1), 2, iter([torch.ones(2, 2)]))


def test_equation_step_size_is_the_authors_schedule():
    """run_swag.py: factor 1 to half of the way, a line to 0.9 of it, then the share; 300 epochs, start at 161."""
    for epoch in range(300):
        t = epoch / 161
        factor = 1.0 if t <= 0.5 else 1.0 - (1.0 - 0.5) * (t - 0.5) / 0.4 if t <= 0.9 else 0.5
        assert swag_lr(epoch, 300, 0.1, 0.5, start=161 / 300) == pytest.approx(0.1 * factor)
