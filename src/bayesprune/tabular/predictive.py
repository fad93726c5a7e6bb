"""Predictive networks of many data sets at once, each on inputs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from bayesprune.tabular.features import RankFeatures
from bayesprune.tabular.rows import Rows, Standardiser
from bayesprune.tabular.sampling import DivergenceError, PosteriorNetworks, SamplingSettings, sample_posterior

_T = TypeVar("_T")
_TRIED = 5  # members of settings that are tried


def sample_networks(
    tables: Sequence[Any],
    responses: Sequence[np.ndarray],
    standardisers: Sequence[Standardiser],
    inputs: Sequence[np.ndarray],
    outputs: int,
    settings: Sequence[SamplingSettings],
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
        settings: how they are sampled; of several those with which few members predict best the rows that they leave
            out, and that do not diverge.
        masks: (C, inputs) of each data set which of its columns each member has; none gives all of them to all.
        weights: (n,) of the rows of each data set; none weighs all alike.
        batch_size: rows a step.
        seed: of everything random.

    Returns:
        One entry a data set, on its columns.
    """

    def sampled(which: Sequence[int], own: SamplingSettings) -> list[PosteriorNetworks]:
        return _sampled(
            _some(tables, which), _some(responses, which), _some(standardisers, which), _some(inputs, which),
            _some(masks, which), _some(weights, which), outputs, own, batch_size, seed,
        )  # fmt: skip

    every = range(len(tables))
    if len(settings) == 1:
        return sampled(every, settings[0])
    tried: dict[int, list[PosteriorNetworks]] = {}
    found: dict[int, PosteriorNetworks] = {}
    failure: DivergenceError | None = None
    for number, one in enumerate(settings):
        try:
            tried[number] = sampled(every, one.trial(_TRIED))
        except DivergenceError as error:  # on few rows the posterior of a weak prior is as bad as divergence
            failure = error
    while tried and len(found) < len(every):
        open_ = [which for which in every if which not in found]
        best = {which: min(tried, key=lambda number: tried[number][which].held_out) for which in open_}
        for number in sorted(set(best.values())):
            own = [which for which in open_ if best[which] == number]
            try:
                found |= zip(own, sampled(own, settings[number]))
            except DivergenceError as error:
                failure = error
                del tried[number]
    if failure is not None and len(found) < len(every):
        raise failure
    return [found[which] for which in every]


def _some(values: Sequence[_T], which: Sequence[int]) -> list[_T]:
    """Return some of the values; none of none."""
    return [values[one] for one in which] if len(values) else []


def steps_of(settings: Sequence[SamplingSettings]) -> int:
    """Return the training steps of `sample_networks` at most."""
    tried = sum(one.trial(_TRIED).steps for one in settings) if len(settings) > 1 else 0
    return tried + max(one.steps for one in settings)


def _sampled(
    tables: Sequence[Any],
    responses: Sequence[np.ndarray],
    standardisers: Sequence[Standardiser],
    inputs: Sequence[np.ndarray],
    masks: Sequence[torch.Tensor],
    weights: Sequence[np.ndarray],
    outputs: int,
    settings: SamplingSettings,
    batch_size: int,
    seed: int,
) -> list[PosteriorNetworks]:
    """Sample the networks of some data sets in one way."""
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
