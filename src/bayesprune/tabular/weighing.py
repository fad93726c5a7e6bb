"""Networks on the common candidates, fold by fold, and what each input says about y on rows that they have not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bayesprune.tabular.candidates import winsorised
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.comparison import Folds, gains_without_refit
from bayesprune.tabular.conditional import ColumnModel, ConditionalModels
from bayesprune.tabular.rows import Rows
from bayesprune.tabular.tails import white_sums
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer

_CLIP = 3.0  # robust standard deviations beyond which a residual is an outlier
_PARTS = (1.0, 0.5, 0.0)  # of the networks' prediction, beside a ridge
_MOST_ROWS = 4000  # rows of a fold that an input is weighed on


@dataclass(frozen=True)
class WeighingSettings:
    """How candidates are weighed: `final_steps` and what settles before them, for 400 of those 250 and 150."""

    settle_steps: int = 250
    rounds: int = 2
    liberal: float = 0.5
    round_steps: int = 150
    final_steps: int = 400
    states: int = 6
    draws: int = 8
    batch_size: int = 256
    chain: ChainSettings = field(
        default_factory=lambda: ChainSettings(lr=0.05, beta1=0.9, precision=30.0, largest_decay=0.05, temperature=0.1)
    )

    @classmethod
    def of(cls, final_steps: int) -> WeighingSettings:
        """Choose all numbers of steps in proportion."""
        settle, round_ = (
            max(1, final_steps * steps // cls.final_steps) for steps in (cls.settle_steps, cls.round_steps)
        )
        return cls(settle_steps=settle, round_steps=round_, final_steps=final_steps)


@dataclass
class FoldNetworks:
    """Trained networks, a chain each, on their columns."""

    net: ChainMLP
    chains: int
    columns: Tensor
    rows: Rows
    outer: list[Tensor]


def train_fold_networks(
    net: ChainMLP, columns: Tensor, rows: Rows, folds: Folds, owner: np.ndarray, settings: WeighingSettings, seed: int
) -> FoldNetworks:
    """Train the chains on the candidates, dropping what brings nothing on their inner rows."""
    chains = net.chains
    narrow = rows.narrowed(columns).in_batches(settings.batch_size)
    inner = [folds.inner(chain) for chain in range(chains)]
    learning = folds.learning(2, narrow.batch_size)
    ChainTrainer(net, narrow, learning, settings.chain, seed=seed).run(settings.settle_steps)
    for round_ in range(settings.rounds):
        gains = gains_without_refit(net, columns, narrow, inner, owner)
        keep = _useful(columns, gains, owner, settings.liberal * round_)
        columns = columns.gather(1, keep.clamp_min(0)).masked_fill(keep < 0, -1)
        net, narrow = net.choose(torch.arange(chains), keep), narrow.narrowed(keep)
        if round_ < settings.rounds - 1:
            ChainTrainer(net, narrow, learning, settings.chain, seed=seed + 1 + round_).run(settings.round_steps)
    states: list[ChainMLP] = []
    every = max(1, settings.final_steps // (4 * settings.states))

    def collect(step: int) -> None:
        left = settings.final_steps - 1 - step
        if left % every == 0 and left // every < settings.states:
            states.append(net.choose(torch.arange(chains)))

    trainer = ChainTrainer(net, narrow, folds.learning(1, narrow.batch_size), settings.chain, seed=seed + 50)
    trainer.run(settings.final_steps, lambda step: 1.0 - 0.8 * step / settings.final_steps, collect)
    whole = ChainMLP(len(states) * chains, net.sizes, activation=net.activation, generator=None)
    for name, parameter in whole.named_parameters():
        parameter.data = torch.cat([dict(state.named_parameters())[name].data for state in states])
    outer = [folds.outer(chain) for chain in range(chains)]
    return FoldNetworks(whole, chains, columns, narrow, outer)


def _useful(columns: Tensor, gains: list[dict[int, float]], owner: np.ndarray, least: float) -> Tensor:
    """Return the places of the columns of the inputs that gain more than `least`, with −1 behind them."""
    chosen = []
    for chain, gain in enumerate(gains):
        best = {i for i in gain if gain[i] > least}
        chosen.append([place for place, c in enumerate(columns[chain].tolist()) if c >= 0 and int(owner[c]) in best])
    width = max(1, max(map(len, chosen)))
    return torch.tensor([places + [-1] * (width - len(places)) for places in chosen])


@dataclass(frozen=True)
class Weight:
    """What an input (or a cluster) says about y, chain by chain: sums and their variances, and what they are sums of."""

    network: np.ndarray
    linear: np.ndarray
    each: np.ndarray
    gain: np.ndarray
    network_parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    linear_parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def shares(self) -> list[float]:
        """Return how far each column of a cluster is the one that matters: exp(½z²) of it alone, over their sum."""
        half = 0.5 * self.each[:, 0] ** 2 / np.maximum(self.each[:, 1], 1e-300)
        share = np.exp(half - half.max())
        return [float(value) for value in share / share.sum()]


class Weigher:
    """Weighs inputs of one data set on the outer rows of its chains."""

    def __init__(
        self,
        networks: FoldNetworks,
        models: ConditionalModels,
        first: int,
        count: int,
        y: Tensor,
        seed: int,
        draws: int,
    ) -> None:
        self.networks, self.models, self.own, self.draws = networks, models, range(first, first + count), draws
        self.generator = np.random.default_rng(seed)
        self.regression = y.is_floating_point()
        self.y, self.weight = y, networks.rows.row_weight(first // count)
        self.members: list[ChainMLP] = []
        self.base: list[Tensor] = []
        states = networks.net.chains // networks.chains
        self.left = np.zeros(len(y))  # by networks and ridge together
        for chain in self.own:
            member = networks.net.choose(torch.arange(states) * networks.chains + chain)
            self.members.append(member)
            rows = networks.outer[chain]
            with torch.no_grad():
                if self.regression:
                    outputs = [member(networks.rows.x[chain, part][None]).mean(0)[:, 0] for part in rows.split(4096)]
                    self.left[rows.numpy()] = (y[rows] - torch.cat(outputs)).numpy()
                self.base.append(member.first(networks.rows.x[chain, rows[:_MOST_ROWS]][None]))
        self.ridge, self.coefficient = np.zeros(len(y)), np.zeros(models.p)
        self.part, self.inflation = 1.0, 1.0
        if self.regression:
            self._mix(y.numpy().astype(np.float64))

    def _mix(self, y: np.ndarray) -> None:
        """Choose how much of the networks' prediction to use, by the criterion of the ridge on what it leaves."""
        network = y - self.left
        best = np.inf
        for part in _PARTS:
            left = y - part * network
            bounded = winsorised(left, _CLIP)
            middle = float(bounded.mean())
            score, ridge, coefficient, share = self.models.explained(bounded - middle)
            if score < best:
                best, self.part, self.ridge, self.coefficient = score, part, ridge + middle, coefficient
                # Of a residual's square, for the ridge's degrees of freedom.
                self.left, self.inflation = left - middle - ridge, 1 / (1 - share)

    @torch.no_grad()
    def weigh(self, model: ColumnModel) -> Weight:
        """Weigh one input or cluster with the model of its columns given all others, rows in the rows' order."""
        drawn: np.ndarray | None = None
        network, linear = np.zeros((len(self.own), 2)), np.zeros((len(self.own), 2))
        variances, direction_variance = model.variances(), _direction_variance(model)
        gain, each = np.zeros(len(self.own)), np.zeros((len(model.columns), 2))
        network_parts: list[tuple[np.ndarray, np.ndarray]] = []
        linear_parts: list[tuple[np.ndarray, np.ndarray]] = []
        direction, residual = _direction(model), model.residual
        linear_part = self.ridge - residual @ self.coefficient[model.columns]
        for place, chain in enumerate(self.own):
            rows = self.networks.outer[chain][:_MOST_ROWS]
            at = rows.numpy()
            member, base = self.members[place], self.base[place]
            held = self.networks.columns[chain].tolist()
            where = [(i, held.index(c)) for i, c in enumerate(model.columns.tolist()) if c in held]
            with_input = _after_first(member, base)
            without = with_input[:, None]
            if where:
                if drawn is None:
                    drawn = model.draws(self.draws, self.generator)
                own = [i for i, _ in where]
                weight = member.input_weights()[:, :, [j for _, j in where]]  # (S, hidden, k)
                shift = torch.from_numpy(drawn[:, at][..., own] - model.values[at][:, own]).float()  # (B, n, k)
                moved = base[:, None] + torch.einsum("bnk,shk->sbnh", shift, weight)
                without = _after_first(member, moved.flatten(1, 2)).unflatten(1, moved.shape[1:3])
            r, h, spread, better = self._parts(with_input, without, self.y[rows], torch.from_numpy(linear_part[at]))
            plain, row_weight = r.numpy(), self.weight[rows][:, None].numpy()
            r = r * self.weight[rows][:, None]
            # The variance that draws in the input's place would give, y and all others as they are.
            drawn_variance = float((r * spread).sum(-1).square().mean(0).sum())
            network[place] = white_sums(plain, h.numpy(), drawn_variance, self.inflation, row_weight)
            scale = math.sqrt(self.inflation)
            network_parts.append((r.numpy(), scale * spread.flatten(0, 1).numpy()))
            if r.shape[-1] == 1:
                flat, along = r.numpy(), direction[at, None]
                along_variance = flat[:, 0] ** 2 @ direction_variance[at]
                linear[place] = white_sums(plain, along, along_variance, self.inflation, row_weight)
                linear_parts.append((flat, scale * direction[:, None]))
                each += np.stack(
                    [flat[:, 0] @ residual[at], self.inflation * (flat[:, 0] ** 2 @ variances[at])], axis=1
                )
            gain[place] = better
        return Weight(network, linear, each, gain, network_parts, linear_parts)

    def _parts(
        self, with_input: Tensor, without: Tensor, y: Tensor, linear_part: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return residuals without the input (n, k), its contribution (n, k), that of draws (B, n, k), and the gain."""
        if self.regression:
            f, drawn = with_input.mean(0).double(), without.mean(0).double()
            m = drawn.mean(0)
            r = y[:, None] - self.part * m - linear_part[:, None]
            worse, best = (y[:, None] - drawn).square().mean(), (y[:, None] - f).square().mean()
            gain = 0.5 * len(y) * float((worse / best).clamp_min(1e-12).log())
            return torch.from_numpy(winsorised(r[:, 0].numpy(), _CLIP))[:, None], f - m, _spread(drawn), gain
        if with_input.shape[-1] == 1:
            with_input, without = torch.cat([-with_input, with_input], -1) / 2, torch.cat([-without, without], -1) / 2
        p, q = with_input.softmax(-1).mean(0), without.softmax(-1).mean((0, 1))
        r = torch.nn.functional.one_hot(y, p.shape[-1]).double() - q
        f, drawn = with_input.log_softmax(-1).mean(0).double(), without.log_softmax(-1).mean(0).double()
        picked = (p.gather(1, y[:, None]) / q.gather(1, y[:, None]).clamp_min(1e-9)).clamp(1e-9, 1e9)
        if p.shape[-1] == 2:  # one residual and one difference of log-probabilities say it all
            r, f, drawn = r[:, 1:], f[:, 1:] - f[:, :1], drawn[..., 1:] - drawn[..., :1]
        return r, f - drawn.mean(0), _spread(drawn), float(picked.log().sum())


def _spread(drawn: Tensor) -> Tensor:
    """Return (B, n, k) deviations whose mean square is the variance of a contribution: a draw's, less B draws' mean."""
    count = len(drawn)
    inflated = math.sqrt((1 + 1 / count) * count / max(1, count - 1))
    return (drawn - drawn.mean(0)) * inflated


def _direction(model: ColumnModel) -> np.ndarray:
    """Return (n,) the residual of the columns, of several their leading component."""
    residual = model.residual
    if residual.shape[1] == 1:
        return residual[:, 0]
    values = model.values - model.values.mean(0)
    return residual @ np.linalg.svd(values, full_matrices=False)[2][0]


def _direction_variance(model: ColumnModel) -> np.ndarray:
    """Return (n,) the variance of `_direction` given all other inputs."""
    if model.values.shape[1] == 1:
        return model.variances()[:, 0]
    direction = ColumnModel(model.columns, model.values, model.values - _direction(model)[:, None], model.discrete)
    return direction.variances()[:, 0]


def _after_first(net: ChainMLP, hidden: Tensor) -> Tensor:
    """Return the outputs from the first layer's outputs."""
    from bayesprune.tabular.chains import ACTIVATIONS

    activation = ACTIVATIONS[net.activation]
    for layer in list(net.layers)[1:]:
        hidden = layer(activation(hidden))
    return hidden
