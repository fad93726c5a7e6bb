"""The baselines of a place: every sparse-training, sampling and ensembling method on its SGD setting."""

from __future__ import annotations

from dataclasses import replace

from bayesprune.baselines.presets import published
from bayesprune.train.config import BaselineConfig, PruningConfig, RunConfig, SamplerConfig, ScheduleConfig
from bayesprune.train.methods import ROWS
from bayesprune.train.recipes import Maker, register_recipe

ENSEMBLING = {
    "csgld": "cyclical SGLD", "csghmc": "cyclical SGHMC", "rank1": "rank-1 BNN", "rank1-cauchy": "rank-1 BNN, Cauchy",
    "swag": "SWAG", "ensemble": "deep ensemble of 4",
}  # fmt: skip


def sparse_baseline(base: RunConfig, method: str, target: float) -> RunConfig:
    """Return an SGD run's configuration with a sparse-training baseline, the layers dense that its authors left dense."""
    preset = published(method, base.network.network)
    pruning = PruningConfig(
        target, prune_from=0.0, prune_until=preset.until, dense_layers="published", exclude=base.pruning.exclude
    )
    return replace(base, sampler=replace(base.sampler, method=method), pruning=pruning)


def sampling_baseline(base: RunConfig, name: str, rank1_lr: float = 0.1) -> RunConfig:
    """Return an SGD run's configuration as one of the sampling or ensembling baselines at its published setting."""
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


def add_baselines(place: str, described: str, base: Maker, target: float, lr: float | None = None) -> None:
    """Add the recipes of the sparse-training baselines at a place; `lr` is of those that are sparse from the start."""
    for row in (row for row in ROWS if "dense_layers" in row.keys):  # the built-in sparse-training baselines

        def make(method: str = row.name, own: float | None = None if row.ramped else lr) -> RunConfig:
            config = sparse_baseline(base(), method, target)
            return config if own is None else replace(config, sampler=replace(config.sampler, lr=own))

        suffix = "dpf-sgd" if row.name == "dpf" else row.name.replace("_", "-")  # -dpf is EM-MCMC's
        register_recipe(f"{place}-{suffix}", make, f"{described}, {row.text} to {target:.0%} of the prunable weights.")


def add_ensembles(place: str, described: str, base: Maker, rank1_lr: float = 0.1) -> None:
    """Add the recipes of the sampling and ensembling baselines at a place."""
    for name, spelled in ENSEMBLING.items():

        def make(name: str = name) -> RunConfig:
            return sampling_baseline(base(), name, rank1_lr)

        register_recipe(f"{place}-{name}", make, f"{described}, {spelled}.")
