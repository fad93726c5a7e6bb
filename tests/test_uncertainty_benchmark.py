"""The table of uncertainties and the temperature figures, at toy size."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks import temperature_plots, uncertainty


def test_property_the_parts_of_a_split_do_not_overlap():
    split = uncertainty.digits(0)
    assert (len(split.train), len(split.validation), len(split.test)) == (1047, 250, 500)
    turned = split.turned["turn90"]
    assert turned.shape == split.test.shape and torch.equal(turned.rot90(-1, (2, 3)), split.test)


def test_property_shifted_images_hold_the_pixels_of_the_image_moved_by_at_most_one():
    images = torch.arange(64.0).view(1, 1, 8, 8).repeat(50, 1, 1, 1)
    moved = temperature_plots.shifted(images, torch.Generator().manual_seed(0))
    inner = moved[:, 0, 1:-1, 1:-1] - images[:, 0, 1:-1, 1:-1]
    assert {float(value) for value in inner.flatten()} == {8.0 * i + j for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert all(float(each.std()) == 0 for each in inner)


@pytest.mark.parametrize("method", ["SGD", "CV-Adam, all defaults", "SWAG", "MC dropout", "deep ensemble of 4"])
def test_property_every_method_tunes_scores_and_prints(method):
    found = uncertainty.row("mlp", method, splits=2, epochs=8)
    assert found["setting"].items() <= min(found["tried"], key=lambda each: each["validation_nll"]).items()
    members = {"SGD": 1, "CV-Adam, all defaults": 6, "SWAG": 30, "MC dropout": 30, "deep ensemble of 4": 4}
    assert [split["members"] for split in found["splits"]] == [members[method]] * 2
    assert math.isnan(found["splits"][0]["temperature"]) == ("CV-Adam" not in method)
    assert method in uncertainty.table([found])


def test_property_the_heat_of_minibatches_is_what_its_formula_says():
    cold = temperature_plots.heat(lr=1e-3, batch=16, temperature=0.01)
    assert cold["measured"] == pytest.approx(cold["formula"], rel=0.5)
    assert cold["measured"] > 0.02
