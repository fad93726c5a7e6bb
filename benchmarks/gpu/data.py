"""CIFAR on a bare machine: the official files, their archive, or packed mosaics that come in parts; and a tiny stand-in."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

LAYOUTS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz", 10),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz", 100),
}


def unpacked(dataset: str, source: Path, store: Path) -> Path:
    """Return a folder that holds the official files of a data set, made from what lies in `source`.

    Args:
        dataset: "cifar10" or "cifar100".
        source: a folder with the official folder, the official archive, or `unpack.py` and a folder of mosaics. Mosaics
            are gathered in `store`, so that they may come in several parts.
        store: where to unpack; what is there already is used.

    Raises:
        FileNotFoundError: nothing of the kind, or mosaics are still missing; the message says which.
    """
    folder, archive, _ = LAYOUTS[dataset]
    for place in (source, store):
        if (place / folder).is_dir():
            return place
    store.mkdir(parents=True, exist_ok=True)
    if (source / archive).is_file():
        with tarfile.open(source / archive) as file:
            file.extractall(store / "partial", filter="data")
        (store / "partial" / folder).rename(store / folder)
        return store
    packed = store / "packed" / dataset
    packed.mkdir(parents=True, exist_ok=True)
    for file in (source / dataset).glob("*") if (source / dataset).is_dir() else ():
        shutil.copy2(file, packed / file.name)
    if (source / "unpack.py").is_file():
        shutil.copy2(source / "unpack.py", store / "packed" / "unpack.py")
    script = store / "packed" / "unpack.py"
    if not script.is_file() or not (packed / "meta.json").is_file():
        raise FileNotFoundError(f"{source}: expected {folder}/, {archive}, or unpack.py with {dataset}/*.webp")
    counts = {split: len(np.load(packed / f"{split}-labels.npy")) // 2500 for split in ("train", "test")}
    wanted = [f"{split}-{number:02d}.webp" for split, count in counts.items() for number in range(count)]
    missing = [name for name in wanted if not (packed / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(wanted)} mosaics have not come yet, {missing[0]} the first")
    subprocess.run([sys.executable, str(script), dataset, str(store), "--whole", "--packed", str(packed)], check=True)
    return store


def tiny(dataset: str, store: Path, train: int = 80, test: int = 40) -> Path:
    """Write a few random images in the official layout, to try a command without data; return their folder."""
    folder, _, classes = LAYOUTS[dataset]
    dice = np.random.default_rng(0)
    key, names = ("labels", "label_names") if dataset == "cifar10" else ("fine_labels", "fine_label_names")

    def batch(count: int) -> dict[str, object]:
        images = dice.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": images, key: [number % classes for number in range(count)]}

    if dataset == "cifar10":
        files = {f"data_batch_{number}": batch(train // 5) for number in range(1, 6)} | {"test_batch": batch(test)}
        files["batches.meta"] = {names: [str(number) for number in range(classes)]}
    else:
        files = {"train": batch(max(train, classes)), "test": batch(max(test, classes))}
        files["meta"] = {names: [str(number) for number in range(classes)]}
    (store / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (store / folder / name).write_bytes(pickle.dumps(content, protocol=4))
    (store / "about.json").write_text(json.dumps({"what": "random images, to try a command"}), encoding="utf-8")
    return store
