"""Data sets of image files that are read while training: folders or tar shards."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesprune.common.artefact import ArtefactError, MissingArtefactError
from bayesprune.common.bounded import read_json
from bayesprune.vision.data import stratified_indices
from bayesprune.vision.image_index import ImageIndex, class_folders, contents, folder_index
from bayesprune.vision.image_loader import ImageLoader
from bayesprune.vision.shards import CLASSES, shard_files, shard_index

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
        workers: Processes that decode for a loader.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from bayesprune.vision import open_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for where in (Path(folder, split, name) for split in ("train", "val") for name in "ab"):
        ...         where.mkdir(parents=True)
        ...         Image.new("RGB", (12, 12)).save(where / "0.png")
        ...     data = open_images(folder)
        ...     data.classes, len(data.train)
        (('a', 'b'), 2)
    """

    train: ImageIndex
    test: ImageIndex
    classes: tuple[str, ...]
    size: int = 224
    validation: ImageIndex | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 255.0
    workers: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return 3, self.size, self.size

    @property
    def resize(self) -> int:
        """Shorter side to which an image is scaled before its middle is cut out: 256 for 224."""
        return round(self.size * 256 / 224)

    def count(self, split: str) -> int:
        """Return the number of images of a split, 0 where there is none."""
        index = {"train": self.train, "test": self.test, "validation": self.validation}[split]
        return 0 if index is None else len(index)

    def split(self, name: str) -> ImageIndex:
        """Return where the images of a split lie.

        Raises:
            ValueError: An unknown split, or one that the data set has not.
        """
        if name not in ("train", "validation", "test"):
            raise ValueError(f"split={name!r}: use 'train', 'validation' or 'test'")
        index: ImageIndex | None = getattr(self, name)
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
        if self.validation is not None:
            raise ValueError("the data set already has a validation split: use it, or split the original data set")
        total = len(self.train)
        if not 1 <= n < total:
            raise ValueError(f"n={n}: hold out 1 to {total - 1} of the {total} training images")
        held = stratified_indices(torch.from_numpy(self.train.labels), n, seed).numpy()
        kept = np.setdiff1d(np.arange(total), held)
        return replace(self, train=self.train.select(kept), validation=self.train.select(held))

    def subset(self, n: int, seed: int = 0) -> ImageDataset:
        """Return the data set with n training images only, each class in its proportion.

        Raises:
            ValueError: n below 1 or above the number of training images.
        """
        if n < 1:
            raise ValueError(f"n={n}: keep at least 1 training image")
        kept = stratified_indices(torch.from_numpy(self.train.labels), n, seed).numpy()
        return replace(self, train=self.train.select(kept))


def open_images(root: str | os.PathLike[str], size: int = 224, *, workers: int = 0) -> ImageDataset:
    """Find the images of root/train and of root/val or root/test: folders CLASS/*.jpg, or shards *.tar.

    With both `test` and `val`, `val` is the validation split; with one of them, it is the test split. Classes are the
    training folders in alphabetical order; those of shards are numbers, named by root/classes.json where it is there.

    Args:
        root: The folder that holds `train`.
        size: Height and width of the images.
        workers: Processes that decode for a loader.

    Raises:
        FileNotFoundError: A folder, a shard or all images of a class are missing; the message says what was expected where.
        ValueError: A class that training has not, or a damaged shard.

    Example:
        >>> open_images("/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: root='/nowhere': expected a folder 'train' with CLASS/*.jpg or *.tar; found nothing there
    """
    root = Path(root)
    if size < 1:
        raise ValueError(f"size={size}: give a height and width of at least 1")
    held = [name for name in ("test", "val") if (root / name).is_dir()]
    for expected, there in (("'train'", (root / "train").is_dir()), ("'val' or 'test'", bool(held))):
        if not there:
            raise FileNotFoundError(
                f"root={str(root)!r}: expected a folder {expected} with CLASS/*.jpg or *.tar; found {contents(root)}"
            )
    if shard_files(root / "train"):
        return _from_shards(root, held, size, workers)
    classes = tuple(class_folders(root / "train"))
    splits = {name: folder_index(root / name, classes, training=name == "train") for name in ("train", *held)}
    return _dataset(splits, held, classes, size, workers)


def _from_shards(root: Path, held: list[str], size: int, workers: int) -> ImageDataset:
    for name in held:
        if not shard_files(root / name):
            raise FileNotFoundError(
                f"{root / name}: expected shards *.tar, as there are in train; found {contents(root / name)}"
            )
    splits = {name: shard_index(root / name) for name in ("train", *held)}
    most = int(splits["train"].labels.max()) + 1
    if most > len(splits["train"]):
        fault = f"has class {most - 1}, but only {len(splits['train'])} images"
        raise ArtefactError(root / "train", fault, "an image of every class, counted from 0")
    classes = tuple(str(label) for label in range(most))
    if (root / CLASSES).exists():
        classes = tuple(read_json(root / CLASSES, list))
        if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
            raise ArtefactError(root / CLASSES, "holds something else than different names", "the names of the classes")
    for name, index in splits.items():
        if int(index.labels.max()) >= len(classes):
            which = "train" if name != "train" else CLASSES
            fault = f"has class {int(index.labels.max())}, but there are {len(classes)} classes, counted from 0"
            raise ArtefactError(root / name, fault, mend=f"is {which} complete?")
    if empty := [name for label, name in enumerate(classes) if label not in set(splits["train"].labels.tolist())]:
        fault = f"has no image of {len(empty)} classes, such as {empty[0]}"
        raise MissingArtefactError(root / "train", fault, mend="is it complete?")
    return _dataset(splits, held, classes, size, workers)


def _dataset(
    splits: dict[str, ImageIndex], held: list[str], classes: tuple[str, ...], size: int, workers: int
) -> ImageDataset:
    validation = splits["val"] if len(held) == 2 else None
    return ImageDataset(splits["train"], splits[held[0]], classes, size, validation, workers=workers)
