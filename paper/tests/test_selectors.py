"""What SPLBNN and SVBNN share: the batched network, the likelihoods, the batches, the estimators' conventions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from paper.selectors import SPLBNNClassifier, SPLBNNRegressor, SVBNNClassifier, SVBNNRegressor
from paper.selectors.batches import EPOCHS_A_SHUFFLE, ShuffledBatches
from paper.selectors.likelihood import negative_log_likelihood, output_gradient_
from paper.selectors.network import BatchedNetwork

REGRESSORS = {
    "splbnn": (SPLBNNRegressor, {"n_starts": 2, "steps": 60, "refine_steps": 30}),
    "svbnn": (SVBNNRegressor, {"steps": 60, "n_draws": 5}),
}
CLASSIFIERS = {
    "splbnn": (SPLBNNClassifier, {"n_starts": 2, "steps": 60, "refine_steps": 30}),
    "svbnn": (SVBNNClassifier, {"steps": 60, "n_draws": 5}),
}
BOTH = pytest.mark.parametrize("name", ["splbnn", "svbnn"])


def make(table, name, **keywords):
    kind, small = table[name]
    return kind(**({"hidden_layer_sizes": (4, 3), "batch_size": 32, "random_state": 0} | small | keywords))


def table_of(rows=120, columns=9, seed=0):
    X = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return X, X[:, 0] - 2 * X[:, 3]


def labels_and_outputs(task, networks=3, rows=8):
    generator = torch.Generator().manual_seed(1)
    width = 4 if task == "softmax" else 1
    outputs = torch.randn(networks, width, rows, generator=generator, dtype=torch.float64)
    if task == "gaussian":
        return torch.randn(rows, generator=generator, dtype=torch.float64), outputs
    high = 4 if task == "softmax" else 2
    y = torch.randint(high, (rows,), generator=generator)
    return (y if task == "softmax" else y.double()), outputs


# ---- network and likelihood


@pytest.mark.parametrize(
    "activation, sizes", list(itertools.product(["relu", "tanh"], [(7, 5, 3, 2), (6, 1), (4, 3, 1)]))
)
def test_parity_outputs_and_gradient_are_those_of_single_networks_under_autograd(activation, sizes):
    generator = torch.Generator().manual_seed(0)
    network = BatchedNetwork(3, sizes, activation=activation, dtype=torch.float64).initialise_(generator)
    X = torch.randn(11, sizes[0], generator=generator, dtype=torch.float64)
    seed = torch.randn(3, sizes[-1], 11, generator=generator, dtype=torch.float64)
    outputs = network.forward(X).clone()
    network.backward_(seed.clone())
    gradient = torch.zeros_like(network.flat)
    network.accumulate_(X, *network.views(gradient), alpha=0.5)
    weight_gradients, bias_gradients = network.views(gradient)
    for k in range(3):
        weights = [w[k].clone().requires_grad_() for w in network.weights]
        biases = [b[k, :, 0].clone().requires_grad_() for b in network.biases]
        z = X
        for layer, (weight, bias) in enumerate(zip(weights, biases)):
            z = F.linear(z, weight, bias)
            if layer < len(weights) - 1:
                z = torch.relu(z) if activation == "relu" else torch.tanh(z)
        torch.testing.assert_close(outputs[k], z.T, rtol=1e-12, atol=1e-12)
        (z.T * seed[k]).sum().backward()
        for got, parameter in zip(weight_gradients, weights):
            torch.testing.assert_close(got[k], 0.5 * parameter.grad, rtol=1e-11, atol=1e-12)
        for got, parameter in zip(bias_gradients, biases):
            torch.testing.assert_close(got[k, :, 0], 0.5 * parameter.grad, rtol=1e-11, atol=1e-12)


def test_property_prediction_in_blocks_is_one_forward_pass():
    network = BatchedNetwork(2, (5, 4, 2)).initialise_(torch.Generator().manual_seed(0))
    X = torch.randn(23, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.predict(X, rows=7), network.forward(X))


def test_property_initial_weights_fill_torchs_default_interval():
    network = BatchedNetwork(50, (16, 20, 1)).initialise_(torch.Generator().manual_seed(0))
    for layer, bound in enumerate((1 / 4, 1 / math.sqrt(20))):
        assert 0.98 * bound < network.weights[layer].abs().max() <= bound
        assert network.biases[layer].abs().max() <= bound


@pytest.mark.parametrize("task", ["gaussian", "binary", "softmax"])
def test_parity_likelihood_gradient_is_autograds(task):
    y, outputs = labels_and_outputs(task)
    leaf = outputs.clone().requires_grad_()
    (negative_log_likelihood(leaf, y, task, 0.7).sum() * outputs.shape[2]).backward()
    torch.testing.assert_close(output_gradient_(outputs, y, task, 0.7), leaf.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task", ["gaussian", "binary", "softmax"])
def test_parity_likelihood_is_torchs_distribution(task):
    y, outputs = labels_and_outputs(task)
    for k, f in enumerate(outputs):
        if task == "gaussian":
            law = torch.distributions.Normal(f[0], math.sqrt(0.7))
        elif task == "binary":
            law = torch.distributions.Bernoulli(logits=f[0])
        else:
            law = torch.distributions.Categorical(logits=f.T)
        got = negative_log_likelihood(outputs, y, task, 0.7)[k]
        torch.testing.assert_close(got, -law.log_prob(y).mean(), rtol=1e-12, atol=1e-12)


# ---- batches


@pytest.mark.parametrize("size", [4, 5, 7, 30])
def test_property_batches_pair_rows_and_repeat_none_within_an_epoch(size):
    X = torch.arange(30.0).view(30, 1)
    batches = iter(ShuffledBatches(X, -X[:, 0], size, torch.Generator().manual_seed(0)))
    seen, groups = torch.zeros(30), set()
    for _ in range(2 * EPOCHS_A_SHUFFLE):
        count = 30 // size if 30 % size else 30 // size - 1  # an offset may cost the epoch its last slice
        rows = [next(batches) for _ in range(max(1, count))]
        for a, b in rows:
            assert a.shape == (size, 1) and torch.equal(a[:, 0], -b)
            seen[a[:, 0].long()] += 1
            groups.add(tuple(sorted(a[:, 0].tolist())))
    assert (seen > 0).all()
    assert len(groups) > EPOCHS_A_SHUFFLE or size == 30
    assert torch.equal(X[:, 0], torch.arange(30.0))


def test_property_batches_cover_rows_evenly():
    X = torch.arange(100.0).view(100, 1)
    batches = iter(ShuffledBatches(X, X[:, 0], 10, torch.Generator().manual_seed(0)))
    seen, draws = torch.zeros(100), 4000
    for _ in range(draws):
        seen[next(batches)[0][:, 0].long()] += 1
    # An offset leaves out fewer than one batch an epoch, so each count strays less than that of free draws (sd 19).
    assert seen.sum() == 10 * draws and (seen - 400).abs().max() < 4 * math.sqrt(4000 * 0.1 * 0.9)


# ---- conventions


@BOTH
def test_property_seeds_repeat_and_differ_and_leave_global_generators_alone(name):
    X, y = table_of()
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = make(REGRESSORS, name).fit(X, y), make(REGRESSORS, name).fit(X, y)
    other = make(REGRESSORS, name, random_state=1).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])
    assert np.array_equal(first.predict(X), second.predict(X)) and np.array_equal(first.predict(X), first.predict(X))
    assert np.array_equal(first.inclusion_probability_, second.inclusion_probability_)
    assert not np.array_equal(first.predict(X), other.predict(X))
    assert not np.array_equal(make(REGRESSORS, name, random_state=None).fit(X, y).predict(X), first.predict(X))


@BOTH
def test_property_data_are_left_alone(name):
    X, y = table_of()
    copies = X.copy(), y.copy()
    make(REGRESSORS, name, standardize=True).fit(X, y).predict(X)
    assert np.array_equal(X, copies[0]) and np.array_equal(y, copies[1])


@BOTH
def test_property_selection_attributes_agree(name):
    X, y = table_of()
    model = make(REGRESSORS, name).fit(X, y)
    assert model.n_features_in_ == 9 and model.support_.shape == model.inclusion_probability_.shape == (9,)
    assert np.array_equal(model.support_, model.inclusion_probability_ > 0.5)
    assert np.array_equal(model.get_support(indices=True), np.flatnonzero(model.get_support()))
    assert np.array_equal(model.transform(X), X[:, model.support_])
    assert model.n_iter_ == model.history_["step"][-1] and len(model.history_["step"]) == len(model.history_["loss"])
    assert model.score(X, y) == pytest.approx(1 - np.mean((y - model.predict(X)) ** 2) / np.var(y), rel=1e-5)


@BOTH
def test_property_standardised_fit_does_not_see_units(name):
    X, y = table_of()
    scale, shift = np.linspace(0.5, 4, 9, dtype=np.float32), np.linspace(-3, 3, 9, dtype=np.float32)
    plain = make(REGRESSORS, name, standardize=True).fit(X, y)
    moved = make(REGRESSORS, name, standardize=True).fit(X * scale + shift, 10 * y + 7)
    np.testing.assert_allclose(moved.predict(X * scale + shift), 10 * plain.predict(X) + 7, rtol=1e-3, atol=1e-2)


@BOTH
def test_property_probabilities_and_classes(name):
    X, y = table_of()
    for labels in (np.where(y > 0, "yes", "no"), np.digitize(y, [-1, 1])):
        model = make(CLASSIFIERS, name).fit(X, labels)
        p = model.predict_proba(X)
        assert p.shape == (120, len(np.unique(labels))) and np.allclose(p.sum(1), 1) and (p >= 0).all()
        assert np.array_equal(model.predict(X), model.classes_[p.argmax(1)])
        assert model.score(X, labels) == np.mean(model.predict(X) == labels)


@BOTH
def test_roundtrip_parameters(name):
    model = make(REGRESSORS, name, noise_variance=0.5)
    again = type(model)(**model.get_params())
    assert again.get_params() == model.get_params() and again.noise_variance == 0.5
    assert again.set_params(steps=7).steps == 7 and "steps=7" in repr(again)
    base = pytest.importorskip("sklearn.base")
    assert base.clone(model).get_params() == model.get_params()


@BOTH
@pytest.mark.parametrize(
    "keywords, words",
    [
        ({"steps": 0}, "steps=0 .* at least 1"),
        ({"steps": 3.0}, "steps=3.0 .* integer"),
        ({"batch_size": 0}, "batch_size=0 .* at least 1"),
        ({"step_size": 0.0}, "step_size=0.0 .* above 0"),
        ({"hidden_layer_sizes": ()}, r"hidden_layer_sizes=\(\): give a tuple"),
        ({"hidden_layer_sizes": (4, 0)}, "hidden_layer_sizes=0 .* at least 1"),
        ({"activation": "rleu"}, "activation='rleu' .* did you mean 'relu'"),
        ({"noise_variance": -1.0}, "noise_variance=-1.0 .* above 0"),
    ],
)
def test_error_keywords(name, keywords, words):
    with pytest.raises(ValueError, match=words):
        make(REGRESSORS, name, **keywords).fit(*table_of())


@BOTH
def test_error_data(name):
    X, y = table_of()
    model = make(REGRESSORS, name)
    with pytest.raises(AttributeError, match="not fitted: call fit"):
        model.predict(X)
    with pytest.raises(AttributeError, match="not fitted: call fit"):
        model.get_support()
    for data, words in [
        ((X[0], y), "X has shape"),
        ((X, y[:-1]), r"y has shape \(119,\): give one response for each of the 120 rows"),
        ((X[:1], y[:1]), "X has 1 row: give at least 2"),
        ((np.where(X > 2, np.nan, X), y), "X holds NaN"),
        ((X, np.where(y > 2, np.nan, y)), "y holds NaN"),
    ]:
        with pytest.raises(ValueError, match=words):
            model.fit(*data)
    with pytest.raises(ValueError, match="X has 4 columns, but fit saw 9"):
        model.fit(X, y).predict(X[:, :4])
    with pytest.raises(ValueError, match="y holds 1 class: give at least 2"):
        make(CLASSIFIERS, name).fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match="stps=3 is no parameter; use one of"):
        model.set_params(stps=3)


def test_error_network():
    with pytest.raises(ValueError, match=r"sizes=\(3,\), networks=1: give two sizes or more"):
        BatchedNetwork(1, (3,))
