from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bayesprune.posterior import (
    accuracy,
    adaptive_ece,
    auroc,
    average_precision,
    brier,
    classification_metrics,
    classwise_ece,
    ece,
    gaussian_nll,
    mse,
    nll,
    ood_metrics,
    reliability_curve,
)

sklearn = pytest.importorskip("sklearn.metrics")


def problem(n: int = 400, classes: int = 5, seed: int = 0):
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.ones(classes) * 0.6, size=n), generator.integers(0, classes, size=n)


@pytest.mark.parametrize("classes", [2, 5])
def test_parity_with_sklearn(classes: int) -> None:
    p, y = problem(classes=classes)
    kinds = np.arange(classes)
    assert accuracy(p, y) == pytest.approx(sklearn.accuracy_score(y, p.argmax(1)), abs=1e-12)
    assert nll(p, y) == pytest.approx(sklearn.log_loss(y, p, labels=kinds), rel=1e-9)
    ours = sum(sklearn.brier_score_loss(y == c, p[:, c]) for c in kinds)
    assert brier(p, y) == pytest.approx(ours, rel=1e-12)


@pytest.mark.parametrize("decimals", [1, 8])  # with one decimal most scores are tied
def test_parity_ranking_with_sklearn(decimals: int) -> None:
    generator = np.random.default_rng(3)
    y = generator.random(500) < 0.3
    scores = np.round(generator.normal(size=500) + y, decimals)
    assert auroc(scores, y) == pytest.approx(sklearn.roc_auc_score(y, scores), abs=1e-12)
    assert average_precision(scores, y) == pytest.approx(sklearn.average_precision_score(y, scores), abs=1e-12)
    result = ood_metrics(scores[~y], scores[y])
    assert result["auroc"] == pytest.approx(sklearn.roc_auc_score(y, scores), abs=1e-12)
    assert result["aupr_out"] == pytest.approx(sklearn.average_precision_score(y, scores), abs=1e-12)
    assert result["aupr_in"] == pytest.approx(sklearn.average_precision_score(~y, -scores), abs=1e-12)
    # As a curve: "in" is the positive class, accepted by low scores; the first point that reaches 95 %.
    fpr, tpr, _ = sklearn.roc_curve(~y, -scores, drop_intermediate=False)
    assert result["fpr95"] == pytest.approx(fpr[np.flatnonzero(tpr >= 0.95)[0]], abs=1e-12)


def test_equation_auroc_counts_pairs() -> None:
    generator = np.random.default_rng(4)
    scores, y = generator.integers(0, 6, size=60), generator.random(60) < 0.4
    wins = [(a > b) + 0.5 * (a == b) for a in scores[y] for b in scores[~y]]
    assert auroc(scores, y) == pytest.approx(np.mean(wins), abs=1e-12)
    assert auroc(np.zeros(60), y) == 0.5
    assert auroc([-math.inf, 0.0, math.inf], [0, 0, 1]) == 1.0


def test_equation_infinite_scores_tie_like_others() -> None:
    generator = np.random.default_rng(6)
    scores, y = generator.choice([-math.inf, 0.0, 1.0, math.inf], size=60), generator.random(60) < 0.4
    finite = np.nan_to_num(scores, posinf=9.0, neginf=-9.0)
    assert average_precision(scores, y) == pytest.approx(sklearn.average_precision_score(y, finite), abs=1e-12)
    assert ood_metrics(scores[~y], scores[y]) == pytest.approx(ood_metrics(finite[~y], finite[y]), abs=1e-12)


def test_equation_fpr95_counts_exactly_at_the_boundary() -> None:
    inside = np.arange(20.0)  # 19 of 20 are accepted at threshold 18
    assert ood_metrics(inside, [17.5, 18.0, 18.5, 30.0])["fpr95"] == 0.5
    assert ood_metrics(inside, [17.5, 18.0, 18.5, 30.0], tpr=1.0)["fpr95"] == 0.75
    assert math.ceil(0.55 * 100) == 56  # by rounding; the 55th of 100 is the right threshold
    assert ood_metrics(np.arange(100.0), [54.0, 54.5, 55.0, 60.0], tpr=0.55)["fpr95"] == 0.25


def test_equation_ece_by_hand() -> None:
    # Top confidences 0.6, 0.6 | 0.7 | 0.95, 1.0 in tenths; hits: yes, no | no | yes, yes.
    p = [[0.6, 0.4], [0.6, 0.4], [0.3, 0.7], [0.95, 0.05], [0.0, 1.0]]
    y = [0, 1, 0, 0, 1]
    by_hand = (2 * abs(0.5 - 0.6) + 1 * abs(0 - 0.7) + 2 * abs(1 - 0.975)) / 5
    assert ece(p, y, bins=10) == pytest.approx(by_hand, abs=1e-12)
    curve = reliability_curve(p, y, bins=10)
    assert curve.count.tolist() == [0, 0, 0, 0, 0, 2, 1, 0, 0, 2]  # (0.5, 0.6] holds 0.6 itself
    assert np.isnan(curve.accuracy[0]) and curve.accuracy[5] == 0.5 and curve.confidence[9] == pytest.approx(0.975)
    assert curve.lower[0] == 0 and curve.upper[-1] == 1 and np.allclose(curve.upper[:-1], curve.lower[1:])
    assert curve.ece == ece(p, y, bins=10)
    # Closed on the right, on edges that floats hold exactly: 0.5 and 0.75 belong to the bin below.
    assert reliability_curve([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], [0, 0, 0], bins=4).count.tolist() == [0, 1, 1, 1]


def test_equation_ece_against_a_plain_loop() -> None:
    p, y = problem(n=1000, classes=4)
    for bins in (1, 7, 15):
        total = 0.0
        for b in range(bins):
            rows = [i for i in range(1000) if b / bins < max(p[i]) <= (b + 1) / bins]
            if rows:
                total += abs(sum(p[i].argmax() == y[i] for i in rows) - sum(max(p[i]) for i in rows)) / 1000
        assert ece(p, y, bins) == pytest.approx(total, abs=1e-12)


def test_equation_adaptive_and_classwise_by_hand() -> None:
    p = [[0.6, 0.4], [0.2, 0.8], [0.1, 0.9], [0.7, 0.3]]
    y = [0, 1, 1, 1]
    # By mass: {0.6, 0.7} hits {1, 0}, {0.8, 0.9} hits {1, 1}.
    assert adaptive_ece(p, y, bins=2) == pytest.approx((2 * abs(0.5 - 0.65) + 2 * abs(1 - 0.85)) / 4, abs=1e-12)
    # Class 0, two bins: {0.2, 0.1} happens 0, {0.6, 0.7} happens 1 of 2; class 1 mirrors it.
    by_hand = (2 * abs(0 - 0.15) + 2 * abs(0.5 - 0.65)) / 4
    assert classwise_ece(p, y, bins=2) == pytest.approx(by_hand, abs=1e-12)
    assert adaptive_ece(p, y, bins=100) == pytest.approx(np.mean([0.4, 0.7, 0.2, 0.1]), abs=1e-12)


def test_target_a_calibrated_forecast_has_small_error_and_an_overconfident_one_the_known() -> None:
    generator = np.random.default_rng(5)
    n, confidence = 40_000, 0.8
    p = np.tile([confidence, 1 - confidence], (n, 1))
    standard_error = math.sqrt(confidence * (1 - confidence) / n)
    calibrated = (generator.random(n) >= confidence).astype(int)
    assert ece(p, calibrated) < 4 * standard_error
    wrong = (generator.random(n) >= 0.6).astype(int)
    assert abs(ece(p, wrong) - 0.2) < 4 * math.sqrt(0.24 / n)


def test_limit_perfect_uniform_and_impossible() -> None:
    y = np.arange(4)
    perfect, uniform = np.eye(4), np.full((4, 4), 0.25)
    assert classification_metrics(perfect, y) == {"accuracy": 1.0, "nll": 0.0, "brier": 0.0, "ece": 0.0}
    assert nll(uniform, y) == pytest.approx(math.log(4)) and brier(uniform, y) == pytest.approx(0.75)
    impossible = np.eye(4)[::-1]
    assert brier(impossible, y) == 2.0 and ece(impossible, y) == 1.0
    assert nll(impossible, y) == pytest.approx(-math.log(np.finfo(float).tiny)) and accuracy(impossible, y) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_property_tensors_and_arrays_give_the_same(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 3
    p = logits.softmax(1).to(dtype).requires_grad_()
    if dtype == torch.bfloat16:  # rows sum to 1 only within 1 %: refused rather than scored
        with pytest.raises(ValueError, match=r"does not sum to 1.*logits\.float\(\)"):
            nll(p, labels)
        return
    as_array = p.detach().double().numpy()
    assert classification_metrics(p, labels) == classification_metrics(as_array, labels.numpy().astype(np.int32))
    assert isinstance(nll(p, labels), float)


def test_equation_regression_metrics() -> None:
    mean, variance, y = [0.0, 1.0], [1.0, 4.0], [1.0, 1.0]
    assert mse(mean, y) == 0.5
    density = torch.distributions.Normal(torch.tensor(mean).double(), torch.tensor(variance).double().sqrt())
    expected = -density.log_prob(torch.tensor(y).double()).mean().item()
    assert gaussian_nll(mean, variance, y) == pytest.approx(expected, rel=1e-12)
    assert gaussian_nll(mean, 2.0, y) == gaussian_nll(mean, [2.0, 2.0], y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nll([0.2, 0.8], [0, 1]), r"shape \(2,\)"),
        (lambda: nll(np.zeros((0, 2)), []), r"shape \(0, 2\)"),
        (lambda: nll([[2.0, -1.0]], [0]), "softmax outputs, not logits"),
        (lambda: nll([[math.nan, 1.0]], [0]), "NaN"),
        (lambda: nll([[0.5, 0.5]], [[0]]), "one class number for each"),
        (lambda: nll([[0.5, 0.5]], [2]), "whole numbers from 0 to 1, found 2 to 2"),
        (lambda: nll([[0.5, 0.5]], [0.5]), "whole numbers"),
        (lambda: ece([[0.5, 0.5]], [0], bins=0), "bins=0"),
        (lambda: adaptive_ece([[0.5, 0.5]], [0], bins=0), "bins=0"),
        (lambda: auroc([0.1, 0.2], [1, 1]), "at least one of each"),
        (lambda: auroc([], []), "at least one of each"),
        (lambda: auroc([0.1, math.nan], [0, 1]), "NaN"),
        (lambda: auroc([0.1], [0, 1]), r"\(1,\) against \(2,\)"),
        (lambda: ood_metrics([], [0.5]), "at least one of each"),
        (lambda: ood_metrics([0.1], [0.5], tpr=0.0), "tpr=0.0"),
        (lambda: mse(np.zeros((3, 1)), np.zeros(3)), r"\(3, 1\) against \(3,\)"),
        (lambda: gaussian_nll([0.0], [0.0], [0.0]), "positive"),
    ],
)
def test_error_messages(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
