"""The law of columns given all others: ridge by its closed form, draws, and what is left in a residual."""

from __future__ import annotations

import numpy as np
import pytest

from bayesprune.tabular.conditional import ConditionalModels


@pytest.mark.parametrize(("n", "p"), [(60, 12), (30, 50)])
@pytest.mark.parametrize("columns", [[3], [1, 4]])
def test_equation_residual_and_criterion_are_those_of_a_ridge_on_the_others(n, p, columns):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, p)) + rng.standard_normal((n, 1))
    loose = np.arange(p) < 5
    models = ConditionalModels(X, loose)
    model = models.of(np.array(columns))
    others = np.setdiff1d(np.arange(p), columns)
    scaled = X[:, others] * models.factor[others]

    def direct(penalty):
        hat = scaled @ np.linalg.solve(scaled.T @ scaled / n + penalty * np.eye(len(others)), scaled.T / n)
        scale = models.factor[columns]
        residual = (X[:, columns] - hat @ X[:, columns]) * scale
        share = np.trace(hat) / n
        return residual / scale, (residual**2).mean(0).sum() / (1 - share) ** 2 if share < 0.7 else np.inf

    scores = [direct(penalty)[1] for penalty in models.penalties]
    best = models.penalties[int(np.argmin(scores))]
    np.testing.assert_allclose(model.residual, direct(best)[0], atol=1e-6)


def test_property_what_the_loose_columns_say_is_not_left_in_a_residual():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((300, 1000))
    X[:, 1] = 0.98 * X[:, 0] + 0.2 * X[:, 1]
    loose = np.zeros(1000, dtype=bool)
    loose[:10] = True
    residual = ConditionalModels(X, loose).of(np.array([1])).residual[:, 0]
    assert abs(np.corrcoef(residual, X[:, 0])[0, 1]) < 0.06  # without `loose`: 0.5


def test_target_draws_have_the_conditional_law():
    rng = np.random.default_rng(2)
    x = rng.standard_normal(4000)
    X = np.column_stack(
        [x, 0.8 * x + 0.6 * rng.standard_normal(4000), (x + rng.standard_normal(4000) > 0).astype(float)]
    )
    models = ConditionalModels((X - X.mean(0)) / X.std(0), np.zeros(3, dtype=bool))
    model = models.of(np.array([1]))
    drawn = model.draws(20, rng)[..., 0]
    assert abs(np.corrcoef(drawn.mean(0), x)[0, 1]) > 0.95
    assert abs((drawn - model.fitted[:, 0]).std() - model.residual.std()) < 0.01
    labels = models.of(np.array([2]))
    copied = labels.draws(20, rng)[..., 0]
    assert labels.discrete and set(np.unique(copied)) == set(np.unique(labels.values))
    assert np.corrcoef(copied.mean(0), x)[0, 1] > 0.9  # a draw is likelier 1 where x is large
