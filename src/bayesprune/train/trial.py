"""A trial of a run: a few steps of everything, the numbers of which mean nothing."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset

from bayesprune import vision
from bayesprune.train.config import RunConfig
from bayesprune.train.registry import method
from bayesprune.train.splits import Splits, is_map

_EXAMPLES = 64  # to test on, and at most in a batch
_STEPS = 4  # in an epoch


def trial_config(config: RunConfig) -> RunConfig:
    """Return a configuration of two epochs, with samples, pruning, evaluations and a checkpoint after every step."""
    data, schedule = config.data, config.schedule
    every = 1 if "every" in method(config.sampler.method).keys else config.pruning.every
    return replace(
        config,
        data=replace(
            data, batch_size=min(data.batch_size, _EXAMPLES), train_size=None,
            validation_size=min(data.validation_size, _EXAMPLES),
        ),
        schedule=replace(
            schedule, epochs=2, cycles=min(schedule.cycles, 2), samples_per_cycle=min(config.samples_per_cycle, 1),
            sample_every="1%", warmup_epochs=0.0, first_cycle=None,
        ),
        pruning=replace(config.pruning, prune_from=0.0, prune_until=0.4, every=every),
        baseline=replace(config.baseline, noise_epochs="50%", draws=min(config.baseline.draws, 2), collect_from=0.0),
        runtime=replace(config.runtime, evaluate_every=1, checkpoint_minutes=0.0),
    )  # fmt: skip


def trial_data(data: Any, batch_size: int) -> Any:
    """Return data with training examples for a few steps, and a few examples to test and validate on."""
    if isinstance(data, Splits):
        for split in ("train", "test", "validation"):
            if getattr(data, split) is not None:
                data.loader(split, batch_size=batch_size)  # what would be refused is refused here
        return replace(
            data, train=_first(data.train, batch_size * _STEPS, _STEPS), test=_first(data.test, _EXAMPLES, 2),
            validation=_first(data.validation, _EXAMPLES, 2), num_data=data.count("train"), steps_per_epoch=_STEPS,
        )  # fmt: skip
    number = min(batch_size * _STEPS, data.count("train"))
    tested = min(_EXAMPLES, data.count("test"))
    if isinstance(data, vision.ImageDataset):
        return replace(data.subset(number), test=data.test.select(np.arange(tested)))
    few = vision.subset(data, number)
    return replace(few, test_images=data.test_images[:tested], test_labels=data.test_labels[:tested])


def _first(data: Any, examples: int, batches: int) -> Any:
    """Return the first examples of a map-style data set, the first batches of a loader."""
    if data is None:
        return None
    if is_map(data):
        return Subset(data, range(min(examples, len(data))))
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=examples // batches)
    return list(islice(iter(data), batches))
