"""How many inputs predict best: each chain's strongest m, with m chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.comparison import Comparison, ComparisonSettings, Folds, owners
from bayesprune.tabular.rows import Rows

_SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 24, 32, 40, 48, 64, 96, 128)
_BESIDE = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # where some are given, most often enough


@dataclass(frozen=True)
class PredictionSets:
    """The inputs of each chain that predict best, for one data set.

    Args:
        members: for each chain the numbers of its inputs, strongest first.
        sizes: (k,) numbers of inputs that were compared.
        loss: (k,) held-out loss: mean squared error of the standardised response, or mean cross-entropy.
    """

    members: list[np.ndarray]
    sizes: np.ndarray
    loss: np.ndarray

    def history(self) -> dict[str, np.ndarray]:
        """Return what was compared and taken, arrays by name."""
        return {"number": self.sizes, "number_loss": self.loss, "number_taken": np.array([self.count])}

    @property
    def count(self) -> int:
        """Return how many inputs each chain has."""
        return len(self.members[0])


def choose_for_prediction(
    net: ChainMLP,
    columns: Tensor,
    paths: Sequence[list[int]],
    rows: Rows,
    folds: Folds,
    groups: Sequence[np.ndarray],
    settings: ComparisonSettings,
    *,
    given: Sequence[int],
    seed: int,
) -> list[PredictionSets]:
    """Choose how many of their strongest inputs the chains of a data set should have.

    A chain ranks its candidates by its own search, by the least-angle path and by the trees, taking turns. Its networks
    on those given and the strongest 0, 1, 2, … of the others are trained on all rows but its outer ones, which took no
    part in the ranking either, and scored there. The smallest number is taken, the same for all chains, whose sum of
    scores is within a standard error (of the difference, over chains) of the largest; two where that is those given.

    Args:
        net: the chains, on their candidates.
        columns: (C, K) the columns of the ranked inputs.
        paths: for each chain its inputs, those given before the others, strongest first.
        rows: all columns of S data sets.
        folds: which rows each chain learns from.
        groups: column numbers of every input.
        settings: how the networks are trained.
        given: how many inputs each data set has in any case.
        seed: of the noise.

    Returns:
        One entry a data set.
    """
    owner = owners(groups, rows.p)
    narrow = rows.narrowed(columns).in_batches(settings.batch_size)
    fewest = np.repeat(given, folds.per_set)
    longest = max(len(path) - few for path, few in zip(paths, fewest))
    further = np.array([m for m in (_BESIDE if all(given) else _SIZES) if m < longest] + [longest])
    outer = [folds.outer(chain) for chain in range(net.chains)]
    comparison = Comparison(net, columns, narrow, owner, settings, seed)
    models = [[path[: few + m] for m in further] for path, few in zip(paths, fewest)]
    scores = np.array(comparison.scores(models, outer, folds.learning(1, narrow.batch_size)))
    result = []
    for which, few in enumerate(given):
        own = slice(which * folds.per_set, (which + 1) * folds.per_set)
        weight = rows.row_weight(which)
        mean = scores[own].sum(0) / sum(float(weight[held].sum()) for held in outer[own])
        loss = np.exp(-2 * mean) if rows.y.is_floating_point() else -mean
        best = few + int(further[_smallest_as_good(scores[own], first=2.0 if few else 1.0)])
        members = [np.array(path[:best], dtype=np.int64) for path in paths[own]]
        result.append(PredictionSets(members, few + further, loss))
    return result


def _smallest_as_good(scores: np.ndarray, first: float = 1.0) -> int:
    """Return the first column of (C, k) whose sum lies within a standard error of the largest; the first, of some."""
    behind = scores[:, [scores.sum(0).argmax()]] - scores
    error = np.sqrt(len(scores)) * behind.std(axis=0, ddof=1) if len(scores) > 1 else np.zeros(scores.shape[1])
    error[0] *= first
    return int(np.flatnonzero(behind.sum(0) <= error)[0])


def member_masks(sets: PredictionSets, inputs: np.ndarray, groups: Sequence[np.ndarray]) -> Tensor:
    """Return (C, len(inputs)) which of the selected columns each chain has: its own, and those that are in no chain's set.

    Example:
        >>> sets = PredictionSets([np.array([2]), np.array([0, 2])], np.array([1]), np.array([0.5]))
        >>> member_masks(sets, np.array([0, 2]), [np.array([i]) for i in range(3)]).int().tolist()
        [[0, 1], [1, 1]]
    """
    rows = [
        np.isin(inputs, np.concatenate([groups[i] for i in own])) if len(own) else inputs < 0 for own in sets.members
    ]
    own = np.stack(rows)
    return torch.from_numpy(own | ~own.any(0))


def masks_of(
    sets: Sequence[PredictionSets | None], inputs: Sequence[np.ndarray], groups: Sequence[np.ndarray], chains: int
) -> list[Tensor]:
    """Return the masks of every data set, all ones for one without sets; none where no data set has sets.

    Args:
        sets: of every data set.
        inputs: the columns of its predictive network.
        groups: column numbers of every input.
        chains: members of each data set.
    """
    if not any(sets):
        return []
    return [
        torch.ones(chains, len(own), dtype=torch.bool) if each is None else member_masks(each, own, groups)
        for each, own in zip(sets, inputs)
    ]
