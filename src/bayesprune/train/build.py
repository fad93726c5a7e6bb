"""From a configuration to its parts: data, network, optimizer, clock, pruner."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesprune import baselines, vision
from bayesprune.samplers import SGHMC, SGLD, CVAdam, CycleClock
from bayesprune.sparsity import FeedbackPruning, ForwardPruning
from bayesprune.train.config import BASELINES, ON_SGD, PruningConfig, RunConfig

Dataset = vision.ArrayDataset | vision.ImageDataset
Pruner = ForwardPruning | FeedbackPruning | baselines.SparseTraining


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
    """Return SGD with Nesterov momentum, cSGLD, cSGHMC or CV-Adam over a network's parameters (or groups of them)."""
    sampler = config.sampler
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    if sampler.method in ON_SGD:
        return torch.optim.SGD(
            parameters, lr=sampler.lr, momentum=sampler.beta1, nesterov=sampler.beta1 > 0,
            weight_decay=sampler.weight_decay,
        )  # fmt: skip
    settings: dict[str, Any] = {
        "lr": sampler.lr,
        "num_data": num_data,
        "temperature": sampler.temperature,
        "weight_decay": sampler.weight_decay,
        "seed": config.seed,
    }
    if sampler.method == "csgld":
        return SGLD(parameters, **settings)
    if sampler.method == "csghmc":
        return SGHMC(parameters, betas=(sampler.beta1, 1.0), **settings)
    return CVAdam(
        parameters, betas=(sampler.beta1, sampler.beta2), preconditioner=sampler.preconditioner,  # type: ignore[arg-type]
        scale_decay=sampler.scale_decay, dual_lr=sampler.dual_lr, noise=sampler.noise,  # type: ignore[arg-type]
        global_scale="paper" if sampler.global_scale == "paper" else float(sampler.global_scale), **settings,
    )  # fmt: skip


def ramp_steps(pruning: PruningConfig, total_steps: int) -> tuple[int, int]:
    """Return the steps at which the ramp begins and the target is reached, of a run of so many steps."""
    return int(pruning.prune_from * total_steps), int(pruning.prune_until * total_steps)


def build_pruner(
    config: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int, example: torch.Tensor
) -> Pruner | None:
    """Return the pruner of a run, attached to the optimizer; None where nothing is pruned."""
    if config.sampler.method in BASELINES:
        return build_baseline(config, model, optimizer, total_steps)
    pruning = config.pruning
    begin, end = ramp_steps(pruning, total_steps)
    if config.sampler.method == "channel_gmp":
        return baselines.gradual_channel_pruning(
            model, optimizer, target_sparsity=pruning.target_sparsity, start_step=begin, end_step=end,
            every=100 if pruning.every is None else pruning.every, exclude=pruning.exclude, example_input=example, scope=pruning.scope,  # type: ignore[arg-type]
            min_groups=pruning.min_groups,
        )  # fmt: skip
    if config.sampler.method != "emmcmc":
        return None
    settings: dict[str, Any] = {
        "groups": pruning.groups,
        "scope": pruning.scope,
        "min_groups": pruning.min_groups,
        "round_to": pruning.round_to,
        "keep_ends": pruning.keep_ends,
        "criterion": "magnitude" if pruning.rule == "l2" else pruning.rule,
        "spike_decay": pruning.spike_decay,
        "soft_threshold": pruning.soft_threshold,
        "expectation": pruning.expectation,
        "exclude": pruning.exclude,
        "example_input": example,
        "warmup_steps": begin,
    }
    if pruning.hard_threshold is not None:
        settings["hard_threshold"] = pruning.hard_threshold
    else:
        settings |= {"sparsity": pruning.target_sparsity, "ramp_end_step": end}
    own = 16 if pruning.feedback == "dense_copy" else 1
    settings["every"] = own if pruning.every is None else pruning.every
    if pruning.feedback == "none":
        return ForwardPruning(model, optimizer, **settings)
    return FeedbackPruning(model, optimizer, form=pruning.feedback, **settings)  # type: ignore[arg-type]


def dense_layers(config: RunConfig, model: nn.Module) -> tuple[str, ...]:
    """Return what a run never prunes: `exclude`, and what the baseline's authors left dense where that is asked for."""
    pruning, method = config.pruning, config.sampler.method
    if pruning.dense_layers == "none" or method not in BASELINES:
        return pruning.exclude
    found = baselines.published(method, config.network.network).exclude(model)
    return (*pruning.exclude, *(name for name in found if name not in pruning.exclude))


def build_baseline(config: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> Pruner:
    """Return a sparse-training baseline, attached to the optimizer."""
    pruning, method = config.pruning, config.sampler.method
    begin, end = ramp_steps(pruning, total_steps)
    end = max(1, end)
    epoch = total_steps // config.schedule.epochs
    own = {"sparse_momentum": epoch, "set": epoch, "dpf": 16}.get(method, 100)
    settings: dict[str, Any] = {
        "target_sparsity": pruning.target_sparsity,
        "exclude": dense_layers(config, model),
        "end_step": total_steps if method == "sparse_momentum" else end,
        "every": own if pruning.every is None else pruning.every,
    }
    if method in ("gmp", "dpf"):
        settings["start_step"] = begin
    if method == "dpf":
        return baselines.dynamic_pruning_with_feedback(model, optimizer, **settings)
    if pruning.distribution != "own":
        settings["distribution"] = pruning.distribution
    if pruning.drop_fraction is not None and method in ("sparse_momentum", "set", "rigl"):
        settings["drop_fraction"] = pruning.drop_fraction
    kinds: dict[str, Callable[..., Pruner]] = {
        "sparse_momentum": baselines.SparseMomentum,
        "dsr": baselines.DynamicSparseReparameterization,
        "set": baselines.SET,
        "rigl": baselines.RigL,
        "gmp": baselines.GradualMagnitudePruning,
    }
    return kinds[method](model, optimizer, seed=config.seed, **settings)
