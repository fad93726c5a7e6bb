"""Data sets of image files that are read while training, one folder a class."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from bayesprune.vision.crops import shorter_side
from bayesprune.vision.data import chosen_training, split_training
from bayesprune.vision.folders import ImageFiles, find_images
from bayesprune.vision.image_loader import ImageLoader

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A data set of image files, read and decoded by the loaders' worker processes.

    Args:
        train: Where the training images lie.
        test: Where the test images lie.
        classes: Name of each class.
        size: Height and width of the images.
        validation: Where the validation images lie; None where there are none.
        mean: Mean of each channel, as a share of `scale`; ImageNet's, whatever the data.
        std: Standard deviation of each channel, likewise.
        scale: The pixel value that counts as 1.
        workers: Processes that decode for a loader.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from bayesprune.vision import open_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for where in (Path(folder, split, name) for split in ("train", "val") for name in "ab"):
        ...         where.mkdir(parents=True)
        ...         Image.new("RGB", (12, 12)).save(where / "0.png")
        ...     data = open_images(folder, size=8)
        ...     [tuple(images.shape) for images, labels in data.loader("train", batch_size=2)]
        [(2, 3, 8, 8)]
    """

    train: ImageFiles
    test: ImageFiles
    classes: tuple[str, ...]
    size: int = 224
    validation: ImageFiles | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 255.0
    workers: int = 0

    in_channels = 3
    """Channels of the images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return 3, self.size, self.size

    @property
    def resize(self) -> int:
        """Shorter side to which an image is scaled before its middle is cut out: 256 for 224."""
        return shorter_side(self.size)

    def count(self, split: str) -> int:
        """Return the number of images of a split, 0 where there is none."""
        index = {"train": self.train, "test": self.test, "validation": self.validation}[split]
        return 0 if index is None else len(index)

    def split(self, name: str) -> ImageFiles:
        """Return where the images of a split lie.

        Raises:
            ValueError: An unknown split, or one that the data set has not.
        """
        if name not in ("train", "validation", "test"):
            raise ValueError(f"split={name!r}: use 'train', 'validation' or 'test'")
        index: ImageFiles | None = getattr(self, name)
        if index is None:
            raise ValueError("this data set has no validation split: hold one out with hold_out(n)")
        return index

    def loader(self, split: str, *, batch_size: int, shuffle: bool | None = None, **kwargs: Any) -> ImageLoader:
        """Return a loader of a split, normalised by the data set's mean and standard deviation.

        Args:
            split: "train", "validation" or "test".
            batch_size: Images in a batch.
            shuffle: Draw a new order every epoch; None for the training split only.
            **kwargs: Further arguments of `ImageLoader`, such as `augmentation` and `seed`.
        """
        defaults: dict[str, Any] = {"mean": self.mean, "std": self.std, "workers": self.workers}
        defaults |= {"size": self.size, "resize": self.resize}
        shuffle = split == "train" if shuffle is None else shuffle
        return ImageLoader(self.split(split), batch_size=batch_size, shuffle=shuffle, **{**defaults, **kwargs})

    def hold_out(self, n: int, seed: int = 0) -> ImageDataset:
        """Return the data set with n training images held out as its validation split, each class in its proportion.

        Raises:
            ValueError: A data set that has a validation split, or n below 1 or not below the number of training images.
        """
        kept, held = split_training(torch.from_numpy(self.train.labels), self.validation, n, seed)
        return replace(self, train=self.train.select(kept.numpy()), validation=self.train.select(held.numpy()))

    def subset(self, n: int, seed: int = 0) -> ImageDataset:
        """Return the data set with n training images only, each class in its proportion.

        Raises:
            ValueError: n below 1 or above the number of training images.
        """
        kept = chosen_training(torch.from_numpy(self.train.labels), n, seed)
        return replace(self, train=self.train.select(kept.numpy()))


def open_images(root: str | os.PathLike[str], size: int = 224, *, workers: int = 0) -> ImageDataset:
    """Find the images of root/train/CLASS/*.jpg and of root/val or root/test alike.

    With both `test` and `val`, `val` is the validation split; with one of them, it is the test split. Classes are the
    training folders in alphabetical order.

    Args:
        root: The folder that holds `train`.
        size: Height and width of the images.
        workers: Processes that decode for a loader.

    Raises:
        FileNotFoundError: A folder or all images of a class are missing; the message says what was expected where.
        ValueError: A class that training has not, or a size below 1.

    Example:
        >>> open_images("/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: root='/nowhere': expected a folder 'train' with one folder a class (CLASS/*.jpg); found nothing there
    """
    if size < 1:
        raise ValueError(f"size={size}: give a height and width of at least 1")
    classes, train, test, validation = find_images(root, every_class=True)
    return ImageDataset(train, test, classes, size, validation, workers=workers)
