"""Evaluate a finished run again from its folder: data, network and samples, no training code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from bayesprune.posterior import SampleStore, classification_metrics, predict
from bayesprune.train import folder as names
from bayesprune.train.build import Dataset, build_data, build_network
from bayesprune.train.config import RunConfig
from bayesprune.train.settings import read_config


def load_trained(
    run: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> tuple[nn.Module, SampleStore, Dataset, RunConfig]:
    """Return a run's network at its final weights, its posterior samples, its data and its configuration.

    Args:
        run: Run folder of a finished run.
        data_dir: Folder of the data set, where it needs one.

    Raises:
        ArtefactError: A file is damaged or was exchanged.
        ValueError: The folder holds no finished run.
    """
    run = Path(run)
    config = read_config(run)
    if not (run / names.MODEL).exists():
        raise ValueError(f"{run} holds no finished run ({names.MODEL} is missing); finish it with --resume.")
    data = build_data(config, data_dir)
    model = build_network(config, data)
    return names.load_model_(model, run), SampleStore(run / names.SAMPLES), data, config


def evaluate(
    run: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    device: str = "cpu",
) -> dict[str, Any]:
    """Return accuracy, NLL, Brier score and ECE of a run's single model and of its posterior average.

    Args:
        run: Run folder.
        data_dir: Folder of the data set, where it needs one.
        split: "test", "validation" or "train".
        device: Where to compute.

    Returns:
        {"split", "num_samples", "single": {...}, "average": {...}}.
    """
    model, samples, data, _ = load_trained(run, data_dir)
    loader = data.loader(split, batch_size=256, shuffle=False, device=device)
    result: dict[str, Any] = {"split": split, "num_samples": len(samples)}
    for key, members in (("single", None), ("average", samples if len(samples) else None)):
        prediction = predict(model, members, loader, device=device)
        assert prediction.labels is not None
        result[key] = classification_metrics(prediction.probabilities, prediction.labels)
    return result
