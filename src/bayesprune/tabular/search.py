"""The search: chains on all inputs, pruned by EM-MCMC to a few candidates each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bayesprune.samplers import CycleClock
from bayesprune.sparsity import FeedbackPruning, ForwardPruning, SpikeSlabPrior
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.rows import Rows
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer

_MEMORY = 5 * 10**8  # entries of the narrowed copies of all chains (2 GB)


@dataclass(frozen=True)
class SearchSettings:
    """How candidates are found."""

    hidden: tuple[int, ...] = (64, 32)
    activation: str = "relu"
    steps: int = 700
    candidates: int = 32
    feedback: str = "none"
    warmup: float = 0.15
    pruned: float = 0.65
    chain: ChainSettings = field(
        default_factory=lambda: ChainSettings(
            lr=0.1, beta1=0.9, precision=30.0, largest_decay=0.05, temperature=0.01, cold=True
        )
    )
    slab_precision: float = 60.0
    spike_precision: float = 4000.0
    first_scale: float = 0.1
    every: int = 4

    def decays(self, num_data: float) -> tuple[float, float]:
        """Return the weight decays (spike, slab): precisions over rows, the spike's at most 0.4 for stable steps."""
        slab = min(self.slab_precision / num_data, self.chain.largest_decay)
        return max(min(self.spike_precision / num_data, 0.4), 2 * slab), slab


@dataclass
class SearchResult:
    """What a search found."""

    net: ChainMLP
    columns: Tensor
    rows: Rows
    steps: list[int]
    loss: list[Tensor]
    path: list[Tensor]
    soft_threshold: float
    hard_threshold: list[float]
    lr: float
    slab: Tensor


def search(
    rows: Rows,
    weights: Tensor | None,
    chains: int,
    outputs: int,
    settings: SearchSettings,
    *,
    expected: float,
    seed: int,
) -> SearchResult:
    """Prune every chain from all inputs to its candidates while it learns."""
    lr = settings.chain.lr
    for _ in range(4):
        tuned = replace(settings, chain=replace(settings.chain, lr=lr))
        result = _attempt(rows, weights, chains, outputs, tuned, expected, seed)
        if result is not None:
            return result
        lr /= 3
    raise RuntimeError(
        f"the search diverges at lr={settings.chain.lr:g} and at {lr * 3:.2g}: look for outliers in X or y (a column "
        "whose largest standardised value is far above the others)"
    )


def stage_sizes(p: int, candidates: int, chains: int, count: int) -> list[int]:
    """Return how many inputs each stage leaves: a quarter of what there is (less where memory asks for it), down to the
    candidates.
    """
    largest = max(candidates, _MEMORY // max(1, chains * count))
    sizes = []
    while p > 8 * candidates:
        p = max(candidates, min(p // 4, largest))
        if p > 4 * candidates:
            sizes.append(p)
    return [*sizes, min(p, candidates)]


def _attempt(
    rows: Rows, weights: Tensor | None, chains: int, outputs: int, settings: SearchSettings, expected: float, seed: int
) -> SearchResult | None:
    p = rows.p
    candidates = min(settings.candidates, p)
    generator = torch.Generator().manual_seed(seed)
    net = ChainMLP(
        chains,
        (p, *settings.hidden, outputs),
        activation=settings.activation,
        generator=generator,
        first_scale=settings.first_scale,
    )
    columns = torch.arange(p).expand(chains, p)
    clock = CycleClock(settings.steps, floor=0.02)
    forward = settings.feedback == "none"
    sizes = stage_sizes(p, candidates, chains, rows.count) if forward else [candidates]
    warmup, pruned = round(settings.warmup * settings.steps), round(settings.pruned * settings.steps)
    ends = [warmup + (pruned - warmup) * (i + 1) // len(sizes) for i in range(len(sizes))]
    inclusion = min(max(expected / p, 1e-9), 0.5)
    learners = float(rows.count if weights is None else weights[0, : rows.count].sum())
    prior = SpikeSlabPrior(*settings.decays(learners), learners, inclusion=inclusion)
    threshold = prior.threshold(settings.hidden[0] if settings.hidden else outputs)
    result = SearchResult(net, columns, rows, [], [], [], threshold, [], settings.chain.lr, columns >= 0)
    done = 0
    for size, end in zip(sizes, ends):
        trainer = ChainTrainer(net, rows, weights, settings.chain, seed=seed + done)
        trainer.optimizer.set_weight_decay(net.first.weight, settings.decays(trainer.num_data)[1])
        first_stage = done == 0
        pruner = _pruner(trainer, settings, size, warmup if first_stage else 0, end - done, inclusion)
        if not _run(trainer, pruner, prior, result, columns, p, clock, done, end - done):
            return None
        pruner.finish_()
        keep = pruner.keep_masks["layers.0.weight"].view(chains, -1)
        pruner.detach()
        kept = _kept(keep, size)
        net, rows = net.choose(torch.arange(chains), kept), rows.narrowed(kept)
        columns = columns.gather(1, kept.clamp_min(0)).masked_fill(kept < 0, -1)
        done = end
    if done < settings.steps:
        trainer = ChainTrainer(net, rows, weights, settings.chain, seed=seed + done)
        pruner = _pruner(trainer, settings, None, 0, 0, inclusion)
        if not _run(trainer, pruner, prior, result, columns, p, clock, done, settings.steps - done):
            return None
        result.slab = pruner.soft_masks["layers.0.weight"].view(chains, -1)
        pruner.detach()
    result.net, result.columns, result.rows = net, columns, rows
    return result


def _pruner(
    trainer: ChainTrainer, settings: SearchSettings, size: int | None, warmup: int, ramp_end: int, inclusion: float
) -> ForwardPruning | FeedbackPruning:
    """Return the ramp's pruner, or (no size) the EM's."""
    make = ForwardPruning if settings.feedback == "none" else FeedbackPruning
    width = trainer.rows.p
    spike, slab = settings.decays(trainer.num_data)
    options: dict[str, Any] = {"inclusion_probability": inclusion, "em_only": True}
    if size is not None:
        target = 1 - min(size, width) / width
        options = {"soft_threshold": 0.0, "sparsity": target, "ramp_end_step": ramp_end}
    return make(
        trainer.net,
        trainer.optimizer,
        groups="input",
        keep_ends=False,
        scope="chain",
        exclude=[f"layers.{depth}" for depth in range(1, len(trainer.net.layers))],
        spike_decay=spike,
        slab_decay=slab,
        warmup_steps=warmup,
        every=settings.every,
        expectation="running",
        **options,
    )


def _run(
    trainer: ChainTrainer,
    pruner: ForwardPruning | FeedbackPruning,
    prior: SpikeSlabPrior,
    result: SearchResult,
    columns: Tensor,
    p: int,
    clock: CycleClock,
    done: int,
    steps: int,
) -> bool:
    """Run a stage and record the paths; returns whether every chain stayed finite."""
    every = max(1, clock.total_steps // 50)
    chains = trainer.net.chains
    losses: list[Tensor] = []

    def record(step: int) -> None:
        if (done + step + 1) % every:
            return
        weights = trainer.net.input_weights().detach()
        probability = prior.posterior_inclusion(weights.square().sum(1), weights.shape[1])
        full = torch.zeros(chains, p, dtype=torch.float16)
        full.scatter_(1, columns.clamp_min(0), probability.to(torch.float16) * (columns >= 0))
        keep = pruner.keep_masks["layers.0.weight"].view(chains, -1)
        means = weights.square().mean(1)
        result.steps.append(done + step + 1)
        result.path.append(full)
        result.hard_threshold.append(float(means.masked_fill(~keep, torch.inf).min()))

    losses = trainer.run(steps, lambda step: clock.lr(done + step), record)
    recorded = [t - done - 1 for t in result.steps if t > done]
    result.loss += [losses[step] for step in recorded]
    return all(bool(loss.isfinite().all()) for loss in losses[-1:]) and bool(
        all(parameter.isfinite().all() for parameter in trainer.net.parameters())
    )


def _kept(keep: Tensor, size: int) -> Tensor:
    """Return the numbers of the columns that each chain keeps, ascending, with −1 behind them."""
    order = torch.sort((~keep).to(torch.int8), dim=1, stable=True).indices[:, :size]
    return order.masked_fill(~keep.gather(1, order), -1)


def candidate_union(columns: Sequence[Tensor]) -> list[int]:
    """Return the inputs that some chain holds, ascending."""
    found = {int(i) for chain in columns for i in chain.tolist()}
    return sorted(found - {-1})
