"""Clusters of interchangeable inputs, the step-up rule, and the narrowing of a finding."""

from __future__ import annotations

import numpy as np
import pytest

from bayesprune.tabular.clusters import determined, findings, interchangeable, least_correlation, step_up, twins


def test_property_clusters_are_by_what_the_rows_can_tell_apart():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 4))
    X = np.column_stack([x[:, 0], 0.96 * x[:, 0] + 0.28 * x[:, 1], x[:, 2], x[:, 2], x[:, 3]])
    correlation = np.abs(np.corrcoef(X.T))
    assert interchangeable(correlation, 500) == [[0, 1], [2, 3], [4]]
    assert interchangeable(correlation, 50_000) == [[0], [1], [2, 3], [4]]  # copies no number of rows tells apart
    assert least_correlation(500) == pytest.approx(np.sqrt(0.8)) and least_correlation(20) == pytest.approx(0.85)
    assert twins(correlation[[2]], np.array([2]), 500).tolist() == [3]


def test_equation_step_up_is_benjamini_and_yekutieli_s():
    p = np.array([0.9, 0.0003, 0.004, 0.003, 0.013])
    q = step_up(p, 10)
    assert q[1] == pytest.approx(0.0003 * 10 * 2.9289682539682538)
    for level in (0.01, 0.05, 0.1, 0.4):
        order = np.sort(p)
        fits = [rank for rank in range(1, 6) if order[rank - 1] <= level * rank / 10 / 2.9289682539682538]
        assert sorted(p[q <= level]) == order[: max(fits, default=0)].tolist()


def test_property_a_finding_is_narrowed_to_the_member_that_stands_out():
    clusters, shares = [[0, 1, 2], [3], [4, 5]], [[0.7, 0.2, 0.1], [1.0], [0.5, 0.5]]
    single = {0: 1e-6, 1: 0.4, 2: 0.9, 4: 0.03, 5: 0.03}
    found = findings(clusters, np.array([1e-9, 0.6, 1e-4]), single, shares, 20, 0.05)
    assert [(f.members, f.shares) for f in found] == [((0,), (1.0,)), ((4, 5), (0.5, 0.5))]
    assert found[0].p_value == 1e-6 and found[1].q_value == pytest.approx(1e-3 * sum(1 / i for i in range(1, 21)))
    assert findings(clusters, np.array([0.5, 0.5, 0.5]), single, shares, 20, 0.05) == []


def test_property_columns_that_determine_each_other_are_a_set_and_correlated_ones_are_none():
    rng = np.random.default_rng(0)
    levels, others = np.eye(5)[rng.integers(0, 5, 300)], np.eye(3)[rng.integers(0, 3, 300)]
    parts, noise = rng.dirichlet(np.ones(4), 300).round(3), rng.standard_normal((300, 20))
    X = np.column_stack([levels, noise, others, parts, np.zeros(300)])
    X = (X - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1)
    every = [np.array([j]) for j in range(X.shape[1])]
    assert determined(X.astype(np.float32), every) == [[0, 1, 2, 3, 4], [25, 26, 27], [28, 29, 30, 31]]
    assert determined(X.astype(np.float32), every[1:-2]) == [[24, 25, 26]]  # one of a set is not there
    for p in (20, 150):
        noise = rng.standard_normal((300, p))
        series = noise.copy()
        for column in range(1, p):
            series[:, column] = 0.95 * series[:, column - 1] + np.sqrt(1 - 0.95**2) * noise[:, column]
        assert determined((series - series.mean(0)) / series.std(0), [np.array([j]) for j in range(p)]) == []
    assert determined(rng.standard_normal((40, 39)), [np.array([j]) for j in range(39)]) == []


def test_property_a_factor_and_what_is_a_function_of_it_are_a_set_and_factors_that_share_a_level_are_none():
    rng = np.random.default_rng(1)
    city, other = rng.integers(0, 8, 400), rng.integers(0, 4, 400)
    other[city == 7] = 3  # of one level all rows
    other[city < 7] = rng.integers(0, 3, (city < 7).sum())
    X = np.column_stack(
        [np.eye(8)[city], np.eye(4)[other], rng.standard_normal((400, 3))[city % 3, :], city // 3, other]
    )
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    units = [np.arange(8), np.arange(8, 12), np.array([12]), np.array([15]), np.array([16])]
    assert determined(X, units[:2]) == []
    assert determined(X, [units[0], units[3]]) == [[0, 1]]  # its country
    assert determined(X, [units[1], units[3]]) == []
    assert determined(X, [units[1], units[4]]) == [[0, 1]]  # its number
