"""Evaluate a finished run again from its folder: data, network and samples, no training code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from bayesprune.posterior import SampleStore, classification_metrics, predict
from bayesprune.train import folder as names
from bayesprune.train.build import Dataset, build_data, build_network
from bayesprune.train.config import RunConfig
from bayesprune.train.settings import from_dict


def load_trained(
    run: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> tuple[nn.Module, SampleStore, Dataset, RunConfig]:
    """Return a run's network at its final weights, its posterior samples, its data and its configuration.

    Args:
        run: Run folder of a finished run.
        data_dir: Folder of the data set, where it needs one.

    Raises:
        ValueError: The folder holds no finished run.

    Example:
        >>> import tempfile
        >>> from bayesprune.train import recipe, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(recipe("digits-sgd", ["train_size=64", "epochs=1", "width=4"]), folder, quiet=True)
        ...     model, samples, data, config = load_trained(folder)
        >>> len(samples), config.recipe
        (0, 'digits-sgd')
    """
    run = Path(run)
    config = from_dict(names.read_json(run / names.CONFIG))
    if not (run / names.MODEL).exists():
        raise ValueError(f"{run} holds no finished run ({names.MODEL} is missing); finish it with --resume.")
    data = build_data(config, data_dir)
    model = build_network(config, data)
    model.load_state_dict(load_file(str(run / names.MODEL)))
    return model.eval(), SampleStore(run / names.SAMPLES), data, config


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

    Example:
        >>> import tempfile
        >>> from bayesprune.train import recipe, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(recipe("digits-sgd", ["train_size=64", "epochs=1", "width=4"]), folder, quiet=True)
        ...     sorted(evaluate(folder))
        ['average', 'num_samples', 'single', 'split']
    """
    model, samples, data, _ = load_trained(run, data_dir)
    loader = data.loader(split, batch_size=256, shuffle=False, device=device)
    result: dict[str, Any] = {"split": split, "num_samples": len(samples)}
    for key, members in (("single", None), ("average", samples if len(samples) else None)):
        prediction = predict(model, members, loader, device=device)
        assert prediction.labels is not None
        result[key] = classification_metrics(prediction.probabilities, prediction.labels)
    return result
