"""The evidence for each candidate on rows that its chain has not seen, and the probabilities that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.comparison import Comparison, EvidenceSettings, Folds, gains_without_refit, owners
from bayesprune.tabular.rows import Rows
from bayesprune.tabular.trainer import ChainTrainer


def inclusion_probabilities(gain: np.ndarray, prior: float | None, p: int | None = None) -> tuple[np.ndarray, float]:
    """Return P(input matters | data) from the held-out evidence, and the prior probability used.

    P_j = sigmoid(E_j + log(π/(1 − π))), with E_j the log predictive likelihood ratio on held-out rows (a cross-validated
    Bayes factor). Where the model without the input is the true law, exp(E_j) has expectation at most one (an e-value),
    so that a large P_j is rare; how far that carries to fitted models is what `benchmarks.selection_fdr` measures.
    Without a given π it is estimated by empirical Bayes: π = (1 + Σ_j P_j)/(p + 2), iterated.

    Args:
        gain: (p,) E_j in nats.
        prior: π, or None.
        p: inputs that the prior covers; len(gain) if None.

    Returns:
        (p,) probabilities, and π.

    Example:
        >>> probability, prior = inclusion_probabilities(np.array([50.0, 0.0, -1.0, 0.5]), None)
        >>> probability.round(2).tolist()[0], round(prior, 2) < 0.8
        (1.0, True)
    """
    p = len(gain) if p is None else p

    def posterior(pi: float) -> np.ndarray:
        logit = np.clip(gain + math.log(pi) - math.log1p(-pi), -700, 700)
        return 1 / (1 + np.exp(-logit))

    if prior is not None:
        return posterior(prior), prior
    pi = 1 / (p + 1)
    for _ in range(200):
        new = (1 + float(posterior(pi)[gain > 0].sum())) / (p + 2)
        if abs(new - pi) < 1e-12:
            break
        pi = new
    return posterior(pi), pi


def q_values(probability: np.ndarray) -> np.ndarray:
    """Return for each input the Bayesian false-discovery rate of the set of all inputs at least as probable.

    q_j = mean of (1 − P_i) over {i : P_i ≥ P_j}; the set {q ≤ α} is the largest whose expected share of false
    discoveries is at most α.

    Args:
        probability: (p,).

    Example:
        >>> q_values(np.array([1.0, 0.5, 0.9])).round(3).tolist()
        [0.0, 0.2, 0.05]
    """
    order = np.argsort(-probability, kind="stable")
    running = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
    q = np.empty_like(running)
    q[order] = running
    return q


def weigh(
    net: ChainMLP,
    columns: Tensor,
    rows: Rows,
    folds: Folds,
    groups: Sequence[np.ndarray],
    settings: EvidenceSettings,
    *,
    seed: int,
) -> np.ndarray:
    """Weigh the candidates of every chain on rows that neither its weights nor its choice of model has seen.

    1. On the inner rows: an input that brings nothing even without a refit (its columns at the mean) is dropped, and
       the chain trained on; `settings.rounds` times.
    2. Nested models of the strongest 0, 1, 2, … inputs are trained and the best taken; then each of its inputs is left
       out in turn, and what brings less than `settings.liberal` leaves. Beside useless inputs evidence is noise.
    3. On the outer rows: the model is trained on all other rows, once as it is and once without each input. The
       difference of the log-likelihoods is the evidence for that input.

    Networks that are compared are trained for the same steps, and the predictions of their last states averaged.

    Args:
        net: the chains, on their candidates.
        columns: (C, K) candidates.
        rows: all columns of S data sets.
        folds: which rows each chain learns from.
        groups: column numbers of every input; an input is weighed as a whole.
        settings: how.
        seed: of the noise.

    Returns:
        (C, inputs) nats; 0 where an input is not in the chain's model.
    """
    chains = net.chains
    owner = owners(groups, rows.p)
    inner = [folds.inner(chain) for chain in range(chains)]
    outer = [folds.outer(chain) for chain in range(chains)]
    narrow = rows.narrowed(columns).in_batches(settings.batch_size)
    learning = folds.learning(2, narrow.batch_size)
    gains: list[dict[int, float]] = []
    for round_ in range(settings.rounds + 1):
        gains = gains_without_refit(net, columns, narrow, inner, owner)
        keep = _useful(columns, gains, owner, settings.tested)
        columns = columns.gather(1, keep.clamp_min(0)).masked_fill(keep < 0, -1)
        net, narrow = net.choose(torch.arange(chains), keep), narrow.narrowed(keep)
        if round_ < settings.rounds:
            ChainTrainer(net, narrow, learning, settings.chain, seed=seed + round_).run(settings.settle_steps)
    weighing = Comparison(net, columns, narrow, owner, settings, seed + 100)
    models = weighing.nested_models(gains, inner, learning)
    for _ in range(settings.passes):
        gain = weighing.leave_out(models, inner, learning)
        weak = [[i for i in sorted(g, key=lambda i: g[i]) if g[i] < settings.liberal] for g in gain]
        if not any(weak):
            break
        # The weaker half at a time: two inputs that can replace each other must not leave together.
        leaving = [set(w[: (len(w) + 1) // 2]) for w in weak]
        models = [[i for i in model if i not in left] for model, left in zip(models, leaving)]
    result = np.zeros((chains, len(groups)))
    for chain, brought in enumerate(weighing.leave_out(models, outer, folds.learning(1, narrow.batch_size))):
        for number, value in brought.items():
            result[chain, number] = value
    return result


def _useful(columns: Tensor, gains: list[dict[int, float]], owner: np.ndarray, most: int) -> Tensor:
    """Return the places of the columns of the inputs with the largest positive gains, with −1 behind them."""
    chosen = []
    for chain, gain in enumerate(gains):
        best = set(sorted((i for i in gain if gain[i] > 0), key=lambda i: -gain[i])[:most])
        chosen.append([place for place, c in enumerate(columns[chain].tolist()) if c >= 0 and int(owner[c]) in best])
    width = max(1, max(map(len, chosen)))
    return torch.tensor([places + [-1] * (width - len(places)) for places in chosen])


def average_evidence(gain: np.ndarray) -> np.ndarray:
    """Return log(mean over chains of exp(gain)): the mean of e-values is one, however the chains depend on each other.

    Args:
        gain: (C, p) nats.

    Returns:
        (p,) nats.

    Example:
        >>> average_evidence(np.array([[0.0, 10.0], [0.0, 0.0]])).round(2).tolist()
        [0.0, 9.31]
    """
    return np.logaddexp.reduce(gain, axis=0) - math.log(len(gain))
