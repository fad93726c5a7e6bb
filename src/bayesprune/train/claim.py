"""Whether a folder is free for a run, or holds the one that is to be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

from bayesprune.common import bounded
from bayesprune.common.files import leftovers
from bayesprune.common.lock import NAME as LOCK
from bayesprune.common.manifest import MANIFEST
from bayesprune.train import folder as names
from bayesprune.train.config import SECTIONS, RunConfig
from bayesprune.train.settings import as_dict, read_config


def sweep_trial(out: Path) -> None:
    """Remove a trial's run, and what commands wrote about it: it is in nobody's way."""
    if _is_trial(out):
        rmtree(out / names.SAMPLES, ignore_errors=True)
        rmtree(out / names.BOARD, ignore_errors=True)
        for name in (
            *names.FILES,
            names.CHECKPOINT,
            MANIFEST,
            names.PAGE,
            names.PREDICTIONS,
            names.PROFILE,
            names.CONFIG,
        ):
            (out / name).unlink(missing_ok=True)


def _is_trial(out: Path) -> bool:
    return (out / names.CONFIG).exists() and bounded.read_json(out / names.CONFIG, dict).get("trial") is True


def check_folder(out: Path, config: RunConfig, resume: bool) -> None:
    """Refuse a folder that is not free, or that holds another run."""
    if _is_trial(out):
        return
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out={str(out)!r} is a file; name a folder.")
    if (out / names.CONFIG).exists():
        if not resume:
            raise FileExistsError(f"{out} holds a run already; add --resume to go on with it, or name another folder.")
        wanted, held = _computed(config), _computed(read_config(out))
        differ = [f"{key}={wanted[key]!r} (it has {value!r})" for key, value in held.items() if wanted[key] != value]
        if differ:
            raise ValueError(
                f"{out} was begun with another configuration: {', '.join(differ[:5])}; resume it with the same recipe and --set "
                "values."
            )
    elif out.exists() and not set(os.listdir(out)) <= {LOCK, *(path.name for path in leftovers(out))}:
        raise FileExistsError(f"{out} is not empty and holds no run; name a new or empty folder.")


def check_place(out: Path, state: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint elsewhere than it was written: other threads, or another device, other bits."""
    for key, here in place.items():
        held = state.get(key, here)
        if held != here:
            how = " (OMP_NUM_THREADS or --set threads= at its beginning)" if key == "threads" else ""
            raise ValueError(
                f"{out} was begun with {key}={held!r} and would go on with {key}={here!r}, to another result; resume it where "
                f"{key} is the same{how}."
            )


def _computed(config: RunConfig) -> dict[str, Any]:
    """Return what decides the result, by key: all but where and how often things are shown and saved."""
    values = as_dict(config)
    values["runtime"] = {key: values["runtime"][key] for key in ("precision", "compile", "channels_last", "threads")}
    values["schedule"]["samples_per_cycle"] = config.samples_per_cycle
    flat = {key: value for key, value in values.items() if key not in SECTIONS}
    for section in SECTIONS:
        flat |= values[section]
    return flat
