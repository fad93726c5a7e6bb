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
from bayesprune.tabular.features import RankFeatures
from bayesprune.tabular.rows import Rows
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer, log_likelihood, log_variances

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
        fold_starts: networks of each fold.
        burn_in: steps of one cosine before sampling.
        cycles: cycles after it.
        cycle_steps: steps of each.
        samples: samples a cycle and network.
        chain: how the chains move.
        precisions: prior precisions to choose from by the folds' held-out loss; none is `chain.precision` as it is.
        variance: of a regression's noise: "constant", "network" (its logarithm is a second output), or "auto": whichever has
            the higher density at the folds' left-out rows.
        burn_in_temperature: of the burn-in; None is the chain's.
        features: whether the networks read `RankFeatures` of the inputs.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "silu"
    starts: int = 4
    kept: int = 4
    folds: int = 5
    fold_starts: int = 1
    burn_in: int = 1500
    cycles: int = 2
    cycle_steps: int = 400
    samples: int = 5
    chain: ChainSettings = field(
        default_factory=lambda: ChainSettings(lr=0.1, beta1=0.9, precision=1.0, temperature=1.0, damping=0)
    )
    precisions: tuple[float, ...] = ()
    variance: str = "constant"
    burn_in_temperature: float | None = None
    features: bool = False

    @property
    def steps(self) -> int:
        """Training steps in all."""
        choices = max(1, len(self.precisions)) * (2 if self.variance == "auto" else 1)
        return choices * (self.burn_in + self.cycles * self.cycle_steps)


@dataclass
class PosteriorNetworks:
    """Sampled networks of one data set, all weights of all samples as stacked tensors.

    Args:
        net: samples as the chains of one `ChainMLP`, on standardised selected inputs.
        weight: (M,) weight of each sample in averages, summing to 1.
        noise_variance: of the standardised response, its mean over the training rows; nan for labels.
        precision: prior precision of every weight.
        held_out: loss on left-out rows, squared error or cross-entropy; nan without folds.
        score: mean log density of the fold networks at left-out rows, at the best level of the noise; nan for labels.
        variance_factor: what the variances that the networks name are multiplied by; None where they name none.
        features: what the networks read of the inputs; None is the inputs themselves.
    """

    net: ChainMLP
    weight: Tensor
    noise_variance: float
    precision: float = float("nan")
    held_out: float = float("nan")
    score: float = float("nan")
    variance_factor: float | None = None
    features: RankFeatures | None = None

    def variances(self, outputs: Tensor) -> Tensor:
        """Return the noise's variance at (M, n, k) outputs of a regression, (M, n)."""
        if self.variance_factor is None:
            return torch.full_like(outputs[..., 0], self.noise_variance)
        return self.variance_factor * log_variances(outputs).exp()

    @torch.no_grad()
    def outputs(self, x: np.ndarray, block: int = 4096) -> Tensor:
        """Return (M, n, k) outputs at standardised rows of the selected columns (zeros behind them, if they are few).

        In float64, so that a row's prediction does not depend on which rows stand beside it.
        """
        x = x if self.features is None else self.features(x)
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
    wanted = _best_choices(rows, outputs, settings, masks, seed)
    found = {choice: _converged(rows, outputs, choice, masks, seed) for choice in dict.fromkeys(wanted)}
    return [found[choice][which] for which, choice in enumerate(wanted)]


def _best_choices(
    rows: Rows, outputs: int, settings: SamplingSettings, masks: Tensor | None, seed: int
) -> list[SamplingSettings]:
    """Return every data set's prior precision of the least held-out loss, with the kind of variance of the highest score.

    They are chosen by fold networks of half the steps.
    """
    regression = rows.y.is_floating_point()
    kinds = (
        {"auto": ("constant", "network")}.get(settings.variance, (settings.variance,)) if regression else ("constant",)
    )
    choices = [
        replace(settings, variance=kind, chain=replace(settings.chain, precision=precision))
        for kind in kinds
        for precision in settings.precisions or (settings.chain.precision,)
    ]
    if len(choices) == 1:
        return choices * rows.sets
    few = settings.starts if masks is not None else 1
    short = replace(
        settings, starts=few, kept=few, burn_in=max(1, settings.burn_in // 2), cycles=1,
        cycle_steps=max(2 * settings.samples, settings.cycle_steps // 2),
    )  # fmt: skip
    tried = [
        _converged(rows, outputs, replace(short, variance=choice.variance, chain=choice.chain), masks, seed)
        for choice in choices
    ]
    best = []
    for which in range(rows.sets):
        own = [found[which] for found in tried]
        places = range(len(own))
        of_kind = [min((i for i in places if choices[i].variance == k), key=lambda i: own[i].held_out) for k in kinds]
        best.append(choices[max(of_kind, key=lambda i: own[i].score) if len(kinds) > 1 else of_kind[0]])
    return best


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
    held_out = folds * settings.fold_starts
    per_set = starts + held_out
    generator = torch.Generator().manual_seed(seed)
    sizes = (rows.p, *settings.hidden, outputs + (settings.variance == "network"))
    net = ChainMLP(sets * per_set, sizes, activation=settings.activation, generator=generator)
    shown = torch.ones(sets, per_set, rows.p) if masks is None else masks[:, torch.arange(per_set) % starts].float()
    shown = shown.view(-1, rows.p)
    weights = torch.ones(per_set, rows.count)
    for member in range(held_out):
        weights[starts + member, member % folds :: folds] = 0.0
    weights = torch.cat([weights, weights[:, : rows.batch_size]], 1).repeat(sets, 1)
    trainer = ChainTrainer(net, rows, weights if folds else None, settings.chain, seed=seed)
    if settings.burn_in_temperature is not None:
        trainer.temperature = settings.burn_in_temperature
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
    per_set = kept + folds * settings.fold_starts
    members = _stacked(net, states, range(which * per_set, which * per_set + kept))
    count = members.chains
    weight = torch.full((count,), 1.0 / count)
    result = PosteriorNetworks(members, weight, float("nan"), settings.chain.precision)
    x, y = rows.x[which, : rows.count].numpy(), rows.y[which, : rows.count]
    row_weight = torch.ones(len(y)) if rows.weight is None else rows.weight[which, : rows.count]
    regression, own = y.is_floating_point(), settings.variance == "network"
    factor = 1.0
    if folds:
        total, errors, variances = 0.0, [], []
        for fold in range(folds):
            left_out = _stacked(net, states, list(range(which * per_set + kept + fold, (which + 1) * per_set, folds)))
            outputs, here = PosteriorNetworks(left_out, torch.ones(1), 0.0).outputs(x[fold::folds]), y[fold::folds]
            total += float((_losses(outputs, here) * row_weight[fold::folds]).sum())
            if regression:
                errors.append((outputs[..., 0] - here).square())
                variances.append(log_variances(outputs).exp() if own else torch.ones_like(errors[-1]))
        result.held_out = total / float(row_weight.sum())
        if regression:
            each = torch.cat([row_weight[fold::folds] for fold in range(folds)])
            factor, result.score = best_level(torch.cat(errors, 1), torch.cat(variances, 1), each)
    if regression:
        outputs = result.outputs(x)
        level = math.nan
        if own:
            share = (row_weight / row_weight.sum()).double()
            named = float(log_variances(outputs).exp().mean(0) @ share)
            level = factor * named
        error = result.held_out if folds else math.nan
        result.noise_variance = _noise_variance(
            outputs[..., 0], y, row_weight, kept, error, settings.fold_starts, level=level
        )
        if own:
            result.variance_factor = result.noise_variance / named
    return result


def best_level(errors: Tensor, variances: Tensor, weight: Tensor) -> tuple[float, float]:
    """Return the factor on the variances at which mixtures of normals give rows the highest mean log density, and that.

    Args:
        errors: (M, n) squared errors of the members.
        variances: (M, n).
        weight: (n,) of the rows.

    Example:
        >>> factor, _ = best_level(torch.tensor([[4.0, 0.0]]), torch.ones(1, 2), torch.ones(2))
        >>> abs(factor - 2.0) < 0.05
        True
    """
    errors, variances, share = errors.double(), variances.double(), (weight / weight.sum()).double()

    def density(log_factor: float) -> float:
        log_v = variances.log() + log_factor
        each = -0.5 * (errors * (-log_v).exp() + log_v + math.log(2 * math.pi))
        return float((each.logsumexp(0) - math.log(len(each))) @ share)

    low, high = math.log(1e-8), math.log(1e4)
    for _ in range(4):  # ever finer grids: a mixture's density may have more than one top
        grid = np.linspace(low, high, 25)
        at, gap = float(grid[int(np.argmax([density(place) for place in grid]))]), grid[1] - grid[0]
        low, high = at - gap, at + gap
    return math.exp(at), density(at)


def _noise_variance(
    members: Tensor,
    y: Tensor,
    weight: Tensor,
    starts: int,
    held_out: float,
    fold_starts: int = 1,
    *,
    level: float = math.nan,
) -> float:
    """Return the variance that makes the predictive variance, noise and spread of the members, the error of their mean.

    A left-out row was predicted by J starts. The mean of K starts, whose own means have the variance V about each
    other, errs less by V·(1/J − 1/K); the members' spread is then taken off. The mean's error on its training rows, which
    is all there is without folds, is a lower bound.

    Args:
        members: (S·K, n) outputs, sample after sample of K starts.
        y: (n,).
        weight: (n,) of the rows.
        starts: K.
        held_out: mean squared error of J starts on left-out rows; nan without folds.
        fold_starts: J.
        level: the variance that suits the folds' left-out rows, their spread taken off, if it is known.
    """
    share = weight / weight.sum()
    trained = float((y - members.mean(0)).square() @ share.to(members.dtype))
    if math.isnan(held_out):
        return trained
    between = float(members.unflatten(0, (-1, starts)).mean(0).var(0) @ share.to(members.dtype)) if starts > 1 else 0.0
    if math.isnan(level):
        level = held_out - float(members.var(0, unbiased=False) @ share.to(members.dtype))
    return max(trained, level - between * (1 / fold_starts - 1 / starts))


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
