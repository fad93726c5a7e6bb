from __future__ import annotations

import pytest
import torch

from bayesprune.vision import (
    ArrayDataset,
    Augmentation,
    channel_statistics,
    load_digits,
    split_validation,
    stratified_indices,
    subset,
)

FROZEN_LABELS = [3, 5, 7, 3, 6, 9, 2, 6, 0, 8, 7, 7]
FROZEN_SUM = 4882453


def numbered(n=200, classes=4):
    """A data set whose images carry their own number, with unequal classes."""
    images = torch.arange(n).to(torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    labels = torch.arange(n) % 7 % classes
    return ArrayDataset(images, labels, images[:5], labels[:5], tuple("abcd"[:classes]), (0.5,), (0.25,))


def numbers(images):
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("n", [1, 50, 199])
def test_property_validation_is_disjoint_and_complete(stratified, n):
    data = numbered()
    split = split_validation(data, n, seed=3, stratified=stratified)
    held, kept = numbers(split.validation_images), numbers(split.train_images)
    assert len(held) == n
    assert sorted(held + kept) == list(range(200))
    assert torch.equal(split.validation_labels, data.train_labels[held])
    assert torch.equal(split.train_labels, data.train_labels[kept])
    assert split.test_images is data.test_images and split.test_labels is data.test_labels


def test_property_stratified_shares():
    data = numbered()
    split = split_validation(data, 50)
    for label in range(4):
        exact = 50 * (data.train_labels == label).sum().item() / 200
        assert abs((split.validation_labels == label).sum().item() - exact) < 1


def test_property_split_depends_on_the_seed_alone():
    data = numbered()
    splits = [numbers(split_validation(data, 20, seed).validation_images) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_limit_stratified_indices_of_none_and_all():
    labels = torch.tensor([2, 0, 0, 5])
    assert stratified_indices(labels, 0).tolist() == []
    assert stratified_indices(labels, 4).tolist() == [0, 1, 2, 3]
    assert stratified_indices(torch.zeros(0, dtype=torch.int64), 0).tolist() == []


def test_property_subset_keeps_order_and_shares():
    data = numbered()
    small = subset(data, 40, seed=1)
    kept = numbers(small.train_images)
    assert len(kept) == 40 and kept == sorted(kept)
    assert torch.equal(small.train_labels, data.train_labels[kept])


def test_parity_channel_statistics():
    images = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images, 255.0, chunk=7)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-9)
    assert channel_statistics(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8), 255.0) == ((0.2,), (1.0,))


def test_property_dataset_loader_is_normalised():
    data = load_digits()
    pixels = torch.cat([images for images, _ in data.loader("train", batch_size=100)])
    assert abs(pixels.mean().item()) < 1e-4 and abs(pixels.std().item() - 1) < 1e-3
    train, test = data.loader("train", batch_size=8), data.loader("test", batch_size=8)
    assert train.shuffle and not test.shuffle
    assert not data.loader("train", batch_size=8, shuffle=False).shuffle
    assert data.loader("train", batch_size=8, augmentation=Augmentation(1)).augmentation == Augmentation(1)


def test_property_digits_split_is_fixed():
    data = load_digits()
    assert tuple(data.train_images.shape) == (1297, 1, 8, 8) and tuple(data.test_images.shape) == (500, 1, 8, 8)
    # Frozen: a change of the split would make old results incomparable.
    assert data.test_labels[:12].tolist() == FROZEN_LABELS
    assert int((data.test_images.long() * torch.arange(64).view(8, 8)).sum()) == FROZEN_SUM
    counts = torch.bincount(data.test_labels, minlength=10)
    assert counts.min() >= 48 and counts.max() <= 51
    assert data.train_images.dtype == torch.uint8 and int(data.train_images.max()) == 16
    assert torch.equal(load_digits().test_images, data.test_images)
    assert not torch.equal(load_digits(seed=1).test_images, data.test_images)


def test_property_digits_are_scikit_learns():
    from sklearn import datasets

    bunch = datasets.load_digits()
    wanted = sorted((int(label), tuple(image.ravel().astype(int))) for label, image in zip(bunch.target, bunch.images))
    data = load_digits()
    images = torch.cat([data.train_images, data.test_images]).flatten(1).tolist()
    labels = torch.cat([data.train_labels, data.test_labels]).tolist()
    assert sorted((label, tuple(image)) for label, image in zip(labels, images)) == wanted


def test_error_messages():
    data = numbered()
    with pytest.raises(ValueError, match="n=200: hold out 1 to 199"):
        split_validation(data, 200)
    with pytest.raises(ValueError, match="already has a validation split"):
        split_validation(split_validation(data, 2), 2)
    with pytest.raises(ValueError, match="n=201: choose 0 to 200"):
        subset(data, 201)
    with pytest.raises(ValueError, match="n=0: keep at least 1"):
        subset(data, 0)
    with pytest.raises(ValueError, match=r"no validation split: hold one out with split_validation"):
        data.loader("validation", batch_size=2)
    with pytest.raises(ValueError, match="split='valid': use 'train'"):
        data.split("valid")
    with pytest.raises(ValueError, match="test_labels run from 0 to 3, but there are 3 classes"):
        ArrayDataset(
            data.train_images[:2],
            data.train_labels[:2],
            data.test_images,
            data.test_labels,
            ("a", "b", "c"),
            (0,),
            (1,),
        )
    with pytest.raises(ValueError, match="train_images and train_labels differ in number"):
        ArrayDataset(data.train_images, data.train_labels[:2], data.test_images, data.test_labels, ("a",), (0,), (1,))
