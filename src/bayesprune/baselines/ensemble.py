"""Deep ensembles (Lakshminarayanan et al., 2017): networks trained from independent seeds, averaged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayesprune.posterior import Prediction, RegressionPrediction, Samples, predict


def independent_seeds(seed: int, count: int) -> list[int]:
    """Return seeds for the members of an ensemble, spawned from one seed and so independent of those of any other.

    seed, seed + 1, … would make ensembles of neighbouring seeds share members, and their spread over seeds a fiction.

    Args:
        seed: The ensemble's seed.
        count: Number of members.

    Returns:
        Distinct integers in [0, 2³¹).

    Raises:
        ValueError: `count` is below 1.

    Example:
        >>> seeds = independent_seeds(0, 4)
        >>> len(set(seeds)), independent_seeds(0, 2) == seeds[:2]
        (4, True)
    """
    if count < 1:
        raise ValueError(f"count={count} must be at least 1.")
    found: dict[int, None] = {}  # a set that keeps its order; a collision is skipped
    for child in np.random.SeedSequence(seed).spawn(count + 16):
        found.setdefault(int(child.generate_state(1)[0]) >> 1)
    return list(found)[:count]


class DeepEnsemble:
    r"""Holds independently trained networks and predicts with the mean of their probabilities.

        p(y | x) = (1/M) Σ_m softmax(f_m(x))

    It trains nothing. Train each member from its own seed — initial weights, order of the data and augmentation — on
    *all* the training images, with the recipe of the single network (`independent_seeds` gives the seeds), then `add`
    it. Snapshots of one run are no members: they share their start, and `add` refuses a seed twice. M = 4 is what the
    rank-1 BNN's mixture is compared with; the cost is M times the training, the storage and the prediction of one
    network.

    Args:
        samples: Where the members are kept: a `SampleStore` (a folder) or `MemorySamples`. Members already there stay.

    Raises:
        ValueError: `samples` holds an entry that is no member of an ensemble.

    Example:
        >>> import torch
        >>> from bayesprune.posterior import MemorySamples
        >>> ensemble = DeepEnsemble(MemorySamples())
        >>> for seed in independent_seeds(0, 3):
        ...     _ = torch.manual_seed(seed)
        ...     _ = ensemble.add(nn.Linear(4, 2), seed=seed)
        >>> ensemble.predict(nn.Linear(4, 2), torch.randn(5, 4)).member_classes.shape
        torch.Size([3, 5])

    Reference:
        Lakshminarayanan, Pritzel & Blundell, "Simple and scalable predictive uncertainty estimation using deep
        ensembles", NeurIPS 2017, section 2.4 (without adversarial training).
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        for index, info in enumerate(samples.infos):
            if "seed" not in info:
                raise ValueError(
                    f"samples: entry {index} has no seed, so it is no member of an ensemble; give a new or empty store."
                )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def seeds(self) -> list[int]:
        """The members' seeds, in the order in which they were added."""
        return [info["seed"] for info in self.samples.infos]

    def add(self, model: nn.Module, seed: int, **info: Any) -> int:
        """Add a trained network; its normalisation buffers come along.

        Args:
            model: The network at its final weights; the first one fixes the architecture.
            seed: The seed it was trained from.
            **info: What else to remember of it, as in `Samples.collect`.

        Returns:
            The member's index.

        Raises:
            ValueError: A member of that seed is there already, or the architecture differs.
        """
        if int(seed) in self.seeds:
            raise ValueError(f"seed={seed} is in the ensemble already; train each member from a seed of its own.")
        return self.samples.collect(model, seed=int(seed), **info)

    def predict(
        self, model: nn.Module, inputs: Tensor | Iterable[Any], **settings: Any
    ) -> Prediction | RegressionPrediction:
        """Return the members' averaged prediction; settings are those of `bayesprune.posterior.predict`.

        Args:
            model: A network of the members' architecture; it comes back as it was.
            inputs: A tensor, or an iterable of batches.
            **settings: `batch_size`, `device`, `task`, `indices` (a smaller ensemble), ...
        """
        return predict(model, self.samples, inputs, **settings)
