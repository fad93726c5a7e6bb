"""Posterior samples of a network on the selected inputs: several starts, the best kept, cycles with samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bayesprune.samplers import CycleClock
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.rows import Rows
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer, log_likelihood

_WORSE = 2.0  # a training loss of so many times that of a constant prediction is divergence


@dataclass(frozen=True)
class SamplingSettings:
    """How the predictive network is sampled.

    Args:
        hidden: hidden widths.
        activation: "relu", "tanh" or "silu".
        starts: networks started on all rows of a data set.
        kept: of them go on to be sampled: those of the highest likelihood after the burn-in.
        folds: networks that leave out one of so many folds each, for an honest noise variance; 0 is none.
        burn_in: steps of one cosine before sampling.
        cycles: cycles after it.
        cycle_steps: steps of each.
        samples: samples a cycle and network.
        chain: how the chains move.
        precisions: prior precisions to choose from by the folds' held-out loss; none is `chain.precision` as it is.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "silu"
    starts: int = 4
    kept: int = 4
    folds: int = 5
    burn_in: int = 1500
    cycles: int = 2
    cycle_steps: int = 400
    samples: int = 5
    chain: ChainSettings = field(
        default_factory=lambda: ChainSettings(lr=0.1, beta1=0.9, precision=1.0, temperature=1.0, damping=0)
    )
    precisions: tuple[float, ...] = ()

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return max(1, len(self.precisions)) * (self.burn_in + self.cycles * self.cycle_steps)


@dataclass
class PosteriorNetworks:
    """Sampled networks of one data set, all weights of all samples as stacked tensors.

    Args:
        net: samples as the chains of one `ChainMLP`, on standardised selected inputs.
        weight: (M,) weight of each sample in averages, summing to 1.
        noise_variance: of the standardised response; nan for labels.
        precision: prior precision of every weight.
        held_out: loss on left-out rows, squared error or cross-entropy; nan without folds.
    """

    net: ChainMLP
    weight: Tensor
    noise_variance: float
    precision: float = float("nan")
    held_out: float = float("nan")

    @torch.no_grad()
    def outputs(self, x: np.ndarray, block: int = 4096) -> Tensor:
        """Return (M, n, k) outputs at standardised rows of the selected columns (zeros behind them, if they are few).

        In float64, so that a row's prediction does not depend on which rows stand beside it.
        """
        missing = self.net.sizes[0] - x.shape[1]
        if missing > 0:
            x = np.pad(x, ((0, 0), (0, missing)))
        net = copy.deepcopy(self.net).double()
        parts = [net(torch.from_numpy(x[i : i + block]).double()[None]) for i in range(0, len(x), block)]
        return torch.cat(parts, 1) if parts else torch.zeros(net.chains, 0, net.sizes[-1], dtype=torch.float64)


def sample_posterior(
    rows: Rows, outputs: int, settings: SamplingSettings, *, masks: Tensor | None = None, seed: int
) -> list[PosteriorNetworks]:
    """Sample the posterior of a network on the columns of `rows`, for every data set at once.

    Starts are many because small networks fall into poor optima, dead ones among them: after the burn-in, the
    `settings.kept` of highest likelihood go on. With Bayes weights a start of lower likelihood by more than a few nats
    would count nothing anyway.

    Args:
        rows: of S data sets, on the inputs to use.
        outputs: outputs of the network.
        settings: how.
        masks: (S, M, p) which columns each of M starts of a data set has, all of which are kept (a model average over
            sets of inputs); None gives every start all of them.
        seed: of starts and noise.

    Returns:
        One entry a data set.

    Raises:
        RuntimeError: the networks diverge at 1/27 of the step size too.
    """
    if masks is not None:
        settings = replace(settings, starts=masks.shape[1], kept=masks.shape[1])
    wanted = _best_precisions(rows, outputs, settings, masks, seed)
    found = {
        precision: _converged(rows, outputs, _with_precision(settings, precision), masks, seed)
        for precision in sorted(set(wanted))
    }
    return [found[precision][which] for which, precision in enumerate(wanted)]


def _best_precisions(
    rows: Rows, outputs: int, settings: SamplingSettings, masks: Tensor | None, seed: int
) -> list[float]:
    """Return the prior precision of the least held-out loss for every data set, from fold networks of half the steps."""
    choices = settings.precisions or (settings.chain.precision,)
    if len(choices) == 1:
        return [choices[0]] * rows.sets
    few = settings.starts if masks is not None else 1
    short = replace(
        settings, starts=few, kept=few, burn_in=max(1, settings.burn_in // 2), cycles=1,
        cycle_steps=max(2 * settings.samples, settings.cycle_steps // 2),
    )  # fmt: skip
    losses = [
        [found.held_out for found in _converged(rows, outputs, _with_precision(short, choice), masks, seed)]
        for choice in choices
    ]
    return [choices[int(np.argmin([loss[which] for loss in losses]))] for which in range(rows.sets)]


def _with_precision(settings: SamplingSettings, precision: float) -> SamplingSettings:
    return replace(settings, chain=replace(settings.chain, precision=precision))


def _converged(
    rows: Rows, outputs: int, settings: SamplingSettings, masks: Tensor | None, seed: int
) -> list[PosteriorNetworks]:
    """Sample at the largest of a few step sizes that does not diverge."""
    lr = settings.chain.lr
    for _ in range(4):
        tuned = replace(settings, chain=replace(settings.chain, lr=lr))
        result = _attempt(rows, outputs, tuned, masks, seed)
        if result is not None:
            return result
        lr /= 3
    raise RuntimeError(
        f"the predictive network diverges at step sizes {settings.chain.lr:g} to {3 * lr:.2g}: look for outliers in the "
        "selected columns of X or in y"
    )


def _attempt(
    rows: Rows, outputs: int, settings: SamplingSettings, masks: Tensor | None, seed: int
) -> list[PosteriorNetworks] | None:
    """Sample once; None where a network that is needed predicts worse than chance, or nothing finite."""
    sets, starts, folds = rows.sets, settings.starts, settings.folds
    per_set = starts + folds
    generator = torch.Generator().manual_seed(seed)
    sizes = (rows.p, *settings.hidden, outputs)
    net = ChainMLP(sets * per_set, sizes, activation=settings.activation, generator=generator)
    shown = torch.ones(sets, per_set, rows.p) if masks is None else masks[:, torch.arange(per_set) % starts].float()
    shown = shown.view(-1, rows.p)
    weights = torch.ones(per_set, rows.count)
    for fold in range(folds):
        weights[starts + fold, fold::folds] = 0.0
    weights = torch.cat([weights, weights[:, : rows.batch_size]], 1).repeat(sets, 1)
    trainer = ChainTrainer(net, rows, weights if folds else None, settings.chain, seed=seed)
    burn = CycleClock(settings.burn_in, floor=0.05, warmup_steps=settings.burn_in // 20)
    hide = _hider(net, shown, masks)
    losses = torch.stack(trainer.run(settings.burn_in, burn, hide)[-max(50, rows.count // rows.batch_size) :]).mean(0)
    losses = losses.view(sets, per_set)
    losses = losses.nan_to_num(nan=torch.inf)
    best = losses[:, :starts].argsort(1)[:, : settings.kept]
    chosen = torch.cat([best, torch.arange(starts, per_set).expand(sets, -1)], 1)
    index = (chosen + per_set * torch.arange(sets)[:, None]).reshape(-1)
    chance = 0.5 if rows.y.is_floating_point() else math.log(max(2, outputs))
    if not bool((losses.view(-1)[index] < _WORSE * chance).all()):
        return None
    variance = trainer.variance[index]
    net = net.choose(index)
    hide = _hider(net, shown[index], masks)
    trainer = ChainTrainer(net, rows, weights[index] if folds else None, settings.chain, seed=seed + 1)
    trainer.variance, trainer.steps_done = variance, 10**6
    clock = CycleClock(
        settings.cycles * settings.cycle_steps,
        cycles=settings.cycles,
        samples_per_cycle=settings.samples,
        sample_every=max(1, settings.cycle_steps // (2 * settings.samples)),
        floor=0.1,
    )
    states: list[list[Tensor]] = []

    def collect(step: int) -> None:
        hide(step)
        if clock.collect(step):
            states.append([parameter.detach().clone() for parameter in net.parameters()])

    losses = torch.stack(trainer.run(clock.total_steps, lambda step: 0.5 * clock.lr(step), collect)).mean(0)
    if not bool((losses < _WORSE * chance).all()):
        return None
    return [_of_one_set(rows, which, net, states, settings) for which in range(sets)]


def _hider(net: ChainMLP, shown: Tensor, masks: Tensor | None) -> Callable[[int], None]:
    """Return what keeps the weights of columns that a chain does not have at zero, and put them there."""
    weight, shown = net.input_weights().data, shown[:, None, :]

    def hide(step: int) -> None:
        if masks is not None:
            weight.mul_(shown)

    hide(0)
    return hide


def _of_one_set(
    rows: Rows, which: int, net: ChainMLP, states: list[list[Tensor]], settings: SamplingSettings
) -> PosteriorNetworks:
    kept, folds = settings.kept, settings.folds
    per_set = kept + folds
    members = _stacked(net, states, range(which * per_set, which * per_set + kept))
    count = members.chains
    weight = torch.full((count,), 1.0 / count)
    result = PosteriorNetworks(members, weight, float("nan"), settings.chain.precision)
    x, y = rows.x[which, : rows.count].numpy(), rows.y[which, : rows.count]
    row_weight = torch.ones(len(y)) if rows.weight is None else rows.weight[which, : rows.count]
    if folds:
        total = 0.0
        for fold in range(folds):
            left_out = _stacked(net, states, [which * per_set + kept + fold])
            outputs = PosteriorNetworks(left_out, torch.ones(1), 0.0).outputs(x[fold::folds])
            total += float((_losses(outputs, y[fold::folds]) * row_weight[fold::folds]).sum())
        result.held_out = total / float(row_weight.sum())
    if y.is_floating_point():
        result.noise_variance = _noise_variance(result.outputs(x)[..., 0], y, row_weight, kept, result.held_out)
    return result


def _noise_variance(members: Tensor, y: Tensor, weight: Tensor, starts: int, held_out: float) -> float:
    """Return the variance that makes the predictive variance, noise and spread of the members, the error of their mean.

    A left-out row was predicted by one start. The mean of K starts, whose own means have the variance V about each
    other, errs less by V·(1 − 1/K); the members' spread is then taken off. The mean's error on its training rows, which
    is all there is without folds, is a lower bound.

    Args:
        members: (S·K, n) outputs, sample after sample of K starts.
        y: (n,).
        weight: (n,) of the rows.
        starts: K.
        held_out: mean squared error of single starts on left-out rows; nan without folds.
    """
    share = weight / weight.sum()
    trained = float((y - members.mean(0)).square() @ share.to(members.dtype))
    if math.isnan(held_out):
        return trained
    between = float(members.unflatten(0, (-1, starts)).mean(0).var(0) @ share.to(members.dtype)) if starts > 1 else 0.0
    spread = float(members.var(0, unbiased=False) @ share.to(members.dtype))
    return max(trained, held_out - between * (1 - 1 / starts) - spread)


def _losses(outputs: Tensor, y: Tensor) -> Tensor:
    """Return (n,) squared errors of the mean of (M, n, k) outputs, or cross-entropies of the mean probabilities."""
    if y.is_floating_point():
        return (y - outputs[..., 0].mean(0)).square()
    each = log_likelihood(outputs, y.expand(len(outputs), -1), None)
    return math.log(len(outputs)) - each.logsumexp(0)


def _stacked(net: ChainMLP, states: list[list[Tensor]], chains: range | list[int]) -> ChainMLP:
    """Return some chains of all states as the chains of one network."""
    index = torch.tensor(list(chains))
    parts = []
    for state in states:
        for parameter, value in zip(net.parameters(), state):
            parameter.data = value
        parts.append(net.choose(index))
    whole = ChainMLP(len(index) * len(parts), net.sizes, activation=net.activation, generator=None)
    for name, parameter in whole.named_parameters():
        parameter.data = torch.cat([dict(part.named_parameters())[name].data for part in parts])
    return whole
