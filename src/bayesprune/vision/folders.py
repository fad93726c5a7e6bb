"""Images in folders, one folder a class: where they lie, and how they are read into memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.common.files import contents, listed
from bayesprune.vision.crops import Box, crop_image, read_image
from bayesprune.vision.data import ArrayDataset, channel_statistics

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Paths and labels of a split's images."""

    folder: Path
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.folder / bytes(self.names[index]).decode()

    def select(self, indices: np.ndarray) -> ImageFiles:
        """Return some of the images."""
        return replace(self, names=self.names[indices], labels=self.labels[indices])


def find_images(
    root: str | os.PathLike[str], *, every_class: bool
) -> tuple[tuple[str, ...], ImageFiles, ImageFiles, ImageFiles | None]:
    """Return the classes below `root`, and the training, test and validation images, each of every class if `every_class`."""
    root = Path(root)
    held = [name for name in ("test", "val") if (root / name).is_dir()]
    for expected, there in (("'train'", (root / "train").is_dir()), ("'test' or 'val'", bool(held))):
        if not there:
            raise FileNotFoundError(
                f"root={str(root)!r}: expected a folder {expected} with one folder a class (CLASS/*.jpg); found "
                f"{contents(root)}"
            )
    classes = tuple(_class_folders(root / "train"))
    train, test, *validation = (_split(root / name, classes, name == "train", every_class) for name in ("train", *held))
    return classes, train, test, validation[0] if validation else None


def load_image_folder(root: str | os.PathLike[str], size: int, *, grayscale: bool = False) -> ArrayDataset:
    """Read root/train/CLASS/*.png and root/test or root/val alike into memory.

    Each image's middle square is scaled to `size`. With both `test` and `val` folders,
    `val` is the validation split; with one of them, it is the test split. Classes are the training folders in
    alphabetical order; mean and standard deviation are those of the training images.

    Args:
        root: The folder that holds `train`.
        size: Height and width of the images.
        grayscale: Read one channel in place of three.

    Returns:
        The data set: uint8 images (n, 3 or 1, size, size).

    Raises:
        FileNotFoundError: A folder or its images are missing; the message says what was expected and what is there.
        ValueError: A class that training has not, a file that is no image, or a size below 1.
        ImportError: Pillow is missing.

    Example:
        >>> load_image_folder("/nowhere", size=32)
        Traceback (most recent call last):
            ...
        FileNotFoundError: root='/nowhere': expected a folder 'train' with one folder a class (CLASS/*.jpg); found nothing there
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError('load_image_folder needs Pillow: pip install "bayesprune[train]"') from error
    if size < 1:
        raise ValueError(f"size={size}: give a height and width of at least 1")
    classes, train, test, validation = find_images(root, every_class=False)
    images, labels = _read(train, size, grayscale)
    held = (None, None) if validation is None else _read(validation, size, grayscale)
    mean, std = channel_statistics(images, scale=255.0)
    return ArrayDataset(
        images, labels, *_read(test, size, grayscale), classes=classes, mean=mean, std=std,
        validation_images=held[0], validation_labels=held[1],
    )  # fmt: skip


def _read(files: ImageFiles, size: int, grayscale: bool) -> tuple[Tensor, Tensor]:
    images = np.empty((len(files), size, size, 1 if grayscale else 3), dtype=np.uint8)
    for i in range(len(files)):
        images[i] = middle_square(read_image(files.path(i), "L" if grayscale else "RGB"), size)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), torch.from_numpy(files.labels)


def middle_square(image: Any, size: int) -> np.ndarray:
    """The middle square of a Pillow image, scaled: uint8 pixels (size, size, channels)."""
    side = min(image.size)
    box = Box((image.width - side) // 2, (image.height - side) // 2, side, side, mirrored=False)
    return crop_image(image, box, size).reshape(size, size, -1)


def _split(folder: Path, classes: Sequence[str], training: bool, every_class: bool) -> ImageFiles:
    """Return the images of `folder`/CLASS/*.jpg, in the order of the classes and of the file names."""
    present = _class_folders(folder)
    if not present:
        loose = len(_images(folder))
        found = f"found {loose} images that lie in no class" if loose else f"found {contents(folder)}"
        raise FileNotFoundError(
            f"{folder}: expected one folder a class ({listed(classes, 4) or 'train/CLASS/*.jpg'}); {found}"
        )
    if unknown := sorted(set(present) - set(classes)):
        raise ValueError(
            f"{folder} has {len(unknown)} classes that train has not: {listed(unknown, 4)}; is train complete? Else rename or "
            "remove them"
        )
    if every_class and (missing := sorted(set(classes) - set(present))):
        raise FileNotFoundError(
            f"{folder} has {len(present)} of {len(classes)} classes: expected also {listed(missing, 4)}; is it complete? (An "
            "empty folder stands for a class without images.)"
        )
    names: list[bytes] = []
    labels: list[int] = []
    left = _images(folder)
    for label, name in enumerate(classes):
        files = _images(folder / name) if name in present else []
        left += [f"{name}/{file}" for file in _visible(folder / name) - set(files)] if name in present else []
        if training and not files:
            raise FileNotFoundError(
                f"{folder / name}: expected images ({', '.join(SUFFIXES)}); found {contents(folder / name)}"
            )
        names += [f"{name}/{file}".encode() for file in files]
        labels += [label] * len(files)
    if not names:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(SUFFIXES)}) in its class folders; found none")
    if left:
        warnings.warn(
            f"{folder}: not read: {listed(sorted(left), 4)}; images lie in CLASS/ itself, as {', '.join(SUFFIXES)}",
            stacklevel=4,
        )
    return ImageFiles(folder, np.array(names), np.array(labels, np.int64))


def _images(folder: Path) -> list[str]:
    return sorted(name for name in _visible(folder) if name.lower().endswith(SUFFIXES))


def _visible(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
