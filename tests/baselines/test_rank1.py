"""Rank-1 Bayesian networks: the layer by hand, the KL against torch.distributions, the plain network as a limit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Cauchy, Normal, kl_divergence
from torch.nn import functional as F

from bayesprune.baselines import Rank1Layer, Rank1Network, kl_scale, step_decay, to_rank1
from bayesprune.posterior import MemorySamples, predict
from bayesprune.vision import build


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def fix_(layer, *, mean=None, std=0.0):
    """Set a layer's posterior: means (None leaves them) and standard deviations."""
    for name in ("alpha", "gamma"):
        if mean is not None:
            nn.init.constant_(getattr(layer, f"{name}_mean"), mean)
        nn.init.constant_(getattr(layer, f"{name}_rho"), math.log(math.expm1(std)) if std else -200.0)


@pytest.mark.parametrize("family", ["gaussian", "cauchy"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_equation_layer_is_the_paper_row_by_row(kind, family):
    """y = ((x∘α)*W)∘γ + b with α, γ of each row drawn in the layer's own order, one row at a time."""
    torch.manual_seed(1)
    plain = nn.Linear(3, 4) if kind == "linear" else nn.Conv2d(3, 4, 3, stride=2, padding=1)
    weight, bias = plain.weight.detach().clone(), plain.bias.detach().clone()
    layer = Rank1Layer(plain, 2, family=family)
    nn.init.normal_(layer.bias)
    x = torch.randn(6, 3) if kind == "linear" else torch.randn(6, 3, 5, 5)
    layer.generator = torch.Generator().manual_seed(7)
    y = layer(x)
    draw, noises = torch.Generator().manual_seed(7), {}
    for name, size in (("alpha", 3), ("gamma", 4)):
        empty = torch.empty(2, 3, size)
        noises[name] = empty.normal_(generator=draw) if family == "gaussian" else empty.cauchy_(generator=draw)
    for row in range(6):
        member, example = divmod(row, 3)
        vectors = {}
        for name in ("alpha", "gamma"):
            mean = getattr(layer, f"{name}_mean")[member]
            std = getattr(layer, f"{name}_rho")[member].exp().log1p()
            vectors[name] = (mean + std * noises[name][member, example]).clamp(-10, 10)
        if kind == "linear":
            by_hand = (weight @ (x[row] * vectors["alpha"])) * vectors["gamma"] + layer.bias[member]
        else:
            filtered = F.conv2d((x[row] * vectors["alpha"].view(3, 1, 1))[None], weight, stride=2, padding=1)[0]
            by_hand = filtered * vectors["gamma"].view(4, 1, 1) + layer.bias[member].view(4, 1, 1)
        torch.testing.assert_close(y[row], by_hand, rtol=1e-4, atol=1e-5)
    assert not torch.equal(layer.bias[0], bias)


def test_property_start_is_the_published_one():
    layer = Rank1Layer(nn.Linear(500, 500), 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.alpha_mean.abs(), torch.ones(4, 500))
    assert abs(float(layer.alpha_mean.detach().mean())) < 4 / math.sqrt(2000)  # signs are fair: 4 standard errors
    std = F.softplus(layer.gamma_rho).detach()
    assert float(std.mean()) == pytest.approx(0.0317, abs=0.0005)
    assert float(std.min()) > 0.025 and float(std.max()) < 0.039  # a jitter of 0.1 in rho, cut at two of it
    cauchy = Rank1Layer(nn.Linear(5, 5), 4, family="cauchy", random_sign=1.0)
    torch.testing.assert_close(F.softplus(cauchy.alpha_rho), torch.full((4, 5), math.sqrt(0.001 / 0.999)))
    assert torch.equal(cauchy.alpha_mean, torch.ones(4, 5))
    starts = {prior: to_rank1(nn.Linear(9, 9), prior=prior).layers[""].alpha_rho for prior in ("gaussian", "cauchy")}
    assert float(F.softplus(starts["gaussian"]).detach().mean()) == pytest.approx(0.0316, rel=0.05)
    torch.testing.assert_close(F.softplus(starts["cauchy"]), torch.full((4, 9), 0.001))


def posterior_and_prior(layer, name, kind):
    mean, std = getattr(layer, f"{name}_mean"), F.softplus(getattr(layer, f"{name}_rho"))
    return kind(mean, std), kind(torch.tensor(1.0), torch.tensor(0.1))


def test_equation_gaussian_kl_is_torchs():
    layer = Rank1Layer(nn.Linear(6, 5), 3)
    wanted = sum(kl_divergence(*posterior_and_prior(layer, name, Normal)).sum() for name in ("alpha", "gamma"))
    torch.testing.assert_close(layer.kl(), wanted)


def test_equation_cauchy_kl_is_torchs_integral():
    """torch has no KL of two Cauchys: the integral of q·log(q/p) over quantiles of q, by midpoints."""
    layer = Rank1Layer(nn.Linear(2, 1).double(), 2, family="cauchy").double()
    middle = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    wanted = 0.0
    for name in ("alpha", "gamma"):
        q, p = posterior_and_prior(layer, name, Cauchy)
        x = q.icdf(middle.view(-1, 1, 1))
        wanted += float((q.log_prob(x) - p.log_prob(x)).detach().mean(0).sum())
    assert float(layer.kl()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("family", ["gaussian", "cauchy"])
def test_target_monte_carlo_kl_estimates_the_closed_form(family):
    """3,000 one-draw estimates; tolerance 4 standard errors, themselves below 2 % of the KL."""
    layer = Rank1Layer(nn.Linear(3, 3), 2, family=family, random_sign=1.0)
    fix_(layer, mean=1.15, std=0.06)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        draws = torch.stack([layer.kl(monte_carlo=True, generator=generator) for _ in range(3000)]).double()
    error = float(draws.std() / math.sqrt(len(draws)))
    assert abs(float(draws.mean()) - float(layer.kl())) < 4 * error
    assert error < 0.02 * float(layer.kl())


def test_equation_mixture_sums_as_published_or_averages_as_the_bound():
    model = to_rank1(convolutional(), members=4)
    by_layer = sum(float(layer.kl()) for layer in model.layers.values())
    assert float(model.kl()) == pytest.approx(by_layer, rel=1e-5)
    assert float(model.kl("mean")) == pytest.approx(by_layer / 4, rel=1e-5)
    assert [kl_scale(step, 200) for step in (0, 99, 199, 249)] == [1 / 200, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("name", ["resnet20", "wide_resnet"])
def test_limit_no_spread_and_unit_means_is_the_plain_network(name):
    torch.manual_seed(0)
    arguments = {"depth": 10, "widen_factor": 1} if name == "wide_resnet" else {"width": 4}
    plain = build(name, num_classes=3, **arguments)
    model = to_rank1(plain, members=2)
    assert not any(isinstance(module, Rank1Layer) for module in plain.modules())
    for layer in model.layers.values():
        fix_(layer, mean=1.0)
    images = torch.randn(4, 3, 16, 16)
    logits = model.train()(images)
    # both halves of the tiled batch are the plain batch, so the shared BatchNorm sees the plain statistics
    torch.testing.assert_close(logits, plain.train()(images).repeat(2, 1), rtol=1e-3, atol=1e-4)
    plain.load_state_dict(model.member_state(0, mean=True))
    torch.testing.assert_close(model.eval()(images), plain.eval()(images).log_softmax(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [convolutional, lambda: nn.Linear(5, 3)])
def test_equation_member_is_a_plain_network_of_rank_1_weights(make):
    plain, model = make(), to_rank1(make(), members=3)
    inputs = torch.randn(4, 5) if isinstance(plain, nn.Linear) else torch.randn(4, 2, 6, 6)
    for layer in model.layers.values():
        fix_(layer)  # the ±1 means stay
        nn.init.normal_(layer.bias)
        layer.alpha_mean.data *= torch.rand_like(layer.alpha_mean)
    model.eval()
    tiled = model.network(model.tile(inputs)).unflatten(0, (3, 4))
    for member in range(3):
        plain.load_state_dict(model.member_state(member, mean=True))
        torch.testing.assert_close(plain.eval()(inputs), tiled[member], rtol=1e-4, atol=1e-5)


def test_property_training_tiles_inputs_and_labels_alike():
    model = to_rank1(nn.Linear(2, 2), members=3)
    images, labels = torch.arange(8.0).view(4, 2), torch.arange(4)
    assert torch.equal(model.tile(images), torch.cat([images] * 3))
    assert torch.equal(model.tile(labels), torch.cat([labels] * 3))
    logits = model(images)
    assert logits.shape == (12, 2)
    assert not torch.equal(logits[:4], logits[4:8])  # members differ,
    assert not torch.equal(model(images), logits)  # and so do draws


def test_property_every_example_has_its_own_draw():
    layer = Rank1Layer(nn.Linear(3, 3), 2)
    y = layer(torch.ones(6, 3))
    assert len({tuple(row) for row in y.tolist()}) == 6


def test_property_loss_reaches_every_parameter_and_training_lowers_it():
    torch.manual_seed(0)
    model = to_rank1(convolutional(), members=4)
    groups = model.parameter_groups(2e-4)
    counted = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(counted) == len(set(counted)) == len(list(model.parameters()))
    assert [group["weight_decay"] for group in groups] == [2e-4, 0.0] and len(groups[1]["params"]) == 4 * 2
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    images = torch.randn(32, 2, 6, 6)
    labels = (images[:, 0].mean((1, 2)) > 0).long()
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), model.tile(labels)) + kl_scale(step, 48) * model.kl() / 50_000
        loss.backward()
        if step == 0:
            assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_equation_prediction_averages_members_and_draws():
    model, inputs = to_rank1(convolutional(), members=2, draws=3, seed=5).eval(), torch.randn(4, 2, 6, 6)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.layers.values():
            layer.generator = generator
        outputs = [model.network(model.tile(inputs)).softmax(1).unflatten(0, (2, 4)) for _ in range(3)]
        for layer in model.layers.values():
            layer.generator = None
        torch.testing.assert_close(model(inputs).exp(), torch.cat(outputs).mean(0))
        assert torch.equal(model(inputs), model(inputs))
    prediction = predict(model, None, inputs)
    torch.testing.assert_close(prediction.probabilities.float(), torch.cat(outputs).mean(0))


def test_target_stored_members_predict_like_the_network():
    """200 draws a member stored as plain networks against 200 in the network; 4.5 standard errors (of both), 15 tests."""
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    model, inputs = to_rank1(plain, members=2, draws=200, posterior_std=0.5).eval(), torch.randn(5, 4)
    samples, before = MemorySamples(), plain.weight.clone()
    model.collect(samples, plain, draws=200, generator=torch.Generator().manual_seed(1))
    assert len(samples) == 400 and torch.equal(plain.weight, before)
    assert samples.infos[200] == {"member": 1, "draw": 0}
    stored = predict(plain, samples, inputs, keep_members=True)
    within = stored.members.unflatten(0, (2, 200)).var(1).mean(0)  # the members themselves are no source of error
    error = (2 * within / 400).sqrt()
    assert ((stored.probabilities - model(inputs).double().exp()).abs() < 4.5 * error).all()
    assert float(error.max()) < 0.02 and float(stored.epistemic.mean()) > 0


def test_roundtrip_state_dict_and_tied_layers():
    model = to_rank1(convolutional(), members=2, seed=1)
    other = to_rank1(convolutional(), members=2, seed=2)
    other.load_state_dict(model.state_dict())
    inputs = torch.randn(3, 2, 6, 6)
    other.seed = model.seed
    assert torch.equal(model.eval()(inputs), other.eval()(inputs))
    shared = nn.Linear(3, 3)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    tied = to_rank1(twice, members=2)
    assert len(tied.layers) == 1 and tied.network[0] is tied.network[2]
    twice.load_state_dict(tied.member_state(1, torch.Generator().manual_seed(0)))


def test_equation_step_size_drops_as_published():
    """250 epochs: ×0.2 at 100, 200 and 225, after one epoch of warm-up."""
    epochs = [step_decay(epoch, 250, 0.1) for epoch in range(250)]
    drops = [epoch for epoch in range(1, 250) if epochs[epoch] != epochs[epoch - 1]]
    assert drops == [100, 200, 225] and epochs[-1] == pytest.approx(0.1 * 0.2**3)
    assert [step_decay(step, 2500, 1.0, warmup_steps=10) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]


def test_error_what_cannot_be_converted_is_named():
    with pytest.raises(ValueError, match="no Linear or Conv layer"):
        to_rank1(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"exclude=\['0.out_proj'\]"):
        to_rank1(nn.Sequential(nn.MultiheadAttention(4, 2)))
    with pytest.raises(ValueError, match="lazy layer"):
        to_rank1(nn.LazyLinear(2))
    with pytest.raises(ValueError, match="did you mean 'cauchy'"):
        to_rank1(nn.Linear(2, 2), prior="couchy")
    for settings, message in (
        ({"members": 0}, "members=0"),
        ({"random_sign": 2}, "random_sign=2"),
        ({"draws": 0}, "draws=0"),
    ):
        with pytest.raises(ValueError, match=message):
            to_rank1(nn.Linear(2, 2), **settings)
    with pytest.raises(ValueError, match="no multiple of members=2"):
        Rank1Layer(nn.Linear(2, 2), 2)(torch.ones(3, 2))
    with pytest.raises(IndexError, match="member=2"):
        to_rank1(nn.Linear(2, 2), members=2).member_state(2)
    assert isinstance(to_rank1(nn.Linear(2, 2)), Rank1Network)


def test_property_factors_keep_the_activations_in_the_dtype_of_autocast():
    layer = Rank1Layer(nn.Conv2d(3, 4, 3), members=2)
    x = torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32
