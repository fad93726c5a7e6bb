"""Dynamic forward pruning (DFP): pruned groups never return."""

from __future__ import annotations

from torch import Tensor

from bayesprune.sparsity.base import Pruner


class ForwardPruning(Pruner):
    """Dynamic forward pruning (DFP): pruned groups are frozen at zero, with their optimizer state, and never return.

    Attached to the optimizer by a post-step hook: the training loop stays ``loss.backward(); optimizer.step()``. After
    ``warmup_steps``, every ``every`` steps: the E-step (γ_g = 0 ⇔ E[Σw²]/n < λ₁), the M-step (each group's weight decay
    is set to
    ``spike_decay`` or ``slab_decay``, reversible), the hard rule, and w[pruned] = 0. Then, after **every** step, the
    pruned groups' weights, their optimizer state (momentum, ρ, averages) and, for channel groups, biases, BatchNorm
    pairs and running statistics (0, 1) are put back to exactly zero.

    Args:
        model: The model.
        optimizer: Any torch optimizer. One with ``set_weight_decay(param, value)`` is given its decays so; with others
            the difference to the optimizer's own decay is added to the gradient before the step (for decoupled decay:
            applied to the weights).
        groups: ``"weight"``, ``"kernel"``, ``"input"``, ``"output"`` or ``"channel"``.
        rule: The hard rule's statistic: ``"magnitude"`` and ``"l2"`` (equation 10): the group's mean squared weight;
            ``"concentration"`` (equation 9): max − min over a channel's weights (on ``groups="kernel"``: over its input
            and its output channel).
        spike_decay: Weight decay δ₀/N on the spike.
        slab_decay: Weight decay δ₁/N on the slab; None: the optimizer's own, as it is when the pruner is attached.
        soft_threshold: λ₁ on the group's mean squared weight; None: 1e-4 unless ``inclusion_probability`` is given.
        inclusion_probability: Prior probability 1 − p of the slab, from which λ₁ is derived; needs ``num_data``.
        hard_threshold: λ₂: groups whose statistic is below it are pruned. This or ``target_sparsity``; neither: EM
            only.
        target_sparsity: Share of the prunable weights to be zero in the end.
        warmup_steps: Optimizer steps without pruning.
        ramp_end_step: Step at which a cubic ramp from 0 at ``warmup_steps`` reaches the target; None: at once after the
            warm-up.
        every: Optimizer steps between updates.
        expectation: E over the sampler: ``"current"`` sample, or a ``"running"`` mean over updates.
        momentum: Of the running mean.
        reading: Of the concentration rule: ``"signed"`` or ``"absolute"``.
        exclude: Patterns on module names, module types or modules to leave dense.
        coupling: Of channel groups: ``"group"`` or ``"none"``.
        example_input: For channel groups: an input on which the graph is traced.
        scope: The target holds ``"global"``-ly over all prunable weights, ranked together, in each ``"layer"``
            alone (of channel groups: every set of coupled channels loses the same share of them, which takes
            multiply-adds where ``"global"`` takes mostly the wide layers' parameters), or (``groups="input"``) in each
            ``"chain"``, that is channel group of a grouped convolution.
        min_groups: Every tensor (set of channels) keeps at least this many groups.
        round_to: With ``scope="layer"``, every set of channels keeps a multiple of this many: kernels are built for
            multiples of 8 or 16, and a compact network of such widths is faster at the same number of parameters.
        num_data: Number N of training examples; None: the optimizer's ``num_data``, if it has one.

    Raises:
        ValueError: If a setting is out of range, two contradict each other, or the target is out of reach.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        >>> pruner = ForwardPruning(
        ...     model, optimizer, groups="weight", target_sparsity=0.75, warmup_steps=2, ramp_end_step=8
        ... )
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> pruner.hard_sparsity
        0.75

    Reference: arXiv 2210.12957, Algorithm 3 and section 5; method, sections 5 to 7.
    """

    permanent = True

    def _after_step_(self) -> None:
        # Before the update, so that it sees zeros and not what the optimizer made of them.
        self._freeze_()

    def _enforce_(self, *, updated: bool) -> None:
        if updated and self._fresh:
            self._freeze_()

    def _freeze_(self) -> None:
        self._fresh = False
        self.apply_()
        for cover, zero_ in self._active:
            state = self.optimizer.state.get(cover.param)
            if state:
                for key, value in state.items():
                    if key != "weight_decay" and isinstance(value, Tensor) and value.shape == cover.param.shape:
                        zero_(value)
