"""CPU twins of Table 1's methods: a half-width ResNet-20, 10,000 training images, 10 epochs, a minute on one core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bayesprune.train.baseline_recipes import SPARSE, sampling_baseline, sparse_baseline
from bayesprune.train.config import (
    DataConfig,
    NetworkConfig,
    PruningConfig,
    RunConfig,
    RuntimeConfig,
    SamplerConfig,
    ScheduleConfig,
)
from bayesprune.train.recipes import recipe, register_recipe

_DESCRIBED = "CPU twin (half-width ResNet-20 on half-size features, 10,000 images, 10 epochs)"
_TARGET = 0.9


@recipe
def twin_sgd() -> RunConfig:
    """CPU twin (half-width ResNet-20 on half-size features, 10,000 images, 10 epochs), Nesterov SGD."""
    return RunConfig(
        data=DataConfig("cifar10", train_size=10_000, batch_size=64),
        network=NetworkConfig("resnet20", width=8, stem_stride=2),
        sampler=SamplerConfig("sgd", lr=0.1, beta1=0.9),
        schedule=ScheduleConfig(epochs=10),
        runtime=RuntimeConfig(evaluate_every=None, trace_channels=0),
    )


@recipe
def twin_cvadam() -> RunConfig:
    """CPU twin (half-width ResNet-20 on half-size features, 10,000 images, 10 epochs), CV-Adam with 8 samples."""
    return replace(
        twin_sgd(),
        sampler=SamplerConfig("cvadam", lr=2.0, beta1=0.5, temperature=1e-4, preconditioner="paper"),
        schedule=ScheduleConfig(epochs=10, warmup_epochs=1, samples_per_cycle=8, sample_every=0.25, lr_floor=0.05),
    )


def _emmcmc(groups: str, feedback: str, every: int | None = None) -> Callable[[], RunConfig]:
    def make() -> RunConfig:
        base = twin_cvadam()  # all chosen on 5,000 held-out training images
        pruning = PruningConfig(_TARGET, feedback, groups, every=every, prune_from=0.1, prune_until=0.6)
        sampler, schedule = replace(base.sampler, method="emmcmc", lr=1.0), base.schedule
        if groups == "channel":
            pruning = replace(pruning, scope="layer", spike_decay=5.5e-4)
            sampler = replace(sampler, lr=base.sampler.lr)
            schedule = replace(schedule, warmup_epochs=0.3, lr_floor=0.0, sample_every=0.2)
        return replace(base, sampler=sampler, schedule=schedule, pruning=pruning)

    name = "DFP" if feedback == "none" else "DPF"
    make.__doc__ = f"{_DESCRIBED}, EM-MCMC {name} by {groups}s to {_TARGET:.0%} of the prunable weights."
    return make


def _channel_gmp() -> RunConfig:
    base = twin_sgd()
    pruning = PruningConfig(_TARGET, groups="channel", scope="layer", every=10, prune_from=0.1, prune_until=0.6)
    return replace(base, sampler=replace(base.sampler, method="channel_gmp"), pruning=pruning)


_channel_gmp.__doc__ = f"{_DESCRIBED}, gradual L2 channel pruning on SGD to {_TARGET:.0%} of the prunable weights."


for _name in ("csgld", "csghmc", "rank1", "ensemble", "swag"):

    def _sampled(name: str = _name) -> RunConfig:
        config = sampling_baseline(twin_sgd(), name, 0.05)
        return replace(config, baseline=replace(config.baseline, random_sign=1.0)) if name == "rank1" else config

    register_recipe(f"twin-{_name}", _sampled, f"{_DESCRIBED}, {_name}.")
for _row in SPARSE:

    def _sparse(method: str = _row.name) -> RunConfig:
        return sparse_baseline(twin_sgd(), method, _TARGET)

    register_recipe(
        "twin-dpf-sgd" if _row.name == "dpf" else f"twin-{_row.name.replace('_', '-')}",
        _sparse,
        f"{_DESCRIBED}, {_row.name} to {_TARGET:.0%} of the prunable weights.",
    )
for _place, _make in {
    "dfp": _emmcmc("weight", "none"),
    "dpf": _emmcmc("weight", "dense_copy"),
    "dfp-kernel": _emmcmc("kernel", "none"),
    "dpf-kernel": _emmcmc("kernel", "dense_copy"),
    "dfp-channel": _emmcmc("channel", "none", 10),
    "dpf-channel": _emmcmc("channel", "masked", 10),
    "channel-gmp": _channel_gmp,
}.items():
    register_recipe(f"twin-{_place}", _make)
