"""The demo's scores, intervals, times and letters, against values known by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bayesprune.demo import latency
from bayesprune.demo.bootstrap import scores
from bayesprune.demo.cross_validation import FoldPrediction
from bayesprune.demo.letters import FONTS, LETTERS, letter_images
from bayesprune.posterior.metrics import auroc, nll


def said(name, fold, right, seed=0, images=400, letters=90):
    """A model that gives the label 0.9 for a share of the images and another class 0.9 for the rest."""
    random = np.random.default_rng(seed + 100 * fold)
    labels = random.integers(10, size=images)
    chosen = np.where(np.arange(images) < right * images, labels, (labels + 1) % 10)
    probabilities = np.full((images, 10), 0.1 / 9)
    probabilities[np.arange(images), chosen] = 0.9
    strange = random.normal(size=images).round(1), random.normal(1.0, size=letters).round(1)
    return FoldPrediction(name, fold, labels, probabilities, *strange, 1, 1000, 100)


def test_equation_values_are_those_of_all_folds():
    models = {name: [said(name, fold, right) for fold in range(3)] for name, right in (("a", 0.9), ("b", 0.8))}
    found = scores(models, "a")
    assert found["a"]["accuracy"][0] == pytest.approx(0.9) and found["b"]["difference"][0] == pytest.approx(-0.1)
    assert found["a"]["difference"] == [0.0, 0.0, 0.0]
    whole = (
        np.concatenate([part.probabilities for part in models["b"]]),
        np.concatenate([part.labels for part in models["b"]]),
    )
    assert found["b"]["nll"][0] == pytest.approx(nll(*whole))
    areas = [
        auroc(
            np.append(part.strange, part.strange_letters),
            np.repeat([0, 1], [len(part.strange), len(part.strange_letters)]),
        )
        for part in models["a"]
    ]
    assert found["a"]["auroc"][0] == pytest.approx(np.mean(areas))


def test_equation_intervals_are_the_binomials_and_differences_are_paired():
    models = {
        name: [said(name, fold, right) for fold in range(3)] for name, right in (("a", 0.9), ("b", 0.9), ("c", 0.8))
    }
    found = scores(models, "a")
    low, high = found["a"]["accuracy"][1:]
    half = 1.96 * np.sqrt(0.9 * 0.1 / 1200)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert found["b"]["difference"] == [0.0, 0.0, 0.0]  # the same images wrong: drawn together, no difference is left
    low, high = found["c"]["difference"][1:]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.1 * 0.9 / 1200), rel=0.1)  # a tenth of the images differ


def test_limit_a_score_that_separates_and_one_that_says_nothing():
    apart = said("a", 0, 0.9)
    apart.strange[:], apart.strange_letters[:] = 0.0, 1.0
    nothing = said("b", 0, 0.9)
    nothing.strange[:], nothing.strange_letters[:] = 0.0, 0.0
    found = scores({"a": [apart], "b": [nothing]}, "a")
    assert found["a"]["auroc"] == [1.0, 1.0, 1.0] and found["b"]["auroc"] == [0.5, 0.5, 0.5]


def test_equation_the_best_of_several_ways_counts_and_load_does_not(monkeypatch):
    """By a clock of its own: of two ways to run the reference the faster is it; what comes now and then changes no best."""
    clock, random = [0.0], np.random.default_rng(0)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def taking(seconds, disturbed=0.0):
        def call():
            clock[0] += seconds + disturbed * (random.random() < 0.7)

        return call

    calls = {"slow": [taking(0.03), taking(0.012)], "fast": [taking(0.004, disturbed=0.5)]}
    found = latency.best_times(calls, "slow", seconds=30.0)
    assert found["slow"]["ms"] == pytest.approx(12) and found["fast"]["ms"] == pytest.approx(4)
    assert found["fast"]["speed"][0] == pytest.approx(3) and found["slow"]["speed"] == [1.0, 1.0, 1.0]
    assert found["fast"]["speed"][1] <= 3 + 1e-9 and found["fast"]["speed"][2] == pytest.approx(3)


def test_property_letters_are_counted_like_digits():
    images = letter_images()
    assert tuple(images.shape) == (len(FONTS) * len(LETTERS), 1, 8, 8)
    assert images.max() == 16 and not set("BDGIJLOQSZ0123456789") & set(LETTERS)
    assert (images.flatten(1).sum(1) > 50).all()  # none is empty
    assert len({tuple(image.flatten().tolist()) for image in images}) == len(images)
    assert (letter_images(seed=1) != images).any() and (letter_images() == images).all()
    first = images[0, 0]  # an A: its point is narrower than its feet
    assert (first[0] > 0).sum() < (first[-1] > 0).sum()
