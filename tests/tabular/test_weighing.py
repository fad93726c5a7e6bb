"""Evidence given all other inputs: p-values without an effect, with one, with proxies and rare values; probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesprune.tabular.candidates import common_union, path_order, tree_order, winsorised
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.comparison import Folds
from bayesprune.tabular.conditional import ConditionalModels
from bayesprune.tabular.evidence import gather_evidence, inclusion_probabilities, p_value_of
from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.weighing import FoldNetworks, Weigher, WeighingSettings, train_fold_networks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weigher_of(X, y, seed, networks=None):
    """A weigher of three chains whose networks are random, unless given, and its models of the columns."""
    n, p = X.shape
    numeric = np.issubdtype(y.dtype, np.floating)
    rows = Rows([X], [y], [Standardiser.of(X, y if numeric else None)], 64, generator(seed))
    folds = Folds(3, 3, 3, n)
    net = ChainMLP(3, (p, 8, 1), generator=generator(seed))
    columns = torch.arange(p).expand(3, p)
    if networks is None:
        networks = FoldNetworks(net, 3, columns, rows.narrowed(columns), [folds.outer(c) for c in range(3)])
    else:
        networks = train_fold_networks(net, columns, rows, folds, np.arange(p), networks, seed)
    models = ConditionalModels(rows.x[0, :n].numpy(), np.ones(p, dtype=bool))
    return Weigher(networks, models, 0, 3, rows.y[0, :n], seed, 8), models


@pytest.mark.parametrize("classes", [False, True])
def test_target_null_inputs_have_valid_p_values_whatever_the_networks_are(classes):
    """Proxies of the one cause, rare and heavy-tailed columns: P(p ≤ 0.1) and P(p ≤ 0.02) hold up to four standard errors."""
    rng = np.random.default_rng(0)
    values = []
    for repetition in range(60):
        X = rng.standard_normal((240, 7))
        X[:, 1] = 0.95 * X[:, 0] + np.sqrt(1 - 0.95**2) * X[:, 1]
        X[:, 2] = 0.8 * X[:, 0] + 0.6 * X[:, 2]
        X[:, 3] = rng.random(240) < 0.04 + 0.04 * (X[:, 0] > 0)
        X[:, 4] = rng.standard_t(3, 240)
        y = 2 * X[:, 0] + rng.standard_t(4, 240) * (1 + (X[:, 0] > 1))
        weigher, models = weigher_of(X, (y > 0).astype(np.int64) if classes else y, repetition)
        values += [p_value_of(weigher.weigh(models.of(np.array([j])))) for j in range(1, 7)]
    values = np.array(values)
    for level in (0.1, 0.02):
        bound = level + 4 * np.sqrt(level * (1 - level) / len(values))
        assert (values <= level).mean() <= bound, (level, (values <= level).mean())


def test_target_what_matters_is_found_beside_its_proxy_and_copies_are_one_cluster():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((600, 8))
    X[:, 1] = X[:, 0]  # a copy
    X[:, 3] = 0.9 * X[:, 2] + np.sqrt(1 - 0.9**2) * X[:, 3]  # a proxy
    y = X[:, 0] + 1.5 * np.abs(X[:, 2]) + 0.5 * rng.standard_normal(600)
    quick = WeighingSettings(settle_steps=150, round_steps=80, final_steps=150)
    weigher, models = weigher_of(X, y, 0, quick)
    units = [np.array([j]) for j in range(8)]
    correlation = np.abs(np.corrcoef(X.T))
    evidence = gather_evidence(weigher, models, units, list(range(8)), correlation, 600)
    found = evidence.found(0.05)
    assert [cluster.members for cluster in found] == [(0, 1), (2,)]
    np.testing.assert_allclose(found[0].shares, (0.5, 0.5), atol=0.05)
    assert evidence.p_value[0] > 1e-3 and evidence.p_value[1] > 1e-3  # neither alone, given the other
    assert evidence.hypotheses == 7 and evidence.q_values()[1] <= 0.05 < evidence.q_values()[3]


def test_target_a_rare_value_with_a_large_effect_is_found():
    """Ten carriers of a mutation: a statistic studentised by its own carriers could not exceed √10."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((400, 5))
    X[:, 0] = 0
    X[rng.permutation(400)[:10], 0] = 1
    y = 5 * X[:, 0] + X[:, 1] + rng.standard_normal(400)
    weigher, models = weigher_of(X, y, 3)
    assert p_value_of(weigher.weigh(models.of(np.array([0])))) < 1e-6


def test_target_outliers_do_not_hide_an_effect():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((400, 5))
    y = 0.5 * X[:, 0] + rng.standard_normal(400)
    y[:4] = 1e3
    weigher, models = weigher_of(X, winsorised(y, 6.0), 4)  # as find_inputs reads it
    assert p_value_of(weigher.weigh(models.of(np.array([0])))) < 1e-4


def test_equation_probability_is_that_of_the_two_groups():
    p_value = np.array([1e-9, 0.01, 0.4, 1.0])
    probability, factor, prior = inclusion_probabilities(p_value, 0.1, 4)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-(factor + np.log(0.1 / 0.9)))))
    assert (
        prior == 0.1 and (np.diff(probability) <= 0).all() and probability[2] == pytest.approx(probability[3], abs=0.05)
    )
    empty, _, prior = inclusion_probabilities(np.ones(200), None, 200)
    assert prior < 0.01 and empty.max() < 0.01


def test_target_candidates_of_the_path_and_the_trees():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((120, 600))
    y = X[:, 7] - X[:, 11] + 0.3 * rng.standard_normal(120)
    y[0] = 500.0  # one outlier
    assert set(path_order(X, y)[:2]) == {7, 11}
    labels = np.digitize(X[:, 3], [-0.5, 0.5])
    assert path_order(X, labels)[0] == 3 and tree_order(X, labels, 0)[0] == 3
    assert winsorised(y).max() < 10 and (winsorised(np.zeros(5)) == 0).all()
    humps = np.repeat([0.0, 50.0], [80, 40]) + rng.standard_normal(120)
    assert winsorised(humps).max() > 50  # a third of the rows are no outliers
    X[:, 20] *= 2
    assert 20 in tree_order(X, np.abs(X[:, 20]), 0)[:2]  # no linear effect
    assert common_union([[1, 2], [2, 1], [9]], 3) == [1, 2, 9]


@pytest.mark.parametrize("seed, bits", [(476, 10), (2438, 10), (3384, 20), (3501, 20)])
def test_property_bits_many_times_over_are_ranked(seed, bits):
    """Fingerprints whose bits repeat, of which several leave the lasso's path at once: scikit-learn's ends in a ValueError."""
    rng = np.random.default_rng(seed)
    rng.choice([10, 20, 40]), rng.choice([10, 20, 60])  # drawn and left
    B = rng.random((40, bits)) < rng.random(bits) * 0.5 + 0.05
    X = B[:, rng.integers(0, bits, 4 * bits)].astype(float)
    if seed % 2:
        X = np.hstack([X, B[:, rng.integers(0, bits, bits)] & B[:, rng.integers(0, bits, bits)]])
    X = X[:, X.std(0) > 0]
    X = (X - X.mean(0)) / X.std(0)
    y = B[:, 0] * 2.0 + B[:, 1] + rng.integers(0, 3, 40) * 0.5
    order = path_order(X, y)
    assert len(order) == len(set(order)) >= 5
    assert order[0] == np.abs(X.T @ (y - y.mean())).argmax()


def test_equation_all_steps_of_the_evidence_are_in_proportion():
    assert WeighingSettings.of(400) == WeighingSettings()
    few = WeighingSettings.of(40)
    assert (few.settle_steps, few.round_steps, few.final_steps) == (25, 15, 40)
