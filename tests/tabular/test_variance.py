"""Noise that depends on the inputs: found, calibrated, kept; and the features that the networks read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from bayesprune.tabular import SparseBNNRegressor, fit_many, load
from bayesprune.tabular.features import RankFeatures
from bayesprune.tabular.sampling import best_level
from bayesprune.tabular.trainer import log_likelihood


def fanned(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of the standard deviations 0.1 to 2, by the second column."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3))
    width = 0.1 + 1.9 / (1 + np.exp(-3 * X[:, 1]))
    return X, np.sin(2 * X[:, 0]) + width * rng.standard_normal(n)


@pytest.fixture(scope="module")
def found():
    estimator = SparseBNNRegressor(random_state=0, fit_steps=800, n_starts=2)
    return fit_many(estimator, [fanned(1500, 0)], [[0, 1, 2]])[0]


def quarters(model, X, y):
    low, high = model.predict_interval(X, 0.9).T
    inside = ((low <= y) & (y <= high))[np.argsort(high - low)]
    return np.array([quarter.mean() for quarter in np.array_split(inside, 4)])


def test_target_coverage_in_every_quarter_of_predicted_width(found):
    X, y = fanned(4000, 1)
    np.testing.assert_allclose(quarters(found, X, y), 0.9, atol=0.04)
    _, std = found.predict(X, return_std=True)
    assert np.corrcoef(std, 0.1 + 1.9 / (1 + np.exp(-3 * X[:, 1])))[0, 1] > 0.9


def test_property_the_kind_of_variance_is_chosen_by_left_out_rows(found):
    assert found.posterior_.variance_factor is not None
    rng = np.random.default_rng(2)
    X = rng.standard_normal((1200, 2))
    y = X[:, 0] + 0.5 * rng.standard_normal(1200)
    even = fit_many(
        SparseBNNRegressor(random_state=0, fit_steps=200, n_starts=2, variance="constant"), [(X, y)], [[0]]
    )[0]
    assert even.posterior_.variance_factor is None
    _, std = even.predict(X, return_std=True)
    assert (std**2 >= even.noise_variance_ * (1 - 1e-9)).all()


def test_roundtrip_variance_and_features(found, tmp_path):
    X, y = fanned(50, 3)
    found.save(tmp_path)
    back = load(tmp_path)
    np.testing.assert_array_equal(back.predict_interval(X), found.predict_interval(X))
    np.testing.assert_array_equal(back.log_density(X, y), found.log_density(X, y))


def test_parity_density_is_the_mixture_s(found):
    X, y = fanned(5, 4)
    mean, variance = found._members(X)
    each = torch.distributions.Normal(torch.tensor(mean), torch.tensor(variance).sqrt()).log_prob(torch.tensor(y))
    np.testing.assert_allclose(found.log_density(X, y), torch.logsumexp(each, 0).numpy() - np.log(len(mean)), rtol=1e-8)


def test_equation_likelihood_of_a_second_output():
    outputs, y = torch.tensor([[[1.0, 0.5]]]), torch.tensor([[3.0]])
    wanted = torch.distributions.Normal(1.0, np.exp(0.25)).log_prob(y)
    torch.testing.assert_close(log_likelihood(outputs, y, None), wanted)


def test_target_level_of_the_noise():
    rng = torch.Generator().manual_seed(0)
    variances = torch.rand(3, 20_000, generator=rng).mul(4).exp()[:1].expand(3, -1)
    errors = 0.25 * variances * torch.randn(1, 20_000, generator=rng).square().expand(3, -1)
    factor, _ = best_level(errors, variances, torch.ones(20_000))
    assert factor == pytest.approx(0.25, rel=4 * np.sqrt(2 / 20_000) + 0.01)


def test_equation_features_of_a_column():
    x = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 7.0], [3.0, 7.0]])
    features = RankFeatures.of(x)
    rank = np.array([0.125, 0.375, 0.625, 0.875])
    wanted = [wave(np.pi * k * rank) for k in (1, 2, 4) for wave in (np.sin, np.cos)]
    np.testing.assert_allclose(features(x)[:, 3:], np.stack(wanted, 1), atol=1e-6)
    np.testing.assert_allclose(features(x)[:, :2], x)
    np.testing.assert_allclose(features(x)[:, 2], [-1.1503, -0.3186, 0.3186, 1.1503], atol=1e-4)
    assert features.owner.tolist() == [0, 1] + [0] * 7
    assert RankFeatures.of(np.zeros((4, 0)))(np.zeros((2, 0))).shape == (2, 0)
