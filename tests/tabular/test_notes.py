"""What is said of data that make a selection or a prediction doubtful."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

import quick_fits
from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor
from bayesprune.tabular.notes import DataWarning, order_note, outlier_note, variance_note


def series(rng, count, correlation):
    values = rng.standard_normal(count)
    for at in range(1, count):
        values[at] = correlation * values[at - 1] + np.sqrt(1 - correlation**2) * values[at]
    return values


def test_target_the_rows_that_a_series_is_worth_are_those_of_its_mean_product():
    """The variance of the mean product of two independent series over 4,000 repetitions, to four standard errors."""
    rng = np.random.default_rng(0)
    x, y = np.array([series(rng, 200, 0.8) for _ in range(8000)]).reshape(2, 4000, 200)
    variance = (x * y).mean(1).var()
    note = order_note(series(rng, 50_000, 0.8)[:, None], series(rng, 50_000, 0.8), [0], ["x"])
    share = float(re.search(r"worth about ([\d,]+)", note)[1].replace(",", "")) / 50_000
    assert 1 / (200 * share) == pytest.approx(variance, rel=4 * np.sqrt(2 / 4000) + 0.05)  # 5 %: of 200 rows


def test_property_order_says_nothing_where_rows_are_shuffled_or_sorted_by_the_response():
    rng = np.random.default_rng(1)
    y, X = series(rng, 300, 0.9), np.stack([rng.standard_normal(300), series(rng, 300, 0.9)], axis=1)
    labels = np.digitize(y, [-1, 0, 1])
    assert "column 1 (0." in order_note(X, y, [0, 1], ["column 0", "column 1"])
    assert "column 1 (0." in order_note(X, labels, [0, 1], ["column 0", "column 1"])
    assert order_note(X, y, [0], ["column 0"]) == order_note(X, y, [], []) == ""
    for order in (rng.permutation(300), np.argsort(y), np.argsort(-y)):
        assert order_note(X[order], y[order], [0, 1], ["column 0", "column 1"]) == ""
        assert order_note(X[order], labels[order], [0, 1], ["column 0", "column 1"]) == ""


def test_property_outliers_that_make_up_the_variance_are_told():
    rng = np.random.default_rng(2)
    y = rng.standard_normal(300)
    for usual in (y, np.exp(y), rng.standard_t(5, 300), rng.poisson(2, 300).astype(float), (y > 1) * 1.0, np.ones(300)):
        assert outlier_note(usual) == ""
    assert outlier_note(np.append(y, 1e4)).startswith(
        "1 of 301 responses hold 100% of the variance of y (such as 1e+04)"
    )


def test_property_a_column_of_several_parts_is_named_once():
    assert variance_note(["'city'", "'city'", "'size'"]).startswith("the noise's size depends on 'city', 'size', and")
    assert variance_note([]) == ""


@pytest.mark.parametrize("kind", [SparseBNNRegressor, SparseBNNClassifier])
def test_property_fits_warn_of_rows_in_time(monkeypatch, kind):
    quick_fits.use(monkeypatch)
    rng = np.random.default_rng(3)
    X, noise = np.stack([series(rng, 400, 0.95) for _ in range(3)], axis=1), series(rng, 400, 0.9)
    y = 2 * X[:, 1] + noise
    with pytest.warns(DataWarning, match=r"alike in y .* and in column 1 .*: the tests take rows for independent"):
        kind(random_state=0).fit(X, y if kind is SparseBNNRegressor else y > 0)


def test_property_a_noise_whose_size_depends_on_inputs_is_told_where_the_network_names_none(monkeypatch):
    def find(*given, **rest):
        return [
            replace(one, on_variance=np.array([False, True, True])) for one in quick_fits.find_quickly(*given, **rest)
        ]

    quick_fits.use(monkeypatch)
    monkeypatch.setattr("bayesprune.tabular.estimator_base.find_inputs", find)
    X = np.random.default_rng(4).standard_normal((300, 3))
    with pytest.warns(DataWarning, match="the noise's size depends on column 1, column 2, and .* variance='network'"):
        SparseBNNRegressor(random_state=0).fit(X, X[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        SparseBNNRegressor(random_state=0, variance="network").fit(X, X[:, 0])
        SparseBNNRegressor(random_state=0, refit=False).fit(X, X[:, 0])
        SparseBNNClassifier(random_state=0).fit(X, X[:, 0] > 0)
