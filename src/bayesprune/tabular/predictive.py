"""Predictive networks of many data sets at once, each on inputs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bayesprune.tabular.features import RankFeatures
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
    parts = [standardiser.inputs(table, own) for table, standardiser, own in zip(tables, standardisers, inputs)]
    features = [RankFeatures.of(part) for part in parts] if settings.features else []
    if features:
        parts = [feature(part) for feature, part in zip(features, parts)]
        masks = [mask[:, feature.owner] for mask, feature in zip(masks, features)]
    width = max(1, max(part.shape[1] for part in parts))
    narrow, same = [], []
    for part, standardiser in zip(parts, standardisers):
        narrow.append(np.pad(part, ((0, 0), (0, width - part.shape[1]))))
        same.append(Standardiser(np.zeros(width), np.ones(width), standardiser.y_mean, standardiser.y_scale))
    rows = Rows(narrow, responses, same, batch_size, torch.Generator().manual_seed(seed), weights)
    shown = torch.stack([F.pad(mask, (0, width - mask.shape[1])) for mask in masks]) if masks else None
    posteriors = sample_posterior(rows, outputs, settings, masks=shown, seed=seed + 1)
    for which, (posterior, part) in enumerate(zip(posteriors, parts)):
        count = posterior.net.chains
        posterior.features = features[which] if features else None
        places = torch.arange(part.shape[1]) if part.shape[1] else torch.tensor([-1])
        posterior.net = posterior.net.choose(torch.arange(count), places.expand(count, -1))
    return posteriors
