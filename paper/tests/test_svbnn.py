from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from paper.designs import example1
from paper.selectors import SVBNNClassifier, SVBNNRegressor
from paper.selectors.batches import ShuffledBatches
from paper.selectors.likelihood import negative_log_likelihood
from paper.selectors.network import BatchedNetwork
from paper.selectors.svbnn_posterior import SpikeSlabPosterior, kl_divergence, prior_log_inclusion

LOG_INCLUSION, SLAB, TEMPERATURE = -9.0, 1.3, 0.5


def posterior(size=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = SpikeSlabPosterior(size, LOG_INCLUSION, SLAB, TEMPERATURE, generator, dtype=torch.float64)
    made.rho.uniform_(-6, 1, generator=generator)
    made.theta.uniform_(-4, 4, generator=generator)
    return made, generator


def relaxed(parameters, epsilon, u):
    """Hard gate forward, binary concrete backward."""
    mu, rho, theta = parameters
    soft = torch.sigmoid((theta + torch.log(u) - torch.log1p(-u)) / TEMPERATURE)
    gate = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
    return gate * (mu + F.softplus(rho) * epsilon)


# ---- prior and divergence


def test_equation_prior_inclusion_by_hand():
    count = 201 * 7 + 8 * 7 + 8 * 7 + 8  # the released simulation: 200-7-7-7-1 and 3000 rows
    by_hand = math.log(count) + 0.1 * (4 * math.log(7) + math.log(math.sqrt(3000) * 200))
    assert prior_log_inclusion((200, 7, 7, 7, 1), 3000) == pytest.approx(-by_hand, rel=1e-14)
    assert prior_log_inclusion((50, 4, 6, 2), 100) == pytest.approx(
        -(math.log(51 * 4 + 5 * 6 + 7 * 2) + 0.1 * (3 * math.log(6) + math.log(10 * 50))), rel=1e-14
    )


def test_parity_divergence_is_gate_plus_gated_slab():
    made, _ = posterior()
    rate = torch.tensor(math.exp(LOG_INCLUSION), dtype=torch.float64)
    gate = torch_kl(Bernoulli(probs=made.phi), Bernoulli(probs=rate))
    slab = torch_kl(Normal(made.mu, made.sigma), Normal(torch.zeros_like(made.mu), SLAB))
    got = kl_divergence(made.mu, made.sigma, made.phi, LOG_INCLUSION, SLAB)
    torch.testing.assert_close(got, gate + made.phi * slab, rtol=1e-9, atol=1e-10)
    assert made.kl() == pytest.approx(float(got.sum()), rel=1e-12)


def test_limit_divergence_is_finite_at_closed_and_open_gates():
    phi = torch.tensor([0.0, 1.0], dtype=torch.float64)
    got = kl_divergence(torch.zeros(2), torch.full((2,), SLAB), phi, LOG_INCLUSION, SLAB)
    assert got.tolist() == pytest.approx([-math.log1p(-math.exp(LOG_INCLUSION)), 9.0], rel=1e-6, abs=1e-12)


def test_equation_start_of_the_posterior():
    made = SpikeSlabPosterior(4000, LOG_INCLUSION, SLAB, TEMPERATURE, torch.Generator().manual_seed(0))
    assert made.phi.tolist() == pytest.approx([0.99] * 4000, rel=1e-5)
    assert made.sigma.tolist() == pytest.approx([math.log1p(math.exp(-6))] * 4000, rel=1e-5)
    assert -0.6 <= made.mu.min() < -0.59 and 0.59 < made.mu.max() <= 0.6


# ---- draws and gradients


def test_target_draws_have_the_posteriors_law():
    made, generator = posterior(6)
    draws = torch.stack([made.draw_(torch.empty(6, dtype=torch.float64), generator) for _ in range(20_000)])
    zero = (draws == 0).double().mean(0)
    assert ((zero - (1 - made.phi)).abs() < 4 * (made.phi * (1 - made.phi) / 20_000).sqrt()).all()
    second = made.phi * (made.sigma**2 + made.mu**2)
    mean, spread = made.phi * made.mu, (second - (made.phi * made.mu) ** 2).sqrt()
    assert ((draws.mean(0) - mean).abs() < 4 * spread / math.sqrt(20_000)).all()
    fourth = made.phi * (made.mu**4 + 6 * made.mu**2 * made.sigma**2 + 3 * made.sigma**4)
    error = ((fourth - second**2) / 20_000).sqrt()
    assert ((draws.square().mean(0) - second).abs() < 4 * error).all()


@pytest.mark.parametrize("kl_weight", [0.0, 0.05])
def test_parity_gradient_is_autograds_through_the_relaxed_gates(kl_weight):
    made, generator = posterior()
    noise = torch.Generator().set_state(generator.get_state())
    w = made.draw_(torch.empty(500, dtype=torch.float64), generator)
    epsilon = torch.empty(500, dtype=torch.float64).normal_(generator=noise)
    u = torch.empty(500, dtype=torch.float64).uniform_(generator=noise)
    leaf = made.parameters.clone().requires_grad_()
    again = relaxed(leaf, epsilon, u)
    torch.testing.assert_close(again.detach(), w, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-2, 3, 500, dtype=torch.float64)
    mu, rho, theta = leaf
    divergence = kl_divergence(mu, F.softplus(rho), torch.sigmoid(theta), LOG_INCLUSION, SLAB).sum()
    ((weights * again).sum() + kl_weight * divergence).backward()
    torch.testing.assert_close(made.gradient_(weights, kl_weight), leaf.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("task", ["gaussian", "binary", "softmax"])
def test_equation_training_is_adam_on_the_evidence_bound(task):
    n, p, width = 30, 5, 3 if task == "softmax" else 1
    data = torch.Generator().manual_seed(4)
    X = torch.randn(n, p, generator=data, dtype=torch.float64)
    y = torch.randint(3 if task == "softmax" else 2, (n,), generator=data)
    y = y if task == "softmax" else y.double()
    network = BatchedNetwork(1, (p, 4, width), dtype=torch.float64)
    made, _ = posterior(len(network.flat))
    leaf = made.parameters.clone().requires_grad_()
    model = SVBNNRegressor(steps=6, batch_size=8, step_size=0.01)
    model._task, model._sigma2, model._generator = task, 0.8, torch.Generator().manual_seed(9)
    model._ascend_(network, made, X, y)

    generator = torch.Generator().manual_seed(9)
    adam = torch.optim.Adam([leaf], lr=0.01)
    batches = iter(ShuffledBatches(X, y, 8, generator))
    for _ in range(6):
        rows, responses = next(batches)
        epsilon = torch.empty(len(network.flat), dtype=torch.float64).normal_(generator=generator)
        u = torch.empty(len(network.flat), dtype=torch.float64).uniform_(generator=generator)
        weights, biases = network.views(relaxed(leaf, epsilon, u))
        f = weights[1] @ torch.relu(weights[0] @ rows.T + biases[0]) + biases[1]
        mu, rho, theta = leaf
        divergence = kl_divergence(mu, F.softplus(rho), torch.sigmoid(theta), LOG_INCLUSION, SLAB).sum()
        loss = 8 * negative_log_likelihood(f, responses, task, 0.8)[0] + divergence * 8 / n
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(made.parameters, leaf.detach(), rtol=1e-8, atol=1e-9)


# ---- the whole estimator


def test_property_example1_is_recovered():
    data = example1(n=3000, p=40, n_test=2000, seed=5)
    model = SVBNNRegressor(steps=6000, step_size=0.01, batch_size=256, random_state=0)
    model.fit(data.X_train, data.y_train)
    assert model.get_support(indices=True).tolist() == list(data.true_inputs)
    assert np.mean((data.y_test - model.predict(data.X_test)) ** 2) < 1.5  # variance 3.23, noise 1
    assert model.history_["kl"][-1] < 0.1 * model.history_["kl"][0]
    assert model.history_["n_selected"][0] == 40 and model.history_["n_selected"][-1] == 5
    assert model.prior_log_inclusion_ == prior_log_inclusion((40, 5, 3, 1), 3000) and model.n_iter_ == 6000
    X = data.X_test.copy()
    X[:, model.inclusion_probability_ < 1e-4] = 99.0  # columns that no draw reads
    np.testing.assert_allclose(model.predict(X), model.predict(data.X_test), rtol=1e-5, atol=1e-5)


def test_property_classifier_recovers_the_inputs():
    X = np.random.default_rng(0).standard_normal((2000, 30)).astype(np.float32)
    y = X[:, 3] * 2 - X[:, 7] + 0.5 > 0
    model = SVBNNClassifier(hidden_layer_sizes=(4,), steps=2500, step_size=0.02, batch_size=256, random_state=0)
    assert model.fit(X, y).get_support(indices=True).tolist() == [3, 7] and model.score(X, y) > 0.97


def test_property_draws_differ_and_their_number_is_kept():
    X = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    model = SVBNNRegressor(steps=50, n_draws=7, random_state=0).fit(X, X[:, 0])
    outputs = model._outputs(torch.from_numpy(X))
    assert outputs.shape == (7, 1, 200) and outputs.std(0).min() > 0
    np.testing.assert_allclose(model.predict(X), outputs[:, 0].mean(0).numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    "keywords, words",
    [
        ({"n_draws": 0}, "n_draws=0 .* at least 1"),
        ({"slab_scale": 0.0}, "slab_scale=0.0 .* above 0"),
        ({"gate_temperature": -1.0}, "gate_temperature=-1.0 .* above 0"),
    ],
)
def test_error_names_argument_value_and_mend(keywords, words):
    X = np.zeros((100, 3), np.float32)
    with pytest.raises(ValueError, match=words):
        SVBNNRegressor(**keywords).fit(X, X[:, 0])
