"""Evaluate a finished run again from its folder, and keep its predictions for its report: no training code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesprune.common.artefact import MissingArtefactError
from bayesprune.common.tensors import PLAIN, write_tensors
from bayesprune.posterior import SampleStore, predict
from bayesprune.train import folder as names
from bayesprune.train.build import AnyData, as_data, as_trained, build_data, build_network, cut, own_network
from bayesprune.train.config import RunConfig
from bayesprune.train.settings import read_config
from bayesprune.train.splits import Splits
from bayesprune.train.task import Classification, Pairs, Task, build_task

SHOWN = 12  # doubtful images


def load_trained(
    run: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None, *,
    model: nn.Module | Callable[[], nn.Module] | None = None, data: Any = None,
) -> tuple[nn.Module, SampleStore, AnyData, RunConfig]:  # fmt: skip
    """Return a run's network at its final weights, its posterior samples, its data and its configuration.

    Images are normalised by the statistics that the run was trained with, whatever its folder holds since.

    Args:
        run: Run folder of a finished run.
        data_dir: Folder of the data set, where it needs one.
        model: The user's own network, or the function that builds it, of a run that was given one.
        data: The user's own data, likewise.

    Raises:
        ArtefactError: A file is damaged or was exchanged, or the folder holds no finished run.
        ValueError: The data have other classes than the run's, or in another order.

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
    config = read_config(run)
    if not (run / names.MODEL).exists():
        raise MissingArtefactError(
            run, f"holds no finished run ({names.MODEL} is missing)", mend="finish it with --resume"
        )
    result = names.read_json(run / names.RESULT) if (run / names.RESULT).exists() else {}
    held = as_trained(build_data(config, data_dir) if data is None else cut(config, as_data(data)), result, run)
    network = build_network(config, held) if model is None else own_network(model, config.seed)
    return names.load_model_(network, run), SampleStore(run / names.SAMPLES), held, config


def evaluate(
    run: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "test",
    device: str = "cpu",
    model: nn.Module | Callable[[], nn.Module] | None = None,
    data: Any = None,
    task: str | Task | None = None,
) -> dict[str, Any]:
    """Return the task's scores, for classes accuracy, NLL, Brier score and ECE, of a run's single model and its average.

    Args:
        run: Run folder.
        data_dir: Folder of the data set, where it needs one.
        split: "test", "validation" or "train".
        device: Where to compute.
        model: The user's own network, of a run that was given one.
        data: The user's own data, likewise.
        task: What was learned; None: what the run's result says.

    Returns:
        {"split", "num_samples", "single": {...}, "average": {...}}, of classes also "recall": the share of each class
        that the average has right.

    Raises:
        ArtefactError: As `load_trained`.
        ValueError: A task of the user's own that no name stands for; give it.

    Example:
        >>> import tempfile
        >>> from bayesprune.train import recipe, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(recipe("digits-sgd", ["train_size=64", "epochs=1", "width=4"]), folder, quiet=True)
        ...     sorted(evaluate(folder))
        ['average', 'num_samples', 'recall', 'single', 'split']
    """
    network, samples, held, _ = load_trained(run, data_dir, model=model, data=data)
    loader = held.loader(split, batch_size=256, shuffle=False, device=device)
    result: dict[str, Any] = {"split": split, "num_samples": len(samples)}
    scored = _recorded(Path(run)) if task is None else build_task(task)
    for key, members in (("single", None), ("average", samples if len(samples) else None)):
        found = scored.evaluate(network.to(device), members, loader)
        result[key] = found.scores
    if found.recall:
        result["recall"] = dict(zip(held.classes or map(str, range(len(found.recall))), found.recall))
    return result


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
    path = Path(run) / names.PREDICTIONS
    write_tensors(path, kept, PLAIN)
    return path


def _recorded(run: Path) -> Task:
    """Return the task that a run's result names, with its settings."""
    result = names.read_json(run / names.RESULT) if (run / names.RESULT).exists() else {}
    name = result.get("task", "classification")
    try:
        return build_task(name, **result.get("task_settings", {}))
    except (ValueError, TypeError):
        raise ValueError(
            f"task=None: the run learned {name!r}, which is not registered as it was; give task=."
        ) from None
