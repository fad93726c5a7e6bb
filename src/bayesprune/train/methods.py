"""The rows of the built-in training methods, and how each builds its optimizer and its pruner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from bayesprune.baselines.presets import published
from bayesprune.common.lazy import later
from bayesprune.train.config import PruningConfig, RunConfig, ScheduleConfig
from bayesprune.train.registry import Method, register_method, sparse_baselines
from bayesprune.train.values import in_epochs, in_shares

if TYPE_CHECKING:  # the rows are listed without torch
    import torch
    from torch import nn

# ---- optimizers -----------------------------------------------------------------------------------------------------


def sgd(config: RunConfig, parameters: Any, num_data: int) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum."""
    import torch

    wanted = config.sampler
    return torch.optim.SGD(
        parameters, lr=wanted.lr, momentum=wanted.beta1, nesterov=wanted.beta1 > 0, weight_decay=wanted.weight_decay
    )


def sampler_settings(config: RunConfig, num_data: int) -> dict[str, Any]:
    """Return the settings that every sampler takes."""
    wanted = config.sampler
    return {
        "lr": wanted.lr, "num_data": num_data, "temperature": wanted.temperature, "weight_decay": wanted.weight_decay,
        "seed": config.seed,
    }  # fmt: skip


def cv_adam(config: RunConfig, parameters: Any, num_data: int) -> torch.optim.Optimizer:
    """Return CV-Adam."""
    from bayesprune.samplers import CVAdam

    wanted = config.sampler
    return CVAdam(
        parameters, betas=(wanted.beta1, wanted.beta2), preconditioner=wanted.preconditioner,  # type: ignore[arg-type]
        scale_decay=wanted.scale_decay, dual_lr=wanted.dual_lr, noise=wanted.noise,  # type: ignore[arg-type]
        global_scale="paper" if wanted.global_scale == "paper" else float(wanted.global_scale),
        **sampler_settings(config, num_data),
    )  # fmt: skip


def _sgld(config: RunConfig, parameters: Any, num_data: int) -> torch.optim.Optimizer:
    from bayesprune.samplers import SGLD

    return SGLD(parameters, **sampler_settings(config, num_data))


def _sghmc(config: RunConfig, parameters: Any, num_data: int) -> torch.optim.Optimizer:
    from bayesprune.samplers import SGHMC

    return SGHMC(parameters, betas=(config.sampler.beta1, 1.0), **sampler_settings(config, num_data))


# ---- pruners ----------------------------------------------------------------------------------------------------------


def ramp_steps(config: RunConfig, total_steps: int) -> tuple[int, int]:
    """Return the steps at which the ramp begins and the target is reached, of a run of so many steps."""
    pruning, epochs = config.pruning, config.schedule.epochs
    begin, end = (int(in_shares(span, epochs) * total_steps) for span in (pruning.prune_from, pruning.prune_until))
    return begin, end


def dense_layers(config: RunConfig, model: nn.Module) -> tuple[str, ...]:
    """Return what a run never prunes: `exclude`, and what the baseline's authors left dense where that is known and asked for."""
    pruning = config.pruning
    if pruning.dense_layers == "none" or config.sampler.method not in sparse_baselines():
        return pruning.exclude
    found = published(config.sampler.method, config.network.network).exclude(model)
    return (*pruning.exclude, *(name for name in found if name not in pruning.exclude))


def _spike_slab(config: RunConfig, model: nn.Module, optimizer: Any, total_steps: int, example: torch.Tensor) -> Any:
    from bayesprune.sparsity import FeedbackPruning, ForwardPruning

    pruning = config.pruning
    begin, end = ramp_steps(config, total_steps)
    settings: dict[str, Any] = {
        "groups": pruning.groups,
        "scope": pruning.scope,
        "min_groups": pruning.min_groups,
        "round_to": pruning.round_to,
        "keep_ends": bool(pruning.keep_ends),
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


def _gradual_channels(
    config: RunConfig, model: nn.Module, optimizer: Any, total_steps: int, example: torch.Tensor
) -> Any:
    from bayesprune.baselines import gradual_channel_pruning

    pruning = config.pruning
    begin, end = ramp_steps(config, total_steps)
    return gradual_channel_pruning(
        model, optimizer, target_sparsity=pruning.target_sparsity, start_step=begin, end_step=end,
        every=100 if pruning.every is None else pruning.every, exclude=pruning.exclude, example_input=example,
        scope=pruning.scope, min_groups=pruning.min_groups,  # type: ignore[arg-type]
    )  # fmt: skip


def sparse(
    kind: Callable[..., Any],
    keys: frozenset[str],
    *,
    every: int | None = 100,
    whole_run: bool = False,
    seeded: bool = True,
) -> Callable[..., Any]:
    """Return the `pruner` of a row, built from a sparse-training class."""

    def build(config: RunConfig, model: nn.Module, optimizer: Any, total_steps: int, example: torch.Tensor) -> Any:
        pruning = config.pruning
        begin, end = ramp_steps(config, total_steps)
        own = total_steps // config.schedule.epochs if every is None else every
        settings: dict[str, Any] = {
            "target_sparsity": pruning.target_sparsity,
            "exclude": dense_layers(config, model),
            "end_step": total_steps if whole_run else max(1, end),
            "every": own if pruning.every is None else pruning.every,
        }
        if "prune_from" in keys:
            settings["start_step"] = begin
        if seeded:
            settings["seed"] = config.seed
        if "distribution" in keys and pruning.distribution != "own":
            settings["distribution"] = pruning.distribution
        if "drop_fraction" in keys and pruning.drop_fraction is not None:
            settings["drop_fraction"] = pruning.drop_fraction
        return kind(model, optimizer, **settings)

    return build


# ---- what is refused ----------------------------------------------------------------------------------------------------


def _check_ensemble(config: RunConfig) -> None:
    schedule = config.schedule
    if config.samples_per_cycle != 1 or in_epochs(schedule.warmup_epochs, schedule.epochs):
        raise ValueError(
            f"samples_per_cycle={config.samples_per_cycle}, warmup_epochs={schedule.warmup_epochs}: an ensemble's cycles "
            "are its members; set samples_per_cycle=1 and warmup_epochs=0."
        )


def _check_swag(config: RunConfig) -> None:
    collect_from, epochs = config.baseline.collect_from, config.schedule.epochs
    if round(epochs * (1 - in_shares(collect_from, epochs))) < 2:
        raise ValueError(
            f"collect_from={collect_from} leaves swag less than two of {epochs} epochs to collect in; lower it."
        )


# ---- the rows -------------------------------------------------------------------------------------------------------------

SGD_KEYS = frozenset({"lr", "beta1", "weight_decay"})
SAMPLER_KEYS = SGD_KEYS | {"temperature"}
CV_ADAM_KEYS = SAMPLER_KEYS | {"beta2", "preconditioner", "scale_decay", "dual_lr", "noise", "global_scale"}
SCHEDULE_KEYS = frozenset(item.name for item in fields(ScheduleConfig))
SPARSE_KEYS = frozenset({"target_sparsity", "every", "exclude"})
RAMP = frozenset({"prune_from", "prune_until"})

_PLAIN = SGD_KEYS | SCHEDULE_KEYS
_NOISY = SAMPLER_KEYS | SCHEDULE_KEYS | {"noise_epochs"}
_MOVING = frozenset({"prune_until", "distribution", "drop_fraction"})
_SPIKE_SLAB = frozenset(item.name for item in fields(PruningConfig)) - {"dense_layers", "distribution", "drop_fraction"}
_LATER_CYCLES = frozenset({"first_cycle", "restart"})
_SAMPLES = frozenset({"cycles", "samples_per_cycle", "sample_every"}) | _LATER_CYCLES


_procedure = partial(later, "bayesprune.train.procedures")
_from_baselines = partial(later, "bayesprune.baselines")


def _baseline(name: str, text: str, kind: Callable[..., Any], own: frozenset[str], **settings: Any) -> Method:
    """Return the row of a sparse-training baseline on SGD."""
    keys = _PLAIN | SPARSE_KEYS | {"dense_layers"} | own
    return Method(name, text, sgd, keys, pruner=sparse(kind, keys, **settings), ramped=keys >= RAMP)


ROWS = (
    Method("sgd", "Nesterov SGD", sgd, _PLAIN),
    Method("cvadam", "CV-Adam", cv_adam, CV_ADAM_KEYS | SCHEDULE_KEYS, samples=4),
    Method(
        "emmcmc", "CV-Adam with spike-and-slab pruning", cv_adam, CV_ADAM_KEYS | SCHEDULE_KEYS | _SPIKE_SLAB,
        pruner=_spike_slab, ramped=True, samples=4,
    ),
    Method("csgld", "cyclical SGLD", _sgld, _NOISY - {"beta1"}, procedure=_procedure("Cyclical"), samples=4),
    Method("csghmc", "cyclical SGHMC", _sghmc, _NOISY, procedure=_procedure("Cyclical"), samples=4),
    Method(
        "rank1", "rank-1 BNN", sgd, procedure=_procedure("Rank1"),
        keys=(_PLAIN - _SAMPLES - {"lr_floor"}) | {"members", "prior", "prior_std", "random_sign", "annealing", "draws"},
    ),
    Method(
        "swag", "SWAG", sgd, procedure=_procedure("Swag"), check=_check_swag,
        keys=(_PLAIN - _SAMPLES - {"warmup_epochs"}) | {"rank", "collect_from", "draws"},
    ),
    Method(
        "ensemble", "deep ensemble", sgd, _PLAIN - _LATER_CYCLES - {"sample_every"},
        procedure=_procedure("Ensemble"), check=_check_ensemble, samples=1,
    ),
    _baseline(
        "sparse_momentum", "sparse momentum", _from_baselines("SparseMomentum"), _MOVING - {"prune_until"}, every=None,
        whole_run=True,
    ),
    _baseline(
        "dsr", "dynamic sparse reparameterization", _from_baselines("DynamicSparseReparameterization"),
        _MOVING - {"drop_fraction"},
    ),
    _baseline("set", "SET", _from_baselines("SET"), _MOVING, every=None),
    _baseline("rigl", "RigL", _from_baselines("RigL"), _MOVING),
    _baseline("gmp", "gradual magnitude pruning", _from_baselines("GradualMagnitudePruning"), RAMP | {"distribution"}),
    _baseline(
        "dpf", "DPF as its authors run it", _from_baselines("dynamic_pruning_with_feedback"), RAMP, every=16, seeded=False
    ),
    Method(
        "channel_gmp", "gradual L2 channel pruning", sgd, _PLAIN | SPARSE_KEYS | RAMP | {"scope", "min_groups"},
        pruner=_gradual_channels, ramped=True,
    ),
)  # fmt: skip
"""The built-in methods, in the order of lists."""

for _row in ROWS:
    register_method(_row)
