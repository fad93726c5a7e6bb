from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from bayesprune.vision import RandomResizedCrop
from bayesprune.vision.crops import Box, crop_image, middle, uniforms

N = 20_000


def boxes(crop, width, height, n=N):
    draws = uniforms(n * crop.draws, 1, 2, 3).reshape(n, crop.draws)
    return np.array([crop.box(width, height, row) for row in draws.tolist()], dtype=np.float64)


def within(sample, mean, std):
    assert abs(sample.mean() - mean) < 4 * std / math.sqrt(len(sample))


def test_target_area_and_shape_are_uniform_where_every_window_fits():
    low, high = 0.08, 0.5  # √(0.5 · 4/3) < 1: no window is drawn twice
    left, top, width, height, mirrored = boxes(RandomResizedCrop(scale=(low, high)), 4000, 4000).T
    area, ratio = width * height / 4000**2, np.log(width / height) / math.log(4 / 3)
    for values, bounds in ((area, (low, high)), (ratio, (-1, 1))):
        assert values.min() >= bounds[0] - 2e-3 and values.max() <= bounds[1] + 2e-3
        share = (values - bounds[0]) / (bounds[1] - bounds[0])
        within(share, 1 / 2, math.sqrt(1 / 12))
        within(share**2, 1 / 3, math.sqrt(4 / 45))
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 4 / math.sqrt(N)
    within(left / (4000 - width), 1 / 2, math.sqrt(1 / 12))
    within(top / (4000 - height), 1 / 2, math.sqrt(1 / 12))
    within(mirrored, 1 / 2, 1 / 2)


def test_target_windows_that_do_not_fit_are_drawn_again():
    """The accepted windows of a wide image have the law of the drawn ones given that they fit."""
    width, height = 2000, 1000
    box = boxes(RandomResizedCrop(), width, height)
    area, ratio = box[:, 2] * box[:, 3] / (width * height), np.log(box[:, 2] / box[:, 3])
    random = np.random.RandomState(0)
    share, shape = random.uniform(0.08, 1, 10 * N), random.uniform(math.log(3 / 4), math.log(4 / 3), 10 * N)
    w, h = (np.sqrt(width * height * share * np.exp(sign * shape)) for sign in (1, -1))
    fits = (w <= width + 0.5) & (h <= height + 0.5)
    for found, law in ((area, share[fits]), (ratio, shape[fits])):
        within(found, law.mean(), law.std() * math.sqrt(1.2))
    assert (
        (box[:, :2] >= 0).all() and (box[:, 0] + box[:, 2] <= width).all() and (box[:, 1] + box[:, 3] <= height).all()
    )


def test_equation_last_resort_is_the_middle():
    crop, draws = RandomResizedCrop(scale=(0.9, 1.0)), [0.5] * RandomResizedCrop.draws
    assert crop.box(400, 30, draws) == Box(180, 0, 40, 30, False)  # 30 · 4/3 wide
    assert crop.box(30, 400, draws) == Box(0, 180, 30, 40, False)
    assert crop.box(1, 1, draws) == Box(0, 0, 1, 1, False)


def test_property_numbers_depend_on_every_key():
    first = uniforms(8, 5, 6, 7, 8)
    for keys in ((4, 6, 7, 8), (5, 0, 7, 8), (5, 6, 0, 8), (5, 6, 7, 0)):
        assert not np.isin(uniforms(8, *keys), first).any()
    assert uniforms(3, 5, 6, 7, 8).tolist() == first[:3].tolist()
    values = np.concatenate([uniforms(4, 0, i, 0) for i in range(5000)])
    within(values, 1 / 2, math.sqrt(1 / 12))
    # Philox promises its stream: the same numbers wherever this runs
    assert uniforms(2, 0, 0, 0).tolist() == [0.011546754286331562, 0.24154919656271812]


def halve(n):
    """The triangle filter that halves n pixels, edges renormalised: row o weighs its taps by (1, 3, 3, 1) / 8."""
    weights = np.zeros((n // 2, n))
    for o in range(n // 2):
        for tap, weight in zip(range(2 * o - 1, 2 * o + 3), (1, 3, 3, 1)):
            if 0 <= tap < n:
                weights[o, tap] = weight
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(16, 28), (28, 16), (16, 16)])
def test_equation_evaluation_scales_the_short_side_and_cuts_the_middle(height, width):
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    small = np.einsum("oh,hwc,pw->opc", halve(height), pixels, halve(width))  # the short side is 8 now
    top, left = round((height // 2 - 7) / 2), round((width // 2 - 7) / 2)
    found = middle(Image.fromarray(pixels), size=7, resize=8)
    assert found.shape == (7, 7, 3)
    assert np.abs(found - small[top : top + 7, left : left + 7]).max() <= 1.01


def test_equation_crop_sees_its_window_only_and_mirrors():
    pixels = np.full((20, 30, 3), 255, dtype=np.uint8)
    pixels[4:12, 6:14] = np.random.RandomState(0).randint(0, 200, (8, 8, 3))
    window = np.einsum("oh,hwc,pw->opc", halve(8), pixels[4:12, 6:14], halve(8))
    image = Image.fromarray(pixels)
    assert np.abs(crop_image(image, Box(6, 4, 8, 8, False), 4) - window).max() <= 1.01
    assert np.abs(crop_image(image, Box(6, 4, 8, 8, True), 4) - window[:, ::-1]).max() <= 1.01


@pytest.mark.parametrize("bounds", [{"scale": (0, 1)}, {"ratio": (2, 1)}])
def test_error_bounds_in_order(bounds):
    with pytest.raises(ValueError, match="the smaller first"):
        RandomResizedCrop(**bounds)
