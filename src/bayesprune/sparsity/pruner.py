"""Pruning while training (Algorithm 3): EM on the spike-and-slab prior, then a hard rule, on any torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.samplers import CycleClock
from bayesprune.samplers.admission import find_group, unwrapped
from bayesprune.sparsity.decay import GroupDecay, spike_over
from bayesprune.sparsity.defaults import default_partition
from bayesprune.sparsity.groups import Cut, Groups
from bayesprune.sparsity.masks import MaskHolder, differ, shares_of
from bayesprune.sparsity.partition import Exclude, Grouper, GroupKind
from bayesprune.sparsity.ranking import Criterion, HardRule
from bayesprune.sparsity.schedule import Ramp, Scope, check, check_settings, criterion_of, ramp_of, renamed
from bayesprune.sparsity.spike_slab import SpikeSlabPrior

SOFT_THRESHOLD = 1e-4  # of the authors' released code


class Pruner(MaskHolder):
    """What :class:`ForwardPruning` and :class:`FeedbackPruning` share; see there.

    Example:
        >>> from bayesprune import CVAdam
        >>> model = nn.Linear(8, 4)
        >>> optimizer = CVAdam(model.parameters(), lr=1e-3, num_data=100)
        >>> pruner = ForwardPruning(model, optimizer, sparsity=0.5, groups="weight", warmup_steps=0, ramp_end_step=10)
        >>> isinstance(pruner, Pruner), pruner.hard_sparsity
        (True, 0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        sparsity: float | None = None,
        clock: CycleClock | None = None,
        prune_from: float = 0.1,
        prune_until: float = 0.5,
        warmup_steps: int | None = None,
        ramp_end_step: int | None = None,
        every: int = 16,
        groups: GroupKind | Grouper | None = None,
        criterion: Literal["magnitude", "concentration"] | Criterion | None = None,
        scope: Scope = "layer",
        round_to: int | None = None,
        min_groups: int = 1,
        exclude: Exclude = (),
        keep_ends: bool = True,
        coupling: Literal["group", "none"] | None = None,
        example_input: Any = None,
        prior: Literal["spike_slab"] | None = "spike_slab",
        spike_decay: float | None = None,
        slab_decay: float | None = None,
        soft_threshold: float | None = None,
        inclusion_probability: float | None = None,
        expectation: Literal["current", "running"] = "current",
        momentum: float = 0.9,
        hard_threshold: float | None = None,
        reading: Literal["signed", "absolute"] = "signed",
        em_only: bool = False,
        num_data: float | None = None,
        target_sparsity: float | None = None,
        rule: str | None = None,
    ) -> None:
        sparsity = renamed("target_sparsity", "sparsity", target_sparsity, sparsity)
        criterion = criterion_of(criterion, rule)
        check_settings(locals())
        ramp = ramp_of(sparsity, clock, prune_from, prune_until, warmup_steps, ramp_end_step)
        optimizer = unwrapped(optimizer)
        self.criterion = criterion
        self.hard_threshold = hard_threshold
        self.target_sparsity = sparsity
        self.warmup_steps, self.ramp_end_step = ramp.begin, ramp.end
        self.every = every
        self.prior = prior
        self.expectation = expectation
        self.momentum = momentum
        self.num_data = optimizer.param_groups[0].get("num_data") if num_data is None else num_data
        self._decays = spike_decay, slab_decay
        cut = default_partition(
            model, groups, exclude=exclude, coupling=coupling, example_input=example_input, keep_ends=keep_ends,
            sparsity=sparsity, min_groups=min_groups,
        )  # fmt: skip
        self._rule = HardRule(cut, criterion, self.permanent, reading, scope, min_groups, round_to)
        super().__init__(model, optimizer, cut)
        if inclusion_probability is None and soft_threshold is None:
            soft_threshold = SOFT_THRESHOLD if prior else 0.0  # no group is ever below 0: the spike is empty
        self.priors: list[SpikeSlabPrior] = []
        for each in self.groups:
            own = find_group(optimizer, each.slices[0].param)
            slab = slab_decay if slab_decay is not None else float((own or {}).get("weight_decay", 0.0))
            spike = spike_over(slab) if spike_decay is None else spike_decay
            self.priors.append(SpikeSlabPrior(spike, slab, self.num_data, soft_threshold, inclusion_probability))
        if sparsity is not None:
            wanted, reachable = round(sparsity * self.groups.total), self.groups.reachable(min_groups)
            check(
                wanted <= reachable,
                f"sparsity={sparsity} is out of reach: with min_groups={min_groups} at most "
                f"{reachable / self.groups.total:.4%} of the prunable weights can be zero; lower it, or choose smaller "
                "groups",
            )
        self._attach_()

    def _take_up_(self, model: nn.Module, optimizer: Optimizer, groups: Any) -> None:
        super()._take_up_(model, optimizer, groups)
        self._rule = replace(self._rule, groups=self.groups)
        self._soft = [each.all_kept() for each in self.groups]
        self._running: list[Tensor] | None = None
        self._wanted = 0  # weights at zero that the last ranking was asked for
        self._decay = GroupDecay(optimizer, self._covers, *self._decays)

    @property
    def ramp(self) -> Ramp:
        """When pruning begins and when the target is reached, in optimizer steps."""
        return Ramp(self.warmup_steps, self.ramp_end_step)

    @property
    def soft_masks(self) -> dict[str, Tensor]:
        """The soft masks at group resolution, True = slab, by name of the groups."""
        return {each.name: mask for each, mask in zip(self.groups, self._soft)}

    @property
    def soft_sparsity(self) -> float | None:
        """Share of the groups that are on the spike."""
        slab = sum(int(mask.sum()) for mask in self._soft)
        return 1.0 - slab / sum(each.count for each in self.groups)

    @property
    def target_now(self) -> float | None:
        """The sparsity that the ramp asks for at the present step; None without ``sparsity``."""
        if self.target_sparsity is None or self._finished:
            return self.target_sparsity
        return self.ramp.target(self.step_count, self.target_sparsity)

    def inclusion_probabilities(self) -> dict[str, Tensor]:
        """P(γ=1 | present weights) per group, by name of the groups; needs ``num_data`` and a prior."""
        check(self.prior is not None, "prior=None has no spike and no slab; build the pruner with prior='spike_slab'")
        return {
            each.name: prior.posterior_inclusion(each.sum_squares(), each.trained_size)
            for each, prior in zip(self.groups, self.priors)
        }

    def _plan(self) -> Iterable[str]:
        if self.target_sparsity is not None:
            yield f"target: sparsity {self.target_sparsity:.4g} {self.ramp}"
        elif self.hard_threshold is not None:
            yield f"target: what is below hard_threshold={self.hard_threshold:g}, from step {self.ramp.begin} on"
        else:
            yield f"target: none: EM alone, from step {self.ramp.begin} on"
        yield f"update: every {self.every} steps"
        yield f"ranked: by {self._rule.told(self.target_sparsity is not None)}"
        if self.prior is None:
            yield "prior: none"
        else:
            spikes, slabs = ([getattr(each, f"{name}_decay") for each in self.priors] for name in ("spike", "slab"))
            ranges = [f"{min(d):.4g}" if min(d) == max(d) else f"{min(d):.4g} to {max(d):.4g}" for d in (spikes, slabs)]
            yield f"prior: spike and slab, weight decay {ranges[0]} and {ranges[1]}"

    @torch.no_grad()
    def finish_(self) -> None:
        """Bring the masks to the final target and apply them; the model is left at its sparse weights."""
        self._finished = True
        if self.target_sparsity is not None:
            self._set_keep_(self._target_masks(self._means(), self.target_sparsity))
        self._enforce_(updated=True)

    def detach(self) -> None:
        """Take the hooks off the optimizer and give back its own weight decay; masks and weights stay as they are."""
        super().detach()
        self._decay.clear_()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, numbers and strings in nested dicts, masks boolean."""
        state = super().state_dict()
        state |= {"decays_set": int(self._decay.active), "wanted": self._wanted}
        state["soft"] = {name: mask.clone() for name, mask in self.soft_masks.items()}
        if self._running is not None:
            state["running"] = {each.name: mean.clone() for each, mean in zip(self.groups, self._running)}
        return state

    def _adopt_(self, state: dict[str, Any], read: dict[str, list[Tensor]]) -> None:
        super()._adopt_(state, read)
        self._soft = [mask.bool() for mask in read["soft"]]
        self._running = read.get("running")
        self._wanted = int(state["wanted"])
        if state["decays_set"]:
            self._decay.set_(self._soft)
        else:
            self._decay.clear_()

    def _inherit_(self, old: Any, left: Sequence[tuple[int, Groups, Cut]], cuts: Mapping[str, Cut]) -> list[str]:
        """The soft masks and decays, and the target: s of T weights is max(0, (sT − (T − T'))/T') of the T' that are left."""
        self.priors = [old.priors[place] for place, _, _ in left]
        self._soft = shares_of(old._soft, left)
        self._running = None if old._running is None else shares_of(old._running, left)
        if old._decay.active:
            self._decay.set_(self._soft)
        if old.target_sparsity is None:
            return []
        removed = old.groups.total - self.groups.total
        wanted = round(old.target_sparsity * old.groups.total) - removed
        self._wanted = max(0, old._wanted - removed)
        self.target_sparsity = max(0.0, wanted / max(self.groups.total, 1))
        if self.target_sparsity == old.target_sparsity:
            return []
        return [
            f"pruner: target sparsity {old.target_sparsity:.4f} of all weights is {self.target_sparsity:.4f} of what is left"
        ]

    def _with_gradient_(self) -> None:
        self._decay.add_()

    def _due(self) -> bool:
        return not self._finished and self.ramp.due(self.step_count, self.every)

    def _update_(self) -> None:
        means = self._means()
        if self.prior is not None:
            self._em_(means)
        if self.hard_threshold is not None:
            self._set_keep_(self._rule.threshold_masks(means, self._keep, self.hard_threshold, self.optimizer))
        elif self.target_now is not None and not self._reached(self.target_now):
            self._set_keep_(self._target_masks(means, self.target_now))

    def _means(self) -> list[Tensor]:
        """Every group's mean squared weight; weights that are not finite are refused, with one wait for the device."""
        means = [each.mean_square() for each in self.groups]
        fine = torch.stack([mean.sum().double().cpu() for mean in means]).isfinite().tolist()
        spoilt = [each.name for each, good in zip(self.groups, fine) if not good]
        check(
            not spoilt,
            f"weights of {', '.join(spoilt[:3])} are not finite at step {self.step_count}: they cannot be ranked. Go back to the "
            "last checkpoint; a lower lr, or nonfinite='raise' of the sampler, stops such a run at its first step",
        )
        return means

    def _target_masks(self, means: list[Tensor], target: float) -> list[Tensor]:
        return self._rule.target_masks(means, self._keep, target, self.optimizer)

    def _em_(self, means: list[Tensor]) -> None:
        """The E-step and, where it changed something, the M-step."""
        expected = means
        if self.expectation == "running":
            if self._running is not None:
                means = [old.lerp(new, 1 - self.momentum) for old, new in zip(self._running, means)]
            expected = self._running = means
        soft = [prior.e_step(mean, each.trained_size) for prior, mean, each in zip(self.priors, expected, self.groups)]
        changed = differ(self._soft, soft)
        self._soft = soft
        if not self._decay.active:
            self._decay.set_(soft)
        elif any(changed):
            self._decay.set_(soft, {index for index, flag in enumerate(changed) if flag})

    def _reached(self, target: float) -> bool:
        """Whether what is gone for good already meets the target, so that nothing need be ranked."""
        before, self._wanted = self._wanted, round(target * self.groups.total)
        return self.permanent and self._wanted == before


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
