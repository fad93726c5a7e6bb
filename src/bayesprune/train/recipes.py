"""Recipes: named, complete settings. A recipe is a function that returns a frozen `RunConfig`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from bayesprune.baselines.presets import published
from bayesprune.train import imagenet_recipes
from bayesprune.train.best_recipes import best
from bayesprune.train.config import (
    BASELINES,
    RAMPED,
    BaselineConfig,
    DataConfig,
    NetworkConfig,
    PruningConfig,
    RunConfig,
    SamplerConfig,
    ScheduleConfig,
)
from bayesprune.train.settings import override
from bayesprune.train.twin_recipes import twins

_RECIPES: dict[str, Callable[[], RunConfig]] = {}


def _register(function: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    _RECIPES[function.__name__.replace("_", "-")] = function
    return function


def names() -> dict[str, str]:
    """Return every recipe's name and its one-line description.

    Example:
        >>> "digits-cvadam" in names()
        True
    """
    return {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in _RECIPES.items()}


def recipe(name: str, settings: Iterable[str] = ()) -> RunConfig:
    """Return a recipe's configuration, with keys overridden.

    Args:
        name: One of `names()`; behind that of a pruned run may stand another target sparsity in percent, "-80".
        settings: "key=value" strings.

    Raises:
        ValueError: An unknown recipe or key; the message gives the nearest one.

    Example:
        >>> recipe("cifar10-resnet20-sgd", ["epochs=3"]).schedule.epochs
        3
        >>> recipe("cifar10-resnet18-dfp-80").pruning.target_sparsity
        0.8
    """
    base, _, percent = name.rpartition("-")
    if name not in _RECIPES and base in _RECIPES and re.fullmatch(r"\d\d", percent):
        config = _RECIPES[base]()
        if config.sampler.method in (*RAMPED, *BASELINES):
            config = replace(config, pruning=replace(config.pruning, target_sparsity=int(percent) / 100))
            return override(replace(config, recipe=name), settings)
    if name not in _RECIPES:
        near = difflib.get_close_matches(name, _RECIPES, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown recipe {name!r}: {hint}`bayesprune recipes` lists them.")
    return override(replace(_RECIPES[name](), recipe=name), settings)


# ---- handwritten digits ----------------------------------------------------------------------------------------


@_register
def digits_sgd() -> RunConfig:
    """Residual CNN on scikit-learn's digits, Nesterov SGD."""
    return RunConfig(
        data=DataConfig("digits", batch_size=32, padding=1, flip=False),
        network=NetworkConfig("digits_resnet", width=24),
        sampler=SamplerConfig("sgd", lr=0.1, beta1=0.9),
        schedule=ScheduleConfig(epochs=45),
    )


@_register
def digits_cvadam() -> RunConfig:
    """Residual CNN on scikit-learn's digits, CV-Adam with 3 cycles of 4 samples."""
    return replace(
        digits_sgd(),
        sampler=SamplerConfig("cvadam", lr=1.0, beta1=0.1, temperature=1e-2, preconditioner="paper"),
        schedule=ScheduleConfig(epochs=45, cycles=3, samples_per_cycle=4, sample_every=0.5),
    )


@_register
def digits_emmcmc() -> RunConfig:
    """Residual CNN on scikit-learn's digits, CV-Adam + EM-MCMC with feedback to 90 % of the prunable weights."""
    return replace(
        digits_cvadam(),
        sampler=SamplerConfig("emmcmc", lr=1.0, beta1=0.1, temperature=1e-3, preconditioner="paper"),
        schedule=ScheduleConfig(epochs=45, cycles=3, samples_per_cycle=12, sample_every=0.25),
        pruning=PruningConfig(0.9, feedback="masked", groups="weight", prune_from=0.1, prune_until=0.67),
    )


# ---- handwritten digits, a wide network: the demo ---------------------------------------------------------------------------


@_register
def digits_cnn_sgd() -> RunConfig:
    """Wide CNN on scikit-learn's digits, Nesterov SGD."""
    return RunConfig(
        data=DataConfig("digits", batch_size=64, padding=1, flip=False),
        network=NetworkConfig("small_cnn", width=96),
        sampler=SamplerConfig("sgd", lr=0.1, beta1=0.9),
        schedule=ScheduleConfig(epochs=20),
    )


@_register
def digits_cnn_emmcmc() -> RunConfig:
    """Wide CNN on scikit-learn's digits, CV-Adam + EM-MCMC by whole channels to 97 % of the prunable weights."""
    return replace(  # chosen on 300 held-out training images each of the first two folds
        digits_cnn_sgd(),
        sampler=SamplerConfig("emmcmc", lr=3e-3, temperature=0.01),
        schedule=ScheduleConfig(epochs=20, warmup_epochs=1, samples_per_cycle=4, sample_every=0.5, lr_floor=0.2),
        pruning=PruningConfig(0.97, groups="channel", scope="layer", round_to=None, every=16),
    )


# ---- CIFAR-10, ResNet-20: a budget for two CPU cores -----------------------------------------------------------------------


@_register
def cifar10_resnet20_sgd() -> RunConfig:
    """ResNet-20 on CIFAR-10 for CPUs, Nesterov SGD."""
    return RunConfig(
        data=DataConfig("cifar10", batch_size=64),
        network=NetworkConfig("resnet20"),
        sampler=SamplerConfig("sgd", lr=0.1, beta1=0.9),
        schedule=ScheduleConfig(epochs=10),
    )


@_register
def cifar10_resnet20() -> RunConfig:
    """ResNet-20 on CIFAR-10 for CPUs, CV-Adam with 10 samples on the way down to a step size that keeps them apart."""
    return replace(
        cifar10_resnet20_sgd(),
        sampler=SamplerConfig("cvadam", lr=1.0, beta1=0.5, temperature=1 / 50_000, preconditioner="paper"),
        schedule=ScheduleConfig(epochs=10, warmup_epochs=1, samples_per_cycle=10, sample_every=0.2, lr_floor=0.05),
    )


@_register
def cifar10_resnet20_emmcmc() -> RunConfig:
    """ResNet-20 on CIFAR-10 for CPUs, CV-Adam + EM-MCMC with feedback to 70 % of the prunable weights."""
    base = cifar10_resnet20()
    return replace(
        base,
        sampler=replace(base.sampler, method="emmcmc"),
        pruning=PruningConfig(0.7, feedback="dense_copy", groups="weight", prune_from=0.1, prune_until=0.6),
    )


# ---- sparse training on SGD: the baselines ----------------------------------------------------------------------------------

_SPELLED = {
    "sparse_momentum": "sparse momentum", "dsr": "dynamic sparse reparameterization", "set": "SET", "rigl": "RigL",
    "gmp": "gradual magnitude pruning", "dpf": "DPF as its authors run it",
}  # fmt: skip


def sparse_baseline(base: RunConfig, method: str, target: float) -> RunConfig:
    """Return an SGD run's configuration with a sparse-training baseline, the layers dense that its authors left dense."""
    preset = published(method, base.network.network)
    pruning = PruningConfig(target, prune_from=0.0, prune_until=preset.until, dense_layers="published")
    return replace(base, sampler=replace(base.sampler, method=method), pruning=pruning)


def _register_baselines(place: str, described: str, base: Callable[[], RunConfig], target: float) -> None:
    for method in BASELINES:

        def make(method: str = method) -> RunConfig:
            return sparse_baseline(base(), method, target)

        make.__doc__ = f"{described}, {_SPELLED[method]} to {target:.0%} of the prunable weights."
        suffix = "dpf-sgd" if method == "dpf" else method.replace("_", "-")  # -dpf is EM-MCMC's
        _RECIPES[f"{place}-{suffix}"] = make


_register_baselines("cifar10-resnet20", "ResNet-20 on CIFAR-10 for CPUs", cifar10_resnet20_sgd, 0.7)


# ---- sampling and ensembling: the baselines ---------------------------------------------------------------------------------

_ENSEMBLING = {
    "csgld": "cyclical SGLD", "csghmc": "cyclical SGHMC", "rank1": "rank-1 BNN", "rank1-cauchy": "rank-1 BNN, Cauchy",
    "swag": "SWAG", "ensemble": "deep ensemble of 4",
}  # fmt: skip


def sampling_baseline(base: RunConfig, name: str, rank1_lr: float = 0.1) -> RunConfig:
    """Return an SGD run's configuration as one of the sampling or ensembling baselines at its published setting.

    cSGLD and cSGHMC: 4 cycles, lr 0.5, momentum 0.1, noise in the last tenth of each cycle, 3 samples there, T = 1/N (set
    temperature=0.005 or 1 for the others). Rank-1: 4 members, L2 1e-4·‖w‖² (weight_decay 2e-4), KL annealed over 80 %, lr
    0.1 at batch 128, ×0.2 at 40, 80, 90 %; published with 250 epochs, here the base's. SWAG: rank 20, half the lr from 75 %
    on, 30 draws. Ensemble: 4 members of the base's epochs each.
    """
    epochs, baseline = base.schedule.epochs, BaselineConfig()
    if name in ("csgld", "csghmc"):
        return replace(
            base,
            sampler=SamplerConfig(name, lr=0.5, beta1=0.1, temperature=1 / 50_000),
            schedule=ScheduleConfig(epochs, cycles=4, samples_per_cycle=3, sample_every=min(1.0, epochs / 4 / 10)),
            baseline=replace(baseline, noise_epochs=epochs / 4 / 10),
        )
    if name.startswith("rank1"):
        prior = "cauchy" if name.endswith("cauchy") else "gaussian"
        return replace(
            base,
            sampler=replace(base.sampler, method="rank1", lr=rank1_lr, weight_decay=2e-4),
            schedule=ScheduleConfig(epochs, warmup_epochs=min(1.0, epochs / 10)),
            baseline=replace(baseline, prior=prior),
        )
    if name == "swag":
        return replace(
            base,
            sampler=replace(base.sampler, method="swag"),
            schedule=ScheduleConfig(epochs, lr_floor=0.5),
            baseline=replace(baseline, draws=30, collect_from=max(0.0, min(0.75, 1 - 2 / epochs))),
        )
    schedule = ScheduleConfig(4 * epochs, cycles=4, samples_per_cycle=1)
    return replace(base, sampler=replace(base.sampler, method="ensemble"), schedule=schedule)


def _register_sampling(place: str, described: str, base: Callable[[], RunConfig], rank1_lr: float = 0.1) -> None:
    for name, spelled in _ENSEMBLING.items():

        def make(name: str = name) -> RunConfig:
            return sampling_baseline(base(), name, rank1_lr)

        make.__doc__ = f"{described}, {spelled}."
        _RECIPES[f"{place}-{name}"] = make


_register_sampling("digits", "Residual CNN on scikit-learn's digits", digits_sgd)
_register_sampling("cifar10-resnet20", "ResNet-20 on CIFAR-10 for CPUs", cifar10_resnet20_sgd)


# ---- the paper's image settings ---------------------------------------------------------------------------------------------

_PAPER_EPOCHS = 200
_SPARSITIES = {"cifar10-resnet18": 0.9, "cifar10-wrn28-10": 0.9, "cifar100-resnet34": 0.7, "cifar100-wrn28-10": 0.8}


def _paper(dataset: str, network: str) -> RunConfig:
    """Return section 5's CV-Adam setting: 200 epochs, batch 64, 4 cycles, peak 1, β = (0.1, 1), k = 1/N, 3 samples a
    cycle.
    """
    return RunConfig(
        data=DataConfig(dataset, batch_size=64),
        network=NetworkConfig(network),
        sampler=SamplerConfig(
            "cvadam", lr=1.0, beta1=0.1, temperature=1 / 50_000, preconditioner="paper", noise="paper"
        ),
        schedule=ScheduleConfig(_PAPER_EPOCHS, cycles=4, samples_per_cycle=3),
    )


def _paper_sgd(dataset: str, network: str) -> RunConfig:
    base = _paper(dataset, network)
    sgd = SamplerConfig("sgd", lr=0.1, beta1=0.9)
    return replace(base, sampler=sgd, schedule=ScheduleConfig(_PAPER_EPOCHS))


def _paper_pruned(dataset: str, network: str, target: float, feedback: str) -> RunConfig:
    base = _paper(dataset, network)
    return replace(
        base,
        sampler=replace(base.sampler, method="emmcmc"),
        pruning=PruningConfig(target_sparsity=target, groups="kernel", feedback=feedback),
    )


def _register_paper() -> None:
    for place, target in _SPARSITIES.items():
        dataset, _, short = place.partition("-")
        network = short.replace("-", "_")
        described = f"{network} on {dataset} at the paper's setting"

        def add(suffix: str, text: str, make: Callable[[], RunConfig], place: str = place) -> None:
            make.__doc__ = text
            _RECIPES[f"{place}{suffix}"] = make

        add("", f"{described}, CV-Adam.", lambda d=dataset, n=network: _paper(d, n))  # type: ignore[misc]
        add("-sgd", f"{described}, Nesterov SGD.", lambda d=dataset, n=network: _paper_sgd(d, n))  # type: ignore[misc]
        for suffix, feedback in (("-dfp", "none"), ("-dpf", "dense_copy")):
            add(
                suffix,
                f"{described}, EM-MCMC {suffix[1:].upper()} to {target:.0%} of the prunable weights.",
                lambda d=dataset, n=network, t=target, f=feedback: _paper_pruned(d, n, t, f),  # type: ignore[misc]
            )
        _register_baselines(place, described, lambda d=dataset, n=network: _paper_sgd(d, n), target)  # type: ignore[misc]
        _register_sampling(place, described, lambda d=dataset, n=network: _paper_sgd(d, n), 0.05)  # type: ignore[misc]
        words = f"{network} on {dataset}"
        _RECIPES.update(best(place, words, lambda d=dataset, n=network: _paper(d, n), target))  # type: ignore[misc]


_register_paper()
_RECIPES.update(imagenet_recipes.RECIPES)
_IMAGENET = ("imagenet-resnet50", "resnet50 on ImageNet at the paper's setting", imagenet_recipes.imagenet_resnet50_sgd)
_register_baselines(*_IMAGENET, 0.8)
_register_sampling(*_IMAGENET, 0.05)
_RECIPES.update(twins(sparse_baseline, sampling_baseline))
