from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesprune.vision import Augmentation, crop_and_flip, draw, pad_images


def some_images(n=6, channels=3, height=7, width=5, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).to(dtype)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_parity_padding_is_numpys(mode, padding, dtype):
    images = some_images(dtype=dtype)
    wanted = np.pad(
        images.numpy(),
        ((0, 0), (0, 0), (padding, padding), (padding, padding)),
        mode="reflect" if mode == "reflect" else "constant",
    )
    padded = pad_images(images, Augmentation(padding, mode), chunk=4)
    assert padded.dtype == dtype
    assert np.array_equal(padded.numpy(), wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_parity_batch_equals_a_loop_over_images(layout, flip, padding, channels):
    images = some_images(n=40, channels=channels)
    augmentation = Augmentation(padding, "reflect", flip)
    padded = pad_images(images, augmentation).contiguous(memory_format=layout)
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(40, (64,), generator=generator)
    draws = draw(augmentation, 64, generator)
    before = padded.clone()
    crops = crop_and_flip(padded, index, draws, (7, 5))
    for i in range(64):
        top, left, mirrored = draws[:, i].tolist()
        image = padded[index[i], :, top : top + 7, left : left + 5]
        assert torch.equal(crops[i], image.flip(-1) if mirrored else image)
    assert crops.shape == (64, channels, 7, 5)
    assert crops.is_contiguous(memory_format=layout)
    assert torch.equal(padded, before)
    assert draws[2].any() == flip


def test_limit_middle_crop_is_the_image():
    images = some_images()
    padded = pad_images(images, Augmentation(2))
    draws = torch.tensor([[2] * 6, [2] * 6, [0] * 6])
    assert torch.equal(crop_and_flip(padded, torch.arange(6), draws, (7, 5)), images)


def test_target_draws_are_uniform():
    n = 90_000
    draws = draw(Augmentation(padding=4), n, torch.Generator().manual_seed(0))
    cells = torch.bincount(draws[0] * 9 + draws[1], minlength=81).double()
    expected = n / 81
    # Chi-squared with 80 degrees of freedom: mean 80, standard deviation sqrt(160).
    assert abs(((cells - expected) ** 2 / expected).sum().item() - 80) < 4 * 160**0.5
    assert abs(draws[2].double().mean().item() - 0.5) < 4 * 0.5 / n**0.5
    assert draws.shape == (3, n)


def test_limit_no_padding_and_no_flip_draw_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert draw(Augmentation(0, flip=False), 8, generator).abs().max() == 0
    assert torch.equal(generator.get_state(), before)


def test_error_messages():
    with pytest.raises(ValueError, match="padding=-1"):
        Augmentation(padding=-1)
    with pytest.raises(ValueError, match="mode='wrap': use 'reflect' or 'zero'"):
        Augmentation(mode="wrap")
    with pytest.raises(ValueError, match="padding=5 cannot reflect images of 7 x 5 pixels"):
        pad_images(some_images(), Augmentation(5))
