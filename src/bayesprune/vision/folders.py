"""Images in folders, one folder a class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.vision.data import ArrayDataset, channel_statistics

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


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
        FileNotFoundError: root='/nowhere': expected a folder 'train' with one folder a class; found nothing there
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('load_image_folder needs Pillow: pip install "bayesprune[train]"') from error
    if size < 1:
        raise ValueError(f"size={size}: give a height and width of at least 1")
    root = Path(root)
    held = [name for name in ("test", "val") if (root / name).is_dir()]
    for expected, there in (("'train'", (root / "train").is_dir()), ("'test' or 'val'", bool(held))):
        if not there:
            raise FileNotFoundError(
                f"root={str(root)!r}: expected a folder {expected} with one folder a class; found {_contents(root)}"
            )
    classes = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir() and not p.name.startswith(".")))
    splits = {name: _read(root / name, classes, size, grayscale, Image) for name in ("train", *held)}
    mean, std = channel_statistics(splits["train"][0], scale=255.0)
    both = len(held) == 2
    return ArrayDataset(
        *splits["train"],
        *splits[held[0]],
        classes=classes,
        mean=mean,
        std=std,
        validation_images=splits["val"][0] if both else None,
        validation_labels=splits["val"][1] if both else None,
    )


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing there"
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "an empty folder"


def _read(folder: Path, classes: tuple[str, ...], size: int, grayscale: bool, pil: Any) -> tuple[Tensor, Tensor]:
    present = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if unknown := sorted(present - set(classes)):
        raise ValueError(f"{folder} has classes that train has not: {', '.join(unknown)}; rename or remove them")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        if name in present
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(SUFFIXES)}) in one folder a class; found none")
    images = np.empty((len(files), size, size, 1 if grayscale else 3), dtype=np.uint8)
    for i, (path, _) in enumerate(files):
        try:
            with pil.open(path) as image:
                images[i] = _square(image.convert("L" if grayscale else "RGB"), size, pil)
        except OSError as error:
            raise ValueError(f"{path} cannot be read as an image ({error}): remove or replace it") from error
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels, torch.tensor([label for _, label in files], dtype=torch.int64)


def _square(image: Any, size: int, pil: Any) -> np.ndarray:
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # Cut before it is scaled: `resize(box=...)` would mix in pixels from outside the square.
        image = image.crop((left, top, left + side, top + side)).resize((size, size), pil.BILINEAR)
    return np.asarray(image).reshape(size, size, -1)
