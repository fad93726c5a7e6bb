"""Weights of rows: what equals repeated rows, exactly, part by part; and progress."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.out_of_bag import noise_level
from bayesprune.tabular.progress import progress, step_done
from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(40, 5)), RNG.normal(size=40), RNG.integers(1, 5, size=40).astype(float)
MANY = np.repeat(np.arange(40), W.astype(int))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_limit_means_and_scales_are_those_of_repeated_rows(kind):
    table, repeated = X, X[MANY]
    if kind == "sparse":
        sparse = pytest.importorskip("scipy.sparse")
        table, repeated = sparse.csr_matrix(X), sparse.csr_matrix(X[MANY])
    one, two = Standardiser.of(table, Y, W), Standardiser.of(repeated, Y[MANY])
    for name in ("mean", "scale", "y_mean", "y_scale"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("labels", [False, True])
def test_limit_training_on_all_rows_equals_training_on_repeated_rows(labels):
    """Without noise and on all rows at once, the paths of the chains are the same."""
    y = (Y > 0).astype(np.int64) if labels else Y
    scale = Standardiser.of(X, None if labels else y, W)
    nets = []
    for table, response, weights in ((X, y, [W]), (X[MANY], y[MANY], [])):
        rows = Rows([table], [response], [scale], len(table), torch.Generator().manual_seed(0), weights)
        net = ChainMLP(2, (5, 8, 1), activation="tanh", generator=torch.Generator().manual_seed(1))
        trainer = ChainTrainer(net, rows, None, ChainSettings(temperature=0.0, damping=0), seed=0)
        assert trainer.num_data == pytest.approx(len(MANY), rel=1e-6)
        trainer.run(50)
        nets.append(net)
    for one, two in zip(nets[0].parameters(), nets[1].parameters()):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_limit_noise_level_is_that_of_repeated_rows():
    means = torch.from_numpy(Y + RNG.normal(size=(3, 2, 40)))
    y, weight, ones = torch.from_numpy(Y), torch.from_numpy(W), torch.ones(3, 2, 40)
    one = noise_level(means, ones, y, weight, 10)
    two = noise_level(means[..., MANY], ones[..., MANY], y[MANY], torch.ones(len(MANY)), 10)
    assert one.dof == two.dof and one.factor == pytest.approx(two.factor, rel=1e-6)


def test_limit_rows_of_weight_zero_are_not_there():
    pytest.importorskip("sklearn")
    from bayesprune.tabular import SparseBNNRegressor

    quick = {"search_steps": 40, "evidence_steps": 20, "fit_steps": 40, "n_chains": 3, "n_starts": 2, "random_state": 0}
    weight = np.r_[np.full(60, 2.0), np.zeros(20)]
    table = RNG.normal(size=(80, 4))
    y = 2 * table[:, 1] + np.where(weight > 0, 0.1, 30.0) * RNG.normal(size=80)
    one = SparseBNNRegressor(**quick).fit(table, y, sample_weight=weight)
    two = SparseBNNRegressor(**quick).fit(table[:60], y[:60], sample_weight=weight[:60])
    assert np.array_equal(one.predict(table), two.predict(table)) and np.array_equal(one.evidence_, two.evidence_)
    with pytest.raises(ValueError, match="sample_weight"):
        SparseBNNRegressor(**quick).fit(table, y, sample_weight=-weight)


def test_property_weights_that_sum_to_one_find_what_weights_of_one_find():
    pytest.importorskip("sklearn")
    from bayesprune.tabular import SparseBNNRegressor

    quick = {"search_steps": 40, "evidence_steps": 20, "fit_steps": 40, "n_chains": 3, "n_starts": 2, "random_state": 0}
    table = np.random.default_rng(1).normal(size=(80, 4))
    y = 2 * table[:, 1] + 0.3 * np.random.default_rng(2).normal(size=80)
    one = SparseBNNRegressor(**quick, refit=False).fit(table, y, sample_weight=np.ones(80))
    with pytest.warns(UserWarning, match="sample_weight adds up to 1 over 80 rows"):
        two = SparseBNNRegressor(**quick, refit=False).fit(table, y, sample_weight=np.full(80, 1 / 80))
    assert one.support_[1]
    np.testing.assert_allclose(one.p_value_, two.p_value_, rtol=1e-6)


@pytest.mark.parametrize("lr, fits", [(5.0, True), (1e9, False)])
def test_error_fold_networks_that_diverge_are_trained_with_smaller_steps_or_named(lr, fits):
    from bayesprune.tabular.plan import Plan
    from bayesprune.tabular.selection import find_inputs

    table = np.random.default_rng(1).normal(size=(80, 3))
    y = table[:, 1] + 0.3 * np.random.default_rng(2).normal(size=80)
    plan = Plan.of(80, 3, chains=3, steps=30, evidence_steps=40)
    plan = replace(plan, weighing=replace(plan.weighing, chain=replace(plan.weighing.chain, lr=lr)))
    given = ([table], [y], [Standardiser.of(table, y)], 1, plan, [np.array([j]) for j in range(3)])
    if fits:
        assert find_inputs(*given, expected=None, seed=0)[0].p_value[1] < 1
        return
    with pytest.raises(RuntimeError, match=r"the networks that weigh the inputs diverge at lr=1e\+09"):
        find_inputs(*given, expected=None, seed=0)


def test_equation_progress_says_what_is_left(capsys):
    seconds = iter(range(0, 1000, 3))  # a call every 3 s, one of them at the start
    with progress(20, clock=lambda: float(next(seconds))):
        for _ in range(8):
            step_done()
    step_done()
    # 4 of 20 steps in 12 s: 48 s are left; 8 in 24 s: 36.
    wanted = "20 % of the training steps, about 48 s left\n40 % of the training steps, about 36 s left\n"
    assert capsys.readouterr().err == wanted


def test_limit_what_inputs_bring_on_held_out_rows_is_that_of_repeated_rows():
    from bayesprune.tabular.comparison import gains_without_refit

    scale, found = Standardiser.of(X, Y, W), []
    for at, weights in ((np.arange(40), [W]), (MANY, [])):
        rows = Rows([X[at]], [Y[at]], [scale], len(at), torch.Generator().manual_seed(0), weights)
        net = ChainMLP(1, (5, 8, 1), generator=torch.Generator().manual_seed(1))
        columns = torch.arange(5)[None]
        held = torch.from_numpy(np.flatnonzero(at[rows.order] % 3 == 0))
        found.append(gains_without_refit(net, columns, rows.narrowed(columns), [held], np.arange(5))[0])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
