"""Dynamic forward pruning (DFP): pruned groups never return."""

from __future__ import annotations

from bayesprune.sparsity.base import Pruner


class ForwardPruning(Pruner):
    """Dynamic forward pruning (DFP): pruned groups are frozen at zero, with their optimizer state, and never return.

    Attached to the optimizer by a post-step hook: the training loop stays ``loss.backward(); optimizer.step()``. After
    ``warmup_steps``, every ``every`` steps: the E-step (γ_g = 0 ⇔ E[Σw²]/n < λ₁), the M-step (each group's weight decay
    is set to
    ``spike_decay`` or ``slab_decay``, reversible), the hard rule, and w[pruned] = 0. Then, after **every** step, the
    pruned groups' weights, their optimizer state (momentum, ρ, averages) and, for channel groups, biases, BatchNorm
    pairs and running statistics (0, 1) are put back to exactly zero.

    Unasked, whole channels go (with every tensor tied to them, so that :func:`~bayesprune.compact` can remove them), the
    same share of every layer's, in multiples of 8 where widths allow, and the first convolution and the model's outputs
    stay: ``ForwardPruning(model, optimizer, sparsity=0.9, clock=clock)``. ``print(pruner)`` says what will happen.

    The optimizer's ``state_dict()`` carries the masks, so that what saves and restores the optimizer alone (Lightning,
    the Hugging Face Trainer) resumes rightly; a state without them is named in a warning when it is loaded.

    Args:
        model: The model.
        optimizer: Any torch optimizer, also wrapped by accelerate or Fabric. One with ``set_weight_decay(param, value)``
            is given its decays so; with others the difference to the optimizer's own decay is added to the gradient
            before the step (for decoupled decay: applied to the weights).
        sparsity: Share of the prunable weights to be zero in the end.
        clock: The run's :class:`~bayesprune.samplers.CycleClock`, of whose steps the next two are fractions.
        prune_from: Share of the run without pruning.
        prune_until: Share of the run at which a cubic ramp from 0 reaches the target.
        warmup_steps: Optimizer steps without pruning, in place of ``prune_from``.
        ramp_end_step: Step at which the ramp ends, in place of ``prune_until``; None, with ``warmup_steps`` and no clock:
            at once after the warm-up.
        every: Optimizer steps between updates; the ramp's end is always one.
        groups: ``"channel"``, ``"output"``, ``"input"``, ``"kernel"`` or ``"weight"``. None: channels if the model can be
            traced, else, with a warning that says why, kernels (without convolutions: weights). Or a grouper of your own
            (:func:`~bayesprune.sparsity.partition`).
        criterion: What the groups are ranked by: ``"magnitude"``: the mean squared weight (equation 10);
            ``"concentration"`` (equation 9): max − min over a channel's weights (on ``groups="kernel"``: over its input
            and its output channel); or a callable of (groups, optimizer) that returns one tensor a groups object, of its
            mask's shape, smallest to be pruned first, e.g. of :meth:`Groups.sums`. It is called after the optimizer's
            step, with the gradients still there.
        scope: The target holds in each ``"layer"`` alike (of channel groups: every set of coupled channels loses the same
            share; what a layer with few groups cannot give the others do), ``"global"``-ly over all prunable weights,
            ranked together, or (``groups="input"``) in each ``"chain"``, that is channel group of a grouped convolution.
        round_to: With ``scope="layer"``, every set of channels keeps a multiple of this many: kernels are built for
            multiples of 8 or 16. None: of 8, 4 or 2 where the set has 8 times as many.
        min_groups: Every tensor (set of channels) keeps at least this many groups.
        exclude: Patterns on module names, module types or modules to leave dense.
        keep_ends: Leave the first convolution dense, and the layers that write the model's outputs (of channel groups:
            their outputs; the columns that read a pruned channel go with it).
        coupling: Of channel groups: ``"group"`` or ``"none"``.
        example_input: An input on which the graph is traced; needed for ``groups="channel"``, and by default where an
            image or a vector of the first layer's size does not do.
        prior: ``"spike_slab"``, or None: no EM, plain gradual pruning.
        spike_decay: Weight decay δ₀/N on the spike; None: twice the slab's, at least 1e-3.
        slab_decay: Weight decay δ₁/N on the slab; None: the optimizer's own, as it is when the pruner is attached.
        soft_threshold: λ₁ on the group's mean squared weight; None: 1e-4 unless ``inclusion_probability`` is given.
        inclusion_probability: Prior probability 1 − p of the slab, from which λ₁ is derived; needs ``num_data``.
        expectation: E over the sampler: ``"current"`` sample, or a ``"running"`` mean over updates.
        momentum: Of the running mean.
        hard_threshold: λ₂: groups whose statistic is below it are pruned. This or ``sparsity``.
        reading: Of the concentration rule: ``"signed"`` or ``"absolute"``.
        em_only: EM alone: soft masks and weight decays, and nothing set to zero.
        num_data: Number N of training examples; None: the optimizer's ``num_data``, if it has one.
        target_sparsity: Old name of ``sparsity``, for one version.
        rule: Old name of ``criterion``, for one version.

    Raises:
        ValueError: If a setting is out of range, two contradict each other, nothing would be pruned, a target has no time
            to be reached, or it is out of reach.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from bayesprune.samplers import CycleClock
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        >>> pruner = ForwardPruning(model, optimizer, sparsity=0.75, clock=CycleClock(total_steps=20))
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> pruner.hard_sparsity, int(pruner.keep_masks["0.weight"].sum())
        (0.75, 4)

    Reference: arXiv 2210.12957, Algorithm 3 and section 5; method, sections 5 to 7.
    """

    permanent = True
