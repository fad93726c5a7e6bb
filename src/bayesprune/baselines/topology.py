"""What the sparse-training baselines share: masks on weights, held on any torch optimizer by step hooks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.baselines.allocation import layer_counts
from bayesprune.sparsity import Exclusion, Partition, describe, partition
from bayesprune.sparsity.decay import any_true
from bayesprune.sparsity.groups import Exclude
from bayesprune.sparsity.optimizer_link import link, unwrapped
from bayesprune.sparsity.zeroing import Zeroing


def lowest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """The ``count`` smallest entries among the marked ones; ties go by position, NaN counts as largest.

    Args:
        values: A tensor.
        among: A boolean tensor of its shape: where to choose.
        count: How many.

    Returns:
        A boolean tensor, True at the chosen entries.

    Raises:
        ValueError: If fewer than ``count`` entries are marked.

    Example:
        >>> lowest(torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, False, True, True]), 2)
        tensor([False, False,  True,  True])
    """
    if count <= 0:
        return torch.zeros_like(among)
    values = values.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    pool = values[among]
    if count > len(pool):
        raise ValueError(f"count={count} is more than the {len(pool)} entries to choose among")
    limit = pool.kthvalue(count).values
    below, ties = (values < limit) & among, (values == limit) & among
    missing = count - int(below.sum())
    if int(ties.sum()) > missing:  # selection alone leaves open which of equal values are meant
        first = ties.nonzero()[:missing]
        ties = torch.zeros_like(ties)
        ties[first.unbind(1)] = True
    return below | ties


def highest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """The ``count`` largest entries among the marked ones, as :func:`lowest`; NaN counts as smallest.

    Example:
        >>> highest(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([False, True, True]), 1)
        tensor([False, False,  True])
    """
    return lowest(-values, among, count)


def random_entries(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the marked entries, drawn without replacement.

    Args:
        among: A boolean tensor: where to choose.
        count: How many.
        generator: Where the randomness comes from.

    Returns:
        A boolean tensor, True at the chosen entries.

    Example:
        >>> int(random_entries(torch.ones(3, 4, dtype=torch.bool), 5, torch.Generator().manual_seed(0)).sum())
        5
    """
    scores = torch.rand(among.shape, generator=generator, device=generator.device)
    return lowest(scores.to(among.device), among, count)


def cosine_decay(step: int, end: int, initial: float, final: float = 0.0) -> float:
    """The drop fraction at a step: final + (initial − final)/2·(1 + cos(π·step/end)).

    Example:
        >>> [round(cosine_decay(t, 10, 0.3), 3) for t in (0, 5, 10)]
        [0.3, 0.15, 0.0]

    Reference: Evci et al. 2020 (arXiv 1911.11134), section 3 (2).
    """
    return final + (initial - final) / 2 * (1 + math.cos(math.pi * min(step, end) / end))


class SparseTraining:
    """What the sparse-training baselines share: a mask a weight tensor, sparse at random from the start.

    After every optimizer step the masked weights are put back to exactly zero, and, unless a method reads it, their
    optimizer state (momentum, averages). Each method renews the masks every ``every`` steps until ``end_step`` and
    keeps exactly as many weights as before.

    Args:
        model: The model; prunable are the weights of its linear and convolution layers.
        optimizer: Any torch optimizer, built on the model's parameters.
        target_sparsity: Share of the prunable weights at zero.
        every: Optimizer steps between two renewals of the masks.
        end_step: Optimizer step from which the masks stay; None: they never do.
        distribution: Layer-wise sparsity at the start: ``"uniform"`` or ``"erk"``.
        exclude: Patterns on module names, module types or modules to leave dense.
        seed: Of the method's own random generator.
    """

    permanent = False
    clears_state = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        target_sparsity: float,
        every: int,
        end_step: int | None = None,
        distribution: str = "uniform",
        exclude: Exclude = (),
        seed: int = 0,
    ) -> None:
        optimizer = unwrapped(optimizer)
        check(0 <= target_sparsity < 1, f"target_sparsity={target_sparsity} must lie in [0, 1)")
        check(every >= 1, f"every={every} must be at least 1 (optimizer steps between updates)")
        check(end_step is None or end_step >= 1, f"end_step={end_step} must be at least 1 (an optimizer step)")
        self.model = model
        self.optimizer = optimizer
        self.target_sparsity = target_sparsity
        self.every = every
        self.end_step = end_step
        self.distribution = distribution
        self.groups = _held_by(optimizer, partition(model, "weight", exclude=exclude))
        self.params = list(self.groups.weights().values())
        self.generator = torch.Generator(device=self.params[0].device).manual_seed(seed)
        self.step_count = 0
        self._finished = False
        self._keep = [torch.ones_like(param, dtype=torch.bool) for param in self.params]
        self._zero: list[tuple[Tensor, Zeroing]] = []
        self._set_keep_(self._first_masks())
        self._zero_()
        self._hooks = link(self, optimizer)

    # -- what it shows -----------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """What will happen."""
        end = "" if self.end_step is None else f" until step {self.end_step}"
        dense = "; ".join(f"{each.name} ({each.reason})" for each in self.groups.excluded) or "nothing"
        return (
            f"{type(self).__name__}(\n  groups: {self.groups.total:,} single weights in {len(self.groups)} layers\n"
            f"  target: sparsity {self.target_sparsity:.4g}, {self.distribution} over layers\n"
            f"  update: every {self.every} steps{end}; step {self.step_count} now, sparsity {self.hard_sparsity:.4f}\n"
            f"  left dense: {dense}\n)"
        )

    @property
    def keep_masks(self) -> dict[str, Tensor]:
        """The masks, True = keep, by name of the weight."""
        return {each.name: mask for each, mask in zip(self.groups, self._keep)}

    def weight_masks(self) -> dict[str, Tensor]:
        """The masks per parameter; here the same as :attr:`keep_masks`."""
        return self.keep_masks

    @property
    def soft_sparsity(self) -> None:
        """None: there is no spike."""
        return None

    @property
    def hard_sparsity(self) -> float:
        """Share of the prunable weights that the masks set to zero."""
        return self.groups.zeros(self._keep) / self.groups.total

    @property
    def target_now(self) -> float:
        """The sparsity asked for at the present step."""
        return self.target_sparsity

    def describe(self) -> str:
        """The prunable weights, and what is left dense and why, as text."""
        return describe(self.groups)

    # -- what it does ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply_(self) -> None:
        """Set every masked weight to exactly zero, now."""
        for param, zero_ in self._zero:
            zero_(param)

    @torch.no_grad()
    def finish_(self) -> None:
        """Renew the masks no more; the model is left at its sparse weights."""
        self._finished = True
        self._zero_()

    def detach(self) -> None:
        """Take the hooks off the optimizer; masks and weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, numbers and strings in nested dicts, masks boolean."""
        return {
            "version": 1,
            "method": type(self).__name__,
            "step_count": self.step_count,
            "finished": int(self._finished),
            "keep": {name: mask.clone() for name, mask in self.keep_masks.items()},
            "generator": self.generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of one of the same settings; load the model and the optimizer before it.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            ValueError: If the state is of another method, of other tensors, or of another number of kept weights.
        """
        own = type(self).__name__
        check(
            state.get("version") == 1 and state.get("method") == own,
            f"state is of version {state.get('version')!r} and method {state.get('method')!r}, this one of version 1 "
            f"and {own!r}; build it with the same method",
        )
        keep, present = state["keep"], self.keep_masks
        odd = sorted(set(keep) ^ set(present)) or [n for n in present if keep[n].shape != present[n].shape]
        check(not odd, f"state['keep'] and this model differ at {odd[:1]}; build it with the same model and settings")
        kept, wanted = sum(int(mask.sum()) for mask in keep.values()), sum(int(m.sum()) for m in present.values())
        check(
            self.permanent or kept == wanted,
            f"state keeps {kept:,} weights, this one {wanted:,}; build it with the same target_sparsity",
        )
        self.step_count = int(state["step_count"])
        self._finished = bool(state["finished"])
        self.generator.set_state(state["generator"].cpu())
        self._set_keep_([keep[each.name].bool() for each in self.groups])

    # -- what a method fills in --------------------------------------------------------------------------------------

    def _first_masks(self) -> list[Tensor]:
        """As many weights a layer as the distribution says, at random places."""
        counts = layer_counts([tuple(param.shape) for param in self.params], self.target_sparsity, self.distribution)
        return [random_entries(mask, count, self.generator) for mask, count in zip(self._keep, counts)]

    def _due(self) -> bool:
        """Whether the masks are renewed after ``step_count`` steps."""
        open_ = self.end_step is None or self.step_count < self.end_step
        return open_ and not self._finished and self.step_count > 0 and self.step_count % self._period() == 0

    def _period(self) -> int:
        """Steps between two renewals, at the present step."""
        return self.every

    def _update_(self) -> None:
        """Renew the masks; called after a step that is due."""
        raise NotImplementedError

    def _before_step_(self) -> None:
        """Called once the gradient is there, before the optimizer uses it."""

    def _after_step_(self) -> None:
        """Called after the optimizer's step, with the masked weights at zero again."""
        if self._due():
            self._update_()
            self._zero_()

    # -- the masks ---------------------------------------------------------------------------------------------------

    def _set_keep_(self, keep: list[Tensor]) -> None:
        """Take new masks, in the memory layout of the weights, and work out once what every later step needs."""
        self._keep = [torch.empty_like(param, dtype=torch.bool).copy_(mask) for param, mask in zip(self.params, keep)]
        drops = [~mask for mask in self._keep]
        self._zero = [(param, Zeroing(drop)) for param, drop, some in zip(self.params, drops, any_true(drops)) if some]

    @torch.no_grad()
    def _zero_(self) -> None:
        """Masked weights to zero, and their optimizer state where the method does not read it."""
        for param, zero_ in self._zero:
            zero_(param)
            if self.clears_state:
                self._zero_state_(param, zero_)

    def _zero_state_(self, param: Tensor, zero_: Zeroing) -> None:
        for key, value in (self.optimizer.state.get(param) or {}).items():
            if key != "weight_decay" and isinstance(value, Tensor) and value.shape == param.shape:
                zero_(value)

    def _remove_(self, removed: list[Tensor]) -> list[Tensor]:
        """Weights and state of what is removed to zero, so that what grows there starts anew; returns the survivors."""
        for param, gone in zip(self.params, removed):
            zero_ = Zeroing(gone)
            zero_(param)
            self._zero_state_(param, zero_)
        return [mask & ~gone for mask, gone in zip(self._keep, removed)]

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._before_step_()
            return None

        def wrapped() -> Any:  # the gradient only exists once the closure has run
            loss = closure()
            self._before_step_()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @torch.no_grad()
    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step_count += 1
        self._zero_()
        self._after_step_()


def _held_by(optimizer: Optimizer, groups: Partition) -> Partition:
    """Without the weights that the optimizer does not hold: what is not trained is not pruned."""
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    inside = [each for each in groups if id(each.slices[0].param) in held]
    outside = [
        Exclusion(each.name, each.count, "not held by the optimizer")
        for each in groups
        if id(each.slices[0].param) not in held
    ]
    check(bool(inside), "the optimizer holds none of the model's prunable weights; build it on model.parameters()")
    return Partition(inside, groups.kind, [*groups.excluded, *outside])


def check(condition: bool, message: str) -> None:
    """Raise a ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
