"""What is known about every input, given all others: p-values, clusters, probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri_exp

from bayesprune.tabular.clusters import Cluster, findings, interchangeable, step_up
from bayesprune.tabular.conditional import ConditionalModels
from bayesprune.tabular.spread import variance_p_values
from bayesprune.tabular.tails import larger_tail
from bayesprune.tabular.weighing import Weigher, Weight


@dataclass(frozen=True)
class Evidence:
    """What is known about the inputs of one data set."""

    p_value: np.ndarray
    chain_score: np.ndarray
    gain: np.ndarray
    clusters: list[list[int]]
    cluster_p: np.ndarray
    shares: list[list[float]]
    hypotheses: int
    variance_p: np.ndarray

    def found(self, fdr: float) -> list[Cluster]:
        """Return the findings at a false-discovery rate."""
        single = {j: float(self.p_value[j]) for members in self.clusters for j in members}
        return findings(self.clusters, self.cluster_p, single, self.shares, self.hypotheses, fdr)

    def q_values(self) -> np.ndarray:
        """Return (m,) the false-discovery rate at which each input's cluster is found; 1 for what is no candidate."""
        q = np.ones(len(self.p_value))
        for members, value in zip(self.clusters, step_up(self.cluster_p, self.hypotheses)):
            q[members] = value
        return q

    def on_variance(self, fdr: float) -> np.ndarray:
        """Return (m,) which inputs are found to act on the noise's variance."""
        return step_up(self.variance_p, len(self.variance_p)) <= fdr

    def chain_factors(self, tau: float = 9.0) -> np.ndarray:
        """Return (C, m) log Bayes factors of each chain's own rows."""
        z = np.maximum(0.0, self.chain_score)
        return 0.5 * z**2 * tau / (1 + tau) - 0.5 * math.log1p(tau)


def gather_evidence(
    weigher: Weigher,
    models: ConditionalModels,
    units: Sequence[np.ndarray],
    candidates: Sequence[int],
    correlation: np.ndarray,
    rows: int,
) -> Evidence:
    """Weigh the candidates of one data set one by one and, where they are interchangeable, in clusters."""
    clusters = [[candidates[i] for i in members] for members in interchangeable(correlation, rows)]
    chains = len(weigher.own)
    p_value, score, gain = np.ones(len(units)), np.zeros((chains, len(units))), np.zeros((chains, len(units)))
    cluster_p, shares = np.ones(len(clusters)), []
    for number, members in enumerate(clusters):
        for j in members:
            weight = weigher.weigh(models.of(units[j]))
            p_value[j], score[:, j], gain[:, j] = p_value_of(weight), _chain_scores(weight), weight.gain
        if len(members) == 1:
            cluster_p[number] = p_value[members[0]]
            shares.append([1.0])
            continue
        joint = models.of(np.concatenate([units[j] for j in members]))
        weight = weigher.weigh(joint)
        cluster_p[number] = p_value_of(weight)
        shares.append(_by_input(weight.shares(), [len(units[j]) for j in members]))
    hypotheses = len(units) - sum(map(len, clusters)) + len(clusters)
    variance_p = np.ones(len(units))
    if weigher.regression:
        variance_p = variance_p_values(weigher.left, weigher.weight[:rows].numpy(), models, units)
    return Evidence(p_value, score, gain, clusters, cluster_p, shares, hypotheses, variance_p)


def _by_input(shares: list[float], sizes: list[int]) -> list[float]:
    """Return the shares of inputs from those of their columns."""
    ends = np.cumsum(sizes)
    return [float(sum(shares[end - size : end])) for end, size in zip(ends, sizes)]


def _z(sums: np.ndarray) -> np.ndarray:
    """Return Σ / √Σ² of (…, 2), 0 where there is nothing."""
    return sums[..., 0] / np.sqrt(np.maximum(sums[..., 1], 1e-300))


def _chain_scores(weight: Weight) -> np.ndarray:
    network, linear = _z(weight.network), _z(weight.linear)
    return np.where(np.abs(linear) > np.abs(network), np.abs(linear), network)


def p_value_of(weight: Weight) -> float:
    """Return the p-value of the sums over the chains: twice the smaller of the network's and the linear one."""
    network = larger_tail(weight.network.sum(0), weight.network_parts)
    linear = math.log(2) + larger_tail(weight.linear.sum(0), weight.linear_parts, two_sided=True)
    return float(np.exp(min(0.0, math.log(2) + min(network, linear))))


def inclusion_probabilities(
    p_value: np.ndarray, prior: float | None, weighed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return P(input matters | data), the log Bayes factor it comes from and the prior probability used."""
    z = np.maximum(0.0, -ndtri_exp(np.log(np.maximum(p_value, 1e-300))))
    pi, tau = prior if prior is not None else 1 / (weighed + 1), 9.0
    probability = factor = np.zeros(len(z))
    for _ in range(200):
        factor = 0.5 * z**2 * tau / (1 + tau) - 0.5 * math.log1p(tau)
        logit = np.clip(factor + math.log(pi) - math.log1p(-pi), -700, 700)
        probability = 1 / (1 + np.exp(-logit))
        new = prior if prior is not None else (0.5 + float(probability[p_value < 1].sum())) / (weighed + 1)
        spread = (9.0 + float((probability * z**2).sum())) / (1.0 + float(probability[p_value < 1].sum())) - 1
        if abs(new - pi) < 1e-10 and abs(spread - tau) < 1e-8 * tau:
            break
        pi, tau = min(new, 0.9), max(spread, 4.0)
    return probability, factor, pi
