"""Dynamic pruning with feedback as its authors run it."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from bayesprune.sparsity import FeedbackPruning
from bayesprune.sparsity.partition import Exclude


def dynamic_pruning_with_feedback(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    target_sparsity: float,
    end_step: int,
    start_step: int = 0,
    every: int = 16,
    exclude: Exclude = (),
) -> FeedbackPruning:
    """A pruner that runs DPF as its authors do: equation 8's form without a spike-and-slab prior.

    A dense copy of the weights is moved by the gradient at the masked ones; the masks are renewed every 16 steps from
    the magnitudes of the copy, ranked over all layers, along a cubic ramp.

    Args:
        model: The model.
        optimizer: Any torch optimizer.
        target_sparsity: Share of the prunable weights at zero from ``end_step`` on.
        end_step: Step at which the ramp ends.
        start_step: Step at which it begins.
        every: Steps between two renewals of the masks.
        exclude: Patterns on module names, module types or modules to leave dense.

    Returns:
        The pruner, attached.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> model = nn.Linear(8, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> dynamic_pruning_with_feedback(model, optimizer, target_sparsity=0.5, end_step=10).every
        16

    Reference: arXiv 2210.12957, equation 8; Lin et al. 2020 (arXiv 2006.07253), Algorithm 1.
    """
    return FeedbackPruning(
        model, optimizer, form="dense_copy", groups="weight", sparsity=target_sparsity, scope="global", prior=None,
        keep_ends=False, warmup_steps=start_step, ramp_end_step=end_step, every=every, exclude=exclude,
    )  # fmt: skip
