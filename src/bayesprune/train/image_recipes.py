"""Recipes for images at a budget for CPUs: handwritten digits, and CIFAR-10 with ResNet-20."""

from __future__ import annotations

from dataclasses import replace

from bayesprune.train.baseline_recipes import add_baselines, add_ensembles
from bayesprune.train.config import DataConfig, NetworkConfig, PruningConfig, RunConfig, SamplerConfig, ScheduleConfig
from bayesprune.train.recipes import recipe

# ---- handwritten digits ----------------------------------------------------------------------------------------


@recipe
def digits_sgd() -> RunConfig:
    """Residual CNN on scikit-learn's digits, Nesterov SGD."""
    return RunConfig(
        data=DataConfig("digits", batch_size=32, padding=1, flip=False),
        network=NetworkConfig("digits_resnet", width=24),
        sampler=SamplerConfig("sgd", lr=0.1, beta1=0.9),
        schedule=ScheduleConfig(epochs=45),
    )


@recipe
def digits_cvadam() -> RunConfig:
    """Residual CNN on scikit-learn's digits, CV-Adam with 3 cycles of 4 samples."""
    return replace(
        digits_sgd(),
        sampler=SamplerConfig("cvadam", lr=1.0, beta1=0.1, temperature=1e-2, preconditioner="paper"),
        schedule=ScheduleConfig(epochs=45, cycles=3, samples_per_cycle=4, sample_every=0.5),
    )


@recipe
def digits_emmcmc() -> RunConfig:
    """Residual CNN on scikit-learn's digits, CV-Adam + EM-MCMC with feedback to 90 % of the prunable weights."""
    return replace(
        digits_cvadam(),
        sampler=SamplerConfig("emmcmc", lr=1.0, beta1=0.1, temperature=1e-3, preconditioner="paper"),
        schedule=ScheduleConfig(epochs=45, cycles=3, samples_per_cycle=12, sample_every=0.25),
        pruning=PruningConfig(0.9, feedback="masked", groups="weight", prune_from=0.1, prune_until=0.67),
    )


# ---- handwritten digits, a wide network: the demo ---------------------------------------------------------------------------


@recipe
def digits_cnn_sgd() -> RunConfig:
    """Wide CNN on scikit-learn's digits, Nesterov SGD."""
    return RunConfig(
        data=DataConfig("digits", batch_size=64, padding=1, flip=False),
        network=NetworkConfig("small_cnn", width=96),
        sampler=SamplerConfig("sgd", lr=0.1, beta1=0.9),
        schedule=ScheduleConfig(epochs=20),
    )


@recipe
def digits_cnn_emmcmc() -> RunConfig:
    """Wide CNN on scikit-learn's digits, CV-Adam + EM-MCMC by whole channels to 97 % of the prunable weights."""
    return replace(  # chosen on 300 held-out training images each of the first two folds
        digits_cnn_sgd(),
        sampler=SamplerConfig("emmcmc", lr=3e-3, temperature=0.01),
        schedule=ScheduleConfig(epochs=20, warmup_epochs="5%", samples_per_cycle=4, sample_every="2.5%", lr_floor=0.2),
        pruning=PruningConfig(0.97, groups="channel", scope="layer", round_to=None, every=16),
    )


# ---- CIFAR-10, ResNet-20: a budget for two CPU cores -----------------------------------------------------------------------


@recipe
def cifar10_resnet20_sgd() -> RunConfig:
    """ResNet-20 on CIFAR-10 for CPUs, Nesterov SGD."""
    return RunConfig(
        data=DataConfig("cifar10", batch_size=64),
        network=NetworkConfig("resnet20"),
        sampler=SamplerConfig("sgd", lr=0.1, beta1=0.9),
        schedule=ScheduleConfig(epochs=10),
    )


@recipe
def cifar10_resnet20() -> RunConfig:
    """ResNet-20 on CIFAR-10 for CPUs, CV-Adam with 10 samples on the way down to a step size that keeps them apart."""
    return replace(
        cifar10_resnet20_sgd(),
        sampler=SamplerConfig("cvadam", lr=1.0, beta1=0.5, temperature=1 / 50_000, preconditioner="paper"),
        schedule=ScheduleConfig(epochs=10, warmup_epochs="10%", samples_per_cycle=10, sample_every="2%", lr_floor=0.05),
    )


@recipe
def cifar10_resnet20_emmcmc() -> RunConfig:
    """ResNet-20 on CIFAR-10 for CPUs, CV-Adam + EM-MCMC with feedback to 70 % of the prunable weights."""
    base = cifar10_resnet20()
    return replace(
        base,
        sampler=replace(base.sampler, method="emmcmc"),
        pruning=PruningConfig(0.7, feedback="dense_copy", groups="weight", prune_from=0.1, prune_until=0.6),
    )


add_ensembles("digits", "Residual CNN on scikit-learn's digits", digits_sgd)
add_baselines("cifar10-resnet20", "ResNet-20 on CIFAR-10 for CPUs", cifar10_resnet20_sgd, 0.7)
add_ensembles("cifar10-resnet20", "ResNet-20 on CIFAR-10 for CPUs", cifar10_resnet20_sgd)
