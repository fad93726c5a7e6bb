"""Our own settings for the paper's networks at the paper's epochs and batch. None has been run on a GPU yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bayesprune.train.config import PruningConfig, RunConfig, SamplerConfig, ScheduleConfig

_WARMUP, _SMOOTHING = 5.0, 0.05


def best_cvadam(paper: RunConfig) -> RunConfig:
    """Return a setting of the paper's CV-Adam with one long cycle, exact noise, warm-up and label smoothing.

    One cosine cycle instead of four gives the network its whole budget to converge; the 12 samples come from the last
    tenth, where the rate rests on a floor of 2 % so that they differ. β₁ = 0.9 at l = 0.2 moves weights like Nesterov SGD's
    0.1 at τ = ½.

    Args:
        paper: The paper's CV-Adam setting.
    """
    epochs = paper.schedule.epochs
    temperature = paper.sampler.temperature
    return replace(
        paper,
        network=replace(paper.network, label_smoothing=_SMOOTHING),
        sampler=SamplerConfig("cvadam", lr=0.2, beta1=0.9, temperature=temperature, preconditioner="paper"),
        schedule=ScheduleConfig(
            epochs, cycles=1, warmup_epochs=min(_WARMUP, epochs / 10), samples_per_cycle=12,
            sample_every=max(0.1, epochs / 120), lr_floor=0.02,
        ),
    )  # fmt: skip


def best_pruned(paper: RunConfig, target: float, feedback: str) -> RunConfig:
    """Return that setting with EM-MCMC by single weights, the ramp from 5 % to half of the run.

    Args:
        paper: The paper's CV-Adam setting.
        target: Share of the prunable weights at zero.
        feedback: "none" (DFP) or "dense_copy" (DPF).
    """
    base = best_cvadam(paper)
    pruning = PruningConfig(target, feedback=feedback, groups="weight", every=16, prune_from=0.05, prune_until=0.5)
    return replace(base, sampler=replace(base.sampler, method="emmcmc"), pruning=pruning)


def best(
    place: str, described: str, paper: Callable[[], RunConfig], target: float
) -> dict[str, Callable[[], RunConfig]]:
    """Return the recipes of one place by name.

    Args:
        place: Data set and network, as in the recipes' names.
        described: The same in words.
        paper: The paper's CV-Adam setting there.
        target: Sparsity of the pruned ones.
    """

    def sampled() -> RunConfig:
        return best_cvadam(paper())

    sampled.__doc__ = f"{described}, CV-Adam at our own setting (not yet run on a GPU)."
    found: dict[str, Callable[[], RunConfig]] = {f"{place}-best": sampled}
    for name, feedback in (("dfp", "none"), ("dpf", "dense_copy")):

        def pruned(feedback: str = feedback) -> RunConfig:
            return best_pruned(paper(), target, feedback)

        text = f"{described}, EM-MCMC {name.upper()} to {target:.0%} at our own setting (not yet run on a GPU)."
        pruned.__doc__ = text
        found[f"{place}-{name}-best"] = pruned
    return found
