"""Where the images of a split lie: files in one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bayesprune.common.files import contents, listed

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


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
    for label, name in enumerate(classes):
        files = _images(folder / name) if name in present else []
        if training and not files:
            raise FileNotFoundError(
                f"{folder / name}: expected images ({', '.join(SUFFIXES)}); found {contents(folder / name)}"
            )
        names += [f"{name}/{file}".encode() for file in files]
        labels += [label] * len(files)
    if not names:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(SUFFIXES)}) in its class folders; found none")
    return ImageFiles(folder, np.array(names), np.array(labels, np.int64))


def _images(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
