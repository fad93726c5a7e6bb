"""Selection for prediction, the prior precision chosen by left-out rows, and step sizes that diverge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor, fit_many, load
from bayesprune.tabular.prediction_sets import PredictionSets, _smallest_as_good, member_masks
from bayesprune.tabular.predictive import sample_networks
from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.sampling import SamplingSettings, sample_posterior
from bayesprune.tabular.trainer import ChainSettings

QUICK = {"search_steps": 300, "evidence_steps": 60, "fit_steps": 150, "n_chains": 4, "random_state": 0}


def copies(n: int, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return 300 columns that are noisy copies of 6 hidden ones, 50 each, and the response of the first two of those."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, 6))
    X = np.repeat(hidden, 50, axis=1) + noise * rng.standard_normal((n, 300))
    return X, 2 * hidden[:, 0] - hidden[:, 1] + 0.5 * rng.standard_normal(n)


def test_target_interchangeable_columns_predict_though_none_can_be_singled_out():
    X, y = copies(400)
    train, test = slice(0, 150), slice(150, None)
    model = SparseBNNRegressor(select="prediction", **QUICK).fit(X[train], y[train])
    assert {0, 1} <= set((model.get_support(indices=True) // 50).tolist())
    error = np.mean((model.predict(X[test]) - y[test]) ** 2)
    assert error < 0.7  # the noise has 0.25, a constant 5.25
    low, high = model.predict_interval(X[test], 0.9).T
    covered = np.mean((low < y[test]) & (y[test] < high))
    assert abs(covered - 0.9) < 4 * np.sqrt(0.09 / 250) + 0.03
    default = SparseBNNRegressor(refit=False, **QUICK).fit(X[train], y[train])
    np.testing.assert_array_equal(default.p_value_, model.p_value_)  # what is found does not depend on what is asked
    assert default.clusters_ == model.clusters_


def test_invariant_each_member_reads_the_columns_of_its_chain_only(tmp_path):
    X, y = copies(120)
    model = SparseBNNRegressor(select="prediction", **QUICK).fit(X, y)
    net = model.posterior_.net
    nonzero = (net.input_weights() != 0).any(1)
    largest = int(nonzero.sum(1).max())
    assert int(nonzero.sum(1).min()) == largest  # the same number in every chain
    assert bool(nonzero.any(0).all())  # and no column that no chain has
    curve = dict(zip(model.history_["number"].tolist(), model.history_["number_loss"].tolist()))
    assert curve[largest] < curve[0]
    model.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).predict(X), model.predict(X))


def test_equation_the_smallest_number_within_a_standard_error():
    # Column 2 is best; column 1 is behind by (−1, 3, 0), 2 in sum with the standard error √3·√(13/3) = 3.6; column 0
    # by (5, 6, 5), 16 in sum with √3·√(1/3) = 1.
    scores = -np.array([[5.0, -1.0, 0.0, 1.0], [6.0, 3.0, 0.0, 1.0], [5.0, 0.0, 0.0, 1.0]])
    assert _smallest_as_good(scores) == 1
    assert _smallest_as_good(scores[:, [0, 2]]) == 1
    assert _smallest_as_good(scores[1:2]) == 2  # one chain has no standard error


def test_equation_masks_follow_groups():
    groups = [np.array([0, 3]), np.array([1]), np.array([2])]
    sets = PredictionSets([np.array([0]), np.array([2, 0]), np.array([], dtype=int)], np.array([1]), np.array([0.0]))
    masks = member_masks(sets, np.array([0, 2, 3]), groups)
    assert masks.int().tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 0]]


def test_property_nothing_to_predict_with_selects_nothing():
    nothing = 0
    for seed in (3, 4, 5):  # with settings as quick as these one data set in six fools the held-out rows
        rng = np.random.default_rng(seed)
        X, y = rng.standard_normal((120, 30)), rng.standard_normal(120)
        model = SparseBNNRegressor(select="prediction", **QUICK).fit(X, y)
        nothing += not model.support_.any()
        assert model.support_.any() or np.ptp(model.predict(X)) < 1e-6
    assert nothing >= 2


def test_property_many_together_and_classes():
    rng = np.random.default_rng(0)
    data = [(X, np.digitize(X[:, j], [-0.5, 0.5])) for j, X in enumerate(rng.standard_normal((2, 240, 12)))]
    models = fit_many(SparseBNNClassifier(select="prediction", **QUICK), data)
    for j, (model, (X, y)) in enumerate(zip(models, data)):
        assert model.support_[j]
        assert np.mean(model.predict(X) == y) > 0.85


def line(n: int, noise: float) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, 8))
    y = X[:, 0] + noise * rng.standard_normal(n)
    return Rows([X], [y], [Standardiser.of(X, y)], n, torch.Generator().manual_seed(0)), y


QUICK_SAMPLING = SamplingSettings(hidden=(16,), activation="tanh", burn_in=300, cycle_steps=60, samples=3)


def test_property_the_precision_with_the_least_held_out_loss_is_taken():
    """Two data sets in one computation: weak effects want the stronger prior, a strong one the weaker."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((2, 120, 4))
    y = [0.2 * X[0, :, 0] + rng.standard_normal(120), np.sin(2 * X[1, :, 0]) + 0.02 * rng.standard_normal(120)]
    ways = [replace(QUICK_SAMPLING, chain=replace(QUICK_SAMPLING.chain, precision=one)) for one in (1.0, 300.0)]
    standardisers = [Standardiser.of(table, own) for table, own in zip(X, y)]
    given = (X, y, standardisers, [np.arange(4)] * 2, 1)
    found = sample_networks(*given, ways, batch_size=120, seed=0)
    assert [one.precision for one in found] == [300.0, 1.0]
    tried = [sample_networks(*given, [way.trial(5)], batch_size=120, seed=0) for way in ways]
    assert tried[1][0].held_out < tried[0][0].held_out and tried[0][1].held_out < tried[1][1].held_out


def test_property_held_out_loss_of_labels_is_their_cross_entropy():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((90, 3))
    y = rng.integers(0, 2, 90)
    rows = Rows([X], [y], [Standardiser.of(X)], 90, torch.Generator().manual_seed(0))
    found = sample_posterior(
        rows, 1, replace(QUICK_SAMPLING, chain=replace(QUICK_SAMPLING.chain, precision=1000.0)), seed=0
    )[0]
    assert found.held_out == pytest.approx(np.log(2), abs=0.03)  # labels without information, a strong prior
    assert np.isnan(found.noise_variance)


def test_property_members_keep_to_their_columns_at_every_temperature_and_on_all_rows():
    rows, _ = line(60, 1.0)
    masks = torch.tensor([[[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4]])
    way = replace(QUICK_SAMPLING, temperatures=(0.2, 1.0), whole=True, starts=6, kept=6)
    found = sample_posterior(rows, 1, way, masks=masks, seed=0)[0]
    weights = found.net.input_weights().detach().abs().sum(1)  # (samples and members, columns), members by turns
    for which in (0, 1):
        own, other = weights[which::2], masks[0, which] == 0
        assert (own[:, other] == 0).all() and (own[:, ~other] > 0).all()


def test_property_a_blown_up_network_is_tried_again_at_a_smaller_step():
    rows, _ = line(60, 0.3)
    chain = ChainSettings(lr=60.0, beta1=0.9, precision=1.0, temperature=1.0, damping=0)
    found = sample_posterior(rows, 1, replace(QUICK_SAMPLING, chain=replace(chain, lr=20.0)), seed=0)[0]
    assert found.noise_variance < 1.0
    with pytest.raises(RuntimeError, match="diverges at step sizes"):
        sample_posterior(rows, 1, replace(QUICK_SAMPLING, chain=replace(chain, lr=1e6)), seed=0)


def many_weak(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 12 noisy readings of one hidden number and the response to it: each adds a little to all others."""
    rng = np.random.default_rng(2)
    hidden = rng.standard_normal(n)
    X = hidden[:, None] + np.r_[0.5, np.ones(11)] * rng.standard_normal((n, 12))
    return X, hidden + 0.3 * rng.standard_normal(n)


def test_target_the_default_predicts_with_more_than_it_can_prove(tmp_path):
    """The best linear prediction from all readings errs by 1/15 + .09 = .157, from the two found by 1/6 + .09 and more."""
    X, y = many_weak(650)
    found, default = (SparseBNNRegressor(select=how, **QUICK).fit(X[:150], y[:150]) for how in ("fdr", "auto"))
    np.testing.assert_array_equal(found.support_, default.support_)
    assert 1 <= found.support_.sum() < 6 <= len(default.inputs_) and set(found.inputs_) < set(default.inputs_)
    error = [np.mean((model.predict(X[150:]) - y[150:]) ** 2) for model in (found, default)]
    assert error[1] < 0.22 < 0.25 < error[0]
    default.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).predict(X), default.predict(X))


def test_property_the_default_reads_the_findings_alone_where_they_suffice():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 20))
    y = 2 * X[:, 3] - X[:, 5] + 0.5 * rng.standard_normal(200)
    model = SparseBNNRegressor(**QUICK).fit(X, y)
    assert model.inputs_.tolist() == model.get_support(indices=True).tolist() == [3, 5]
    assert model.history_["number"][0] == model.history_["number_taken"][0] == 2


def test_equation_two_standard_errors_for_the_first():
    # Behind by (2, 3, 4), 9 in sum with the standard error √3·1 = 1.7; by (1, 0, 4), 5 with √3·√(13/3) = 3.6.
    scores = -np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0], [4.0, 4.0, 0.0]])
    assert _smallest_as_good(scores) == 2
    assert _smallest_as_good(scores, first=2.0) == 0


def test_equation_columns_of_no_set_belong_to_all_members():
    sets = PredictionSets([np.array([0]), np.array([2])], np.array([1]), np.array([0.0]))
    masks = member_masks(sets, np.array([0, 2, 3]), [np.array([i]) for i in range(4)])
    assert masks.int().tolist() == [[1, 0, 1], [0, 1, 1]]
