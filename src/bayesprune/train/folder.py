"""The run folder: its file names, atomic JSON and CSV, and the record of the environment."""

from __future__ import annotations

import csv
import io
import json
import math
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

from bayesprune._version import __version__

CONFIG, ENVIRONMENT, HISTORY, METRICS = "config.json", "environment.json", "history.json", "metrics.csv"
RESULT, TRACES, MODEL, SAMPLES, CHECKPOINT = (
    "result.json",
    "traces.safetensors",
    "model.safetensors",
    "samples",
    "checkpoint.safetensors",
)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: The file is missing or damaged; the message says what it was for.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {path.parent} is not a run folder, or its run never started.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a copy, or train again.") from None


def write_history(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of the run as JSON and CSV."""
    write_json(folder / HISTORY, list(rows))
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(folder / METRICS, out.getvalue())


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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
