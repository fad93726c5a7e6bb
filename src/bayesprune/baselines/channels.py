"""Gradual channel pruning: whole channels of smallest L2 norm go along a cubic ramp, for good."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from bayesprune.sparsity import ForwardPruning
from bayesprune.sparsity.partition import Exclude
from bayesprune.sparsity.schedule import Scope


def gradual_channel_pruning(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    target_sparsity: float,
    end_step: int,
    start_step: int = 0,
    every: int = 100,
    exclude: Exclude = (),
    example_input: torch.Tensor | None = None,
    scope: Scope = "global",
    min_groups: int = 1,
) -> ForwardPruning:
    """A pruner of whole channels by their L2 norm, on any optimizer: gradual pruning's ramp, no spike-and-slab prior.

    A channel is every tensor tied to it, across residual adds; its score is the mean squared weight over all of them,
    ranked over the network or within each coupled set. Li et al. rank filters by their L1 norm, at once and layer by layer, and train again
    afterwards; here the ramp is Zhu & Gupta's, within one run, so that it differs from EM-MCMC with channel groups in the
    sampler and the prior alone.

    Args:
        model: The model.
        optimizer: Any torch optimizer.
        target_sparsity: Share of the prunable weights at zero from ``end_step`` on.
        end_step: Step at which the ramp ends.
        start_step: Step at which it begins.
        every: Steps between two rises.
        exclude: Patterns on module names, module types or modules to leave dense.
        example_input: An input, by which the channels' ties are traced.
        scope: The target holds over the network (``"global"``) or in every coupled set of channels (``"layer"``).
        min_groups: Every coupled set keeps at least this many channels.

    Returns:
        The pruner, attached.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> image = torch.zeros(1, 3, 8, 8)
        >>> gradual_channel_pruning(model, optimizer, target_sparsity=0.5, end_step=10, example_input=image).every
        100

    Reference: Li et al. 2017, "Pruning filters for efficient ConvNets" (arXiv 1608.08710); Zhu & Gupta 2017 (arXiv
    1710.01878), equation 1.
    """
    # Paper: Li et al. rank by L1 norm, within each layer, once, and train again afterwards.
    return ForwardPruning(
        model, optimizer, groups="channel", prior=None, sparsity=target_sparsity, warmup_steps=start_step,
        ramp_end_step=end_step, every=every, exclude=exclude, scope=scope, round_to=1, min_groups=min_groups,
        keep_ends=False, example_input=example_input,
    )  # fmt: skip
