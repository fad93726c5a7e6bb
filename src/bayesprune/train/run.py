"""The way into a run: used by the command line, the recipes and the benchmarks."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesprune.common.files import sweep
from bayesprune.common.lock import locked
from bayesprune.train import folder as names
from bayesprune.train.build import as_data, own_config
from bayesprune.train.claim import check_folder
from bayesprune.train.config import RunConfig
from bayesprune.train.loop import Trainer
from bayesprune.train.parallel import launched
from bayesprune.train.settings import as_dict, read_config
from bayesprune.train.task import Task
from bayesprune.train.trial import trial_config


def train(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    data: Any = None,
    task: str | Task = "classification",
    trial: bool = False,
    resume: bool = False,
    quiet: bool = False,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train one run into a folder and return its result; under torchrun, on all of its processes.

    Args:
        config: What to run.
        out: Run folder; must be empty or missing unless `resume`.
        data_dir: Folder of the data set, where it needs one.
        model: The user's own network instead of `config.network`: any module, trained in place, or a function that builds it,
            called under the run's seed.
        data: The user's own data instead of `config.data`: `Splits`, a mapping of them, (train, test), or training data alone
            with `validation_size` to hold some out; each a torch Dataset, a DataLoader or an iterable of batches.
        task: What is learned: "classification", "regression", "tokens", or a `Task`.
        trial: Make a few steps of everything, samples, pruning, checkpoints and evaluations among them, on a few examples: what
            the numbers are means nothing.
        resume: Go on from the folder's checkpoint (from the start where it has none). On one CPU the resumed run equals
            the uninterrupted one bit for bit; a loader of the user's own that cannot be replayed says so (see `Splits`). Of a
            folder whose run is finished the result is returned, and a module given as `model` gets the run's weights.
        quiet: Print nothing.
        stop: Asked between two steps, and between two batches of an evaluation; when true, the run ends as by Ctrl-C.

    Returns:
        The content of result.json.

    Raises:
        FileExistsError: `out` holds a run and `resume` is False.
        FolderInUseError: Another process trains into `out`; the message names it.
        ValueError: The folder's configuration differs from `config`, or its checkpoint is damaged (`ArtefactError`).
        NonFiniteLoss: The loss became inf or nan.
        Interrupted: Ctrl-C or `stop`; a checkpoint was written.

    Example:
        >>> import tempfile
        >>> from bayesprune.train.recipes import recipe
        >>> config = recipe("digits-cvadam", ["epochs=1", "cycles=1", "samples_per_cycle=1", "train_size=128"])
        >>> result = train(config, tempfile.mkdtemp(), quiet=True)
        >>> result["num_samples"]
        1
        >>> from bayesprune.train.config import ScheduleConfig
        >>> images, labels = torch.randn(64, 6), torch.arange(64) % 3
        >>> pairs = torch.utils.data.TensorDataset(images, labels)
        >>> config = RunConfig(schedule=ScheduleConfig(epochs=2, samples_per_cycle=1))
        >>> result = train(config, tempfile.mkdtemp(), model=lambda: nn.Linear(6, 3), data=(pairs, pairs), quiet=True)
        >>> result["network"], result["dataset"], result["num_samples"]
        ('own', 'own', 1)
    """
    out = Path(out)
    data = None if data is None else as_data(data)
    ends = config.pruning.keep_ends
    if resume and model is not None and ends is None and (out / names.CONFIG).exists():  # as the run was begun
        config = replace(config, pruning=replace(config.pruning, keep_ends=read_config(out).pruning.keep_ends))
    config = own_config(config, model, data)
    config = trial_config(config) if trial else config
    with locked(out) if launched()[0] == 0 else nullcontext():
        check_folder(out, config, resume)
        if resume and (out / names.RESULT).exists():
            names.sign(out)
            if isinstance(model, nn.Module):
                names.load_model_(model, out)
            return names.read_json(out / names.RESULT)
        sweep(out)
        sweep(out / names.SAMPLES)
        return _run(config, out, data_dir, model, data, task, trial, quiet, stop)


def _run(
    config: RunConfig,
    out: Path,
    data_dir: Any,
    model: Any,
    data: Any,
    task: str | Task,
    trial: bool,
    quiet: bool,
    stop: Any,
) -> dict[str, Any]:
    """Train in a folder that is held and in order."""
    threads = torch.get_num_threads()
    trainer: Trainer | None = None
    try:
        trainer = Trainer(
            config, out, data_dir=data_dir, model=model, data=data, task=task, trial=trial, quiet=quiet, stop=stop
        )
        if trainer.ranks.main:
            names.write_json(out / names.CONFIG, as_dict(config))  # the folder is claimed once all else was in order
        with torch.random.fork_rng(devices=[trainer.fabric.device] if trainer.fabric.device.type == "cuda" else []):
            return trainer.run()
    finally:
        if trainer is not None:
            traced = trainer.pruner is not None
            trainer.close()
            trainer = None
            if traced:
                gc.collect()  # a traced graph is a circle, which holds copies of the network
        torch.set_num_threads(threads)
