"""From rows to inclusion probabilities: search, evidence, prior, for several data sets at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.sparsity.spike_slab import probability_from_soft_threshold
from bayesprune.tabular.comparison import EvidenceSettings, Folds, owners
from bayesprune.tabular.evidence import average_evidence, inclusion_probabilities, q_values, weigh
from bayesprune.tabular.prediction_sets import PredictionSets, choose_for_prediction
from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.search import SearchResult, SearchSettings, search

_PATHS = 50  # inputs whose path is kept


@dataclass(frozen=True)
class Selection:
    """What is known about the inputs of one data set.

    Args:
        probability: (p,) inclusion probability of each column.
        chain_probability: (C, p) the same by each chain's evidence alone.
        q_value: (p,) Bayesian false-discovery rate of the set of columns at least as probable.
        evidence: (p,) nats.
        gain: (C, p) nats.
        prior: what the prior was, numbers by name.
        history: paths over the search, arrays by name.
        sets: the inputs that predict best, where they were asked for.
    """

    probability: np.ndarray
    chain_probability: np.ndarray
    q_value: np.ndarray
    evidence: np.ndarray
    gain: np.ndarray
    prior: dict[str, float]
    history: dict[str, np.ndarray]
    sets: PredictionSets | None = None

    def support(
        self, select: str, *, fdr: float, probability: float, n_inputs: int | None, groups: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Return (p,) which columns are selected, by "fdr", "probability", "number" (of inputs, ties by evidence) or
        "prediction" (those of any chain's set).
        """
        if select == "fdr":
            return self.q_value <= fdr
        if select == "probability":
            return self.probability >= probability
        if select == "prediction":
            assert self.sets is not None
            chosen = np.unique(np.concatenate(self.sets.members))
        else:
            first = np.array([members[0] for members in groups])
            chosen = np.lexsort((-self.evidence[first], -self.probability[first]))[:n_inputs]
        support = np.zeros(len(self.probability), dtype=bool)
        for number in chosen:
            support[groups[number]] = True
        return support


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from the data's shape where they are not given.

    Args:
        folds: F.
        chains: chains of a data set.
        batch_size: rows a step.
        search: settings of the search.
        evidence: settings of the weighing.
        for_prediction: whether to choose the inputs that predict best too.
    """

    folds: int
    chains: int
    batch_size: int
    search: SearchSettings
    evidence: EvidenceSettings
    for_prediction: bool = False

    @property
    def steps(self) -> int:
        """Training steps of search and weighing, nearly."""
        weighing = (
            self.evidence.rounds * self.evidence.settle_steps + (2 + self.evidence.passes) * self.evidence.refit_steps
        )
        return self.search.steps + weighing

    @classmethod
    def of(
        cls,
        n: int,
        p: int,
        *,
        feedback: str = "none",
        chains: int | None = None,
        steps: int | None = None,
        evidence_steps: int | None = None,
        candidates: int | None = None,
        batch_size: int | None = None,
        expected: float | None = None,
        for_prediction: bool = False,
    ) -> Plan:
        """Choose for n rows of p columns.

        Many rows need few passes over them: 700 steps where there are 5,000 rows, 1,600 where there are fewer; a table
        of no more columns than candidates needs no ramp and takes 600.
        """
        candidates = candidates or (128 if for_prediction else max(32, min(128, math.ceil(3 * (expected or 0)))))
        steps = steps or (600 if p <= candidates else 700 if n >= 5000 else 1600)
        batch_size = batch_size or (512 if n >= 5000 else max(16, min(256, n // 3)))
        folds = 5 if n >= 50 else 3
        return cls(
            folds=folds,
            chains=chains or (5 if n < 5000 else 3),
            batch_size=batch_size,
            search=SearchSettings(steps=steps, candidates=candidates, feedback=feedback),
            evidence=replace(EvidenceSettings(), refit_steps=evidence_steps or EvidenceSettings.refit_steps),
            for_prediction=for_prediction,
        )


def find_inputs(
    tables: Sequence[Any],
    responses: Sequence[np.ndarray],
    standardisers: Sequence[Standardiser],
    outputs: int,
    plan: Plan,
    groups: Sequence[np.ndarray],
    *,
    expected: float | None,
    weights: Sequence[np.ndarray] = (),
    seed: int,
) -> list[Selection]:
    """Find the inputs of S data sets of one shape.

    Args:
        tables: S tables (n, p).
        responses: S responses (n,).
        standardisers: one each.
        outputs: outputs of the networks.
        plan: sizes and settings.
        groups: column numbers of every input.
        expected: number of inputs that the prior expects; None estimates it (empirical Bayes).
        weights: (n,) of the rows of each data set; none weighs all alike.
        seed: of everything random.

    Returns:
        One selection a data set.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = Rows(tables, responses, standardisers, plan.batch_size, generator, weights)
    chains = plan.chains * rows.sets
    folds = Folds(plan.folds, chains, plan.chains, rows.count)
    learning = folds.learning(1, rows.batch_size)
    guess = min(expected or 5.0, len(groups) / 2)
    found = search(rows, learning, chains, outputs, plan.search, expected=guess, seed=seed + 1)
    columns = _whole_groups(found.columns, groups, rows.p)
    net = (
        found.net.choose(torch.arange(chains), _places(found.columns, columns))
        if columns is not found.columns
        else found.net
    )
    gain = weigh(net, columns, rows, folds, groups, plan.evidence, seed=seed + 10_000)
    prior = None if expected is None else min(max(expected / len(groups), 1e-9), 1 - 1e-9)
    selections = [
        _selection(gain[which * plan.chains : (which + 1) * plan.chains], found, which, plan, groups, prior)
        for which in range(rows.sets)
    ]
    if not plan.for_prediction:
        return selections
    chosen = choose_for_prediction(net, columns, rows, folds, groups, plan.evidence, seed=seed + 15_000)
    return [replace(s, sets=sets, history=s.history | sets.history()) for s, sets in zip(selections, chosen)]


def _selection(
    gain: np.ndarray, found: SearchResult, which: int, plan: Plan, groups: Sequence[np.ndarray], prior: float | None
) -> Selection:
    evidence = average_evidence(gain)
    probability, pi = inclusion_probabilities(evidence, prior)
    q = q_values(probability)
    logit = math.log(pi) - math.log1p(-pi)
    chain_probability = 1 / (1 + np.exp(-np.clip(gain + logit, -700, 700)))
    p = sum(map(len, groups))
    of = owners(groups, p)
    own = slice(which * plan.chains, (which + 1) * plan.chains)
    path = torch.stack([step[own].float().mean(0) for step in found.path]).numpy() if found.path else np.zeros((0, p))
    shown = np.argsort(-(probability[of] + (path[-1] if len(path) else 0)), kind="stable")[:_PATHS]
    size = plan.search.hidden[0]
    n = found.rows.count * (plan.folds - 1) / plan.folds
    decays = dict(zip(("spike_decay", "slab_decay"), plan.search.decays(n)))
    numbers = {
        "expected_inputs": pi * len(groups),
        "inclusion_probability": pi,
        "soft_threshold": found.soft_threshold,
        "soft_threshold_implies": probability_from_soft_threshold(found.soft_threshold, size, num_data=n, **decays),
        "hard_threshold": found.hard_threshold[-1] if found.hard_threshold else 0.0,
        "search_lr": found.lr,
        **decays,
    }
    return Selection(
        probability=probability[of],
        chain_probability=chain_probability[:, of],
        q_value=q[of],
        evidence=evidence[of],
        gain=gain[:, of],
        prior=numbers,
        history={
            "epoch": np.array(found.steps) * found.rows.batch_size / found.rows.count,
            "loss": torch.stack(found.loss)[:, own].numpy() if found.loss else np.zeros((0, plan.chains)),
            "path": path[:, shown],
            "path_inputs": shown,
            "threshold": _as_probability(np.array(found.hard_threshold), found.soft_threshold, size, n, decays),
            "hard_threshold": np.array(found.hard_threshold),
        },
    )


def _as_probability(
    mean_square: np.ndarray, soft_threshold: float, size: int, n: float, decays: dict[str, float]
) -> np.ndarray:
    """Return the inclusion probability of an input at a mean squared weight."""
    logit = 0.5 * size * n * (decays["spike_decay"] - decays["slab_decay"]) * (mean_square - soft_threshold)
    return 1 / (1 + np.exp(-np.clip(logit, -700, 700)))


def _whole_groups(columns: Tensor, groups: Sequence[np.ndarray], p: int) -> Tensor:
    """Return the candidates with every group that has one of its columns among them made whole."""
    if len(groups) == p:
        return columns
    of = owners(groups, p)
    wholes = []
    for chain in columns.numpy():
        held = sorted({int(of[c]) for c in chain if c >= 0})
        wholes.append(np.concatenate([groups[number] for number in held]) if held else np.zeros(0, dtype=np.int64))
    width = max(1, max(map(len, wholes)))
    return torch.from_numpy(np.stack([np.pad(w, (0, width - len(w)), constant_values=-1) for w in wholes]))


def _places(old: Tensor, new: Tensor) -> Tensor:
    """Return where each of the new candidates stands among the old, −1 where it does not."""
    places = torch.full_like(new, -1)
    for chain, (before, after) in enumerate(zip(old.tolist(), new.tolist())):
        where = {c: i for i, c in enumerate(before) if c >= 0}
        places[chain] = torch.tensor([where.get(c, -1) for c in after])
    return places
