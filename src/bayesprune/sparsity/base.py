"""Pruning while training (Algorithm 3): EM on the spike-and-slab prior, then a hard rule, on any torch optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.sparsity.criteria import cubic_ramp
from bayesprune.sparsity.decay import Cover, GroupDecay, any_true, covers_of, group_of
from bayesprune.sparsity.groups import Exclude, Exclusion, Partition, describe, partition
from bayesprune.sparsity.rules import RULES, HardRule
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
        groups: str = "kernel",
        rule: str = "magnitude",
        spike_decay: float = 1e-3,
        slab_decay: float | None = None,
        soft_threshold: float | None = None,
        inclusion_probability: float | None = None,
        hard_threshold: float | None = None,
        target_sparsity: float | None = None,
        warmup_steps: int = 0,
        ramp_end_step: int | None = None,
        every: int = 1,
        expectation: str = "current",
        momentum: float = 0.9,
        reading: str = "signed",
        exclude: Exclude = (),
        coupling: str | None = None,
        example_input: Any = None,
        scope: str = "global",
        min_groups: int = 1,
        round_to: int = 1,
        num_data: float | None = None,
    ) -> None:
        _check(rule in RULES, f"rule={rule!r} is unknown; choose one of {', '.join(map(repr, RULES))}")
        _check(expectation in ("current", "running"), f"expectation={expectation!r} must be 'current' or 'running'")
        _check(0 <= momentum < 1, f"momentum={momentum} must lie in [0, 1)")
        _check(reading in ("signed", "absolute"), f"reading={reading!r} must be 'signed' or 'absolute'")
        _check(scope in ("global", "layer", "chain"), f"scope={scope!r} must be 'global', 'layer' or 'chain'")
        _check(scope != "chain" or groups == "input", f"scope='chain' ranks inputs, not groups={groups!r}; use 'input'")
        _check(round_to >= 1, f"round_to={round_to} must be at least 1")
        _check(
            round_to == 1 or (groups == "channel" and scope == "layer"),
            f"round_to={round_to} needs groups='channel' and scope='layer', which keep whole multiples of channels",
        )
        _check(every >= 1, f"every={every} must be at least 1 (optimizer steps between updates)")
        _check(warmup_steps >= 0, f"warmup_steps={warmup_steps} must not be negative")
        _check(min_groups >= 0, f"min_groups={min_groups} must not be negative")
        if target_sparsity is not None:
            _check(0 <= target_sparsity < 1, f"target_sparsity={target_sparsity} must lie in [0, 1)")
            _check(hard_threshold is None, "hard_threshold and target_sparsity exclude each other; give one")
        if hard_threshold is not None:
            _check(hard_threshold >= 0, f"hard_threshold={hard_threshold} must not be negative")
        if ramp_end_step is not None:
            _check(target_sparsity is not None, f"ramp_end_step={ramp_end_step} needs a target_sparsity to ramp to")
            _check(
                ramp_end_step >= warmup_steps, f"ramp_end_step={ramp_end_step} is before warmup_steps={warmup_steps}"
            )
        if rule == "concentration":
            allowed = ("input", "output") if target_sparsity is not None else ("kernel", "input", "output")
            _check(
                groups in allowed,
                f"rule='concentration' with target_sparsity={target_sparsity} needs groups in {allowed}, not "
                f"{groups!r}; use them, or rule='magnitude'",
            )
        _check(
            soft_threshold is None or inclusion_probability is None,
            "soft_threshold and inclusion_probability are two names of one choice; give one",
        )
        self.model = model
        self.optimizer = optimizer
        self.rule = rule
        self.hard_threshold = hard_threshold
        self.target_sparsity = target_sparsity
        self.warmup_steps = warmup_steps
        self.ramp_end_step = ramp_end_step
        self.every = every
        self.expectation = expectation
        self.momentum = momentum
        self.num_data = optimizer.param_groups[0].get("num_data") if num_data is None else num_data
        self.groups = _held_by(
            optimizer, partition(model, groups, exclude=exclude, coupling=coupling, example_input=example_input)
        )
        self._rule = HardRule(self.groups, rule, self.permanent, reading, scope, min_groups, round_to)
        if inclusion_probability is None and soft_threshold is None:
            soft_threshold = SOFT_THRESHOLD
        self.priors: list[SpikeSlabPrior] = []
        for each in self.groups:
            own = group_of(optimizer, each.slices[0].param)
            slab = slab_decay if slab_decay is not None else float((own or {}).get("weight_decay", 0.0))
            self.priors.append(SpikeSlabPrior(spike_decay, slab, self.num_data, soft_threshold, inclusion_probability))
        if target_sparsity is not None:
            wanted, reachable = round(target_sparsity * self.groups.total), self.groups.reachable(min_groups)
            _check(
                wanted <= reachable,
                f"target_sparsity={target_sparsity} is out of reach: with min_groups={min_groups} at most "
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
        self._hooks = [
            optimizer.register_step_pre_hook(self._pre_step),
            optimizer.register_step_post_hook(self._post_step),
        ]

    # -- what it shows -----------------------------------------------------------------------------------------------

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
    def soft_sparsity(self) -> float:
        """Share of the groups that are on the spike."""
        slab = sum(int(mask.sum()) for mask in self._soft)
        return 1.0 - slab / sum(each.count for each in self.groups)

    @property
    def hard_sparsity(self) -> float:
        """Share of the prunable weights that the hard masks set to zero."""
        return self.groups.zeros(self._keep) / self.groups.total

    @property
    def target_now(self) -> float | None:
        """The sparsity that the ramp asks for at the present step; None without ``target_sparsity``."""
        if self.target_sparsity is None:
            return None
        if self._finished:
            return self.target_sparsity
        if self.ramp_end_step is None:
            return self.target_sparsity if self.step_count > self.warmup_steps else 0.0
        return cubic_ramp(self.step_count, self.warmup_steps, self.ramp_end_step, self.target_sparsity)

    def inclusion_probabilities(self) -> dict[str, Tensor]:
        """P(γ=1 | present weights) per group, by name of the groups; needs ``num_data``."""
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
            self._set_keep_(self._rule.target_masks(means, self._keep, self.target_sparsity))
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
        _check(
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
            _check(
                tensors[each.name].shape == each.shape,
                f"state[{what!r}][{each.name!r}] has shape {tuple(tensors[each.name].shape)}, not {tuple(each.shape)}",
            )
        return [tensors[each.name].to(each.device, copy=True) for each in self.groups]

    # -- one update (Algorithm 3) ------------------------------------------------------------------------------------

    def _due(self) -> bool:
        if self._finished or self.step_count <= self.warmup_steps:
            return False
        return (self.step_count - self.warmup_steps) % self.every == 0 or self.step_count == self.ramp_end_step

    def _update_(self) -> None:
        means = [each.mean_square() for each in self.groups]
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
        if self.hard_threshold is not None:
            self._set_keep_(self._rule.threshold_masks(means, self._keep, self.hard_threshold))
        elif self.target_now is not None and not self._reached(self.target_now):
            self._set_keep_(self._rule.target_masks(means, self._keep, self.target_now))

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
    _check(bool(inside), "the optimizer holds none of the model's prunable weights; build it on model.parameters()")
    return inside


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _differ(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[bool]:
    return any_true([a != b for a, b in zip(old, new)])


def _reset_running_stats_(norm: Any, drop: Tensor) -> None:
    norm.running_mean.masked_fill_(drop, 0)
    norm.running_var.masked_fill_(drop, 1)
