"""From a configuration to its parts: data, network, optimizer, clock, pruner."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesprune import vision
from bayesprune.samplers import CycleClock
from bayesprune.train.config import RunConfig
from bayesprune.train.procedures import Procedure
from bayesprune.train.registry import method

Dataset = vision.ArrayDataset | vision.ImageDataset


def build_data(config: RunConfig, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the data set of a run, with its validation images held out.

    Args:
        config: The run.
        data_dir: Where the data set lies; not needed for the digits. The environment's BAYESPRUNE_DATA is the default.

    Raises:
        ValueError: The data set needs a folder and none was given.
        FileNotFoundError: The folder does not hold it; the message says what was expected where.
    """
    wanted = config.data
    data: Dataset
    if wanted.dataset == "digits":
        data = vision.load_digits(fold=wanted.fold)
    else:
        data_dir = data_dir or os.environ.get("BAYESPRUNE_DATA")
        if not data_dir:
            raise ValueError(
                f"dataset={wanted.dataset!r} needs --data-dir: the folder that holds it (or set BAYESPRUNE_DATA)."
            )
        if wanted.dataset == "images":
            data = vision.open_images(Path(data_dir), wanted.image_size, workers=config.runtime.workers)
        elif wanted.dataset == "folder":
            data = vision.load_image_folder(Path(data_dir), wanted.image_size)
        else:
            data = vision.load_cifar(wanted.dataset, Path(data_dir))
    if isinstance(data, vision.ImageDataset):
        data = data.hold_out(wanted.validation_size) if wanted.validation_size else data
        return data if wanted.train_size is None else data.subset(wanted.train_size)
    if wanted.validation_size:
        data = vision.split_validation(data, wanted.validation_size, seed=0)
    if wanted.train_size is not None:
        data = vision.subset(data, wanted.train_size, seed=0)
    return data


def build_augmentation(config: RunConfig) -> vision.Augmentation | vision.RandomResizedCrop | None:
    """Return what is done to a training image; None for nothing."""
    wanted = config.data
    if not wanted.augment:
        return None
    if wanted.dataset == "images":
        return vision.RandomResizedCrop(scale=(wanted.crop_scale, 1.0), flip=wanted.flip)
    return vision.Augmentation(
        padding=wanted.padding, mode=wanted.padding_mode, flip=wanted.flip, alternate=wanted.alternate,
        cutout=wanted.cutout,
    )  # fmt: skip


def build_network(config: RunConfig, data: Dataset) -> nn.Module:
    """Return the network of a run, initialised from the run's seed; torch's global generator is left as it was."""
    arguments = {"num_classes": data.num_classes}
    if config.network.network == "mlp":
        raise ValueError(
            "network='mlp' is built by its layer sizes; use it from Python, or choose a convolutional network."
        )
    if config.network.width is not None:
        arguments["width"] = config.network.width
    if config.network.stem_stride is not None:
        arguments["stem_stride"] = config.network.stem_stride
    if data.in_channels != 3 or config.network.network == "digits_resnet":
        arguments["in_channels"] = data.in_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = vision.build(config.network.network, **arguments)
        except TypeError as error:
            raise ValueError(
                f"network={config.network.network!r} does not take what was set (width, stem_stride?): {error}"
            ) from None
    if isinstance(model, vision.WhitenedCNN) and isinstance(data, vision.ArrayDataset):
        model.whiten_(data.loader("train", batch_size=256, shuffle=False).first(5000))
    return model


def channels_last_is_safe(model: nn.Module, device: torch.device) -> bool:
    """Return whether torch trains this network correctly in channels_last.

    On a CPU, oneDNN's backward pass of a strided 1×1 convolution writes past its buffer for some channel counts below 8 (seen
    with torch 2.13: the process dies of a corrupted heap).
    """
    return device.type != "cpu" or not any(
        isinstance(module, nn.Conv2d)
        and max(module.kernel_size) == 1
        and max(module.stride) > 1
        and module.in_channels < 8
        for module in model.modules()
    )


def build_clock(config: RunConfig, steps_per_epoch: int) -> CycleClock:
    """Return the cycle clock of a run, in steps."""
    schedule = config.schedule
    return CycleClock(
        total_steps=schedule.epochs * steps_per_epoch,
        cycles=schedule.cycles,
        samples_per_cycle=schedule.samples_per_cycle,
        sample_every=max(1, round(schedule.sample_every * steps_per_epoch)),
        warmup_steps=round(schedule.warmup_epochs * steps_per_epoch),
        floor=schedule.lr_floor,
    )


def build_optimizer(config: RunConfig, parameters: nn.Module | Iterable[Any], num_data: int) -> torch.optim.Optimizer:
    """Return the method's optimizer over a network's parameters (or groups of them)."""
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    return method(config.sampler.method).optimizer(config, parameters, num_data)


def build_pruner(
    config: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int, example: torch.Tensor
) -> Any:
    """Return the pruner of a run, attached to the optimizer; None where nothing is pruned."""
    build = method(config.sampler.method).pruner
    return None if build is None else build(config, model, optimizer, total_steps, example)


def build_procedure(
    config: RunConfig, model: nn.Module, clock: CycleClock, num_data: int, fresh: Callable[[int], nn.Module]
) -> Procedure:
    """Return what a run's method adds to the loop."""
    kind = method(config.sampler.method).procedure or Procedure
    return kind(config, model, clock, num_data, fresh)
