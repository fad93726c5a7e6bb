"""Prediction of photographs with the compact model of a run on an image folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.common.files import csv_text, write_text
from bayesprune.deploy import Ensemble, load
from bayesprune.deploy.folder import read_architecture
from bayesprune.posterior import Prediction, predict
from bayesprune.vision.crops import middle, read_image, shorter_side
from bayesprune.vision.folders import SUFFIXES, middle_square

_BATCH = 64


def predict_images(
    model: str | os.PathLike[str], images: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> Prediction:
    """Predict an image, or all below a folder, with a model that `bayesprune compact` wrote, and write them as CSV, a line an image."""
    about = read_architecture(model)["metadata"]
    if about.get("dataset") not in ("folder", "images"):
        raise ValueError(
            f"model={str(model)!r} was trained on {about.get('dataset')!r}; to predict images, name the folder that `bayesprune "
            "compact` wrote of a run with dataset=folder or dataset=images"
        )
    place = Path(images)
    folder, below = (place, place.rglob("*")) if place.is_dir() else (place.parent, iter([place]))
    found = (path for path in below if path.suffix.lower() in SUFFIXES)
    paths = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not paths:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(SUFFIXES)}); found none")
    loaded, batches = load(model), _batches(paths, about)
    said = loaded.predict(batches) if isinstance(loaded, Ensemble) else predict(loaded, None, batches)
    assert isinstance(said, Prediction)
    columns = {"image": [path.relative_to(folder).as_posix() for path in paths]}
    columns["prediction"] = [about["classes"][code] for code in said.classes.tolist()]
    columns |= {f"probability {name}": said.probabilities[:, i].tolist() for i, name in enumerate(about["classes"])}
    columns |= {name: getattr(said, name).tolist() for name in ("total", "aleatoric", "epistemic")}
    written = csv_text(list(columns), zip(*columns.values()))
    if out is None:
        sys.stdout.write(written)
    else:
        write_text(out, written)
    return said


def _batches(paths: list[Path], about: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the images as the run's evaluation reads them."""
    size, known = about["input_shape"][-1], about["normalisation"]
    mean, std = (torch.tensor(known[name]).view(-1, 1, 1) for name in ("mean", "std"))
    for start in range(0, len(paths), _BATCH):
        images = map(read_image, paths[start : start + _BATCH])
        whole = about["dataset"] == "images"
        pixels = [middle(image, size, shorter_side(size)) if whole else middle_square(image, size) for image in images]
        yield (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / known["scale"] - mean) / std
