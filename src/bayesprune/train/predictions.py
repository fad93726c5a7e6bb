"""Predictions of a run's posterior average on its test inputs, kept beside it for its report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.common.tensors import PLAIN, write_tensors
from bayesprune.posterior import predict
from bayesprune.train.evaluation import load_trained
from bayesprune.train.splits import Splits
from bayesprune.train.task import Classification, Pairs, Task, build_task

FILE = "predictions.safetensors"
SHOWN = 12  # doubtful images


def keep_predictions(
    run: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    other: Tensor | None = None,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    data: Any = None,
    task: str | Task = "classification",
) -> Path:
    """Write what a run's average says of every test input, and the images that it doubts most, to the run's folder."""
    network, samples, held, _ = load_trained(run, data_dir, model=model, data=data)
    members, scored = samples if len(samples) else None, build_task(task)
    if not isinstance(scored, Classification):
        raise ValueError(f"run={str(run)!r}: predictions are kept of classes, not of task={scored.name}")
    pairs = Pairs(scored, held.loader("test", batch_size=256, shuffle=False, device=device))
    found = predict(network, members, pairs, device=device, forward=scored.output)
    if found.labels is None:
        raise ValueError(f"run={str(run)!r}: its test inputs have no labels")
    kept = {
        "total": found.total.float(), "epistemic": found.epistemic.float(),
        "classes": found.classes.contiguous(), "labels": found.labels.contiguous(),
    }  # fmt: skip
    images: Any = getattr(held, "test_images", None)
    if isinstance(images, Tensor) and images.ndim == 4 and not isinstance(held, Splits):
        shown = found.total.argsort(descending=True)[:SHOWN]
        kept |= {"shown": shown, "images": (images[shown].float() * (255 / held.scale)).round().to(torch.uint8)}
    if other is not None and not isinstance(held, Splits):
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (held.mean, held.std))
        strange = predict(network, members, (other.float() / held.scale - mean) / std, device=device)
        kept["other_total"] = strange.total.float()
    path = Path(run) / FILE
    write_tensors(path, kept, PLAIN)
    return path
