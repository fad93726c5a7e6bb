"""Whether a folder is free for a run, or holds the one that is to be resumed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bayesprune.common.files import leftovers
from bayesprune.common.lock import NAME as LOCK
from bayesprune.train import folder as names
from bayesprune.train.config import RunConfig
from bayesprune.train.settings import as_dict, read_config


def check_folder(out: Path, config: RunConfig, resume: bool) -> None:
    """Refuse a folder that is not free, or that holds another run.

    Raises:
        FileExistsError: `out` is a file, holds something else, or holds a run and `resume` is False.
        ValueError: The folder's run has another configuration.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out={str(out)!r} is a file; name a folder.")
    if (out / names.CONFIG).exists():
        if not resume:
            raise FileExistsError(f"{out} holds a run already; add --resume to go on with it, or name another folder.")
        stored = read_config(out)
        if _computed(stored) != _computed(config):
            raise ValueError(
                f"{out} was begun with another configuration; resume it with the same recipe and --set values."
            )
    elif out.exists() and not set(os.listdir(out)) <= {LOCK, *(path.name for path in leftovers(out))}:
        raise FileExistsError(f"{out} is not empty and holds no run; name a new or empty folder.")


def _computed(config: RunConfig) -> dict[str, Any]:
    """Return what decides the result: all but where and how often things are shown and saved."""
    values = as_dict(config)
    values["runtime"] = {key: values["runtime"][key] for key in ("precision", "compile", "channels_last")}
    return values
