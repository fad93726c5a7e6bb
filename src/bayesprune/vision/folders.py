"""Images in folders, one folder a class, read into memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.vision.crops import Box, crop_image
from bayesprune.vision.data import ArrayDataset, channel_statistics
from bayesprune.vision.image_files import ImageFiles, find_images


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
        from PIL import Image
    except ImportError as error:
        raise ImportError('load_image_folder needs Pillow: pip install "bayesprune[train]"') from error
    if size < 1:
        raise ValueError(f"size={size}: give a height and width of at least 1")
    classes, train, test, validation = find_images(root, every_class=False)
    images, labels = _read(train, size, grayscale, Image)
    held = (None, None) if validation is None else _read(validation, size, grayscale, Image)
    mean, std = channel_statistics(images, scale=255.0)
    return ArrayDataset(
        images, labels, *_read(test, size, grayscale, Image), classes=classes, mean=mean, std=std,
        validation_images=held[0], validation_labels=held[1],
    )  # fmt: skip


def _read(files: ImageFiles, size: int, grayscale: bool, pil: Any) -> tuple[Tensor, Tensor]:
    images = np.empty((len(files), size, size, 1 if grayscale else 3), dtype=np.uint8)
    for i in range(len(files)):
        try:
            with pil.open(files.path(i)) as image:
                images[i] = _square(image.convert("L" if grayscale else "RGB"), size)
        except OSError as error:
            raise ValueError(f"{files.path(i)} cannot be read as an image ({error}): remove or replace it") from error
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), torch.from_numpy(files.labels)


def _square(image: Any, size: int) -> np.ndarray:
    """The middle square of a Pillow image, scaled: uint8 pixels (size, size, channels)."""
    side = min(image.size)
    box = Box((image.width - side) // 2, (image.height - side) // 2, side, side, mirrored=False)
    return crop_image(image, box, size).reshape(size, size, -1)
