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

PLACES = {
    "cifar10-94": ("cifar10", NetworkConfig("whitened94"), 14, "Whitened network for 94 % of CIFAR-10"),
    "cifar10-95": ("cifar10", NetworkConfig("whitened95"), 18, "Whitened network for 95 % of CIFAR-10"),
    "cifar10-96": ("cifar10", NetworkConfig("whitened96"), 40, "Whitened network for 96 % of CIFAR-10"),
    "cifar100-72": ("cifar100", NetworkConfig("whitened94"), 16, "Whitened network on CIFAR-100"),
}
"""Data set, network, epochs and words of each place; places are named by an accuracy to reach; docs/images.md has what was measured."""
_TARGET = 0.9


def whitened_sgd(place: str) -> RunConfig:
    """Return Nesterov SGD on a whitened network, with eight late snapshots.

    Args:
        place: Name in `PLACES`.
    """
    dataset, network, epochs, _ = PLACES[place]
    return RunConfig(
        data=DataConfig(
            dataset, batch_size=1024, padding=2, padding_mode="reflect", alternate=True, test_views="mirror"
        ),
        network=replace(network, label_smoothing=0.02),
        sampler=SamplerConfig("sgd", lr=1.5, beta1=0.85, weight_decay=0.00133),
        schedule=ScheduleConfig(
            epochs, warmup_epochs=epochs / 5, samples_per_cycle=8, sample_every=0.25, lr_floor=0.05
        ),
        pruning=PruningConfig(exclude=("whiten",)),  # of whatever prunes on it: the stem is computed, not learned
        runtime=RuntimeConfig(precision="bf16-mixed", evaluate_every=None, trace_channels=0),
    )


def whitened_cvadam(place: str) -> RunConfig:
    """Return CV-Adam whose weights move like SGD's, with 8 samples of the last two epochs, on labels as they are."""
    base = whitened_sgd(place)
    sampler = SamplerConfig(
        "cvadam", lr=2.0, beta1=0.85, temperature=2e-5, preconditioner="paper", weight_decay=0.00133
    )
    return replace(
        base, sampler=sampler, network=replace(base.network, label_smoothing=0.0),
        schedule=replace(base.schedule, lr_floor=0.1),
    )  # fmt: skip


def _pruned(base: RunConfig, method: str, groups: str, feedback: str = "none") -> RunConfig:
    """Return a setting with a pruner on the ramp that all of them share; chosen on held-out images of a small network."""
    pruning = replace(
        base.pruning, target_sparsity=_TARGET, feedback=feedback, groups=groups, every=16, prune_from=0.1,
        prune_until=0.75, spike_decay=2 * base.sampler.weight_decay, scope="layer" if groups == "channel" else "global",
    )  # fmt: skip
    schedule = replace(base.schedule, lr_floor=0.05)
    return replace(base, sampler=replace(base.sampler, method=method), schedule=schedule, pruning=pruning)


def _register(place: str) -> None:
    words, to = PLACES[place][3], f"to {_TARGET:.0%} of the prunable weights"
    register_recipe(f"{place}-sgd", lambda: whitened_sgd(place), f"{words}, Nesterov SGD with 8 late snapshots.")
    register_recipe(
        f"{place}-cvadam", lambda: whitened_cvadam(place), f"{words}, CV-Adam with 8 samples of its last two epochs."
    )
    for groups, suffix in (("weight", ""), ("channel", "-channel")):
        for name, feedback in (("dfp", "none"), ("dpf", "masked")):
            register_recipe(
                f"{place}-{name}{suffix}",
                lambda groups=groups, feedback=feedback: _pruned(whitened_cvadam(place), "emmcmc", groups, feedback),  # type: ignore[misc]
                f"{words}, EM-MCMC {name.upper()} by {groups}s {to}.",
            )
    register_recipe(
        f"{place}-channel-gmp",
        lambda: _pruned(whitened_sgd(place), "channel_gmp", "channel"),
        f"{words}, gradual L2 channel pruning {to}.",
    )
    add_baselines(place, words, lambda: whitened_sgd(place), _TARGET, lr=0.5)
    add_ensembles(place, words, lambda: whitened_sgd(place))


for _place in PLACES:
    _register(_place)
