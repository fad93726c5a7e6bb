"""The run folder: its file names, its JSON and CSV, and the record of the environment."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bayesprune._version import __version__
from bayesprune.common import bounded
from bayesprune.common.artefact import MissingArtefactError
from bayesprune.common.files import csv_text, write_json, write_text
from bayesprune.common.manifest import MANIFEST, check_manifest, write_manifest
from bayesprune.common.tensors import PLAIN, load_into, read_tensors

CONFIG, ENVIRONMENT, HISTORY, METRICS = "config.json", "environment.json", "history.json", "metrics.csv"
RESULT, TRACES, MODEL, SAMPLES, CHECKPOINT = (
    "result.json",
    "traces.safetensors",
    "model.safetensors",
    "samples",
    "checkpoint.safetensors",
)


PREDICTIONS, PROFILE, PAGE, BOARD = "predictions.safetensors", "profile.json", "report.html", "tensorboard"
"""What commands write about a run into its folder."""
FILES = (CONFIG, ENVIRONMENT, HISTORY, METRICS, TRACES, MODEL, RESULT)
"""What a finished run's manifest holds."""


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file of a run folder; a finished run's are held against its manifest."""
    if not path.exists() and not (path.parent / MANIFEST).exists():
        raise MissingArtefactError(path, "is missing", "a run folder", "its run never started, or it is no run folder")
    check_manifest(path.parent, [path.name])
    return bounded.read_json(path, kind)


def finish(folder: Path, result: Any) -> None:
    """Write result.json, which marks the run as finished, and then the manifest of its files."""
    write_json(folder / RESULT, result)
    sign(folder)


def sign(folder: Path) -> None:
    """Write the manifest of a finished run that has none: it was killed before that, or an earlier version wrote it."""
    if not (folder / MANIFEST).exists():
        write_manifest(folder, FILES)


def load_model_(model: nn.Module, run: Path) -> nn.Module:
    """Give a network the weights of a finished run, all of them or none; returns it in evaluation mode."""
    check_manifest(run, [MODEL])
    return load_into(model, read_tensors(run / MODEL, [PLAIN], older=[None]).tensors, run / MODEL).eval()


def write_history(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of the run as JSON and CSV."""
    write_json(folder / HISTORY, list(rows))
    heads = list(rows[0]) if rows else []
    write_text(folder / METRICS, csv_text(heads, ([row.get(head) for head in heads] for row in rows)) if rows else "")


def environment(device: str) -> dict[str, Any]:
    """Return versions, hardware, commit and command of this process."""
    return {
        "bayesprune": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "commit": commit(),
        "command": command(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def command() -> str:
    """Return this process's command, absolute paths by their last part alone: they mean nothing on another machine."""
    return " ".join(
        Path(word).name if place == 0 or word.startswith("/") else word for place, word in enumerate(sys.argv)
    )


def commit() -> str | None:
    """Return the commit of the checkout the package runs from, with + if it was changed; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(here)]
        revision = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
