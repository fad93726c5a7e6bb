"""Predictive networks of many data sets at once, each on inputs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.sampling import PosteriorNetworks, SamplingSettings, sample_posterior


def sample_networks(
    tables: Sequence[Any],
    responses: Sequence[np.ndarray],
    standardisers: Sequence[Standardiser],
    inputs: Sequence[np.ndarray],
    outputs: int,
    settings: SamplingSettings,
    *,
    masks: Sequence[torch.Tensor] = (),
    weights: Sequence[np.ndarray] = (),
    batch_size: int,
    seed: int,
) -> list[PosteriorNetworks]:
    """Sample a network on some columns of every data set; their numbers may differ.

    Args:
        tables: (n, p) each.
        responses: (n,) each.
        standardisers: one each.
        inputs: the columns of each data set, by number.
        outputs: outputs of the networks.
        settings: how they are sampled.
        masks: (C, inputs) of each data set which of its columns each member has; none gives all of them to all.
        weights: (n,) of the rows of each data set; none weighs all alike.
        batch_size: rows a step.
        seed: of everything random.

    Returns:
        One entry a data set, on its columns.
    """
    # A data set with fewer columns than another has zeros behind them meanwhile.
    width = max(1, max(map(len, inputs)))
    narrow, same = [], []
    for table, standardiser, columns in zip(tables, standardisers, inputs):
        x = np.zeros((table.shape[0], width), dtype=np.float32)
        x[:, : len(columns)] = standardiser.inputs(table, columns)
        narrow.append(x)
        same.append(Standardiser(np.zeros(width), np.ones(width), standardiser.y_mean, standardiser.y_scale))
    rows = Rows(narrow, responses, same, batch_size, torch.Generator().manual_seed(seed), weights)
    shown = torch.stack([F.pad(mask, (0, width - mask.shape[1])) for mask in masks]) if masks else None
    posteriors = sample_posterior(rows, outputs, settings, masks=shown, seed=seed + 1)
    for posterior, columns in zip(posteriors, inputs):
        count = posterior.net.chains
        places = torch.arange(len(columns)) if len(columns) else torch.tensor([-1])
        posterior.net = posterior.net.choose(torch.arange(count), places.expand(count, -1))
    return posteriors
