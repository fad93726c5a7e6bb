"""Fitted estimators in a folder: safetensors for arrays, JSON for the rest, no pickle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

_FORMAT = "bayesprune tabular estimator"
_FILES = ("estimator.safetensors", "estimator.json")


def write_estimator(folder: str | os.PathLike[str], about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a described estimator; one that is already in the folder is replaced, other files there stay.

    Args:
        folder: where to; made if absent.
        about: plain data.
        arrays: by name.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, staging / _FILES[0])
        told = {"format": _FORMAT, "version": 1, **about}
        (staging / _FILES[1]).write_text(json.dumps(told, indent=1, allow_nan=True))
        for name in _FILES:
            os.replace(staging / name, target / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_estimator(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write_estimator` wrote.

    Args:
        folder: where it is.

    Returns:
        The plain data and the arrays.

    Raises:
        FileNotFoundError: there is none in the folder.
        ValueError: the files are of another format.
    """
    place = Path(folder)
    if not (place / _FILES[1]).is_file():
        raise FileNotFoundError(f"folder={str(place)!r} holds no estimator.json: give the folder that save() wrote")
    about = json.loads((place / _FILES[1]).read_text())
    if not isinstance(about, dict) or about.get("format") != _FORMAT or about.get("version") != 1:
        raise ValueError(f"{place / _FILES[1]} is not a {_FORMAT} of version 1")
    return about, load_file(place / _FILES[0])
