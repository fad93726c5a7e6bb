"""Dynamic pruning with feedback (DPF): pruned groups may return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.samplers import CycleClock
from bayesprune.sparsity.groups import Cut, Groups, plain_name, taken
from bayesprune.sparsity.partition import Exclude, Grouper, GroupKind
from bayesprune.sparsity.pruner import Pruner
from bayesprune.sparsity.ranking import Criterion
from bayesprune.sparsity.schedule import Scope, check


class Thin:
    """What of a tensor's gradient moves pruned weights in filters of which little is left, and how it is bounded."""

    def __init__(self, param: Tensor, drop: Tensor, kept: Tensor | None = None) -> None:
        self.param = param
        kept = param.detach().masked_fill(drop, 0).flatten(1).square().sum(1) if kept is None else kept.to(param.device)
        self.kept = kept
        self.living = kept > 0
        mean = (kept.sum() / self.living.sum().clamp(min=1)).clamp(min=torch.finfo(kept.dtype).tiny)
        rows = [-1, *[1] * (param.ndim - 1)]
        share = (2 * (kept / mean).sqrt()).clamp(max=1).masked_fill(~self.living, 1).view(rows)
        self.factor = torch.where(drop, share, 1)
        self.dead = bool((~self.living).any())
        self.rows = rows

    def bound_(self) -> None:
        """Bound the gradient in place."""
        gradient = self.param.grad
        if gradient is None:
            return
        gradient.mul_(self.factor)
        if self.dead:
            square = gradient.flatten(1).square().sum(1)
            mean = (square * self.living).sum() / self.living.sum().clamp(min=1)
            gradient.mul_(
                (mean / square).sqrt().clamp(max=1).masked_fill(self.living, 1).nan_to_num(1.0).view(self.rows)
            )


class FeedbackPruning(Pruner):
    """Dynamic pruning with feedback (DPF): pruned groups are zeroed but may come back.

    ``form="masked"``: Algorithm 3's form. At each update the pruned groups are set to zero, and are free to move until
    the next. ``form="dense_copy"``: equation 8's form, w ← w − step(∇ℓ(m ⊙ w)): the pruner owns a dense copy w, the
    model holds m ⊙ w (which is what is evaluated and saved), and each optimizer step moves w with the gradient taken
    at m ⊙ w; the masks m are renewed from w every ``every`` steps.

    The gradient that moves pruned weights is bounded where little is left of their filter (row of the weight). Under
    BatchNorm the gradient of a filter goes with one over its norm, and of a filter pruned whole with γ/√ε, some 300 times
    its neighbours': the dense weights there would outgrow all others within a few steps and take the ranking over. So in
    a filter whose kept part is r < ½ times as long as the tensor's living filters are in root mean square, pruned weights
    get 2r times their gradient, and a filter pruned whole no more than the living ones' mean.

    In a pruned channel group with its BatchNorm pair all gradients are exactly 0, so that only noise (``"masked"``) or
    the shrinking of others (``"dense_copy"``) can bring it back.

    Args:
        model: The model.
        optimizer: Any torch optimizer.
        form: ``"masked"`` or ``"dense_copy"``.
        sparsity, clock, ...: All others as for :class:`~bayesprune.sparsity.ForwardPruning`. Between two updates the
            ``"masked"`` form's pruned groups move: :meth:`apply_` or :meth:`finish_` before the model is evaluated or saved.

    Raises:
        ValueError: If a setting is out of range, two contradict each other, or the target is out of reach.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
        >>> pruner = FeedbackPruning(
        ...     model, optimizer, form="dense_copy", groups="weight", sparsity=0.5, warmup_steps=0, ramp_end_step=8, every=4,
        ...     keep_ends=False,
        ... )
        >>> for _ in range(8):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> int((model[0].weight == 0).sum() + (model[2].weight == 0).sum())
        80
        >>> with pruner.dense():
        ...     int((model[0].weight == 0).sum())
        0

    Reference: arXiv 2210.12957, Algorithm 3 and equation 8; Lin et al. 2020 (arXiv 2006.07253).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        form: Literal["masked", "dense_copy"] = "masked",
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
        settings = {name: value for name, value in locals().items() if name not in ("self", "form", "__class__")}
        check(form in ("masked", "dense_copy"), f"form={form!r} is unknown; choose 'masked' or 'dense_copy'")
        self.form = form
        self._dense: dict[str, Tensor] = {}
        self._showing_dense = False
        self._thin: tuple[list[Any], dict[str, Thin]] = ([], {})
        super().__init__(**settings)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Inside the context the model holds its dense weights, bit for bit; after it the masked ones again.

        Raises:
            RuntimeError: If the form keeps no dense copy.
        """
        self._require_copy()
        if self._showing_dense:
            yield
            return
        self._before_step_()
        self._showing_dense = True
        try:
            yield
        finally:
            self._showing_dense = False
            self._after_step_()
            self._mask_()

    @torch.no_grad()
    def restore_dense_(self) -> None:
        """Put the dense weights back into the model for good and keep every group (until a later update prunes again).

        Raises:
            RuntimeError: If the form keeps no dense copy.
        """
        self._require_copy()
        self._before_step_()
        self._dense.clear()
        self._set_keep_([each.all_kept() for each in self.groups])

    def _require_copy(self) -> None:
        if self.form != "dense_copy":
            raise RuntimeError(
                f"form={self.form!r} keeps no dense weights; build FeedbackPruning with form='dense_copy'"
            )

    @torch.no_grad()
    def finish_(self) -> None:
        """Bring the masks to the final target, ranked on the dense weights; the model is left at its sparse weights."""
        self._before_step_()
        super().finish_()

    @torch.no_grad()
    def apply_(self) -> None:
        """Set every pruned group to exactly zero, now (with a dense copy: in the model, not in the copy)."""
        if self.form == "masked":
            super().apply_()
        else:
            self._mask_()

    def state_dict(self) -> dict[str, Any]:
        """As in the base class, with the dense copy and the filters' lengths of every tensor of which something is pruned."""
        state = super().state_dict()
        state["form"] = self.form
        if self._thin[0] is self._active:
            state["kept_squares"] = {name: thin.kept.clone() for name, thin in self._thin[1].items()}
        if self.form == "dense_copy":
            state["dense"] = {name: tensor.clone() for name, tensor in self._dense.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a pruner of the same settings; load the model and the optimizer before it."""
        found = state.get("form")
        check(
            found == self.form, f"state is of form {found!r}, this pruner of {self.form!r}; build it with the same form"
        )
        super().load_state_dict(state)

    def _adopt_(self, state: dict[str, Any], read: dict[str, list[Tensor]]) -> None:
        super()._adopt_(state, read)
        if "kept_squares" in state:
            self._measure_(state["kept_squares"])
        self._dense = {}
        for cover, _ in self._active if self.form == "dense_copy" else ():
            check(
                cover.name in state["dense"],
                f"state['dense'] lacks {cover.name!r}, which is pruned; the state is damaged",
            )
            self._dense[cover.name] = state["dense"][cover.name].to(cover.param.device, copy=True)

    def _inherit_(self, old: Any, left: Sequence[tuple[int, Groups, Cut]], cuts: Mapping[str, Cut]) -> list[str]:
        dense = {plain_name(name): tensor for name, tensor in old._dense.items()}
        self._dense = {name: taken(tensor, cuts.get(name, [])) for name, tensor in dense.items()}
        return [*super()._inherit_(old, left, cuts), "feedback: what was removed cannot come back"]

    @torch.no_grad()
    def _before_step_(self) -> None:
        """The dense weights into the model: the optimizer moves them, with the gradient taken at the masked ones."""
        if self.form == "dense_copy" and not self._showing_dense:
            for cover, _ in self._active:
                cover.param.copy_(self._dense[cover.name])

    def _measure_(self, kept: Mapping[str, Tensor] | None = None) -> None:
        """Work out which filters are thin, once for every new set of masks."""
        if self._thin[0] is not self._active:
            known = kept or {}
            rows = [(cover, zero_.drop) for cover, zero_ in self._active if zero_.drop.ndim > 1]
            self._thin = (
                self._active,
                {cover.name: Thin(cover.param, drop, known.get(cover.name)) for cover, drop in rows},
            )

    @torch.no_grad()
    def _with_gradient_(self) -> None:
        """Bound the gradients of pruned weights in thin filters, then add the groups' decay."""
        # Paper: not in equation 8; see the class.
        self._measure_()
        for thin in self._thin[1].values():
            thin.bound_()
        super()._with_gradient_()

    @torch.no_grad()
    def _before_closure_(self) -> None:
        if self.form == "dense_copy" and not self._showing_dense:
            self._mask_()

    @torch.no_grad()
    def _after_step_(self) -> None:
        """The dense weights as the optimizer left them."""
        if self.form == "dense_copy":
            for cover, _ in self._active:
                self._dense[cover.name].copy_(cover.param)

    @torch.no_grad()
    def _mask_(self) -> None:
        for cover, zero_ in self._active:
            zero_(cover.param)

    def _enforce_(self, *, updated: bool) -> None:
        if self.form == "masked":
            if updated:
                self.apply_()
            return
        if updated:
            # The model holds the dense weights here: a tensor newly pruned gets its copy, one no longer pruned needs
            # none.
            self._dense = {
                cover.name: self._dense[cover.name] if cover.name in self._dense else cover.param.detach().clone()
                for cover, _ in self._active
            }
        if not self._showing_dense:
            self._mask_()
