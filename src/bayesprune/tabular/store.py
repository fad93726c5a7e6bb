"""Fitted estimators as one file: safetensors, with all that is no array as JSON in its header; no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bayesprune.common.artefact import ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import parse_json, read_json
from bayesprune.common.tensors import LIMIT, read_tensors, write_tensors

FILE = "estimator.safetensors"
_FORMAT, _TENSORS = "bayesprune tabular estimator", "bayesprune-estimator-2"
_OLDER = "estimator.json"  # of version 1, beside the arrays


def write_estimator(folder: str | os.PathLike[str], about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a described estimator; one that is already in the folder is replaced, other files there stay."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    text = json.dumps({"format": _FORMAT, "version": 2, **about}, allow_nan=True)
    write_tensors(Path(folder) / FILE, tensors, _TENSORS, {"estimator": text})
    (Path(folder) / _OLDER).unlink(missing_ok=True)


def seal_of(folder: str | os.PathLike[str]) -> str | None:
    """What tells a saved estimator from every other; None of version 1."""
    return read_tensors(Path(folder) / FILE, [_TENSORS], older=[None]).seal


def read_estimator(
    folder: str | os.PathLike[str], *, limit: int = LIMIT
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write_estimator` wrote."""
    place = Path(folder) / FILE
    if not place.is_file():
        raise MissingArtefactError(folder, f"holds no {FILE}", mend="give the folder that save() wrote")
    tensors, metadata, seal = read_tensors(place, [_TENSORS], older=[None], limit=limit)
    with reading(place, f"a {_FORMAT}", "restore it from a copy, or fit again"):
        about = read_json(Path(folder) / _OLDER) if seal is None else parse_json(metadata["estimator"])
        version = 1 if seal is None else 2
        if about.get("format") != _FORMAT or about.get("version") != version:
            raise ArtefactError(folder, f"is not a {_FORMAT} of version {version}")
        if "network" in about and not _fits(about["network"], tensors):
            raise ValueError("its network is of another size than its weights")
        if "classes" in about and np.dtype(about["classes"]["dtype"]).itemsize > 1 << 16:
            raise ValueError(f"its classes are of dtype {about['classes']['dtype']}")
    return about, {name: value.numpy() for name, value in tensors.items()}


def _fits(shape: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a network is as large as its tensors, which are there, and not larger."""
    numbers = [shape["chains"], *shape["sizes"]]
    if not all(type(number) is int and number > 0 for number in numbers) or len(numbers) < 3:
        return False
    held = sum(value.numel() for name, value in tensors.items() if name.startswith("network."))
    wanted = sum(shape["chains"] * (one + 1) * other for one, other in zip(numbers[1:], numbers[2:]))
    return wanted == held and len(tensors["network_weight"]) == shape["chains"]
