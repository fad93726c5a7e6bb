from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from paper.designs import example1
from paper.selectors import SPLBNNClassifier, SPLBNNRegressor
from paper.selectors.batches import ShuffledBatches
from paper.selectors.likelihood import negative_log_likelihood
from paper.selectors.network import BatchedNetwork
from paper.selectors.splbnn_evidence import bic, log_evidence
from paper.selectors.splbnn_prior import MixturePrior

PRIORS = {1: MixturePrior(5e-4, 0.01), 2: MixturePrior(1e-4, 0.01), 3: MixturePrior(1e-4, 1.0)}
GRID = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)


# ---- prior


@pytest.mark.parametrize("example, printed", [(1, 0.117), (2, 0.0528), (3, 0.0568)])
def test_equation_thresholds_are_the_printed_ones(example, printed):
    prior = PRIORS[example]
    assert prior.threshold() == pytest.approx(printed, rel=0.006)
    s0, s1, rate = prior.spike_variance, prior.slab_variance, prior.slab_probability
    by_hand = math.log((1 - rate) / rate * math.sqrt(s1 / s0)) / (1 / (2 * s0) - 1 / (2 * s1))
    assert prior.threshold() == pytest.approx(math.sqrt(by_hand), rel=1e-12)


@pytest.mark.parametrize("prior", PRIORS.values())
def test_property_threshold_is_where_spike_and_slab_are_equally_likely(prior):
    t = prior.threshold()
    w = torch.tensor([0.999 * t, t, 1.001 * t], dtype=torch.float64)
    below, at, above = prior.slab_responsibility(w).tolist()
    assert below < 0.5 < above and at == pytest.approx(0.5, abs=1e-10)


@pytest.mark.parametrize("prior", PRIORS.values())
def test_parity_log_density_is_torchs_mixture(prior):
    rate = torch.tensor([1 - prior.slab_probability, prior.slab_probability], dtype=torch.float64)
    scale = torch.tensor([prior.spike_variance, prior.slab_variance], dtype=torch.float64).sqrt()
    law = MixtureSameFamily(Categorical(probs=rate), Normal(torch.zeros(2, dtype=torch.float64), scale))
    torch.testing.assert_close(prior.log_density(GRID), law.log_prob(GRID), rtol=1e-10, atol=1e-10)
    assert torch.isfinite(prior.log_density(torch.tensor([50.0])))


@pytest.mark.parametrize("prior", PRIORS.values())
def test_equation_shrinkage_is_the_gradient_of_the_log_prior(prior):
    w = GRID.clone().requires_grad_()
    prior.log_density(w).sum().backward()
    got = prior.shrink_(GRID.clone(), 0.01, 500, torch.empty_like(GRID))
    torch.testing.assert_close(got, GRID + 0.01 / 500 * w.grad, rtol=1e-10, atol=1e-12)
    r = 1 - prior.slab_responsibility(GRID)
    by_hand = GRID * (r / prior.spike_variance + (1 - r) / prior.slab_variance)
    torch.testing.assert_close(got, GRID - 0.01 / 500 * by_hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS.values())
def test_equation_curvature_is_the_second_derivative(prior):
    w = GRID[GRID.abs() < 0.15].clone().requires_grad_()
    (first,) = torch.autograd.grad(-prior.log_density(w).sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), w)
    torch.testing.assert_close(prior.curvature(w.detach()), second, rtol=1e-7, atol=1e-6)


# ---- one step


@pytest.mark.parametrize("task", ["gaussian", "binary", "softmax"])
def test_equation_steps_are_sgd_on_mean_loss_minus_log_prior_over_n(task):
    generator = torch.Generator().manual_seed(0)
    n, p = 40, 6
    X = torch.randn(n, p, generator=generator, dtype=torch.float64)
    y = torch.randint(3 if task == "softmax" else 2, (n,), generator=generator)
    y = y if task == "softmax" else y.double()
    model = SPLBNNRegressor(step_size=0.02, batch_size=16, steps=5, refine_steps=0)
    model._task, model._sigma2, model._records = task, 0.8, {"step": [], "loss": [], "n_selected": []}
    model._generator = torch.Generator().manual_seed(7)
    network = BatchedNetwork(2, (p, 4, 3 if task == "softmax" else 1), dtype=torch.float64).initialise_(generator)
    flat = network.flat.clone()
    prior = PRIORS[1]
    model._descend_(network, X, y, prior, None, 5, 0)

    reference = BatchedNetwork(2, network.sizes, dtype=torch.float64)
    batches = iter(ShuffledBatches(X, y, 16, torch.Generator().manual_seed(7)))
    for _ in range(5):
        leaf = flat.clone().requires_grad_()
        weights, biases = reference.views(leaf)
        rows, responses = next(batches)
        f = weights[1] @ torch.relu(weights[0] @ rows.T + biases[0]) + biases[1]
        loss = negative_log_likelihood(f, responses, task, 0.8).sum() - prior.log_density(leaf).sum() / n
        loss.backward()
        flat -= 0.02 * leaf.grad
    torch.testing.assert_close(network.flat, flat, rtol=1e-10, atol=1e-12)
    assert len(model._records["step"]) == 5


def test_property_refinement_never_moves_a_weight_below_the_threshold():
    generator = torch.Generator().manual_seed(0)
    X, model = torch.randn(50, 6, generator=generator), SPLBNNRegressor(batch_size=10)
    model._task, model._sigma2, model._generator = "gaussian", 1.0, generator
    model._records = {"step": [], "loss": [], "n_selected": []}
    network = BatchedNetwork(3, (6, 5, 1)).initialise_(generator)
    start, keep = network.flat.clone(), network.flat.abs() > 0.117
    model._descend_(network, X, X[:, 0], PRIORS[1], keep, 20, 0)
    assert not network.flat[~keep].any() and not torch.equal(network.flat[keep], start[keep])


def test_property_no_weight_lingers_among_the_denormals():
    generator = torch.Generator().manual_seed(0)
    X, model = torch.randn(2000, 6, generator=generator), SPLBNNRegressor(batch_size=10)
    model._task, model._sigma2, model._generator = "gaussian", 1.0, generator
    model._records = {"step": [], "loss": [], "n_selected": []}
    network = BatchedNetwork(2, (6, 5, 1)).initialise_(generator)
    for part in (*network.weights, *network.biases):
        part[0] *= 1e-38  # as a dead start's weights after tens of thousands of steps
    model._descend_(network, X, X[:, 0], PRIORS[1], None, 200, 0)
    tiny = torch.finfo(torch.float32).tiny
    assert not ((network.flat != 0) & (network.flat.abs() < tiny)).any()
    assert not network.weights[0][0].any() and network.weights[0][1].all()


# ---- evidence


def linear_problem(n=30):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return X, 1.5 * X[:, 0] - X[:, 1] + 2 + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)


def test_limit_evidence_of_a_linear_gaussian_model_is_exact():
    X, y = linear_problem()
    prior = MixturePrior(1e-6, 1.0, 0.01)  # the slab alone matters where the weights are
    design = torch.cat([X, torch.ones(30, 1, dtype=torch.float64)], 1)
    mode = torch.linalg.solve(design.T @ design / 0.5 + torch.eye(3, dtype=torch.float64), design.T @ y / 0.5)
    network = BatchedNetwork(1, (2, 1), dtype=torch.float64)
    network.flat.copy_(mode)
    got = log_evidence(network, torch.ones(3, dtype=torch.bool), X, y, prior, "gaussian", 0.5)
    covariance = 0.5 * torch.eye(30, dtype=torch.float64) + design @ design.T
    law = torch.distributions.MultivariateNormal(torch.zeros(30, dtype=torch.float64), covariance)
    assert float(got) == pytest.approx(float(law.log_prob(y)) + 3 * math.log(0.01), abs=1e-8)


@pytest.mark.parametrize("task", ["gaussian", "binary", "softmax"])
def test_parity_evidence_is_the_whole_objectives_hessian(task):
    X, y = linear_problem()
    y = y if task == "gaussian" else (y > 0).double() if task == "binary" else (y > 0).long() + (y > 2).long()
    # Milder than the paper's: twice differentiating the density by autograd gives NaN far out in the spike's tail.
    prior, generator = MixturePrior(0.02, 1.0, 0.1), torch.Generator().manual_seed(2)
    sizes = (2, 3, 3 if task == "softmax" else 1)
    network = BatchedNetwork(2, sizes, activation="tanh", dtype=torch.float64).initialise_(generator)
    keep = network.flat.abs() > 0.2
    network.flat.mul_(keep)
    got = log_evidence(network, keep, X, y, prior, task)

    def objective(flat):
        weights, biases = network.views(flat)
        f = weights[1] @ torch.tanh(weights[0] @ X.T + biases[0]) + biases[1]
        terms = 30 * negative_log_likelihood(f, y, task).sum()
        return terms - prior.log_density(flat[keep]).sum()

    hessian = torch.func.hessian(objective)(network.flat.clone())
    for k in range(2):
        own = torch.zeros_like(network.flat)
        for part in (*network.views(own)[0], *network.views(own)[1]):
            part[k] = 1
        chosen = (own * keep).bool()
        eigenvalues = torch.linalg.eigvalsh(hessian[chosen][:, chosen]).abs()
        loss = (
            30 * negative_log_likelihood(network.forward(X), y, task)[k] - prior.log_density(network.flat[chosen]).sum()
        )
        d = int(chosen.sum())
        expected = -loss + 0.5 * d * math.log(2 * math.pi) - 0.5 * eigenvalues.log().sum()
        assert float(got[k]) == pytest.approx(float(expected), rel=1e-8)


def test_equation_bic_counts_what_is_kept():
    X, y = linear_problem()
    network = BatchedNetwork(2, (2, 1), dtype=torch.float64)
    network.weights[0][1] = torch.tensor([[1.5, -1.0]])
    network.biases[0][1] = 2.0
    got = bic(network, network.flat != 0, X, y, "gaussian")
    flat = 30 * math.log(2 * math.pi) + float(y.square().sum())
    fitted = 30 * math.log(2 * math.pi) + float((y - 1.5 * X[:, 0] + X[:, 1] - 2).square().sum()) + 3 * math.log(30)
    assert got.tolist() == pytest.approx([flat, fitted], rel=1e-12)


def test_limit_a_diverged_start_is_never_chosen():
    X, y = linear_problem()
    network = BatchedNetwork(2, (2, 1), dtype=torch.float64)
    network.weights[0][0] = math.nan
    keep = torch.ones_like(network.flat, dtype=torch.bool)
    for mask in (keep, ~keep):  # a comparison with NaN keeps nothing
        values = log_evidence(network, mask, X, y, PRIORS[1], "gaussian")
        assert values[0] == -math.inf and math.isfinite(values[1])
    assert bic(network, keep, X, y, "gaussian")[0] == math.inf


# ---- the whole estimator


@pytest.fixture(scope="module")
def fitted():
    data = example1(n=2000, p=60, n_test=2000, seed=5)
    keywords = {"n_starts": 4, "steps": 4000, "refine_steps": 2000, "batch_size": 200, "random_state": 1}
    return data, SPLBNNRegressor(**keywords, step_size=0.02).fit(data.X_train, data.y_train)


def test_property_example1_is_recovered(fitted):
    data, model = fitted
    assert model.get_support(indices=True).tolist() == list(data.true_inputs)
    assert np.mean((data.y_test - model.predict(data.X_test)) ** 2) < 1.5  # variance 3.23, noise 1
    assert model.start_support_.shape == (4, 60) and model.criterion_.shape == (4,)
    assert model.best_start_ == model.criterion_.argmax()
    assert np.array_equal(model.support_, model.start_support_[model.best_start_])
    assert model.history_["loss"].shape == (len(model.history_["step"]), 4) and model.n_iter_ == 6000


def test_property_predictions_read_selected_columns_alone(fitted):
    data, model = fitted
    X = data.X_test.copy()
    X[:, ~model.support_] = 99.0
    assert np.array_equal(model.predict(X), model.predict(data.X_test))


def test_property_classifier_recovers_the_inputs():
    X = np.random.default_rng(0).standard_normal((2000, 40)).astype(np.float32)
    y = np.where(X[:, 3] * 2 - X[:, 7] + 0.5 > 0, "a", "b")
    keywords = {"spike_variance": 1e-3, "slab_variance": 1.0, "step_size": 0.05, "batch_size": 200}
    for criterion in ("evidence", "bic"):
        model = SPLBNNClassifier(
            hidden_layer_sizes=(4,), n_starts=3, steps=2000, refine_steps=500, criterion=criterion, **keywords
        ).fit(X, y)
        assert model.get_support(indices=True).tolist() == [3, 7] and model.score(X, y) > 0.97
        sign = 1 if criterion == "evidence" else -1
        assert model.best_start_ == (sign * model.criterion_).argmax()


def test_limit_nothing_selected_predicts_a_constant():
    X = np.random.default_rng(0).standard_normal((400, 30)).astype(np.float32)
    y = np.random.default_rng(1).standard_normal(400).astype(np.float32)
    model = SPLBNNRegressor(n_starts=2, steps=3000, refine_steps=200, batch_size=100).fit(X, y)
    assert not model.support_.any() and model.transform(X).shape == (400, 0)
    assert np.ptp(model.predict(X)) == 0


@pytest.mark.parametrize(
    "keywords, words",
    [
        ({"n_starts": 0}, "n_starts=0 .* at least 1"),
        ({"refine_steps": -1}, "refine_steps=-1 .* at least 0"),
        ({"slab_variance": 1e-4}, "slab_variance=0.0001 must exceed spike_variance=0.0005"),
        ({"slab_probability": 1.0}, "slab_probability=1.0 .* below 1"),
        ({"slab_probability": 0.99}, "slab_probability=0.99 puts every weight on the slab"),
        ({"criterion": "evidnce"}, "criterion='evidnce' .* did you mean 'evidence'"),
        ({"step_size": 1.0}, "step_size=1.0 overshoots zero on the spike at n=100 rows: lower it below 0.05"),
    ],
)
def test_error_names_argument_value_and_mend(keywords, words):
    X = np.zeros((100, 3), np.float32)
    with pytest.raises(ValueError, match=words):
        SPLBNNRegressor(**keywords).fit(X, X[:, 0])


def test_error_all_starts_diverge():
    X = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    model = SPLBNNRegressor(n_starts=2, steps=100, refine_steps=5, activation="tanh", noise_variance=1e-39)
    with pytest.raises(FloatingPointError, match=r"step_size=0\.01 made all 2 starts diverge"):
        model.fit(X, X[:, 0])
