"""Tar shards of images: KEY.jpg and KEY.cls side by side, as the webdataset tools read and write them."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesprune.common.artefact import ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import parse_json
from bayesprune.common.files import plain_name, replacing
from bayesprune.common.tensors import read_tensors, write_tensors
from bayesprune.vision.image_index import SUFFIXES, ImageIndex, contents, image_index

INDEX, CLASSES = "index.safetensors", "classes.json"
_FORMAT, _OLDER = "bayesprune-shards-2", "bayesprune-shards-1"


def shard_files(folder: Path) -> list[Path]:
    """Return the tar files of a split in their order."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file())


def shard_index(folder: Path) -> ImageIndex:
    """Return the images of `folder`/*.tar: from the index beside them, else by reading every shard's headers."""
    index = _stored(folder) if (folder / INDEX).exists() else _scanned(folder)
    if not len(index):
        raise FileNotFoundError(f"{folder}: expected KEY{SUFFIXES[0]} with KEY.cls in the shards; found no image")
    return index


def write_shards(index: ImageIndex, out: Path, size: int) -> list[Path]:
    """Copy the images of a split, unchanged and in order, into shards of `size` images, and write their index.

    Args:
        index: The split.
        out: Folder to write; it must be empty or missing.
        size: Images in a shard.

    Returns:
        The shards.

    Raises:
        FileExistsError: `out` holds something.
        ValueError: A size below 1.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from bayesprune.vision import open_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for where in (Path(folder, split, name) for split in ("train", "val") for name in "ab"):
        ...         where.mkdir(parents=True)
        ...         Image.new("RGB", (12, 12)).save(where / "0.png")
        ...     data = open_images(folder)
        ...     [path.name for path in write_shards(data.train, Path(folder) / "shards", size=1)]
        ['shard-000000.tar', 'shard-000001.tar']
    """
    if size < 1:
        raise ValueError(f"size={size}: put at least 1 image into a shard")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty (it holds {contents(out)}); name a new or empty folder")
    count, labels = len(index), index.labels.tolist()
    paths, keys, places = [], [], np.zeros((count, 3), np.int64)
    for shard, start in enumerate(range(0, count, size)):
        path = out / f"shard-{shard:06d}.tar"
        with (
            replacing(path) as partial,
            open(partial, "wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for i in range(start, min(start + size, count)):
                name, data = Path(index.name(i)), index.read(i)
                key = f"{i:08d}-{re.sub(r'[^A-Za-z0-9_-]', '_', name.stem)[:60]}"
                keys.append(f"{key}{name.suffix.lower()}")
                _add(tar, keys[-1], data)
                # The data ends here, but for its padding to a whole block.
                places[i] = shard, file.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)
                _add(tar, f"{key}.cls", str(labels[i]).encode())
        paths.append(path)
    _store(out, image_index(out, keys, labels, [path.name for path in paths], places))
    return paths


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _store(folder: Path, index: ImageIndex) -> None:
    assert index.places is not None
    sizes = {name: (folder / name).stat().st_size for name in index.shards}
    tensors = {"names": index.names, "ends": index.ends, "labels": index.all_labels, "places": index.places}
    held = {name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}
    write_tensors(folder / INDEX, held, _FORMAT, {"shards": json.dumps(sizes)})


def _stored(folder: Path) -> ImageIndex:
    path = folder / INDEX
    held, metadata, _ = read_tensors(path, [_FORMAT], older=[_OLDER])
    with reading(path, "an index of shards", "delete it, and the shards are read without it"):
        arrays = {name: value.numpy() for name, value in held.items()}
        sizes = parse_json(metadata["shards"])
        for name, size in sizes.items():
            if not plain_name(name):
                raise ValueError(f"it lists the shard {name!r}, which is no name in its folder")
            shard = folder / name
            if not shard.is_file():
                raise MissingArtefactError(shard, f"is missing: {path} lists it; found {contents(folder)}")
            if shard.stat().st_size != size:
                raise ArtefactError(
                    shard, f"has {shard.stat().st_size} bytes, {path.name} says {size}",
                    mend=f"copy it again (or delete {path.name} if the shard was changed on purpose)",
                )  # fmt: skip
        names, ends, labels, places = (arrays[name] for name in ("names", "ends", "labels", "places"))
        _check_places(names, ends, labels, places, np.array(list(sizes.values()), np.int64))
    return ImageIndex(folder, names, ends, labels, tuple(sizes), places, np.arange(len(labels)))


def _check_places(
    names: np.ndarray, ends: np.ndarray, labels: np.ndarray, places: np.ndarray, sizes: np.ndarray
) -> None:
    """Refuse an index whose arrays do not belong together, or that points outside its shards."""
    kinds = (names.dtype, ends.dtype, labels.dtype, places.dtype)
    count = len(labels)
    if kinds != (np.uint8, np.int64, np.int64, np.int64) or names.ndim != 1 or labels.ndim != 1:
        raise ValueError(f"its arrays are of the dtypes {', '.join(map(str, kinds))}")
    if ends.shape != (count,) or places.shape != (count, 3) or (count and not len(sizes)):
        raise ValueError(f"it has {count} labels, {len(ends)} names and places of shape {places.shape}")
    shard, offset, size = places.T
    if count and (
        (np.diff(ends, prepend=0) < 1).any()
        or ends[-1] != len(names)
        or (labels < 0).any()
        or (shard < 0).any()
        or (shard >= len(sizes)).any()
        or (offset < 0).any()
        or (size < 0).any()
        or (offset > sizes[shard.clip(0, len(sizes) - 1)] - size).any()
    ):
        raise ValueError("it names images, classes or places that are outside its shards")
    bytes(names).decode("utf-8")


def _scanned(folder: Path) -> ImageIndex:
    paths = shard_files(folder)
    _check_numbers(paths)
    keys: list[str] = []
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    for shard, path in enumerate(paths):
        for key, parts in _members(path).items():
            kind = next((kind for kind in parts if kind in SUFFIXES), None)
            if kind is None:
                continue
            if ".cls" not in parts:
                raise ArtefactError(
                    path, f"{key}{kind} has no {key}.cls beside it", "a file with the number of its class"
                )
            keys.append(f"{key}{kind}")
            labels.append(_label(path, f"{key}.cls", parts[".cls"]))
            places.append((shard, parts[kind].offset_data, parts[kind].size))
    where = np.asarray(places, np.int64).reshape(-1, 3)
    return image_index(folder, keys, labels, [path.name for path in paths], where)


def _members(path: Path) -> dict[str, dict[str, Any]]:
    """Return the members of a shard by key and suffix."""
    found: dict[str, dict[str, Any]] = {}
    with reading(path, "a tar file", "copy it again"), tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isfile():
                folder, _, base = member.name.rpartition("/")
                key, dot, suffix = base.partition(".")
                found.setdefault(f"{folder}/{key}" if folder else key, {})[dot + suffix.lower()] = member
    ends = [member.offset_data + member.size for parts in found.values() for member in parts.values()]
    needed = (-(-max(ends, default=0) // tarfile.BLOCKSIZE) + 1) * tarfile.BLOCKSIZE  # an empty block ends a tar file
    if path.stat().st_size < needed:
        raise ArtefactError(path, f"is cut off: it has {path.stat().st_size} bytes, not {needed}", mend="copy it again")
    return found


def _label(path: Path, name: str, member: tarfile.TarInfo) -> int:
    with open(path, "rb") as file:
        file.seek(member.offset_data)
        text = file.read(min(member.size, 64))
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise ArtefactError(path, f"{name} holds {text[:20]!r}", "the number of a class, from 0")
    return label


def _check_numbers(paths: Sequence[Path]) -> None:
    """Refuse a gap in the numbers of the shards."""
    numbers = [re.fullmatch(r"(.*?)(\d+)", path.stem) for path in paths]
    if not all(numbers) or len({match[1] for match in numbers if match}) != 1:
        return
    present = {int(match[2]): match for match in numbers if match}
    for number in range(max(present)):
        if number not in present:
            prefix, digits = next(iter(present.values())).groups()
            name = f"{prefix}{number:0{len(digits)}d}.tar"
            raise FileNotFoundError(
                f"{paths[0].parent}: expected {name} too, as there is {paths[-1].name}; copy it again"
            )
