from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesprune.vision import Augmentation, BatchLoader
from bayesprune.vision.augment import crop_and_flip, cut_out_, draw, pad_images


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


def sides(loader: BatchLoader, images: torch.Tensor) -> torch.Tensor:
    """Which of the images an epoch of the loader mirrors, by label."""
    found = torch.zeros(len(images), dtype=torch.bool)
    for batch, labels in loader:
        for image, label in zip(batch, labels):
            found[label] = torch.equal(image, images[label].flip(-1))
            assert found[label] or torch.equal(image, images[label])
    return found


def test_property_two_epochs_in_a_row_show_both_sides_of_every_image():
    images = some_images(n=60, dtype=torch.float32)
    augmentation = Augmentation(padding=0, alternate=True)
    arguments = dict(batch_size=7, shuffle=True, augmentation=augmentation, scale=1.0, seed=3)
    loader = BatchLoader(images, torch.arange(60), **arguments)
    epochs = [sides(loader, images) for _ in range(4)]
    assert 15 < epochs[0].sum() < 45
    for before, after in zip(epochs, epochs[1:]):
        assert torch.equal(before, ~after)
    resumed = BatchLoader(images, torch.arange(60), **arguments)
    resumed.load_state_dict(loader.state_dict())
    assert torch.equal(sides(resumed, images), epochs[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_parity_cutout_equals_a_loop_over_images(layout):
    images = torch.rand(30, 3, 7, 5).contiguous(memory_format=layout)
    draws = draw(Augmentation(0, cutout=3), 30, torch.Generator().manual_seed(0), (7, 5))
    wanted = images.clone()
    for image, top, left in zip(wanted, *draws[3:].tolist()):
        image[:, max(0, top) : max(0, top + 3), max(0, left) : max(0, left + 3)] = 0
    assert torch.equal(cut_out_(images.clone(memory_format=torch.preserve_format), draws[3:], 3), wanted)
    assert draws[3].min() == -1 and draws[3].max() == 5 and draws[4].max() == 3  # middles anywhere in the image


def test_property_a_loader_cuts_out_to_the_mean():
    images = some_images(n=20, height=8, width=8)
    arguments = dict(batch_size=20, mean=[0.3] * 3, std=[0.2] * 3, seed=0)
    cut = next(
        iter(BatchLoader(images, torch.arange(20), augmentation=Augmentation(0, flip=False, cutout=4), **arguments))
    )[0]
    plain = next(iter(BatchLoader(images, torch.arange(20), **arguments)))[0]
    changed = (cut != plain).any(1)
    assert (cut.movedim(1, -1)[changed] == 0).all()
    assert changed.flatten(1).sum(1).max() == 16 and changed.flatten(1).sum(1).min() >= 4


def test_error_augmentation_names_the_argument():
    with pytest.raises(ValueError, match="cutout=-1"):
        Augmentation(cutout=-1)
    with pytest.raises(ValueError, match=r"alternate=True .* set flip=True"):
        Augmentation(flip=False, alternate=True)
