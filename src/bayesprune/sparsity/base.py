"""Pruning while training (Algorithm 3): EM on the spike-and-slab prior, then a hard rule, on any torch optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.samplers import CycleClock
from bayesprune.sparsity.decay import Cover, GroupDecay, any_true, covers_of, group_of, spike_over
from bayesprune.sparsity.defaults import default_partition
from bayesprune.sparsity.groups import Exclude, Exclusion, Partition, describe
from bayesprune.sparsity.optimizer_link import link, unwrapped
from bayesprune.sparsity.plan import plan
from bayesprune.sparsity.rules import Criterion, HardRule
from bayesprune.sparsity.schedule import GroupKind, Ramp, Scope, check, check_settings, criterion_of, ramp_of, renamed
from bayesprune.sparsity.spike_slab import SpikeSlabPrior
from bayesprune.sparsity.zeroing import Zeroing

SOFT_THRESHOLD = 1e-4  # of the authors' released code


class Pruner:
    """What :class:`ForwardPruning` and :class:`FeedbackPruning` share; see there."""

    permanent = False

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
        groups: GroupKind | None = None,
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
        optimizer = unwrapped(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self.hard_threshold = hard_threshold
        self.target_sparsity = sparsity
        ramp = ramp_of(sparsity, clock, prune_from, prune_until, warmup_steps, ramp_end_step)
        self.warmup_steps, self.ramp_end_step = ramp.begin, ramp.end
        self.every = every
        self.prior = prior
        self.expectation = expectation
        self.momentum = momentum
        self.num_data = optimizer.param_groups[0].get("num_data") if num_data is None else num_data
        cut = default_partition(
            model, groups, exclude=exclude, coupling=coupling, example_input=example_input, keep_ends=keep_ends
        )
        self.groups = _held_by(optimizer, cut)
        self._rule = HardRule(self.groups, criterion, self.permanent, reading, scope, min_groups, round_to)
        if inclusion_probability is None and soft_threshold is None:
            soft_threshold = SOFT_THRESHOLD if prior else 0.0  # no group is ever below 0: the spike is empty
        self.priors: list[SpikeSlabPrior] = []
        for each in self.groups:
            own = group_of(optimizer, each.slices[0].param)
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
        self.step_count = 0
        self._keep = [each.all_kept() for each in self.groups]
        self._soft = [each.all_kept() for each in self.groups]
        self._running: list[Tensor] | None = None
        self._finished = False
        self._fresh = False  # masks that have not been applied yet
        self._wanted = 0  # weights at zero that the last ranking was asked for
        self._covers = covers_of(self.groups)
        self._decay = GroupDecay(optimizer, self._covers, spike_decay, slab_decay)
        self._active: list[tuple[Cover, Zeroing]] = []
        self._active_norms: list[tuple[nn.Module, Tensor]] = []
        self._hooks = link(self, optimizer)

    # -- what it shows -----------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """What will happen."""
        return plan(self)

    @property
    def ramp(self) -> Ramp:
        """When pruning begins and when the target is reached, in optimizer steps."""
        return Ramp(self.warmup_steps, self.ramp_end_step)

    @property
    def keep_masks(self) -> dict[str, Tensor]:
        """The hard masks at group resolution, True = keep, by name of the groups."""
        return {each.name: mask for each, mask in zip(self.groups, self._keep)}

    @property
    def soft_masks(self) -> dict[str, Tensor]:
        """The soft masks at group resolution, True = slab, by name of the groups."""
        return {each.name: mask for each, mask in zip(self.groups, self._soft)}

    def weight_masks(self) -> dict[str, Tensor]:
        """The hard masks per parameter (biases and BatchNorm pairs of channel groups too), broadcastable to it."""
        return {cover.name: cover.merged(self._keep) for cover in self._covers}

    @property
    def soft_sparsity(self) -> float | None:
        """Share of the groups that are on the spike."""
        slab = sum(int(mask.sum()) for mask in self._soft)
        return 1.0 - slab / sum(each.count for each in self.groups)

    @property
    def hard_sparsity(self) -> float:
        """Share of the prunable weights that the hard masks set to zero."""
        return self.groups.zeros(self._keep) / self.groups.total

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
            each.name: prior.posterior_inclusion(each.sum_squares(), each.size)
            for each, prior in zip(self.groups, self.priors)
        }

    def describe(self) -> str:
        """The groups, and what is left dense and why, as text."""
        return describe(self.groups)

    # -- what it does ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply_(self) -> None:
        """Set every pruned group to exactly zero, now."""
        for cover, zero_ in self._active:
            zero_(cover.param)
        for norm, drop in self._active_norms:
            _reset_running_stats_(norm, drop)

    @torch.no_grad()
    def finish_(self) -> None:
        """Bring the masks to the final target and apply them; the model is left at its sparse weights."""
        self._finished = True
        if self.target_sparsity is not None:
            means = [each.mean_square() for each in self.groups]
            self._set_keep_(self._target_masks(means, self.target_sparsity))
        self._enforce_(updated=True)

    def detach(self) -> None:
        """Take the hooks off the optimizer and give back its own weight decay; masks and weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._decay.clear_()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, integers and strings in nested dicts, masks boolean."""
        state: dict[str, Any] = {
            "version": 1,
            "kind": self.groups.kind,
            "step_count": self.step_count,
            "decays_set": int(self._decay.active),
            "finished": int(self._finished),
            "wanted": self._wanted,
            "keep": {name: mask.clone() for name, mask in self.keep_masks.items()},
            "soft": {name: mask.clone() for name, mask in self.soft_masks.items()},
        }
        if self._running is not None:
            state["running"] = {each.name: mean.clone() for each, mean in zip(self.groups, self._running)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a pruner of the same settings; load the model and the optimizer before it.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            ValueError: If the state is of another kind of groups or of other tensors.
        """
        check(
            state.get("version") == 1 and state.get("kind") == self.groups.kind,
            f"state is of version {state.get('version')!r} and groups {state.get('kind')!r}, this pruner of version 1 "
            f"and {self.groups.kind!r}; build it with the same settings",
        )
        keep, soft = self._read(state["keep"], "keep"), self._read(state["soft"], "soft")
        self._running = self._read(state["running"], "running") if "running" in state else None
        self.step_count = int(state["step_count"])
        self._finished = bool(state["finished"])
        self._wanted = int(state["wanted"])
        self._soft = [mask.bool() for mask in soft]
        self._set_keep_([mask.bool() for mask in keep])
        if state["decays_set"]:
            self._decay.set_(self._soft)
        else:
            self._decay.clear_()

    def _read(self, tensors: dict[str, Tensor], what: str) -> list[Tensor]:
        names = [each.name for each in self.groups]
        if set(tensors) != set(names):
            odd = sorted(set(tensors) ^ set(names))[0]
            raise ValueError(
                f"state[{what!r}] and this pruner differ at {odd!r}; build it with the same model and settings"
            )
        for each in self.groups:
            check(
                tensors[each.name].shape == each.shape,
                f"state[{what!r}][{each.name!r}] has shape {tuple(tensors[each.name].shape)}, not {tuple(each.shape)}",
            )
        return [tensors[each.name].to(each.device, copy=True) for each in self.groups]

    # -- one update (Algorithm 3) ------------------------------------------------------------------------------------

    def _due(self) -> bool:
        return not self._finished and self.ramp.due(self.step_count, self.every)

    def _update_(self) -> None:
        means = [each.mean_square() for each in self.groups]
        if self.prior is not None:
            self._em_(means)
        if self.hard_threshold is not None:
            self._set_keep_(self._rule.threshold_masks(means, self._keep, self.hard_threshold, self.optimizer))
        elif self.target_now is not None and not self._reached(self.target_now):
            self._set_keep_(self._target_masks(means, self.target_now))

    def _target_masks(self, means: list[Tensor], target: float) -> list[Tensor]:
        return self._rule.target_masks(means, self._keep, target, self.optimizer)

    def _em_(self, means: list[Tensor]) -> None:
        """The E-step and, where it changed something, the M-step."""
        expected = means
        if self.expectation == "running":
            if self._running is None:
                self._running = means
            else:
                self._running = [old.lerp(new, 1 - self.momentum) for old, new in zip(self._running, means)]
            expected = self._running
        soft = [prior.e_step(mean, each.size) for prior, mean, each in zip(self.priors, expected, self.groups)]
        changed = _differ(self._soft, soft)
        self._soft = soft
        if not self._decay.active:
            self._decay.set_(soft)
        elif any(changed):
            self._decay.set_(soft, {index for index, flag in enumerate(changed) if flag})

    def _reached(self, target: float) -> bool:
        """Whether what is gone for good already meets the target, so that nothing need be ranked."""
        before, self._wanted = self._wanted, round(target * self.groups.total)
        return self.permanent and self._wanted == before

    def _set_keep_(self, keep: list[Tensor]) -> None:
        """Take new masks, and work out once what every later step needs of them."""
        if not any(_differ(self._keep, keep)):
            return
        self._keep = keep
        self._fresh = True
        drops = [~cover.merged(keep) for cover in self._covers]
        self._active = [
            (cover, Zeroing(drop)) for cover, drop, any_ in zip(self._covers, drops, any_true(drops)) if any_
        ]
        self._active_norms = []
        for each, mask, any_ in zip(self.groups, keep, any_true([~mask for mask in keep])):
            self._active_norms += [
                (norm, each.dropped_from(name, mask, len(norm.running_mean)))  # type: ignore[arg-type]
                for name, norm in each.norms if any_ and isinstance(getattr(norm, "running_mean", None), Tensor)
            ]  # fmt: skip

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self._before_step_()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._decay.add_()
            return None

        def wrapped() -> Any:  # the gradient only exists once the closure has run
            self._before_closure_()
            loss = closure()
            self._before_step_()
            self._decay.add_()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @torch.no_grad()
    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step_count += 1
        self._after_step_()
        due = self._due()
        if due:
            self._update_()
        self._enforce_(updated=due)

    def _before_step_(self) -> None: ...

    def _before_closure_(self) -> None: ...

    def _after_step_(self) -> None: ...

    def _enforce_(self, *, updated: bool) -> None:
        raise NotImplementedError


def _held_by(optimizer: Optimizer, groups: Partition) -> Partition:
    """Without the groups whose weights the optimizer does not hold: what is not trained is not pruned."""
    held = [all(group_of(optimizer, part.param) is not None for part in each.slices) for each in groups]
    outside = [
        Exclusion(each.name, each.count * each.size, "not held by the optimizer")
        for each, ok in zip(groups, held)
        if not ok
    ]
    inside = Partition([each for each, ok in zip(groups, held) if ok], groups.kind, [*groups.excluded, *outside])
    check(bool(inside), "the optimizer holds none of the model's prunable weights; build it on model.parameters()")
    return inside


def _differ(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[bool]:
    return any_true([a != b for a, b in zip(old, new)])


def _reset_running_stats_(norm: Any, drop: Tensor) -> None:
    norm.running_mean.masked_fill_(drop, 0)
    norm.running_var.masked_fill_(drop, 1)
