"""CIFAR-10 and CIFAR-100 from their official Python files: a folder, or the archive read in place."""

from __future__ import annotations

import hashlib
import math
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.common.artefact import ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import read_bytes, tar_members
from bayesprune.common.files import contents, replacing
from bayesprune.vision.data import ArrayDataset
from bayesprune.vision.unpickle import LIMIT, load_arrays

IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class _Layout:
    folder: str
    archive: str
    md5: str
    train: tuple[str, ...]
    test: str
    meta: str
    label_key: str
    names_key: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        label_key="labels",
        names_key="label_names",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        train=("train",),
        test="test",
        meta="meta",
        label_key="fine_labels",
        names_key="fine_label_names",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


def load_cifar(name: str, data_dir: str | os.PathLike[str], download: bool = False) -> ArrayDataset:
    """Read CIFAR-10 or CIFAR-100 (fine labels) from the official Python files.

    Looked for, in this order: the unpacked files in `data_dir` itself, in the official folder inside it, and in the
    official archive (`data_dir` may be the archive), which is read without unpacking. The files are pickles; they are
    read by an interpreter of their data alone (`bayesprune.vision.unpickle`), which cannot call anything, within bounds of memory.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: The folder, or the archive.
        download: Fetch the archive into `data_dir` when nothing is there, and check its md5. Files that are there
            already are not held against a checksum: a part of CIFAR in the official layout is read too.

    Returns:
        The data set: uint8 images (n, 3, 32, 32), with the usual mean and standard deviation of its training images.

    Raises:
        ValueError: An unknown name.
        ArtefactError: A file is damaged, or its contents are not CIFAR's.
        FileNotFoundError: No files, or only some of them; the message says what was expected and what is there.
        ConnectionError: The download failed.

    Example:
        >>> load_cifar("cifar10", "/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: data_dir='/nowhere' does not exist: ...

    Reference:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    if name not in LAYOUTS:
        raise ValueError(f"name={name!r}: use {' or '.join(map(repr, LAYOUTS))}")
    layout, root = LAYOUTS[name], Path(data_dir)
    if download and _find(layout, root) is None:
        _download(layout, root)
    source = _find(layout, root)
    if source is None:
        raise FileNotFoundError(_nothing_found(layout, root))
    read = _in_archive(layout, source) if source.is_file() else _in_folder(layout, source)
    *train, test = (_read_batch(layout, read, file, source / file) for file in (*layout.train, layout.test))
    meta = _read_pickle(read(layout.meta), source / layout.meta)
    classes = meta.get(layout.names_key)
    if not isinstance(classes, list) or not all(type(name) in (str, bytes) for name in classes):
        raise ArtefactError(source / layout.meta, f"holds no {layout.names_key!r}", mend=_OFFICIAL)
    images, labels = (torch.cat(column) for column in zip(*train))
    return ArrayDataset(images, labels, *test, classes=tuple(map(_text, classes)), mean=layout.mean, std=layout.std)


def _find(layout: _Layout, root: Path) -> Path | None:
    if root.is_file():
        return root
    for folder in (root, root / layout.folder):
        # Half a folder is found too, to be refused by name: it must not be passed over for something else in silence.
        if folder.name == layout.folder and folder.is_dir():
            return folder
        if any((folder / file).is_file() for file in layout.files):
            return folder
    archive = root / layout.archive
    return archive if archive.is_file() else None


def _nothing_found(layout: _Layout, root: Path) -> str:
    wanted = f"expected {layout.folder}/ with {', '.join(layout.files)}, or {layout.archive}"
    mend = f"fetch {layout.url} into it (load_cifar(…, download=True) does)"
    if not root.exists():
        return f"data_dir={str(root)!r} does not exist: {wanted} in it; {mend}"
    return f"data_dir={str(root)!r}: {wanted}; found {contents(root)}; {mend}"


_OFFICIAL = "is this the official file, whole?"
_ARCHIVE_LIMIT = 1 << 29  # bytes unpacked: CIFAR's are 186 MB
_Reader = Callable[[str], bytes]


def _in_folder(layout: _Layout, folder: Path) -> _Reader:
    missing = [file for file in layout.files if not (folder / file).is_file()]
    if missing:
        raise MissingArtefactError(folder, *_half(layout, missing))
    return lambda file: read_bytes(folder / file, limit=LIMIT)


def _in_archive(layout: _Layout, path: Path) -> _Reader:
    with reading(path, "a whole tar archive", f"fetch {layout.url} again"):
        members = tar_members(path, lambda name: name in layout.files, limit=_ARCHIVE_LIMIT)
    missing = [file for file in layout.files if file not in members]
    if missing:
        raise MissingArtefactError(path, *_half(layout, missing))
    return members.__getitem__


def _half(layout: _Layout, missing: list[str]) -> tuple[str, str, str]:
    found = [file for file in layout.files if file not in missing]
    fault = f"lacks {', '.join(missing)} of the official files; found {', '.join(found) or 'none of them'}"
    return fault, "", f"it is damaged or half unpacked; remove it and fetch {layout.url} again"


def _read_pickle(content: bytes, place: Path) -> dict[str, Any]:
    with reading(place, "the official file, whole"):
        found = load_arrays(content)
    if not isinstance(found, dict):
        raise ArtefactError(place, f"holds a {type(found).__name__}, not a dict", mend=_OFFICIAL)
    return {_text(key): value for key, value in found.items()}


def _read_batch(layout: _Layout, read: _Reader, file: str, place: Path) -> tuple[Tensor, Tensor]:
    content = _read_pickle(read(file), place)
    for key in ("data", layout.label_key):
        if key not in content:
            raise ArtefactError(place, f"has no {key!r} among {sorted(content)}", mend=_OFFICIAL)
    data, labels = content["data"], content[layout.label_key]
    size = math.prod(IMAGE)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (size,):
        what = f"{data.dtype} data of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ArtefactError(place, f"holds {what}", f"uint8 (n, {size})")
    if not isinstance(labels, list) or len(labels) != len(data) or any(type(label) is not int for label in labels):
        raise ArtefactError(place, f"holds other labels than {len(data)} integers", mend=_OFFICIAL)
    with reading(place, mend=_OFFICIAL):
        return torch.tensor(data).view(-1, *IMAGE), torch.tensor(labels, dtype=torch.int64)


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _download(layout: _Layout, root: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with replacing(root / layout.archive) as partial:
        try:
            with urllib.request.urlopen(layout.url, timeout=60) as response, open(partial, "wb") as file:
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
        except OSError as error:
            raise ConnectionError(
                f"{layout.url} could not be fetched ({error}): fetch it by other means and put it in {str(root)!r}"
            ) from error
        if digest.hexdigest() != layout.md5:
            raise ValueError(
                f"{layout.url} came with md5 {digest.hexdigest()}, expected {layout.md5}: the file was cut short or "
                "changed on the way; try again"
            )
