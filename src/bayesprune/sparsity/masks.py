"""The one holder of masks on an optimizer: under every pruner and every sparse-training method."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.samplers.admission import find_group, unwrapped
from bayesprune.sparsity.groups import Cut, Groups, Slice, taken
from bayesprune.sparsity.partition import Exclusion, Partition, describe
from bayesprune.sparsity.schedule import check
from bayesprune.sparsity.zeroing import Zeroing

FROZEN = "frozen (requires_grad=False)"
PARTLY = f"partly {FROZEN}"
CARRIED = "bayesprune_pruners"  # beside "state" and "param_groups", where torch casts nothing: masks stay boolean


@dataclass
class Cover:
    """One parameter, whether it only follows its groups (biases, BatchNorm pairs), and per mask its groups' place and slice."""

    name: str
    param: Tensor
    tied: bool
    parts: list[tuple[int, Slice]] = field(default_factory=list)

    def merged(self, masks: Sequence[Tensor]) -> Tensor:
        """True where every covering mask is True, broadcastable to the parameter."""
        first, *others = (part.broadcast(masks[index]) for index, part in self.parts)
        return reduce(torch.logical_and, others, first)


def any_true(flags: Sequence[Tensor]) -> list[bool]:
    """Which masks have an entry that is True, with one wait for the device."""
    return torch.stack([flag.any().to(flags[0].device) for flag in flags]).tolist() if flags else []


def differ(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[bool]:
    """Which of the masks are other ones now."""
    return any_true([a != b for a, b in zip(old, new)])


def _trained(groups: Partition) -> Partition:
    """The groups without those of frozen parameters, which stay as they are."""
    trained = {each.name: [part.param.requires_grad for part in each.slices] for each in groups}
    frozen = [each for each in groups if not all(trained[each.name])]
    out = [
        Exclusion(each.name, each.count * each.size, PARTLY if any(trained[each.name]) else FROZEN) for each in frozen
    ]
    return Partition([each for each in groups if each not in frozen], groups.kind, [*groups.excluded, *out])


class MaskHolder:
    """Masks on the groups of a model, held by step hooks on its optimizer, whose ``state_dict()`` carries them.

    A method says when its masks are due (``_due``), how they are renewed (``_update_``), and what is done once the gradient
    is there (``_with_gradient_``), after the optimizer's step (``_after_step_``: what is masked back to zero, with its
    optimizer state where ``clears_state``) and at the end (``_enforce_``).

    Example:
        >>> from bayesprune.baselines import SET
        >>> model = nn.Linear(8, 4)
        >>> holder = SET(model, torch.optim.SGD(model.parameters(), lr=0.1), target_sparsity=0.5, every=10)
        >>> isinstance(holder, MaskHolder), float((model.weight == 0).float().mean())
        (True, 0.5)
    """

    permanent = False
    clears_state = True
    form: str | None = None

    def __init__(self, model: nn.Module, optimizer: Any, groups: Partition) -> None:
        self.step_count = 0
        self._finished = False
        self._hooks: list[Any] = []
        self._take_up_(model, unwrapped(optimizer), _trained(groups))
        check(
            bool(self.groups),
            "the optimizer holds none of the model's prunable weights; build it on model.parameters(), or they are frozen: set "
            "requires_grad of what is to be pruned; or computed from others (weight norm): take the parametrisation off first",
        )

    def _take_up_(self, model: nn.Module, optimizer: Optimizer, groups: Partition) -> None:
        """Hold these groups of this model, all kept, on this optimizer; what it does not train is left out."""
        held = [all(find_group(optimizer, part.param) is not None for part in each.slices) for each in groups]
        outside = [
            Exclusion(each.name, each.count * each.size, "not held by the optimizer")
            for each, ok in zip(groups, held)
            if not ok
        ]
        inside = [each for each, ok in zip(groups, held) if ok]
        self.model, self.optimizer = model, optimizer
        self.groups = Partition(inside, groups.kind, [*groups.excluded, *outside])
        self._keep = [each.all_kept() for each in self.groups]
        covers: dict[int, Cover] = {}
        for index, groups_ in enumerate(self.groups):
            for part, tied in [*((p, False) for p in groups_.slices), *((p, True) for p in groups_.tied)]:
                covers.setdefault(id(part.param), Cover(part.name, part.param, tied)).parts.append((index, part))
        self._covers = list(covers.values())
        self._fresh = False  # masks that have not been applied yet
        self._active: list[tuple[Cover, Zeroing]] = []
        self._active_norms: list[tuple[Any, Tensor]] = []

    def _attach_(self) -> None:
        """Register the hooks; the last thing that is done to a holder before it is used."""
        arrived: list[dict[str, Any]] = []
        own = type(self).__name__

        def give(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict.setdefault(CARRIED, []).append({"holder": own, **self.state_dict()})

        def look(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
            arrived[:] = state_dict.get(CARRIED, [])

        def take(optimizer: Optimizer) -> None:
            states = [state for state in arrived if state["holder"] == own]
            same = [state for state in states if set(state["keep"]) - self._frozen() == set(self.keep_masks)]
            if states:  # of other tensors: load_state_dict names the difference
                self.load_state_dict({key: value for key, value in (same or states)[0].items() if key != "holder"})
            else:
                other = f" (it carries those of {arrived[0]['holder']})" if arrived else ""
                warnings.warn(
                    f"the loaded optimizer state carries no masks of the attached {own}{other}: its masks and its step stay "
                    "as they are. If the run was pruned, load them too: pruner.load_state_dict(...), of what "
                    "pruner.state_dict() returned when the run was saved",
                    stacklevel=4,
                )
            arrived.clear()

        self._hooks = [
            self.optimizer.register_step_pre_hook(self._pre_step),
            self.optimizer.register_step_post_hook(self._post_step),
            self.optimizer.register_state_dict_post_hook(give),  # type: ignore[arg-type]
            self.optimizer.register_load_state_dict_pre_hook(look),  # type: ignore[arg-type]
            self.optimizer.register_load_state_dict_post_hook(take),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: not the hooks, which are of this optimizer."""
        return {**self.__dict__, "_hooks": [None] * len(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach a copy to the optimizer that was copied with it; a detached one stays so."""
        self.__dict__.update(state)
        if self._hooks:
            self._attach_()

    def __repr__(self) -> str:
        """What will happen."""
        named = [f"{each.name} ({each.reason})" for each in self.groups.excluded]
        rest = [f"and {len(named) - 8} more, see describe()"] if len(named) > 8 else []
        count = sum(each.count for each in self.groups)
        lines = [
            f"groups: {count:,} of kind {self.groups.kind!r} in {len(self.groups)} sets, over {self.groups.total:,} "
            "prunable weights",
            *self._plan(),
            f"now: step {self.step_count}, sparsity {self.hard_sparsity:.4f}",
            f"left dense: {'; '.join([*named[:8], *rest]) or 'nothing'}",
        ]
        form = f"form={self.form!r}" if self.form else ""
        return f"{type(self).__name__}({form}\n  " + "\n  ".join(lines) + "\n)"

    def _plan(self) -> Iterable[str]:
        """The lines of the ``repr`` that say target, time and ranking."""
        return ()

    @property
    def keep_masks(self) -> dict[str, Tensor]:
        """The hard masks at group resolution, True = keep, by name of the groups."""
        return {each.name: mask for each, mask in zip(self.groups, self._keep)}

    def weight_masks(self) -> dict[str, Tensor]:
        """The hard masks per parameter (biases and BatchNorm pairs of channel groups too), broadcastable to it."""
        return {cover.name: cover.merged(self._keep) for cover in self._covers}

    @property
    def soft_sparsity(self) -> float | None:
        """Share of the groups that are on the spike; None where there is no spike."""
        return None

    @property
    def hard_sparsity(self) -> float:
        """Share of the prunable weights that the hard masks set to zero."""
        return self.groups.zeros(self._keep) / self.groups.total

    def describe(self) -> str:
        """The groups, and what is left dense and why, as text."""
        return describe(self.groups)

    @torch.no_grad()
    def apply_(self) -> None:
        """Set every pruned group to exactly zero, now."""
        for cover, zero_ in self._active:
            zero_(cover.param)
        for norm, drop in self._active_norms:
            norm.running_mean.masked_fill_(drop, 0)
            norm.running_var.masked_fill_(drop, 1)

    @torch.no_grad()
    def finish_(self) -> None:
        """Renew the masks no more; the model is left at its sparse weights."""
        self._finished = True
        self._freeze_()

    def detach(self) -> None:
        """Take the hooks off the optimizer; masks and weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @torch.no_grad()
    def onto(self, model: nn.Module, optimizer: Any, cuts: Mapping[str, Cut]) -> tuple[Any, list[str]]:
        """The same holder, with what is left of its masks, on a compact model and its optimizer.

        A group's statistic stays over as many weights as it was trained with, the removed ones counting as zeros. (Rows that
        were removed because nothing reads them need not be zero: in the masked model they still count in the statistic of
        ``"input"`` groups, here no longer.)

        Args:
            model: The compact model.
            optimizer: Its optimizer.
            cuts: What is kept of each of its tensors, by name: dimensions with the places along each.

        Returns:
            The new holder, attached, and what is to be said about it. This one is not changed.

        Raises:
            CompactionError: ``pruner-groups``: the tensors of one group were cut differently.

        Example:
            >>> from bayesprune.sparsity import ForwardPruning
            >>> nets = torch.nn.Linear(4, 2), torch.nn.Linear(3, 2)
            >>> old, new = (torch.optim.SGD(net.parameters(), lr=0.1) for net in nets)
            >>> pruner = ForwardPruning(nets[0], old, hard_threshold=0.1, groups="weight")
            >>> pruner.onto(nets[1], new, {"weight": [(1, torch.tensor([0, 1, 3]))]})[0].groups.total
            6
        """
        left = [(place, *cut) for place, each in enumerate(self.groups) if (cut := each.cut(model, cuts))]
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._take_up_(
            model,
            unwrapped(optimizer),
            Partition([each for _, each, _ in left], self.groups.kind, self.groups.excluded),
        )
        notes = new._inherit_(self, left, cuts)
        new._set_keep_(shares_of(self._keep, left))
        new._fresh = self._fresh
        new._attach_()
        return new, notes

    def _inherit_(self, old: Any, left: Sequence[tuple[int, Groups, Cut]], cuts: Mapping[str, Cut]) -> list[str]:
        """Take over what else the old holder knows of the groups that are left: place, groups and cut of the mask."""
        return []

    def _identity(self) -> tuple[str, str, str]:
        """What a state must be of: the word for it, its key and its value."""
        return "groups", "kind", self.groups.kind

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, numbers and strings in nested dicts, masks boolean."""
        _, key, own = self._identity()
        keep = {name: mask.clone() for name, mask in self.keep_masks.items()}
        return {"version": 1, key: own, "step_count": self.step_count, "finished": int(self._finished), "keep": keep}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` of the same settings returned; load the model and the optimizer before it.

        Raises:
            ValueError: If the state is of another kind or method, or of other tensors.
        """
        word, key, own = self._identity()
        check(
            state.get("version") == 1 and state.get(key) == own,
            f"state is of version {state.get('version')!r} and {word} {state.get(key)!r}, this pruner of version 1 and "
            f"{own!r}; build it with the same settings",
        )
        self._adopt_(state, {key: self._read(state[key], key) for key in ("keep", "soft", "running") if key in state})
        partly = self._frozen(PARTLY)
        if lost := [name for name, mask in state["keep"].items() if name in partly and not mask.all()]:
            warnings.warn(
                f"the state's masks of {', '.join(lost[:3])} are left out, because some of their tensors are frozen, and zeros of "
                "the others will come back; freeze them after the pruner is made, as in the run that was saved",
                stacklevel=2,
            )

    def _adopt_(self, state: dict[str, Any], read: dict[str, list[Tensor]]) -> None:
        """Take over a state of one's own kind, whose masks were ``read``."""
        self.step_count = int(state["step_count"])
        self._finished = bool(state["finished"])
        self._set_keep_([mask.bool() for mask in read["keep"]])

    def _read(self, tensors: dict[str, Tensor], what: str) -> list[Tensor]:
        names = [each.name for each in self.groups]
        odd = sorted((set(tensors) - self._frozen()) ^ set(names))
        first = repr(odd[0]) if odd else ""
        check(not odd, f"state[{what!r}] and this pruner differ at {first}; build it with the same model and settings")
        for each in self.groups:
            check(
                tensors[each.name].shape == each.shape,
                f"state[{what!r}][{each.name!r}] has shape {tuple(tensors[each.name].shape)}, not {tuple(each.shape)}",
            )
        return [tensors[each.name].to(each.device, copy=True) for each in self.groups]

    def _frozen(self, *reasons: str) -> set[str]:
        """Groups of parameters that are not trained (any more), of which a state may hold masks."""
        return {each.name for each in self.groups.excluded if each.reason in (reasons or (FROZEN, PARTLY))}

    def _set_keep_(self, keep: list[Tensor]) -> None:
        """Take new masks, and work out once what every later step needs of them."""
        if not any(differ(self._keep, keep)):
            return
        self._keep = keep
        self._fresh = True
        drops = [~cover.merged(keep) for cover in self._covers]
        self._active = [
            (cover, Zeroing(drop)) for cover, drop, some in zip(self._covers, drops, any_true(drops)) if some
        ]
        self._active_norms = []
        for each, mask, some in zip(self.groups, keep, any_true([~mask for mask in keep])):
            self._active_norms += [(norm, ~part.broadcast(mask)) for part, norm in each.norms if some]

    def _freeze_(self) -> None:
        """Masked weights to zero, and their optimizer state where the method does not read it."""
        self._fresh = False
        self.apply_()
        if self.clears_state:
            for cover, zero_ in self._active:
                self._zero_state_(cover.param, zero_)

    def _zero_state_(self, param: Tensor, zero_: Zeroing) -> None:
        for key, value in (self.optimizer.state.get(param) or {}).items():
            if key != "weight_decay" and isinstance(value, Tensor) and value.shape == param.shape:
                zero_(value)

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self._before_step_()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._with_gradient_()
            return None

        def wrapped() -> Any:  # the gradient only exists once the closure has run
            self._before_closure_()
            loss = closure()
            self._before_step_()
            self._with_gradient_()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @torch.no_grad()
    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step_count += 1
        self._after_step_()  # before an update, so that it sees zeros and not what the optimizer made of them
        due = self._due()
        if due:
            self._update_()
        self._enforce_(updated=due)

    def _before_step_(self) -> None: ...

    def _before_closure_(self) -> None: ...

    def _with_gradient_(self) -> None: ...

    def _due(self) -> bool:
        raise NotImplementedError

    def _update_(self) -> None:
        raise NotImplementedError

    def _after_step_(self) -> None:
        self._freeze_()

    def _enforce_(self, *, updated: bool) -> None:
        if updated and self._fresh:
            self._freeze_()


def shares_of(masks: Sequence[Tensor], left: Sequence[tuple[int, Groups, Cut]]) -> list[Tensor]:
    """What is left of masks (or statistics) of an old holder's groups."""
    return [taken(masks[place], cut).view(each.shape) for place, each, cut in left]
