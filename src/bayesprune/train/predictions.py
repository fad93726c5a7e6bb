"""Predictions of a run's posterior average on its test inputs, kept beside it for its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesprune.common.tensors import PLAIN, write_tensors
from bayesprune.posterior import predict
from bayesprune.train.evaluation import load_trained

FILE = "predictions.safetensors"
SHOWN = 12  # doubtful images


def keep_predictions(
    run: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    other: Tensor | None = None,
) -> Path:
    """Write what a run's average says of every test input, and the images that it doubts most, to the run's folder."""
    model, samples, data, _ = load_trained(run, data_dir)
    members = samples if len(samples) else None
    found = predict(model, members, data.loader("test", batch_size=256, shuffle=False, device=device), device=device)
    if found.labels is None:
        raise ValueError(f"run={str(run)!r}: its test inputs have no labels")
    kept = {
        "total": found.total.float(), "epistemic": found.epistemic.float(),
        "classes": found.classes.contiguous(), "labels": found.labels.contiguous(),
    }  # fmt: skip
    held: Any = data
    images = getattr(held, "test_images", None)
    if isinstance(images, Tensor) and images.ndim == 4:
        shown = found.total.argsort(descending=True)[:SHOWN]
        kept |= {"shown": shown, "images": (images[shown].float() * (255 / held.scale)).round().to(torch.uint8)}
    if other is not None:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (held.mean, held.std))
        strange = predict(model, members, (other.float() / held.scale - mean) / std, device=device)
        kept["other_total"] = strange.total.float()
    path = Path(run) / FILE
    write_tensors(path, kept, PLAIN)
    return path
