"""What stands in for search, weighing and sampling where the tests are about frames, files, commands and pages.

Inputs are found by t-statistics and networks are ridge regressions on bootstrap samples, within milliseconds; all else is the
estimators' own.
"""

from __future__ import annotations

import numpy as np
import torch

from bayesprune.tabular.chains import ChainMLP
from bayesprune.tabular.clusters import Cluster
from bayesprune.tabular.sampling import PosteriorNetworks
from bayesprune.tabular.selection import Selection

MEMBERS, CHAINS = 12, 3


def find_quickly(tables, responses, standardisers, outputs, plan, groups, *, fdr, seed, **rest):
    found = []
    for table, response, standardiser in zip(tables, responses, standardisers):
        Z, Y = standardiser.inputs(table), _targets(response, outputs)
        R = (Y - Y.mean(0)) / (Y.std(0) + 1e-12)
        score = np.abs(Z.T @ R / np.sqrt(len(Z))).max(axis=1)
        score = np.array([score[group].max() for group in groups])
        evidence = score**2 / 2 - np.log(len(groups)) - 5
        probability = 1 / (1 + np.exp(-np.clip(evidence, -700, 700)))
        order = np.argsort(-probability, kind="stable")
        q = np.empty(len(groups))
        q[order] = np.cumsum(1 - probability[order]) / np.arange(1, len(groups) + 1)
        of = np.empty(Z.shape[1], dtype=int)
        for number, group in enumerate(groups):
            of[group] = number
        chains = np.clip(probability + 0.02 * np.random.default_rng(seed).normal(size=(CHAINS, len(groups))), 0, 1)
        epoch = np.arange(1, 31)
        top = np.argsort(-probability[of], kind="stable")[:12]
        found.append(
            Selection(
                probability=probability[of], chain_probability=chains[:, of], q_value=q[of], evidence=evidence[of],
                p_value=1 - probability[of], leading=np.flatnonzero(q <= fdr).tolist(),
                clusters=[
                    Cluster(tuple(groups[j]), (1 / len(groups[j]),) * len(groups[j]), 0.001, float(q[j]))
                    for j in np.flatnonzero(q <= fdr)
                ],
                variance_p_value=np.ones(Z.shape[1]), on_variance=np.zeros(Z.shape[1], dtype=bool),
                gain=np.tile(evidence, (CHAINS, 1))[:, of],
                prior={"expected_inputs": 3.0, "inclusion_probability": 3 / len(groups), "soft_threshold": 0.02}
                | dict.fromkeys(("spike_decay", "slab_decay", "hard_threshold"), 0.1),
                history={
                    "epoch": epoch, "loss": 1 + np.exp(-epoch[:, None] / 5) * np.array([1.0, 1.1, 0.9]), "path_inputs": top,
                    "path": 0.5 + (probability[of][top] - 0.5) * (1 - np.exp(-epoch / 8))[:, None],
                    "threshold": np.where(epoch < 10, np.nan, 0.5),
                },
            )
        )  # fmt: skip
    return found


def sample_quickly(tables, responses, standardisers, inputs, outputs, settings, *, seed, **rest):
    return [
        _ridge(*each, outputs, np.random.default_rng(seed)) for each in zip(tables, responses, standardisers, inputs)
    ]


def _ridge(table, response, standardiser, columns, outputs, generator):
    Z, Y = standardiser.inputs(table, columns), _targets(response, outputs)
    # Of labels, logits of a kind.
    Y = (Y - standardiser.y_mean) / standardiser.y_scale if response.dtype.kind == "f" else 6 * (Y - 0.5)
    A = np.column_stack([np.ones(len(Z)), Z])
    net = ChainMLP(MEMBERS, (max(1, len(columns)), outputs), generator=torch.Generator().manual_seed(0))
    fits = []
    for _ in range(MEMBERS):
        rows = generator.integers(len(Z), size=len(Z))
        ridge = 1e-3 * len(Z) * np.diag([0.0, *np.ones(len(columns))])
        fits.append(np.linalg.solve(A[rows].T @ A[rows] + ridge, A[rows].T @ Y[rows]))
    fits = torch.tensor(np.stack(fits), dtype=torch.float32)
    weight = fits[:, 1:].transpose(1, 2) if len(columns) else torch.zeros(MEMBERS, outputs, 1)
    net.first.weight.data = weight.reshape(net.first.weight.shape).contiguous()
    net.first.bias.data = (
        (fits[:, 0] if len(columns) else fits[:, 0].mean(0).expand(MEMBERS, -1)).reshape(-1).contiguous()
    )
    noise = float((Y - A @ fits.mean(0).numpy()).var())
    return PosteriorNetworks(net, torch.full((MEMBERS,), 1 / MEMBERS), noise, precision=1.0)


def _targets(response, outputs):
    if response.dtype.kind == "f":
        return response[:, None].astype(np.float64)
    return (response[:, None] == np.arange(outputs)).astype(float) if outputs > 1 else response[:, None].astype(float)


def use(monkeypatch):
    """Put them in place."""
    monkeypatch.setattr("bayesprune.tabular.estimator_base.find_inputs", find_quickly)
    monkeypatch.setattr("bayesprune.tabular.estimator_base.sample_networks", sample_quickly)
