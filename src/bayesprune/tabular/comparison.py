"""Networks on some of a chain's inputs, trained side by side and scored on rows that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.rows import Rows
from bayesprune.tabular.trainer import ChainSettings, ChainTrainer, log_likelihood

_BLOCK = 1024  # held-out rows evaluated at a time


@dataclass(frozen=True)
class ComparisonSettings:
    """How networks are compared."""

    refit_steps: int = 200
    samples: int = 10
    batch_size: int = 256
    chain: ChainSettings = field(
        default_factory=lambda: ChainSettings(lr=0.05, beta1=0.9, precision=30.0, largest_decay=0.05, temperature=0.1)
    )


@dataclass(frozen=True)
class Folds:
    """Who sees which rows: chain c of a data set weighs on fold c, chooses its model on fold c + 1, learns on the rest."""

    count: int
    chains: int
    per_set: int
    rows: int

    def _own(self, chain: int) -> int:
        return chain % self.per_set % self.count

    def outer(self, chain: int) -> Tensor:
        """Return the rows on which a chain's inputs are weighed; nothing about the chain depends on them."""
        return torch.arange(self._own(chain), self.rows, self.count)

    def inner(self, chain: int) -> Tensor:
        """Return the rows on which a chain's model is chosen."""
        return torch.arange((self._own(chain) + 1) % self.count, self.rows, self.count)

    def learning(self, held: int, wrap: int) -> Tensor:
        """Return (C, n + wrap) row weights without the outer fold (held = 1), or without both (held = 2)."""
        fold = torch.arange(self.rows) % self.count
        own = torch.tensor([[self._own(chain)] for chain in range(self.chains)])
        weights = (fold != own).float()
        if held == 2:
            weights *= fold != (own + 1) % self.count
        return torch.cat([weights, weights[:, :wrap]], dim=1)


def owners(groups: Sequence[np.ndarray], p: int) -> np.ndarray:
    """Return (p,) the number of the group that each column belongs to."""
    owner = np.empty(p, dtype=np.int64)
    for number, members in enumerate(groups):
        owner[members] = number
    return owner


@torch.no_grad()
def gains_without_refit(
    net: ChainMLP, columns: Tensor, narrow: Rows, held: list[Tensor], owner: np.ndarray
) -> list[dict[int, float]]:
    """Return for every chain what each of its inputs brings on its held-out rows."""
    per_set = net.chains // len(narrow.y)
    found = []
    for chain in range(net.chains):
        ids = [int(owner[c]) if c >= 0 else -1 for c in columns[chain].tolist()]
        inputs = sorted(set(ids) - {-1})
        drop = torch.zeros(len(inputs) + 1, len(ids), dtype=torch.bool)
        for row, number in enumerate(inputs, start=1):
            drop[row] = torch.tensor([i == number for i in ids])
        y = narrow.y[chain // per_set]
        total = torch.zeros(len(drop), dtype=torch.float64)
        variants = net.choose(torch.full((len(drop),), chain))
        variants.input_weights().data.masked_fill_(drop[:, None, :], 0)
        weight = narrow.row_weight(chain // per_set)
        for block in held[chain].split(_BLOCK):
            outputs = variants(narrow.x[chain, block][None])
            total += (_row_scores(outputs, y[block].expand(len(drop), -1)) * weight[block]).double().sum(1)
        score = _log_likelihoods(total, float(weight[held[chain]].sum()), y.is_floating_point())
        found.append(dict(zip(inputs, (score[0] - score[1:]).tolist())))
    return found


def _row_scores(outputs: Tensor, y: Tensor) -> Tensor:
    """Return squared residuals, or for labels log-likelihoods, (V, B)."""
    return (outputs[..., 0] - y).square() if y.is_floating_point() else log_likelihood(outputs, y, None)


def _log_likelihoods(total: Tensor, count: float, regression: bool) -> Tensor:
    """Return Σ log p(y | model) from summed row scores."""
    return -0.5 * count * (total / count + 1e-12).log() if regression else total


class Comparison:
    """Trains variants of every chain side by side, each on some of the chain's inputs, and scores them."""

    def __init__(
        self, net: ChainMLP, columns: Tensor, rows: Rows, owner: np.ndarray, settings: ComparisonSettings, seed: int
    ) -> None:
        self.net, self.rows, self.settings, self.seed = net, rows, settings, seed
        self.ids = np.where(columns.numpy() >= 0, owner[columns.clamp_min(0).numpy()], -1)  # (C, K)

    def scores(self, models: list[list[list[int]]], held: list[Tensor], learning: Tensor) -> list[list[float]]:
        """Return held-out log-likelihoods of the models of each chain."""
        chains, regression = self.net.chains, self.rows.y.is_floating_point()
        count = max(map(len, models))
        ids = torch.from_numpy(self.ids)
        kept = torch.stack(
            [torch.from_numpy(np.isin(ids[c].numpy(), m)) for c, own in enumerate(models) for m in _padded(own, count)]
        )
        many = self.net.choose(torch.arange(chains).repeat_interleave(count))
        mask = kept[:, None, :].to(torch.float32)
        weight = many.input_weights()
        weight.data.mul_(mask)
        self.seed += 1
        trainer = ChainTrainer(
            many, self.rows, learning.repeat_interleave(count, 0), self.settings.chain, seed=self.seed
        )
        steps, samples = self.settings.refit_steps, self.settings.samples
        every = max(1, steps // (3 * samples))
        totals: list[Tensor] = []

        @torch.no_grad()
        def after(step: int) -> None:
            weight.data.mul_(mask)
            left = steps - 1 - step
            if left % every or left // every >= samples:
                return
            for chain in range(chains):
                part = many.choose(torch.arange(chain * count, (chain + 1) * count))
                blocks = [part(self.rows.x[chain, b][None]) for b in held[chain].split(_BLOCK)]
                value = torch.cat(blocks, 1)
                value = value if regression else _log_probabilities(value)
                if len(totals) <= chain:
                    totals.append(value)
                else:
                    totals[chain] = totals[chain] + value if regression else torch.logaddexp(totals[chain], value)

        trainer.run(steps, lambda step: 0.2 + 0.4 * (1 + math.cos(math.pi * step / steps)), after)
        taken = len(range(0, min(steps, every * samples), every))
        result = []
        for chain in range(chains):
            which = chain // (chains // len(self.rows.y))
            y = self.rows.y[which][held[chain]].expand(count, -1)
            weight = self.rows.row_weight(which)[held[chain]]
            if regression:
                each = (totals[chain][..., 0] / taken - y).square()
            else:
                each = totals[chain].gather(-1, y[..., None])[..., 0] - math.log(taken)
            values = _log_likelihoods((each.double() * weight).sum(1), float(weight.sum()), regression).tolist()
            result.append(values[: len(models[chain])])
        return result


def _padded(models: list[list[int]], count: int) -> list[list[int]]:
    return models + [[]] * (count - len(models))


def _log_probabilities(outputs: Tensor) -> Tensor:
    if outputs.shape[-1] == 1:
        return torch.nn.functional.logsigmoid(torch.cat([-outputs, outputs], -1))
    return outputs.log_softmax(-1)
