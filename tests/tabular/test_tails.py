"""Tails of sums of residuals times draws: against their law by simulation, the normal limit, and inputs that do not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from tests.tabular.test_weighing import weigher_of

from bayesprune.tabular.conditional import ConditionalModels
from bayesprune.tabular.evidence import p_value_of
from bayesprune.tabular.spread import variance_p_values
from bayesprune.tabular.tails import Terms, larger_tail, log_tail, white_sums


@pytest.mark.parametrize("level", [0.99, 0.999])
def test_target_the_saddlepoint_is_the_law_of_rare_classes_and_skewed_inputs(level):
    """30 of 1,000 in the class, log-normal inputs: within a third and four standard errors of 40,000 sums; normal: 15 times too small."""
    rng = np.random.default_rng(0)
    residuals = (np.arange(1000) < 30) - 0.03
    values = rng.lognormal(0, 1.5, 1000)
    values -= values.mean()
    sums = np.array([residuals @ values[rng.integers(0, 1000, 1000)] for _ in range(40_000)])
    threshold = np.quantile(sums, level)
    tail = math.exp(log_tail([Terms.of(residuals[:, None], values[:, None])], threshold))
    share = 1 - level
    assert abs(tail - share) <= share / 3 + 4 * math.sqrt(share / len(sums))
    assert norm.sf(threshold / math.sqrt((residuals**2).sum() * values.var())) < share / 15


def test_limit_of_normal_draws_the_tail_is_normal():
    rng = np.random.default_rng(1)
    residuals, draws = rng.standard_normal((600, 1)), rng.standard_normal((600, 1))
    deviation = math.sqrt((residuals**2).sum() * draws.var())
    for z in (1.0, 3.0, 6.0):
        found = log_tail([Terms.of(residuals[:300], draws), Terms.of(residuals[300:], draws)], z * deviation)
        assert found == pytest.approx(norm.logsf(z), rel=0.04)
    assert log_tail([Terms.of(residuals, draws)], -1.0) == 0.0


def test_limit_several_columns_add_up():
    """A law of two equal columns is that of one with twice the values."""
    rng = np.random.default_rng(2)
    residuals, draws = rng.standard_normal((200, 1)), rng.exponential(size=(150, 1))
    once = log_tail([Terms.of(residuals, 2 * draws)], 60.0)
    twice = log_tail([Terms.of(np.repeat(residuals, 2, 1), np.repeat(draws, 2, 1))], 60.0)
    assert twice == pytest.approx(once, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_target_of_three_classes_the_tail_is_kept_whatever_the_order_of_the_draws(seed):
    """1,000, 970 and 30 of a class, log-normal draws: between a third and three times the share of 20,000 sums."""
    rng = np.random.default_rng(0)
    classes = np.eye(3)[np.repeat([0, 1, 2], [1000, 970, 30])]
    residuals = classes - classes.mean(0)
    size = rng.lognormal(0, 1.5, 4000)
    draws = (size - size.mean())[:, None] * np.array([0.1, -0.1, 1.0])
    along = residuals @ np.array([0.1, -0.1, 1.0])
    sums = np.array([along @ rng.choice(size - size.mean(), 2000) for _ in range(20_000)])
    permuted = draws[np.random.default_rng(seed).permutation(4000)]
    tail = math.exp(log_tail([Terms.of(residuals, permuted)], np.quantile(sums, 0.999)))
    assert 0.001 / 3 < tail < 0.003


def test_property_the_larger_tail_is_taken_on_the_values_side():
    rng = np.random.default_rng(3)
    residuals, draws = rng.exponential(size=(300, 1)), rng.lognormal(0, 1.5, (300, 1))
    parts = [(residuals, draws)]
    variance = float((residuals**2).sum() * draws.var())
    value = 4 * math.sqrt(variance)
    above, below = (larger_tail(np.array([s * value, variance]), parts, two_sided=True) for s in (1, -1))
    assert above > norm.logsf(4) + 1  # skewed to this side
    assert below == pytest.approx(norm.logsf(4))
    assert larger_tail(np.array([-value, variance]), parts) > math.log(0.99)  # one-sided


def test_equation_whites_variance_counts_where_the_draws_would_not_vary_so():
    r, h = np.array([[2.0], [-1.0], [1.0]]), np.array([[1.0], [3.0], [-2.0]])
    total, slope = 2.0 - 3.0 - 2.0, -3.0 / 14.0
    shown = sum(((a - slope * b) * b) ** 2 for a, b in zip(r[:, 0], h[:, 0]))
    assert white_sums(r, h, 0.0, 2.0) == pytest.approx((total, 2 * shown))
    assert white_sums(r, h, 100.0, 2.0) == pytest.approx((total, 200.0))


def test_equation_whites_variance_of_weighted_rows_leaves_the_signal_out():
    rng = np.random.default_rng(0)
    h, weight = rng.standard_normal((400, 1)), rng.lognormal(0, 1, (400, 1))
    total, variance = white_sums(0.5 * h, h, 0.0, 1.0, weight)
    assert total == pytest.approx(float((weight * 0.5 * h * h).sum())) and variance == pytest.approx(0, abs=1e-18)


@pytest.mark.parametrize("rare", ["class", "response"])
def test_target_skewed_inputs_and_rare_responses_give_valid_p_values(rare):
    """3 % positives, or 5 % of y not zero, log-normal inputs, none of which matters: P(p ≤ .001) within four standard errors."""
    rng, values = np.random.default_rng(0), []
    for repetition in range(25):
        X = rng.lognormal(0, 1.5, (400, 8))
        y = rng.permutation(np.arange(400) < 12).astype(np.int64)
        if rare == "response":
            y = (rng.random(400) < 0.05) * rng.lognormal(0, 1, 400)
        weigher, models = weigher_of(X, y, repetition)
        values += [p_value_of(weigher.weigh(models.of(np.array([j])))) for j in range(8)]
    level = 0.001
    assert np.mean(np.array(values) <= level) <= level + 4 * math.sqrt(level / len(values))


def test_target_inputs_whose_spread_follows_a_cause_do_not_act_on_the_noise():
    """x = |z|·e beside z, noise |z|: given z none acts."""
    rng, least = np.random.default_rng(0), []
    for _ in range(20):
        z = rng.standard_normal(500)
        X = np.abs(z)[:, None] * rng.standard_normal((500, 11))
        X[:, 0] = z
        X = (X - X.mean(0)) / X.std(0)
        p = variance_p_values(
            np.abs(z) * rng.standard_normal(500), np.ones(500), ConditionalModels(X, np.ones(11, dtype=bool)),
            [np.array([j]) for j in range(11)],
        )  # fmt: skip
        least.append(p[1:].min())
    assert np.mean(np.array(least) < 0.005) <= 0.05 + 4 * math.sqrt(0.05 / 20)
    assert np.median(least) > 0.01
