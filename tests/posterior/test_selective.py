"""Risk–coverage curves against sums by hand and against the order that no other beats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesprune.posterior import risk_coverage


def test_equation_risk_is_the_mean_loss_of_the_surest():
    generator = np.random.default_rng(0)
    doubt, loss = generator.random(50), generator.random(50) ** 2
    curve = risk_coverage(doubt, loss)
    for k in (1, 7, 50):
        surest = np.argsort(doubt)[:k]
        assert curve.risk_at(k / 50) == pytest.approx(loss[surest].mean())
    assert curve.risk[-1] == pytest.approx(loss.mean()) and curve.coverage[-1] == 1
    assert curve.area == pytest.approx(np.mean(curve.risk))


def test_limit_a_perfect_order_has_the_least_area_and_none_beats_it():
    wrong = np.arange(100) >= 90
    assert risk_coverage(wrong.astype(float) + np.arange(100) * 1e-3, wrong).area == pytest.approx(
        risk_coverage(np.arange(100), wrong).least_area
    )
    generator = np.random.default_rng(1)
    for _ in range(20):
        curve = risk_coverage(generator.random(100), wrong)
        assert curve.area >= curve.least_area


def test_limit_equal_uncertainties_are_one_point():
    curve = risk_coverage(np.zeros(4), [True, False, False, False])
    assert curve.coverage.tolist() == [1.0] and curve.risk_at(0.1) == curve.area == 0.25


@pytest.mark.filterwarnings("error")
def test_property_tensors_of_any_precision_and_infinite_doubts_are_taken():
    doubt = torch.tensor([0.5, np.inf, 0.25, np.inf], dtype=torch.bfloat16, requires_grad=True)
    curve = risk_coverage(doubt, torch.tensor([False, True, False, False]))
    assert curve.coverage.tolist() == [0.25, 0.5, 1.0] and curve.risk.tolist() == [0.0, 0.0, 0.25]


@pytest.mark.parametrize(
    ("doubt", "loss", "message"),
    [([], [], "one number"), ([1.0], [1.0, 2.0], "one number"), ([np.nan], [1], "NaN"), ([1.0], [-1.0], "negative")],
)
def test_error_arguments(doubt, loss, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage(doubt, loss)
    with pytest.raises(ValueError, match="coverage=0"):
        risk_coverage([1.0], [1.0]).risk_at(0)
