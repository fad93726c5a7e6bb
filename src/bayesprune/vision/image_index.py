"""Where the images of a split lie, as arrays: files in one folder a class, or members of tar shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Names, labels and places of a split's images."""

    root: Path
    names: np.ndarray
    ends: np.ndarray
    all_labels: np.ndarray
    shards: tuple[str, ...] = ()
    places: np.ndarray | None = None
    chosen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _open: dict[tuple[int, int], BinaryIO] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files stay in their process

    @property
    def labels(self) -> np.ndarray:
        """Class of each image that counts."""
        return self.all_labels[self.chosen]

    def labels_at(self, indices: np.ndarray) -> np.ndarray:
        """Return the classes of some of the images."""
        return self.all_labels[self.chosen[indices]]

    def name(self, index: int) -> str:
        """Return the path below the root, or the name in its shard, of an image."""
        at = int(self.chosen[index])
        return bytes(self.names[self.ends[at - 1] if at else 0 : self.ends[at]]).decode()

    def where(self, index: int) -> str:
        """Return where an image lies, for messages."""
        if self.places is None:
            return str(self.root / self.name(index))
        return f"{self.root / self.shards[self.places[self.chosen[index], 0]]}: {self.name(index)}"

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file."""
        if self.places is None:
            return (self.root / self.name(index)).read_bytes()
        shard, offset, size = self.places[self.chosen[index]].tolist()
        # One handle a shard and process: forked workers would share a handle's position.
        key = (os.getpid(), shard)
        if key not in self._open:
            self._open[key] = open(self.root / self.shards[shard], "rb")  # noqa: SIM115 - lives as long as the index
        file = self._open[key]
        file.seek(offset)
        found = file.read(size)
        if len(found) != size:
            raise OSError(f"the shard ends after {len(found)} of its {size} bytes")
        return found

    def select(self, indices: np.ndarray) -> ImageIndex:
        """Return the index of some of the images that count."""
        return replace(self, chosen=self.chosen[indices], _open={})


def image_index(
    root: Path,
    names: Iterable[str],
    labels: Sequence[int],
    shards: Sequence[str] = (),
    places: np.ndarray | None = None,
) -> ImageIndex:
    """Return the index of images by name and label."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    blob = np.frombuffer(b"".join(encoded), np.uint8)
    held = np.asarray(labels, np.int64)
    return ImageIndex(root, blob, ends, held, tuple(shards), places, np.arange(len(held)))


def folder_index(folder: Path, classes: Sequence[str], *, training: bool) -> ImageIndex:
    """Return the images of `folder`/CLASS/*.jpg, in the order of the classes and of the file names."""
    present = class_folders(folder)
    if not present:
        loose = sum(1 for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
        found = f"found {loose} images that lie in no class" if loose else f"found {contents(folder)}"
        raise FileNotFoundError(
            f"{folder}: expected one folder a class ({_some(classes) or 'train/CLASS/*.jpg'}); {found}"
        )
    if unknown := sorted(set(present) - set(classes)):
        raise ValueError(
            f"{folder} has {len(unknown)} classes that train has not: {_some(unknown)}; is train complete? Else rename or "
            "remove them"
        )
    if missing := sorted(set(classes) - set(present)):
        raise FileNotFoundError(
            f"{folder} has {len(present)} of {len(classes)} classes: expected also {_some(missing)}; is it complete? (An "
            "empty folder stands for a class without images.)"
        )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(entry.name for entry in os.scandir(folder / name) if entry.name.lower().endswith(SUFFIXES))
        if training and not files:
            raise FileNotFoundError(
                f"{folder / name}: expected images ({', '.join(SUFFIXES)}); found {contents(folder / name)}"
            )
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    if not names:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(SUFFIXES)}) in its class folders; found none")
    return image_index(folder, names, labels)


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in alphabetical order."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def contents(folder: Path) -> str:
    """Say what lies in a folder, for messages."""
    if not folder.is_dir():
        return "nothing there"
    return _some(sorted(entry.name for entry in os.scandir(folder)), 8) or "an empty folder"


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
