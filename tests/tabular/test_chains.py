"""Chains, rows, search, evidence: the parts that the estimators are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bayesprune.tabular.chains import ChainLinear, ChainMLP
from bayesprune.tabular.comparison import Folds
from bayesprune.tabular.rows import Rows, Standardiser, principal_directions
from bayesprune.tabular.search import SearchSettings, search, stage_sizes
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer, log_likelihood


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sets", [1, 2, 6])
def test_parity_chains_equal_separate_networks(sets):
    net = ChainMLP(6, (5, 4, 3, 2), activation="tanh", generator=generator())
    x = torch.randn(sets, 7, 5, generator=generator(1))
    out = net(x)
    for chain in range(6):
        layers: list[nn.Module] = []
        for depth, layer in enumerate(net.layers):
            linear = nn.Linear(layer.in_features, layer.out_features)
            linear.weight.data = layer.weight.data.view(6, layer.out_features, -1)[chain]
            linear.bias.data = layer.bias.data.view(6, -1)[chain]
            layers += [linear, nn.Tanh()] if depth < 2 else [linear]
        torch.testing.assert_close(out[chain], nn.Sequential(*layers)(x[chain // (6 // sets)]))


def test_parity_forward_is_the_grouped_convolution():
    layer = ChainLinear(3, 4, 2)
    with torch.no_grad():
        layer.weight.normal_(generator=generator())
        layer.bias.normal_(generator=generator(1))
    x = torch.randn(3, 5, 4, generator=generator(2))
    convolved = nn.functional.conv1d(x.permute(1, 0, 2).reshape(5, 12, 1), layer.weight, layer.bias, groups=3)
    torch.testing.assert_close(layer(x), convolved.view(5, 3, 2).transpose(0, 1))


def test_property_chosen_chains_on_chosen_columns():
    net = ChainMLP(2, (4, 3, 1), generator=generator())
    x = torch.randn(2, 6, 4, generator=generator(1))
    small = net.choose(torch.tensor([1, 0]), torch.tensor([[2, 0, -1], [3, 1, 2]]))
    wide = torch.zeros(2, 6, 4)
    wide[0, :, [2, 0]] = x[0, :, [0, 1]]
    wide[1, :, [3, 1, 2]] = x[1, :, :3]
    torch.testing.assert_close(small(x[:, :, :3]), net(wide.flip(0)).flip(0))


def test_property_every_row_is_as_likely_and_folds_hold_out():
    X, y = np.arange(10.0)[:, None], np.arange(10.0)
    rows = Rows([X], [y], [Standardiser(np.zeros(1), np.ones(1))], 4, generator())
    assert sorted(rows.inputs(0, 10).ravel().tolist()) == list(range(10))
    assert rows.inputs(8).ravel().tolist() == [*rows.order[8:], *rows.order[:2]]
    folds = Folds(5, 6, 3, 10)
    for chain in range(6):
        learning = folds.learning(2, 0)[chain].bool()
        assert not learning[folds.outer(chain)].any() and not learning[folds.inner(chain)].any()
        assert learning.sum() == 6
    assert folds.outer(3).tolist() == folds.outer(0).tolist()  # each data set begins anew


def test_equation_standardiser_of_sparse_equals_dense():
    sparse = pytest.importorskip("scipy.sparse")
    X = np.random.default_rng(0).standard_normal((50, 4)) * [1, 10, 0, 1]
    X[:, 3] = 7.0
    dense, thin = Standardiser.of(X), Standardiser.of(sparse.csr_matrix(X))
    np.testing.assert_allclose(dense.mean, thin.mean)
    np.testing.assert_allclose(dense.scale, thin.scale)
    assert dense.scale[2:].tolist() == [1.0, 1.0]  # constant columns stay at zero


@pytest.mark.parametrize("weighted", [False, True])
def test_property_times_in_milliseconds_are_scaled_and_rounding_is_not(weighted):
    """Columns that vary by 6e-8, 3e-13, 0 and 1e-16 of their means."""
    sparse = pytest.importorskip("scipy.sparse")
    z = np.random.default_rng(0).standard_normal(1001)
    X = np.stack([1.7e12 + 1e5 * z, 3e12 + z, np.full(1001, 1e9 / 3), np.where(z > 0, 0.3, 0.1 + 0.2)], axis=1)
    weight = np.arange(1.0, 1002.0) if weighted else None
    for table in (X, sparse.csr_matrix(X)):
        found = Standardiser.of(table, weight=weight)
        moved = X[:, :2] - [1.7e12, 3e12]
        mean = np.average(moved, axis=0, weights=weight)
        np.testing.assert_allclose(found.scale[:2], np.sqrt(np.average((moved - mean) ** 2, axis=0, weights=weight)))
        assert found.scale[2:].tolist() == [1.0, 1.0]
        np.testing.assert_allclose(found.inputs(table)[:, 0], (moved[:, 0] - mean[0]) / found.scale[0], atol=1e-4)


def test_target_principal_directions_of_equicorrelated_columns():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2000, 1)) + rng.standard_normal((2000, 30))) / np.sqrt(2)
    directions, values = principal_directions(torch.from_numpy(x).float()[None], rank=1, rows=2000)
    exact = np.linalg.eigvalsh(x.T @ x / 2000)[::-1]
    np.testing.assert_allclose(values[0, 0].item(), exact[0], rtol=1e-3)
    assert values[0, 1].item() <= exact[1] * 1.001
    np.testing.assert_allclose(directions[0, :, 0].abs().numpy(), 30**-0.5, atol=0.03)


def test_target_posterior_of_a_linear_chain():
    """A linear model's chain at T = 1 samples N(μ, Σ) of Bayesian linear regression; 600 chains, 4 standard errors."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 2))
    y = X @ [0.5, -0.3] + 0.1 * rng.standard_normal(64)
    y = (y - y.mean()) / y.std()
    precision = 30.0
    rows = Rows([X], [y], [Standardiser(np.zeros(2), np.ones(2))], 64, generator())
    chains = 600
    net = ChainMLP(chains, (2, 1), generator=generator(1))
    settings = ChainSettings(
        lr=0.05, beta1=0.5, precision=precision, temperature=1.0, cold=True, dual_lr=0.0, damping=0
    )
    trainer = ChainTrainer(net, rows, None, settings, seed=3)
    trainer.run(800)
    w = torch.cat([net.input_weights()[:, 0], net.first.bias.view(chains, 1)], 1).detach().double().numpy()
    A = np.hstack([X, np.ones((64, 1))])
    covariance = np.linalg.inv(A.T @ A + precision * np.eye(3))
    mean = covariance @ A.T @ y
    z = (w.mean(0) - mean) / np.sqrt(np.diag(covariance) / chains)
    assert np.abs(z).max() < 4, z
    ratio = w.var(0, ddof=1) / np.diag(covariance)
    assert np.abs(ratio - 1).max() < 4 * np.sqrt(2 / chains) + 0.02, ratio  # 0.02: discretisation at this step size


def test_equation_log_likelihoods():
    outputs, y = torch.tensor([[[0.3], [-1.0]]]), torch.tensor([[1, 0]])
    expected = torch.tensor([[torch.sigmoid(torch.tensor(0.3)).log(), (1 - torch.sigmoid(torch.tensor(-1.0))).log()]])
    torch.testing.assert_close(log_likelihood(outputs, y, None), expected)
    normal = torch.distributions.Normal(outputs[..., 0], torch.tensor(2.0).sqrt())
    value = torch.tensor([[0.1, 0.2]])
    torch.testing.assert_close(log_likelihood(outputs, value, torch.tensor([2.0])), normal.log_prob(value))


def test_property_search_finds_the_input_in_every_chain_and_prunes_to_the_candidates():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 60))
    y = X[:, 17] ** 2 + 0.1 * rng.standard_normal(400)
    rows = Rows([X, X[::-1].copy()], [y, y[::-1].copy()], [Standardiser.of(X, y)] * 2, 128, generator())
    for feedback in ("none", "masked"):
        settings = SearchSettings(steps=300, candidates=8, feedback=feedback)
        found = search(rows, None, 4, 1, settings, expected=1.0, seed=0)
        assert found.columns.shape == (4, 8) and found.net.sizes[0] == 8
        assert all(17 in chain for chain in found.columns.tolist())
        assert found.rows.x.shape == (4, 400 + 128, 8)


def test_equation_stage_sizes_reach_the_candidates():
    assert stage_sizes(20_000, 32, 5, 10_000)[-1] == 32
    sizes = stage_sizes(20_000, 32, 3, 100_000)
    assert sizes[0] * 3 * 100_000 <= 5 * 10**8 and sizes == sorted(sizes, reverse=True)
    assert stage_sizes(20, 32, 5, 100) == [20]


def test_error_unknown_activation():
    with pytest.raises(ValueError, match="activation='gelu' is unknown"):
        ChainMLP(1, (2, 1), activation="gelu", generator=generator())
