"""Noise that depends on the inputs: found, calibrated, kept; and the features that the networks read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from bayesprune.tabular import SparseBNNRegressor, fit_many, load
from bayesprune.tabular.conditional import ConditionalModels
from bayesprune.tabular.features import RankFeatures
from bayesprune.tabular.out_of_bag import at_new_rows, learning_weights, noise_level
from bayesprune.tabular.spread import variance_p_values
from bayesprune.tabular.student import distribution, log_density, variance_over_scale
from bayesprune.tabular.trainer import log_likelihood


def fanned(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of the standard deviations 0.1 to 2, by the second column."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 3))
    width = 0.1 + 1.9 / (1 + np.exp(-3 * X[:, 1]))
    return X, np.sin(2 * X[:, 0]) + width * rng.standard_normal(n)


@pytest.fixture(scope="module")
def found():
    estimator = SparseBNNRegressor(random_state=0, fit_steps=900, n_starts=8)
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


@pytest.mark.parametrize("dof", [None, 6])
def test_parity_density_and_interval_are_the_mixture_s(found, dof, monkeypatch):
    from scipy import stats

    monkeypatch.setattr(found.posterior_, "dof", dof)
    X, y = fanned(5, 4)
    mean, variance = found._members(X)
    scale = np.sqrt(variance / variance_over_scale(dof))
    law = stats.norm if dof is None else stats.t(dof)
    density = (law.pdf((y - mean) / scale) / scale).mean(0)
    np.testing.assert_allclose(found.log_density(X, y), np.log(density), rtol=1e-8)
    low, high = found.predict_interval(X, 0.8).T
    for end, level in ((low, 0.1), (high, 0.9)):
        np.testing.assert_allclose(law.cdf((end - mean) / scale).mean(0), level, atol=1e-9)


def test_equation_likelihood_of_a_second_output():
    outputs, y = torch.tensor([[[1.0, 0.5]]]), torch.tensor([[3.0]])
    wanted = torch.distributions.Normal(1.0, np.exp(0.25)).log_prob(y)
    torch.testing.assert_close(log_likelihood(outputs, y, None), wanted)


def test_target_level_of_the_noise():
    rng = torch.Generator().manual_seed(0)
    variances = torch.rand(20_000, generator=rng).mul(4).exp()
    y = (0.25 * variances).sqrt() * torch.randn(20_000, generator=rng)
    noise = noise_level(torch.zeros(3, 1, 20_000), variances.expand(3, 1, -1), y, torch.ones(20_000), 5)
    assert noise.dof in (None, 20) and noise.factor == pytest.approx(0.25, rel=4 * np.sqrt(2 / 20_000) + 0.01)


def test_property_every_row_is_new_to_as_many_members():
    learnt = learning_weights(5, 13, 2)
    assert ((1 - learnt).sum(0) == 2).all()
    outputs = torch.arange(5.0)[:, None, None].expand(5, 13, 1)  # a member's number is its output
    new = at_new_rows(outputs, 5, 2)[0, ..., 0].long()
    assert (learnt[new, torch.arange(13)] == 0).all()


def test_target_tails_of_the_noise():
    y = torch.from_numpy(3 * np.random.default_rng(0).standard_t(4, 20_000))
    noise = noise_level(torch.zeros(1, 1, 20_000), torch.ones(1, 1, 20_000), y, torch.ones(20_000), 5)
    assert noise.dof == 4 and noise.factor == pytest.approx(9.0, rel=0.05)


@pytest.mark.parametrize("dof", [None, 4, 6, 20])
def test_parity_student_s_t_is_scipy_s(dof):
    from scipy import stats

    law, z = stats.norm if dof is None else stats.t(dof), np.linspace(-30, 30, 41)
    np.testing.assert_allclose(distribution(z, dof), law.cdf(z), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(log_density(z**2, dof), law.logpdf(z), rtol=1e-12)
    if dof:
        assert variance_over_scale(dof) == pytest.approx(law.var())


def test_target_level_by_two_members_gives_all_of_them_their_coverage():
    """16 members err by N(0, 1/4) each, more than their mean does; two that are new to a row tell the level for all."""
    rng = np.random.default_rng(0)
    y, off = rng.standard_normal(40_000), 0.5 * rng.standard_normal((16, 40_000))
    new, ones = torch.tensor(off[None, :2]), torch.ones(1, 2, 40_000)
    level = noise_level(new, ones, torch.tensor(y), torch.ones(40_000), 16).factor
    std = np.sqrt(level + off.var(0))
    assert np.mean(np.abs(y - off.mean(0)) < 1.6449 * std) == pytest.approx(0.9, abs=0.02)
    alone = noise_level(
        new, ones, torch.tensor(y), torch.ones(40_000), 2
    ).factor  # if there were no more than those two
    assert level < 0.95 * alone


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


def test_target_inputs_of_the_noise_are_found_and_no_others():
    """Of 40 inputs one scales the noise, or its distance from 0 does; without such an input the p-values are those of chance."""
    least = {"scaled": [], "both ends": [], "even": []}
    for name, width in {
        "scaled": lambda x: np.exp(0.7 * x),
        "both ends": lambda x: 0.2 + np.abs(x),
        "even": lambda x: np.ones(len(x)),
    }.items():
        for seed in range(8):
            rng = np.random.default_rng(seed)
            X = rng.standard_normal((600, 40))
            X[:, 5] = 0.6 * X[:, 2] + 0.8 * X[:, 5]  # which says nothing beside what it is mixed with
            left = width(X[:, 2]) * rng.standard_normal(600)
            loose = np.isin(np.arange(40), [2, 5])
            units = [np.array([j]) for j in range(40)]
            X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
            p = variance_p_values(left, np.ones(600), ConditionalModels(X, loose), units)
            least[name].append((p[2], np.delete(p, 2)))
    for name in ("scaled", "both ends"):
        assert max(own for own, _ in least[name]) < 1e-5
    for own in least.values():  # 8 · 39 p-values: a share of 0.02 is 6.2 ± 2.5
        assert np.mean(np.concatenate([rest for _, rest in own]) < 0.02) < 0.02 + 3 * np.sqrt(0.02 * 0.98 / 312)


def test_property_an_input_of_the_noise_alone_is_an_input_of_the_network():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1200, 8))
    y = X[:, 0] + np.exp(0.5 * X[:, 3]) * rng.standard_normal(1200)
    quick = {
        "search_steps": 200,
        "evidence_steps": 60,
        "fit_steps": 60,
        "n_chains": 3,
        "n_starts": 5,
        "random_state": 0,
    }
    model = SparseBNNRegressor(**quick).fit(X, y)
    assert model.get_support(indices=True).tolist() == [0] and np.flatnonzero(model.variance_support_).tolist() == [3]
    assert model.inputs_.tolist() == [0, 3] and model.variance_p_value_[3] < 1e-6
    even = SparseBNNRegressor(variance="constant", refit=False, **quick).fit(X, y)
    assert even.inputs_.tolist() == [0] and even.variance_support_[3]
