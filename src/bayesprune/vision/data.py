"""Data sets as tensors, and their splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.vision.loader import BatchLoader


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class ArrayDataset:
    """A data set of images that fits in memory.

    Args:
        train_images: Training images (n, channels, height, width), uint8.
        train_labels: Training labels, int64.
        test_images: Test images.
        test_labels: Test labels.
        classes: Name of each class.
        mean: Mean of each channel of the training images, as a share of `scale`.
        std: Standard deviation of each channel, likewise.
        scale: The pixel value that counts as 1.
        validation_images: Images held out from training; None where there are none.
        validation_labels: Their labels.

    Raises:
        ValueError: A split whose images and labels differ in number, or a label without a class.

    Example:
        >>> images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
        >>> data = ArrayDataset(images, labels, images, labels, ("a", "b"), mean=(0.0,), std=(1.0,))
        >>> data.num_classes, data.in_channels, len(data.loader("train", batch_size=2))
        (2, 1, 2)
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    validation_images: Tensor | None = None
    validation_labels: Tensor | None = None

    def __post_init__(self) -> None:
        for split in ("train", "test", "validation"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images is None and labels is None:
                continue
            if images is None or labels is None or len(images) != len(labels):
                raise ValueError(f"{split}_images and {split}_labels differ in number: give one label an image")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                raise ValueError(
                    f"{split}_labels run from {int(labels.min())} to {int(labels.max())}, but there are "
                    f"{len(self.classes)} classes: count labels from 0"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.train_images.shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def count(self, split: str) -> int:
        """Return the number of images of a split, 0 where there is none."""
        images = {"train": self.train_images, "test": self.test_images, "validation": self.validation_images}[split]
        return 0 if images is None else len(images)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a split.

        Args:
            name: "train", "validation" or "test".

        Returns:
            Images, as stored, and labels.

        Raises:
            ValueError: An unknown split, or one that the data set has not.
        """
        if name not in ("train", "validation", "test"):
            raise ValueError(f"split={name!r}: use 'train', 'validation' or 'test'")
        images, labels = getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")
        if images is None:
            raise ValueError("this data set has no validation split: hold one out with split_validation(dataset, n)")
        return images, labels

    def loader(self, split: str, *, batch_size: int, shuffle: bool | None = None, **kwargs: Any) -> BatchLoader:
        """Return a loader of a split, normalised by the data set's mean and standard deviation.

        Args:
            split: "train", "validation" or "test".
            batch_size: Images in a batch.
            shuffle: Draw a new order every epoch; None for the training split only.
            **kwargs: Further arguments of `BatchLoader`, such as `augmentation` and `seed`.

        Returns:
            The loader.

        Raises:
            ValueError: An unknown split, or one that the data set has not.
        """
        images, labels = self.split(split)
        defaults: dict[str, Any] = {"mean": self.mean, "std": self.std, "scale": self.scale}
        shuffle = split == "train" if shuffle is None else shuffle
        return BatchLoader(images, labels, batch_size=batch_size, shuffle=shuffle, **{**defaults, **kwargs})


def stratified_indices(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    r"""Choose n of the given labels' positions, each class in its proportion.

    Class c with \( n_c \) of N members gets \( n\,n_c/N \) places, rounded by largest remainder; ties go to the lower
    class.

    Args:
        labels: Integer labels.
        n: Number of positions to choose.
        seed: Seed of the choice, which is the same with every version of NumPy and PyTorch.

    Returns:
        The n chosen positions in increasing order, int64.

    Raises:
        ValueError: n below 0 or above the number of labels.

    Example:
        >>> chosen = stratified_indices(torch.tensor([0, 0, 0, 0, 1, 1]), 3)
        >>> torch.tensor([0, 0, 0, 0, 1, 1])[chosen].tolist()
        [0, 0, 1]
    """
    total = len(labels)
    if not 0 <= n <= total:
        raise ValueError(f"n={n}: choose 0 to {total}, the number of labels")
    values, counts = np.unique(labels.cpu().numpy(), return_counts=True)
    places, remainders = np.divmod(n * counts, max(total, 1))
    places[np.argsort(-remainders, kind="stable")[: n - places.sum()]] += 1
    # RandomState, because NumPy promises that its stream never changes.
    random = np.random.RandomState(seed)
    chosen = [
        random.permutation(np.flatnonzero(labels.cpu().numpy() == value))[:take] for value, take in zip(values, places)
    ]
    return torch.from_numpy(np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen])))


def chosen_training(labels: Tensor, n: int, seed: int) -> Tensor:
    """Return the positions of n training images to keep, each class in its proportion."""
    if n < 1:
        raise ValueError(f"n={n}: keep at least 1 training image")
    return stratified_indices(labels, n, seed)


def split_training(
    labels: Tensor, validation: Any, n: int, seed: int, *, stratified: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the positions of the training images that are kept and of the n that are held out."""
    if validation is not None:
        raise ValueError("the data set already has a validation split: use it, or split the original data set")
    total = len(labels)
    if not 1 <= n < total:
        raise ValueError(f"n={n}: hold out 1 to {total - 1} of the {total} training images")
    held = stratified_indices(labels if stratified else torch.zeros(total, dtype=torch.int64), n, seed)
    kept = torch.ones(total, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().squeeze(1), held


def split_validation(dataset: ArrayDataset, n: int, seed: int = 0, *, stratified: bool = True) -> ArrayDataset:
    """Hold n training images out as the validation split; the test split is not touched.

    Args:
        dataset: A data set without a validation split.
        n: Number of images to hold out.
        seed: Seed of the choice.
        stratified: Hold each class out in its proportion; False draws without regard to the class.

    Returns:
        A data set with the other training images, in their order, and the validation split.

    Raises:
        ValueError: A data set that has a validation split, or n below 1 or not below the number of training images.

    Example:
        >>> images, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> data = ArrayDataset(images, labels, images, labels, ("a", "b"), (0.0,), (1.0,))
        >>> held = split_validation(data, 2)
        >>> len(held.train_labels), sorted(held.validation_labels.tolist())
        (4, [0, 1])
    """
    images, labels = dataset.train_images, dataset.train_labels
    kept, held = split_training(labels, dataset.validation_images, n, seed, stratified=stratified)
    return replace(
        dataset, train_images=images[kept], train_labels=labels[kept],
        validation_images=images[held], validation_labels=labels[held],
    )  # fmt: skip


def subset(dataset: ArrayDataset, n: int, seed: int = 0) -> ArrayDataset:
    """Keep n training images, each class in its proportion; the other splits are not touched.

    Args:
        dataset: A data set.
        n: Number of training images to keep.
        seed: Seed of the choice.

    Returns:
        The data set with fewer training images, in their order.

    Raises:
        ValueError: n below 1 or above the number of training images.

    Example:
        >>> images, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> data = ArrayDataset(images, labels, images, labels, ("a", "b"), (0.0,), (1.0,))
        >>> len(subset(data, 2).train_images)
        2
    """
    kept = chosen_training(dataset.train_labels, n, seed)
    return replace(dataset, train_images=dataset.train_images[kept], train_labels=dataset.train_labels[kept])


def channel_statistics(images: Tensor, scale: float, chunk: int = 1024) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, over images and pixels, as shares of `scale`.

    Args:
        images: Images (n, channels, height, width).
        scale: The pixel value that counts as 1.
        chunk: Images converted at a time, which bounds the temporary memory.

    Returns:
        Means and standard deviations; a channel of one value has standard deviation 1, so that it can be divided by.

    Example:
        >>> channel_statistics(torch.tensor([[[[0, 2]]]], dtype=torch.uint8), scale=2.0)
        ((0.5,), (0.5,))
    """
    totals = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in images.split(chunk):
        pixels = part.double()
        totals += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))]).cpu()
    mean, square = totals / (images.numel() / images.shape[1])
    std = (square - mean.square()).clamp(min=0).sqrt() / scale
    return tuple((mean / scale).tolist()), tuple(s if s > 1e-6 else 1.0 for s in std.tolist())
