from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesprune.sparsity import (
    SpikeSlabPrior,
    e_step,
    inclusion_probability,
    m_step,
    probability_from_soft_threshold,
    soft_threshold_from_probability,
)

PRIOR = {"spike_decay": 1e-2, "slab_decay": 2e-4, "num_data": 10_240}


def _log_normal(weights: list[float], precision: float) -> float:
    return sum(0.5 * math.log(precision / (2 * math.pi)) - 0.5 * precision * w * w for w in weights)


def test_equation_threshold_by_hand():
    # δ₀ = 102.4, δ₁ = 2.048, p = 0.9, n = 5
    by_hand = (math.log(102.4 / 2.048) + 2 / 5 * math.log(0.9 / 0.1)) / (102.4 - 2.048)
    assert soft_threshold_from_probability(0.1, 5, **PRIOR) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [0.1, -0.2, 0.05], [0.3, 0.3, -0.3], [2.0, 1.0, -1.0]])
@pytest.mark.parametrize("inclusion", [0.001, 0.3, 0.5, 0.99])
def test_equation_posterior_probability_is_bayes_rule_on_the_two_normals(weights, inclusion):
    spike = _log_normal(weights, PRIOR["num_data"] * PRIOR["spike_decay"]) + math.log(1 - inclusion)
    slab = _log_normal(weights, PRIOR["num_data"] * PRIOR["slab_decay"]) + math.log(inclusion)
    expected = 1 / (1 + math.exp(spike - slab))
    sums = torch.tensor([sum(w * w for w in weights)], dtype=torch.float64)
    got = float(inclusion_probability(sums, len(weights), inclusion=inclusion, **PRIOR))
    assert got == pytest.approx(expected, rel=1e-9)


@given(
    inclusion=st.floats(1e-6, 1 - 1e-6),
    size=st.integers(1, 5000),
    slab=st.floats(1e-6, 1e-2),
    ratio=st.floats(1.01, 1e3),
    num_data=st.integers(10, 1_000_000),
    scale=st.floats(0.0, 3.0),
)
@settings(max_examples=200, deadline=None)
def test_property_e_step_and_probability_agree_exactly_at_one_half(inclusion, size, slab, ratio, num_data, scale):
    values = {"spike_decay": slab * ratio, "slab_decay": slab, "num_data": num_data}
    threshold = soft_threshold_from_probability(inclusion, size, **values)
    sums = torch.tensor([size * max(threshold, 0.0) * scale, 1.0 * scale], dtype=torch.float64)
    soft = e_step(sums / size, threshold)
    probability = inclusion_probability(sums, size, inclusion=inclusion, **values)
    assert torch.equal(soft, probability >= 0.5)


def test_equation_probability_is_one_half_at_the_threshold():
    # λ₁ representable and the sum an exact multiple: not one rounding in between.
    prior = SpikeSlabPrior(2e-3, 1e-3, num_data=1000, soft_threshold=0.25)
    at = torch.tensor([0.25 * 8], dtype=torch.float64)
    assert float(prior.posterior_inclusion(at, 8)) == 0.5
    assert prior.e_step(at / 8, 8).item() is True
    below = torch.nextafter(at, torch.zeros(1, dtype=torch.float64))
    assert prior.e_step(below / 8, 8).item() is False
    assert float(prior.posterior_inclusion(below, 8)) <= 0.5


@given(threshold=st.floats(-0.05, 0.05), size=st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_roundtrip_threshold_to_probability_and_back(threshold, size):
    inclusion = probability_from_soft_threshold(threshold, size, **PRIOR)
    if 1e-10 < inclusion < 1 - 1e-10:
        assert soft_threshold_from_probability(inclusion, size, **PRIOR) == pytest.approx(threshold, abs=1e-6)


@pytest.mark.parametrize("size", [1, 10, 1_000_000])
@pytest.mark.parametrize("threshold", [-1e6, 0.0, 1e6])
def test_property_no_overflow_for_huge_groups_and_thresholds(size, threshold):
    prior = SpikeSlabPrior(1.0, 1e-6, num_data=1_000_000, soft_threshold=threshold)
    assert 0.0 <= prior.prior_inclusion(size) <= 1.0
    assert torch.isfinite(prior.posterior_inclusion(torch.tensor([0.0, 1e30]), size)).all()


def test_equation_the_published_thresholds_imply_these_prior_probabilities():
    # Released notebooks: δ₀/N = 1e-2; Example 1 λ₁ 1e-2 slab 2e-4 on 5 units, Example 3 λ₁ 2e-2 slab 5e-4 on 6.
    one = probability_from_soft_threshold(1e-2, 5, spike_decay=1e-2, slab_decay=2e-4, num_data=10_240)
    three = probability_from_soft_threshold(2e-2, 6, spike_decay=1e-2, slab_decay=5e-4, num_data=10_240)
    assert one == pytest.approx(0.999, abs=5e-4)
    assert three == pytest.approx(0.96, abs=5e-3)


def test_equation_m_step():
    soft = torch.tensor([[True, False], [False, True]])
    decay = m_step(soft, spike_decay=1e-2, slab_decay=1e-4, dtype=torch.float64)
    assert decay.dtype is torch.float64
    assert decay.tolist() == [[1e-4, 1e-2], [1e-2, 1e-4]]


def test_property_threshold_and_probability_give_the_same_prior():
    by_probability = SpikeSlabPrior(1e-2, 2e-4, 10_240, inclusion=0.01)
    by_threshold = SpikeSlabPrior(1e-2, 2e-4, 10_240, soft_threshold=by_probability.threshold(5))
    assert by_threshold.prior_inclusion(5) == pytest.approx(0.01, rel=1e-9)
    sums = torch.linspace(0, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(by_threshold.posterior_inclusion(sums, 5), by_probability.posterior_inclusion(sums, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpikeSlabPrior(1e-4, 1e-3, 100, soft_threshold=1e-4), "spike_decay=0.0001 must be larger"),
        (lambda: SpikeSlabPrior(1e-3, 1e-4, 100), "give exactly one"),
        (lambda: SpikeSlabPrior(1e-3, 1e-4, 100, soft_threshold=1.0, inclusion=0.5), "give exactly one"),
        (lambda: SpikeSlabPrior(1e-3, 1e-4, None, inclusion=0.5), "num_data is needed"),
        (lambda: SpikeSlabPrior(1e-3, 1e-4, 100, inclusion=1.0), "inclusion_probability=1.0 must lie"),
        (lambda: SpikeSlabPrior(1e-3, 0.0, 100, inclusion=0.5), "slab_decay=0.0 must be positive"),
        (lambda: SpikeSlabPrior(1e-3, 1e-4, -5, soft_threshold=1.0), "num_data=-5 must be positive"),
        (lambda: SpikeSlabPrior(1e-3, 1e-4, None, soft_threshold=1.0).prior_inclusion(3), "num_data is needed"),
    ],
)
def test_error_names_the_argument_and_the_mend(call, message):
    with pytest.raises(ValueError, match=message):
        call()
