"""How the M-step's weight decays reach the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayesprune.samplers.admission import find_group
from bayesprune.samplers.layout import local_decay, local_part
from bayesprune.sparsity.masks import Cover, any_true
from bayesprune.sparsity.spike_slab import m_step

_DECOUPLED = tuple(getattr(torch.optim, name) for name in ("AdamW", "Adafactor", "Muon") if hasattr(torch.optim, name))


def spike_over(slab_decay: float) -> float:
    """The spike's weight decay unless it is given: twice the slab's, at least 1e-3."""
    return max(2.0 * slab_decay, 1e-3)


class GroupDecay:
    """Gives every group its weight decay."""

    def __init__(
        self, optimizer: Optimizer, covers: Sequence[Cover], spike_decay: float | None, slab_decay: float | None
    ) -> None:
        self.optimizer = optimizer
        self.spike_decay = spike_decay
        self.slab_decay = slab_decay
        self.held = [(cover, group) for cover in covers if (group := find_group(optimizer, cover.param)) is not None]
        self.own = [float(group.get("weight_decay", 0.0)) for _, group in self.held]
        self.native = hasattr(optimizer, "set_weight_decay")
        self.active = False
        self._extra: dict[int, Tensor] = {}

    @torch.no_grad()
    def set_(self, soft: Sequence[Tensor], changed: set[int] | None = None) -> None:
        """Set the decays that the soft masks imply (``changed``: places of those that changed; None: all)."""
        self.active = True
        places = [
            place
            for place, (cover, _) in enumerate(self.held)
            if changed is None or any(index in changed for index, _ in cover.parts)
        ]
        masks = [self.held[place][0].merged(soft) for place in places]
        for place, mask, some_slab, some_spike in zip(places, masks, any_true(masks), any_true([~m for m in masks])):
            cover, _ = self.held[place]
            slab = self.own[place] if cover.tied or self.slab_decay is None else self.slab_decay
            spike = spike_over(slab) if self.spike_decay is None else max(self.spike_decay, slab)
            # A tensor all of one kind gets a number: the optimizer's fast case.
            if some_slab and some_spike:
                value = m_step(mask, spike_decay=spike, slab_decay=slab, dtype=cover.param.dtype)
                self._tell_(place, value)
            else:
                self._tell_(place, slab if some_slab else spike)

    def _tell_(self, place: int, value: Tensor | float) -> None:
        cover, own = self.held[place][0], self.own[place]
        if self.native:
            same = isinstance(value, float) and value == own
            self.optimizer.set_weight_decay(cover.param, None if same else value)  # type: ignore[attr-defined]
        elif isinstance(value, Tensor) or value != own:
            self._extra[place] = torch.as_tensor(value - own, dtype=cover.param.dtype, device=cover.param.device)
        else:
            self._extra.pop(place, None)

    @torch.no_grad()
    def add_(self) -> None:
        """Before a step of an optimizer without ``set_weight_decay``: add the groups' share of the decay."""
        scale = getattr(self.optimizer, "grad_scale", None)  # GradScaler's, where a fused step is to undo it
        for place, extra in self._extra.items():
            cover, group = self.held[place]
            if cover.param.grad is None:
                continue
            param, offset = local_part(cover.param)
            gradient, extra = local_part(cover.param.grad)[0], local_decay(extra, cover.param, offset)
            if group.get("decoupled_weight_decay", isinstance(self.optimizer, _DECOUPLED)):
                # The optimizer will multiply by 1 − lr·own; together the two factors are 1 − lr·(own + extra).
                lr = float(group["lr"])
                param.mul_(1 - extra * (lr / (1 - lr * self.own[place])))
            else:
                extra = extra if scale is None else extra * scale.to(extra.device)
                gradient.addcmul_(extra, param, value=-1.0 if group.get("maximize") else 1.0)

    @torch.no_grad()
    def clear_(self) -> None:
        """Give every parameter its own decay back."""
        if self.active and self.native:
            for cover, _ in self.held:
                self.optimizer.set_weight_decay(cover.param, None)  # type: ignore[attr-defined]
        self._extra.clear()
        self.active = False
