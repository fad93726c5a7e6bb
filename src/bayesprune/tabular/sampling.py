"""Posterior samples of networks on the selected inputs: each leaves out some rows, by which the noise is measured."""

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
from bayesprune.tabular.out_of_bag import at_new_rows, learning_weights, noise_level
from bayesprune.tabular.rows import Rows
from bayesprune.tabular.student import variance_over_scale
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer, log_likelihood, log_variances

_WORSE = 2.0  # a training loss of so many times that of a constant prediction is divergence
_MEASURED = 4096  # rows by which the noise is measured


class DivergenceError(RuntimeError):
    """The predictive networks diverge at all step sizes."""


@dataclass(frozen=True)
class SamplingSettings:
    """How the predictive network is sampled.

    Args:
        hidden: hidden widths.
        activation: "relu", "tanh" or "silu".
        starts: networks of a data set.
        kept: of them go on to be sampled: those of the highest likelihood after the burn-in.
        unseen: the rows are dealt into as many blocks as there are networks, and each leaves out so many of them, so that
            each row is new to so many networks; 0 is none. Then all starts are kept.
        burn_in: steps of one cosine before sampling.
        cycles: cycles after it, at each temperature.
        cycle_steps: steps of each.
        samples: samples a cycle and network.
        chain: how the chains move.
        temperatures: the samples' temperatures, one after the other, of which the loss at unseen rows chooses one; none is
            that of `chain`.
        variance: of a regression's noise: "constant", "network" (its logarithm is a second output), or "auto": the second
            output counts where that gives unseen rows the higher density.
        burn_in_temperature: of the burn-in; None is the chain's.
        features: whether the networks read `RankFeatures` of the inputs.
        whole: whether the networks, once the noise is measured, go on for as many cycles on all rows, of which the samples are.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "silu"
    starts: int = 10
    kept: int = 10
    unseen: int = 2
    burn_in: int = 1500
    cycles: int = 2
    cycle_steps: int = 400
    samples: int = 5
    chain: ChainSettings = field(
        default_factory=lambda: ChainSettings(lr=0.1, beta1=0.9, precision=1.0, temperature=1.0, damping=0)
    )
    temperatures: tuple[float, ...] = ()
    variance: str = "constant"
    burn_in_temperature: float | None = None
    features: bool = False
    whole: bool = False

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.burn_in + self.cycles * self.cycle_steps * (max(1, len(self.temperatures)) + self.whole)

    def trial(self, members: int) -> SamplingSettings:
        """Return how these settings are tried: few networks, each row new to one of them, half the steps."""
        half = max(2 * self.samples, self.cycle_steps // 2)
        return replace(
            self, starts=members, kept=members, unseen=1, burn_in=max(1, self.burn_in // 2), cycles=1, cycle_steps=half,
            whole=False,
        )  # fmt: skip


@dataclass
class PosteriorNetworks:
    """Sampled networks of one data set, all weights of all samples as stacked tensors.

    Args:
        net: samples as the chains of one `ChainMLP`, on standardised selected inputs.
        weight: (M,) weight of each sample in averages, summing to 1.
        noise_variance: of the standardised response, its mean over the training rows; nan for labels.
        precision: prior precision of every weight.
        temperature: T of the samples.
        held_out: minus the mean log density, or the cross-entropy, at rows that are new to members; nan where there are none.
        variance_factor: what the variances that the networks name are multiplied by; None where they name none.
        dof: degrees of freedom of the noise, Student's t about each sample; None is normal.
        features: what the networks read of the inputs; None is the inputs themselves.
    """

    net: ChainMLP
    weight: Tensor
    noise_variance: float
    precision: float = float("nan")
    temperature: float = 1.0
    held_out: float = float("nan")
    variance_factor: float | None = None
    dof: int | None = None
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

    Small networks fall into poor optima, dead ones among them: without unseen rows their starts are many, and after the
    burn-in the `settings.kept` of highest likelihood go on. With Bayes weights a start of lower likelihood by more than a few
    nats would count nothing anyway. With unseen rows all of them are members, and each row is new to some of them.

    Args:
        rows: of S data sets, on the inputs to use.
        outputs: outputs of the network.
        settings: how.
        masks: (S, C, p) which columns members of a data set have, which take turns (a model average over sets of inputs);
            None gives every member all of them.
        seed: of starts and noise.

    Returns:
        One entry a data set.

    Raises:
        DivergenceError: the networks diverge at 1/27 of the step size too.
    """
    if masks is not None:
        settings = _in_turns(settings, masks)
    lr = settings.chain.lr
    for _ in range(4):
        tuned = replace(settings, chain=replace(settings.chain, lr=lr))
        result = _attempt(rows, outputs, tuned, masks, seed)
        if result is not None:
            return result
        lr /= 3
    raise DivergenceError(
        f"the predictive network diverges at step sizes {settings.chain.lr:g} to {3 * lr:.2g}: look for outliers in the "
        f"selected columns of X or in y, or give more than these {rows.count} rows"
    )


def _in_turns(settings: SamplingSettings, masks: Tensor) -> SamplingSettings:
    """Return settings with as many members of every set of inputs."""
    sets = masks.shape[1]
    starts = sets * -(-settings.starts // sets) if settings.unseen else sets
    return replace(settings, starts=starts, kept=starts)


def _attempt(
    rows: Rows, outputs: int, settings: SamplingSettings, masks: Tensor | None, seed: int
) -> list[PosteriorNetworks] | None:
    """Sample once; None where a network that is needed predicts worse than chance, or nothing finite."""
    sets, starts, unseen = rows.sets, settings.starts, settings.unseen
    generator = torch.Generator().manual_seed(seed)
    own_variance = rows.y.is_floating_point() and settings.variance != "constant"
    sizes = (rows.p, *settings.hidden, outputs + own_variance)
    net = ChainMLP(sets * starts, sizes, activation=settings.activation, generator=generator)
    turns = 1 if masks is None else starts // masks.shape[1]
    shown = torch.ones(sets, starts, rows.p) if masks is None else masks.repeat(1, turns, 1).float()
    shown = shown.view(-1, rows.p)
    weights = None
    if unseen:
        learnt = learning_weights(starts, rows.count, unseen)
        weights = torch.cat([learnt, learnt[:, : rows.batch_size]], 1).repeat(sets, 1)
    trainer = ChainTrainer(net, rows, weights, settings.chain, seed=seed)
    if settings.burn_in_temperature is not None:
        trainer.temperature = settings.burn_in_temperature
    burn = CycleClock(settings.burn_in, floor=0.05, warmup_steps=settings.burn_in // 20)
    hide = _hider(net, shown, masks)
    losses = torch.stack(trainer.run(settings.burn_in, burn, hide)[-max(50, rows.count // rows.batch_size) :]).mean(0)
    losses = losses.view(sets, starts).nan_to_num(nan=torch.inf)
    best = torch.arange(starts).expand(sets, -1) if unseen else losses.argsort(1)[:, : settings.kept]
    index = (best + starts * torch.arange(sets)[:, None]).reshape(-1)
    chance = 0.5 if rows.y.is_floating_point() else math.log(max(2, outputs))
    if not bool((losses.view(-1)[index] < _WORSE * chance).all()):
        return None
    variance = trainer.variance[index]
    net = net.choose(index)
    hide = _hider(net, shown[index], masks)
    trainer = ChainTrainer(net, rows, weights, settings.chain, seed=seed + 1)
    trainer.variance, trainer.steps_done = variance, 10**6
    clock = CycleClock(
        settings.cycles * settings.cycle_steps,
        cycles=settings.cycles,
        samples_per_cycle=settings.samples,
        sample_every=max(1, settings.cycle_steps // (2 * settings.samples)),
        floor=0.1,
    )

    def sampled(temperature: float) -> list[list[Tensor]] | None:
        """Run the cycles from where the networks are; the states that are collected, None of networks that diverge."""
        trainer.temperature = temperature
        states: list[list[Tensor]] = []

        def collect(step: int) -> None:
            hide(step)
            if clock.collect(step):
                states.append([parameter.detach().clone() for parameter in net.parameters()])

        losses = torch.stack(trainer.run(clock.total_steps, lambda step: 0.5 * clock.lr(step), collect)).mean(0)
        return states if bool((losses < _WORSE * chance).all()) else None

    tried, ends = [], []
    for temperature in settings.temperatures or (settings.chain.temperature,):
        states = sampled(temperature)
        if states is None:
            return None
        settings = replace(settings, chain=replace(settings.chain, temperature=temperature))
        ends.append([parameter.detach().clone() for parameter in net.parameters()])
        tried.append([_of_one_set(rows, which, net, states, settings) for which in range(sets)])
        _put(net, ends[-1])
    found = [min(own, key=lambda one: one.held_out) if len(own) > 1 else own[0] for own in zip(*tried)]
    if not settings.whole:
        return found
    # The noise's law is known: the members go on with the rows that they have left out.
    trainer.learn_from_all()
    for end, temperature in zip(ends, settings.temperatures or (settings.chain.temperature,)):
        wanted = [which for which, one in enumerate(found) if one.temperature == temperature]
        if not wanted:
            continue
        _put(net, end)
        states = sampled(temperature)
        if states is None:
            return None
        for which in wanted:
            found[which].net = _stacked(net, states, range(which * settings.kept, (which + 1) * settings.kept))
    return found


def _put(net: ChainMLP, values: list[Tensor]) -> None:
    """Give a network the values of its parameters."""
    for parameter, value in zip(net.parameters(), values):
        parameter.data = value.clone()


def _hider(net: ChainMLP, shown: Tensor, masks: Tensor | None) -> Callable[[int], None]:
    """Return what keeps the weights of columns that a chain does not have at zero, and put them there."""
    shown = shown[:, None, :]

    def hide(step: int) -> None:
        if masks is not None:
            net.input_weights().data.mul_(shown)

    hide(0)
    return hide


def _of_one_set(
    rows: Rows, which: int, net: ChainMLP, states: list[list[Tensor]], settings: SamplingSettings
) -> PosteriorNetworks:
    """Return the members of one data set, with the level of their noise."""
    kept, unseen = settings.kept, settings.unseen
    members = _stacked(net, states, range(which * kept, (which + 1) * kept))
    weight = torch.full((members.chains,), 1.0 / members.chains)
    result = PosteriorNetworks(
        members, weight, float("nan"), precision=settings.chain.precision, temperature=settings.chain.temperature
    )
    few = min(rows.count, _MEASURED)
    x, y = rows.x[which, :few].numpy(), rows.y[which, :few]
    row_weight = torch.ones(few) if rows.weight is None else rows.weight[which, :few]
    share = (row_weight / row_weight.sum()).double()
    outputs = result.outputs(x)[:, None]
    if unseen:
        outputs = at_new_rows(outputs[:, 0], kept, unseen)
    if not y.is_floating_point():
        if unseen:
            new = outputs.flatten(0, 1)
            each = log_likelihood(new, y.expand(len(new), -1), None).logsumexp(0) - math.log(len(new))
            result.held_out = -float(each @ share)
        return result
    own = outputs.shape[-1] == 2
    means, even = outputs[..., 0], torch.ones_like(outputs[..., 0])
    named = log_variances(outputs).exp() if own else even
    if unseen:
        noise = noise_level(means, named, y, row_weight, kept)
        if own and settings.variance == "auto":
            alike = noise_level(means, even, y, row_weight, kept)
            if alike.density > noise.density:
                own, named, noise = False, even, alike
        result.held_out, result.dof = -noise.density, noise.dof
        factor = noise.factor * variance_over_scale(noise.dof)
    else:  # the mean's error at the rows it was trained on, all that there is
        factor = float((y - means.mean((0, 1))).square() @ share) / float(named.mean((0, 1)) @ share)
    result.noise_variance = factor * float(named.mean((0, 1)) @ share)
    result.variance_factor = factor if own else None
    return result


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
