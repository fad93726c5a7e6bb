"""From a configuration to its parts: data, network, optimizer, clock, pruner."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bayesprune import vision
from bayesprune.common.files import listed
from bayesprune.samplers import CycleClock
from bayesprune.train.config import RunConfig
from bayesprune.train.procedures import Procedure
from bayesprune.train.registry import method
from bayesprune.train.splits import Splits
from bayesprune.train.task import Task
from bayesprune.train.values import in_epochs

Dataset = vision.ArrayDataset | vision.ImageDataset
AnyData = vision.ArrayDataset | vision.ImageDataset | Splits


def build_data(config: RunConfig, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the data set of a run, with its validation images held out."""
    wanted = config.data
    data: Dataset
    if wanted.dataset == "own":
        raise ValueError(
            "dataset='own': the data of this run were given from Python; give them again with data= (--recipe FILE.py)."
        )
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
    return cut(config, data)


def cut(config: RunConfig, data: Any) -> Any:
    """Return data with `validation_size` training examples held out, and then `train_size` left to train on."""
    train_size, validation_size = config.data.train_size, config.data.validation_size
    if isinstance(data, vision.ArrayDataset):
        data = vision.split_validation(data, validation_size, seed=0) if validation_size else data
        return data if train_size is None else vision.subset(data, train_size, seed=0)
    data = data.hold_out(validation_size) if validation_size else data
    return data if train_size is None else data.subset(train_size)


def reading_of(data: AnyData) -> dict[str, Any]:
    """Return how a run reads its data: the names of the classes, and of images their shape and normalisation."""
    images = None
    if not isinstance(data, Splits):
        images = {"shape": list(data.image_shape), "scale": data.scale, "mean": list(data.mean), "std": list(data.std)}
    return {"classes": list(data.classes), "images": images}


def check_classes(found: Sequence[str], classes: Sequence[str], run: Path) -> None:
    """Refuse named classes that are not those that a run was trained on, in their order."""
    if found and classes and list(found) != list(classes):
        raise ValueError(
            f"data: the classes are {listed(found, 8)}; {run} was trained on {listed(classes, 8)}; name them as they were."
        )


def as_trained(data: Any, result: Mapping[str, Any], run: Path) -> Any:
    """Return data as a finished run read them: with its classes, images normalised as its were."""
    check_classes(data.classes, result.get("classes", ()), run)
    images = None if isinstance(data, Splits) else result.get("images")
    return data if not images else replace(data, mean=tuple(images["mean"]), std=tuple(images["std"]))


def own_config(config: RunConfig, model: Any, data: Any) -> RunConfig:
    """Return the configuration of a run whose network or data are given: "own" stands for them, and a loader's batch size.

    Such a network's ends stay dense where nothing else is set.
    """
    if model is not None:
        config = replace(config, network=replace(config.network, network="own", width=None, stem_stride=None))
        if config.pruning.keep_ends is None and method(config.sampler.method).uses("pruning", "keep_ends"):
            config = replace(config, pruning=replace(config.pruning, keep_ends=True))
    if data is not None:
        batch_size = getattr(data, "batch_size", None) or config.data.batch_size
        config = replace(config, data=replace(config.data, dataset="own", batch_size=batch_size))
    return config


def as_data(data: Any) -> AnyData:
    """Return the data that `train` was given as one of the kinds that it reads."""
    return data if isinstance(data, (vision.ArrayDataset, vision.ImageDataset)) else Splits.of(data)


def build_augmentation(config: RunConfig, data: AnyData) -> vision.Augmentation | vision.RandomResizedCrop | None:
    """Return what is done to a training image; None for nothing, and for data with transforms of their own."""
    wanted = config.data
    if not wanted.augment or isinstance(data, Splits):
        return None
    if isinstance(data, vision.ImageDataset):
        return vision.RandomResizedCrop(scale=(wanted.crop_scale, 1.0), flip=wanted.flip)
    return vision.Augmentation(
        padding=wanted.padding, mode=wanted.padding_mode, flip=wanted.flip, alternate=wanted.alternate,
        cutout=wanted.cutout,
    )  # fmt: skip


def build_network(config: RunConfig, data: AnyData) -> nn.Module:
    """Return the network of a run, initialised from the run's seed; torch's global generator is left as it was."""
    if config.network.network == "own":
        raise ValueError(
            "network='own': the network of this run was given from Python; give it again with model= (--recipe FILE.py)."
        )
    if isinstance(data, Splits):
        raise ValueError(
            f"network={config.network.network!r}: a network by name takes images that the library loads; give yours with model=."
        )
    if config.network.network == "mlp":
        raise ValueError(
            "network='mlp' is built by its layer sizes; use it from Python, or choose a convolutional network."
        )
    chosen = {"width": config.network.width, "stem_stride": config.network.stem_stride}
    arguments = {"num_classes": data.num_classes, "in_channels": data.in_channels}
    arguments |= {name: value for name, value in chosen.items() if value is not None}
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


def own_network(model: nn.Module | Callable[[], nn.Module], seed: int, anew: bool = False) -> nn.Module:
    """Return the user's network, built from a seed where `model` is a function; torch's global generator is left as it was."""
    if isinstance(model, nn.Module) and anew:
        raise ValueError(
            f"model={type(model).__name__}(…): this method draws networks anew; give a function that builds the network."
        )
    if isinstance(model, nn.Module):
        network = model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = model()
    lazy = [name for name, parameter in network.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(f"model: {lazy[0]} has no size yet; run the network on a batch once before it is trained.")
    return network


def example_of(inputs: Any, config: RunConfig) -> Any:
    """Return a batch's inputs as an example to trace a network with; refuse views of what are no images."""
    wanted = config.data.test_views
    if wanted != "none" and not (isinstance(inputs, Tensor) and inputs.dim() == 4):
        shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(
            f"test_views={wanted!r}: views are of images (n, channels, height, width), not of {shape}; set test_views=none."
        )
    return (inputs,) if isinstance(inputs, (tuple, list)) else inputs  # one argument, which holds several tensors


def channels_last_is_safe(model: nn.Module, device: torch.device) -> bool:
    """Return whether torch trains this network correctly in channels_last."""
    return device.type != "cpu" or not any(
        isinstance(module, nn.Conv2d)
        and max(module.kernel_size) == 1
        and max(module.stride) > 1
        and module.in_channels < 8
        for module in model.modules()
    )


def build_clock(config: RunConfig, steps_per_epoch: int) -> CycleClock:
    """Return the cycle clock of a run, in steps."""
    schedule, first = config.schedule, config.schedule.first_cycle
    return CycleClock(
        total_steps=schedule.epochs * steps_per_epoch,
        cycles=schedule.cycles,
        samples_per_cycle=config.samples_per_cycle,
        sample_every=max(1, round(in_epochs(schedule.sample_every, schedule.epochs) * steps_per_epoch)),
        warmup_steps=round(in_epochs(schedule.warmup_epochs, schedule.epochs) * steps_per_epoch),
        floor=schedule.lr_floor,
        first_steps=None if first is None else max(1, round(in_epochs(first, schedule.epochs) * steps_per_epoch)),
        restart=schedule.restart,
    )


def build_optimizer(config: RunConfig, parameters: nn.Module | Iterable[Any], num_data: int) -> torch.optim.Optimizer:
    """Return the method's optimizer over a network's parameters (or groups of them)."""
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    return method(config.sampler.method).optimizer(config, parameters, num_data)


def build_pruner(
    config: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int, example: Any
) -> Any:
    """Return the pruner of a run, attached to the optimizer; None where nothing is pruned."""
    build = method(config.sampler.method).pruner
    return None if build is None else build(config, model, optimizer, total_steps, example)


def build_procedure(
    config: RunConfig, model: nn.Module, clock: CycleClock, num_data: int, fresh: Callable[[int], nn.Module], task: Task
) -> Procedure:
    """Return what a run's method adds to the loop."""
    kind = method(config.sampler.method).procedure or Procedure
    return kind(config, model, clock, num_data, fresh, task)
