"""CIFAR at real accuracy on CPUs that multiply bf16: whitened networks, one thread a run."""

from __future__ import annotations

from dataclasses import replace

from bayesprune.train.baseline_recipes import add_baselines, add_ensembles
from bayesprune.train.config import (
    DataConfig,
    NetworkConfig,
    PruningConfig,
    RunConfig,
    RuntimeConfig,
    SamplerConfig,
    ScheduleConfig,
)
from bayesprune.train.recipes import register_recipe

_EPOCHS = {"94": 14, "95": 18, "96": 40}
_TARGET = 0.9


def cifar10_sgd(size: str) -> RunConfig:
    """Return Nesterov SGD on a whitened network, with eight late snapshots.

    Args:
        size: "94", "95" or "96", the accuracy that the network is made for.
    """
    epochs = _EPOCHS[size]
    return RunConfig(
        data=DataConfig(
            "cifar10", batch_size=1024, padding=2, padding_mode="reflect", alternate=True, test_views="mirror"
        ),
        network=NetworkConfig(f"whitened{size}", label_smoothing=0.05),
        sampler=SamplerConfig("sgd", lr=1.5, beta1=0.85, weight_decay=0.00133),
        schedule=ScheduleConfig(
            epochs, warmup_epochs=epochs / 5, samples_per_cycle=8, sample_every=0.25, lr_floor=0.05
        ),
        pruning=PruningConfig(exclude=("whiten",)),  # of whatever prunes on it: the stem is computed, not learned
        runtime=RuntimeConfig(precision="bf16-mixed", evaluate_every=None, trace_channels=0),
    )


def cifar10_cvadam(size: str) -> RunConfig:
    """Return CV-Adam whose weights move like SGD's; a first setting, behind SGD's by half a point on held-out images."""
    sampler = SamplerConfig(
        "cvadam", lr=3.0, beta1=0.85, temperature=2e-5, preconditioner="paper", weight_decay=0.00133
    )
    return replace(cifar10_sgd(size), sampler=sampler)


def _pruned(base: RunConfig, method: str, groups: str, feedback: str = "none") -> RunConfig:
    """Return a setting with a pruner on the ramp that all of them share; a first setting."""
    pruning = replace(
        base.pruning, target_sparsity=_TARGET, feedback=feedback, groups=groups, every=16, prune_from=0.1,
        prune_until=0.6, scope="layer" if groups == "channel" else "global",
    )  # fmt: skip
    return replace(base, sampler=replace(base.sampler, method=method), pruning=pruning)


def _register(size: str) -> None:
    place, words = f"cifar10-{size}", f"Whitened network for {size} % of CIFAR-10"
    to = f"to {_TARGET:.0%} of the prunable weights"
    register_recipe(f"{place}-sgd", lambda: cifar10_sgd(size), f"{words}, Nesterov SGD with 8 late snapshots.")
    register_recipe(
        f"{place}-cvadam", lambda: cifar10_cvadam(size), f"{words}, CV-Adam with 8 samples (a first setting)."
    )
    for groups, suffix in (("weight", ""), ("channel", "-channel")):
        for name, feedback in (("dfp", "none"), ("dpf", "masked" if groups == "channel" else "dense_copy")):
            register_recipe(
                f"{place}-{name}{suffix}",
                lambda groups=groups, feedback=feedback: _pruned(cifar10_cvadam(size), "emmcmc", groups, feedback),  # type: ignore[misc]
                f"{words}, EM-MCMC {name.upper()} by {groups}s {to} (a first setting).",
            )
    register_recipe(
        f"{place}-channel-gmp",
        lambda: _pruned(cifar10_sgd(size), "channel_gmp", "channel"),
        f"{words}, gradual L2 channel pruning {to}.",
    )
    add_baselines(place, words, lambda: cifar10_sgd(size), _TARGET)
    add_ensembles(place, words, lambda: cifar10_sgd(size))


for _size in _EPOCHS:
    _register(_size)
