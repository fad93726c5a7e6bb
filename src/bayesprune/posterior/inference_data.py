"""Posterior samples for ArviZ."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesprune.common.lazy import missing
from bayesprune.posterior.samples import Samples


def from_bayesprune(chains: Samples | Sequence[Samples], names: Sequence[str] = ("*",)) -> Any:
    """Chains of samples as ArviZ's InferenceData: its summaries, plots and diagnostics then take them.

    Args:
        chains: samples of one architecture, a chain each; those of a single chain may stand without a list. Of chains of
            unequal length the last samples count, as many as the shortest has.
        names: patterns of parameters and buffers to take, with * and ?; a network has more of them than a summary has lines.

    Returns:
        An ``arviz.InferenceData`` whose group ``posterior`` holds a variable for each tensor, (chain, draw, *shape).

    Raises:
        ImportError: ArviZ is missing.
        ValueError: there are no samples, no name matches, or the chains differ in their tensors.

    Example:
        >>> from torch import nn
        >>> from bayesprune.posterior import MemorySamples
        >>> model, samples = nn.Linear(2, 1), MemorySamples()
        >>> for step in range(4):
        ...     _ = samples.collect(model, step=step)
        >>> from_bayesprune([samples, samples]).posterior["weight"].shape  # doctest: +SKIP
        (2, 4, 1, 2)
    """
    together: Sequence[Samples] = [chains] if isinstance(chains, Samples) else chains
    draws = min((len(samples) for samples in together), default=0)
    if not draws:
        raise ValueError(f"chains: {[len(samples) for samples in together]} samples; each chain needs at least one")
    found: dict[str, list[np.ndarray]] = {}
    for samples in together:
        kept: dict[str, list[np.ndarray]] = {}
        for index in range(len(samples) - draws, len(samples)):
            for name, tensor in samples[index].items():
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
                    kept.setdefault(name, []).append(tensor.detach().cpu().double().numpy())
        if found and found.keys() != kept.keys():
            raise ValueError(f"chains: they hold different tensors, {sorted(found)} and {sorted(kept)}")
        for name, values in kept.items():
            found.setdefault(name, []).append(np.stack(values))
    if not found:
        raise ValueError(f"names={list(names)}: no tensor matches; there are {sorted(together[0][0])}")
    try:
        import arviz
    except ModuleNotFoundError as error:
        raise missing(error, "from_bayesprune", "integrations") from error
    return arviz.from_dict(posterior={name: np.stack(values) for name, values in found.items()})
