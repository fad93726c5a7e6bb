"""From rows to inclusion probabilities: search, evidence, prior, for several data sets at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesprune.sparsity.spike_slab import probability_from_soft_threshold
from bayesprune.tabular.candidates import (
    OUTLYING,
    common_union,
    interleaved,
    path_order,
    tree_order,
    tree_rows,
    winsorised,
)
from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.clusters import Cluster, determined, twins
from bayesprune.tabular.comparison import Folds, owners
from bayesprune.tabular.conditional import ConditionalModels
from bayesprune.tabular.evidence import Evidence, gather_evidence, inclusion_probabilities
from bayesprune.tabular.plan import Plan
from bayesprune.tabular.prediction_sets import PredictionSets, choose_for_prediction
from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.search import SearchResult, search
from bayesprune.tabular.weighing import FoldNetworks, Weigher, train_fold_networks

_TWINS = 2  # interchangeable inputs that join each candidate in the networks; all of them join its cluster
_FURTHER = 128  # inputs that are weighed by what the networks leave of y, beside the candidates
_LONGEST = 128  # inputs of a chain that are compared for prediction
_PATHS = 50  # inputs whose path is kept


@dataclass(frozen=True)
class Selection:
    """What is known about the inputs of one data set."""

    probability: np.ndarray
    chain_probability: np.ndarray
    p_value: np.ndarray
    q_value: np.ndarray
    variance_p_value: np.ndarray
    on_variance: np.ndarray
    evidence: np.ndarray
    gain: np.ndarray
    clusters: list[Cluster]
    leading: list[int]
    prior: dict[str, float]
    history: dict[str, np.ndarray]
    sets: PredictionSets | None = None

    def support(
        self, select: str, *, fdr: float, probability: float, n_inputs: int | None, groups: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Return (p,) which columns are selected: "auto" and "fdr" the likeliest input of every finding, "probability",
        "number" (of inputs, ties by evidence) or "prediction" (those of any chain's set).
        """
        if select == "probability":
            return self.probability >= probability
        if select in ("auto", "fdr"):
            chosen = np.array(self.leading, dtype=np.int64)
        elif select == "prediction":
            assert self.sets is not None
            chosen = np.unique(np.concatenate(self.sets.members))
        else:
            first = np.array([members[0] for members in groups])
            chosen = np.lexsort((-self.evidence[first], -self.probability[first]))[:n_inputs]
        return _columns_of(chosen, groups, len(self.probability))

    def inputs(self, select: str, support: np.ndarray, groups: Sequence[np.ndarray], own_variance: bool) -> np.ndarray:
        """Return the numbers of the columns that the predictive network has: what is selected; with "auto" every
        member of a finding, what each chain predicts better with, and what acts on a variance that the network may name.
        """
        if select != "auto":
            return np.flatnonzero(support)
        members = np.isin(np.arange(len(support)), [c for own in self.clusters for c in own.members])
        if self.sets is not None:
            members |= _columns_of(np.unique(np.concatenate(self.sets.members)), groups, len(support))
        return np.flatnonzero(members | self.on_variance if own_variance else members)


def _columns_of(inputs: np.ndarray, groups: Sequence[np.ndarray], p: int) -> np.ndarray:
    """Return (p,) which columns belong to some inputs."""
    support = np.zeros(p, dtype=bool)
    for number in inputs:
        support[groups[number]] = True
    return support


def find_inputs(
    tables: Sequence[Any],
    responses: Sequence[np.ndarray],
    standardisers: Sequence[Standardiser],
    outputs: int,
    plan: Plan,
    groups: Sequence[np.ndarray],
    *,
    expected: float | None,
    fdr: float = 0.05,
    weights: Sequence[np.ndarray] = (),
    seed: int,
) -> list[Selection]:
    """Find the inputs of S data sets of one shape."""
    generator = torch.Generator().manual_seed(seed)
    if np.issubdtype(responses[0].dtype, np.floating):
        # Gross outliers would set the scale of y, and with it the steps, for all other rows.
        responses = [winsorised(y, OUTLYING) for y in responses]
        each: list[Any] = list(weights) or [None] * len(responses)
        standardisers = [s.with_response(y, weight) for s, y, weight in zip(standardisers, responses, each)]
    rows = Rows(tables, responses, standardisers, plan.batch_size, generator, weights)
    chains = plan.chains * rows.sets
    folds = Folds(plan.folds, chains, plan.chains, rows.count)
    learning = folds.learning(1, rows.batch_size)
    guess = min(expected or 5.0, len(groups) / 2)
    found = search(rows, learning, chains, outputs, plan.search, expected=guess, seed=seed + 1)
    fit = _Fit(rows, folds, groups, owners(groups, rows.p), plan, found.net, found.columns).in_whole_groups()
    orders = [fit.orders(which, seed) for which in range(rows.sets)]
    weighed = fit.evidence(orders, seed=seed + 10_000)
    prior = None if expected is None else min(max(expected / len(groups), 1e-9), 1 - 1e-9)
    selections = [_selection(evidence, found, which, fit, prior, fdr) for which, evidence in enumerate(weighed)]
    return selections if plan.for_prediction is False else fit.with_sets(selections, orders, seed=seed + 15_000)


@dataclass(frozen=True)
class _Fit:
    """The chains that a search left, on their candidate columns, and what all that follows needs beside them."""

    rows: Rows
    folds: Folds
    groups: Sequence[np.ndarray]
    owner: np.ndarray
    plan: Plan
    net: ChainMLP
    columns: Tensor

    def on(self, columns: Tensor) -> _Fit:
        """Return the fit with its chains on other columns."""
        net = self.net.choose(torch.arange(self.net.chains), _places(self.columns, columns))
        return replace(self, net=net, columns=columns)

    def columns_of(self, inputs: Sequence[int]) -> np.ndarray:
        """Return the columns of some inputs, in their order."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *(self.groups[number] for number in inputs)])

    def in_whole_groups(self) -> _Fit:
        """Return the fit with every group that has one of its columns among a chain's candidates made whole."""
        if len(self.groups) == self.rows.p:
            return self
        held = [sorted({int(self.owner[c]) for c in chain if c >= 0}) for chain in self.columns.numpy()]
        return self.on(_padded_columns([*map(self.columns_of, held)]))

    def orders(self, which: int, seed: int) -> list[list[list[int]]]:
        """Return for each chain of a data set the inputs in the order of its own search (equation 10's statistic), of
        the least-angle path and of the trees, all on its learning rows.
        """
        one, chains = self.rows.only(which), self.plan.chains
        count = tree_rows(one.count, one.p)
        X, y = one.inputs(0, count)[0].numpy(), one.y[0, :count].numpy()
        strength = self.net.input_weights().detach().square().sum(1)
        orders = []
        for chain in range(which * chains, (which + 1) * chains):
            learning = np.setdiff1d(np.arange(count), self.folds.outer(chain).numpy())
            found = [self.columns[chain][strength[chain].argsort(descending=True)].tolist()]
            found += [path_order(X[learning], y[learning]), tree_order(X[learning], y[learning], seed + chain)]
            orders.append([list(dict.fromkeys(int(self.owner[c]) for c in order if c >= 0)) for order in found])
        return orders

    def evidence(self, orders: list[list[list[list[int]]]], *, seed: int) -> list[Evidence]:
        """Join the candidates of all chains and sources of each data set, train on them and weigh them."""
        rows, plan, groups = self.rows, self.plan, self.groups
        candidates = []
        for which, own in enumerate(orders):
            union = common_union([order for by_source in own for order in by_source], plan.union)
            candidates.append(_with_twins(rows, which, union, groups, most=_TWINS)[0])
        wide = [*map(self.columns_of, candidates)]
        networks = self.on(_padded_columns(wide).repeat_interleave(plan.chains, 0)).networks(seed)
        result = []
        for which, union in enumerate(candidates):
            X = rows.only(which).inputs(0, rows.count)[0].numpy()
            loose = np.zeros(rows.p, dtype=bool)
            loose[wide[which]] = True
            models = ConditionalModels(X, loose)
            y = rows.y[which, : rows.count]
            weigher = Weigher(networks, models, which * plan.chains, plan.chains, y, seed + which, plan.weighing.draws)
            further, correlation = _with_twins(rows, which, _further(weigher, self.owner, union, X), groups, union)
            result.append(gather_evidence(weigher, models, groups, further, correlation, rows.count))
        return result

    def networks(self, seed: int) -> FoldNetworks:
        """Train the networks that weigh, with smaller steps where they diverge: one that is not finite says nothing."""
        first = settings = self.plan.weighing
        for _ in range(4):
            net = copy.deepcopy(self.net)
            networks = train_fold_networks(net, self.columns, self.rows, self.folds, self.owner, settings, seed)
            if all(bool(parameter.isfinite().all()) for parameter in networks.net.parameters()):
                return networks
            settings = replace(settings, chain=replace(settings.chain, lr=settings.chain.lr / 3))
        raise RuntimeError(
            f"the networks that weigh the inputs diverge at lr={first.chain.lr:g} and at {3 * settings.chain.lr:.2g}: "
            "look for outliers in X or y and for rows of enormous sample_weight"
        )

    def with_sets(
        self, selections: list[Selection], orders: list[list[list[list[int]]]], *, seed: int
    ) -> list[Selection]:
        """Add the inputs that predict best, beside those found if that is the plan; none where those found are enough."""
        plan, groups = self.plan, self.groups
        known = [
            [] if plan.for_prediction else sorted({int(self.owner[c]) for own in s.clusters for c in own.members})
            for s in selections
        ]
        if all(len(found) == len(groups) for found in known):
            return selections
        paths = [
            list(dict.fromkeys([*found, *interleaved(own)[:_LONGEST]]))
            for found, by_chain in zip(known, orders)
            for own in by_chain
        ]
        wide = self.on(_padded_columns([*map(self.columns_of, paths)]))
        given = [*map(len, known)]
        chosen = choose_for_prediction(
            wide.net, wide.columns, paths, self.rows, self.folds, groups, plan.comparison, given=given, seed=seed
        )
        return [
            replace(s, sets=sets if sets.count > few or not few else None, history=s.history | sets.history())
            for s, few, sets in zip(selections, given, chosen)
        ]


def _further(weigher: Weigher, owner: np.ndarray, union: list[int], X: np.ndarray) -> list[int]:
    """Return the candidates and, for a regression, the inputs that what is left of y is most correlated with."""
    if not weigher.regression:
        return union
    left = np.abs(np.clip(weigher.left, -3 * weigher.left.std(), 3 * weigher.left.std()).astype(X.dtype) @ X)
    return sorted({*union, *(int(owner[c]) for c in np.argsort(-left, kind="stable")[:_FURTHER])})


def _with_twins(
    rows: Rows,
    which: int,
    union: list[int],
    groups: Sequence[np.ndarray],
    of: Sequence[int] | None = None,
    *,
    most: int | None = None,
) -> tuple[list[int], np.ndarray]:
    """Return some inputs with those that are interchangeable with one of them (or of `of`), and their correlations: 1 in
    a set that determines itself, which is taken as a whole unless there is a limit.
    """
    X = rows.only(which).inputs(0, rows.count)[0]
    single = np.array([members[0] if len(members) == 1 else -1 for members in groups])
    plain = [j for j in (union if of is None else of) if single[j] >= 0]
    with_all = (X[:, single[plain]].t() @ X / rows.count).abs().numpy() if plain else np.zeros((0, rows.p))
    column_twins = twins(with_all, single[plain], rows.count, most) if plain else np.zeros(0, dtype=np.int64)
    of_column = {int(c): j for j, c in enumerate(single) if c >= 0}
    union = sorted({*union, *(of_column[int(c)] for c in column_twins if int(c) in of_column)})
    sets = [own for own in determined(X.numpy(), groups) if not set(own).isdisjoint(union)] if most is None else []
    union = sorted({*union, *(j for own in sets for j in own)})
    correlation = np.eye(len(union))
    places = [i for i, j in enumerate(union) if single[j] >= 0]
    block = X[:, single[[union[i] for i in places]]]
    correlation[np.ix_(places, places)] = (block.t() @ block / rows.count).abs().clamp(max=1.0).numpy()
    for own in sets:
        inside = np.searchsorted(union, own)
        correlation[np.ix_(inside, inside)] = 1.0
    return union, correlation


def _selection(
    evidence: Evidence, found: SearchResult, which: int, fit: _Fit, prior: float | None, fdr: float
) -> Selection:
    plan, groups, of = fit.plan, fit.groups, fit.owner
    probability, factor, pi = inclusion_probabilities(evidence.p_value, prior, len(groups))
    logit = math.log(pi) - math.log1p(-pi)
    single, findings = evidence.chain_factors(), evidence.found(fdr)
    chain_probability = 1 / (1 + np.exp(-np.clip(single + logit, -700, 700)))
    own = slice(which * plan.chains, (which + 1) * plan.chains)
    steps = [step[own].float().mean(0).numpy() for step in found.path]
    path = np.stack(steps) if steps else np.zeros((0, len(of)))
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
        p_value=evidence.p_value[of],
        q_value=evidence.q_values()[of],
        variance_p_value=evidence.variance_p[of],
        on_variance=evidence.on_variance(fdr)[of],
        evidence=factor[of],
        gain=evidence.gain[:, of],
        clusters=[_in_columns(cluster, groups) for cluster in findings],
        leading=[cluster.members[int(np.argmax(cluster.shares))] for cluster in findings],
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


def _in_columns(cluster: Cluster, groups: Sequence[np.ndarray]) -> Cluster:
    """Return a finding about inputs as one about columns; those of one input share its share."""
    pairs = [(int(c), share / len(groups[j])) for j, share in zip(cluster.members, cluster.shares) for c in groups[j]]
    members, shares = zip(*sorted(pairs))
    return replace(cluster, members=members, shares=shares)


def _as_probability(
    mean_square: np.ndarray, soft_threshold: float, size: int, n: float, decays: dict[str, float]
) -> np.ndarray:
    """Return the inclusion probability of an input at a mean squared weight."""
    logit = 0.5 * size * n * (decays["spike_decay"] - decays["slab_decay"]) * (mean_square - soft_threshold)
    return 1 / (1 + np.exp(-np.clip(logit, -700, 700)))


def _padded_columns(columns: Sequence[np.ndarray]) -> Tensor:
    """Return (C, K) column numbers with −1 behind those of chains that have fewer."""
    width = max(1, max(map(len, columns)))
    return torch.from_numpy(np.stack([np.pad(own, (0, width - len(own)), constant_values=-1) for own in columns]))


def _places(old: Tensor, new: Tensor) -> Tensor:
    """Return where each of the new candidates stands among the old, −1 where it does not."""
    places = torch.full_like(new, -1)
    for chain, (before, after) in enumerate(zip(old.tolist(), new.tolist())):
        where = {c: i for i, c in enumerate(before) if c >= 0}
        places[chain] = torch.tensor([where.get(c, -1) for c in after])
    return places
