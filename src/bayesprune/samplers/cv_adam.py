"""CV-Adam (Algorithm 2): SGHMC with a learned diagonal preconditioner, as a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim.optimizer import ParamsT

from bayesprune.common.checks import check_choice, check_number
from bayesprune.samplers import dynamics
from bayesprune.samplers.base import Sampler
from bayesprune.samplers.guard import NonFinite
from bayesprune.samplers.preconditioner import Preconditioner
from bayesprune.samplers.temperature import as_betas

GlobalScale = float | Literal["paper"] | Callable[[float, int], float]


class CVAdam(Sampler):
    r"""Constrained variational Adam: preconditioned SGHMC whose weights are posterior samples (Algorithm 2).

    With g the gradient of the **mean** loss at w, N = `num_data`, l = `lr`, (β₁, β₂) = `betas` and T = `temperature`, one
    step updates the preconditioner τ and then

        v ← β₁v − β₂·l·(g + weight_decay·w) + s·ε,   ε ~ N(0, I)
        w ← w + τ ⊙ v

    with s = √(2(1−β₁)β₂·l·T/(τN)) for `noise="exact"`: for a frozen τ, the full gradient and small steps the stationary law
    is the posterior at T. With minibatches it is hotter by what `kinetic_temperature()` measures, and at a large step the
    iterate's variance is too large, the `midpoint()`'s is not (docs/temperature.md). `noise="paper"` has
    s = √(2+2β₁²)·k·l^{3/4}, k = √(T/N), to the letter; its temperature drifts with l and τ.

    The preconditioner:

    - "rms": τ = 1/(√ν + eps + √(weight_decay/N)), ν the running mean of (g + weight_decay·w)² with retention
      `scale_decay`: it sees curvature. It learns while the group's `adapt` is True; `CyclicalLR` switches that off for the
      second half of each cycle, so that samples come from a frozen τ. `lr` is then in Adam's units: Adam's 1e-3 is 1e-4 at
      β₁ = 0.9.
    - "paper": τ = sigmoid(ρ), ρ ← ρ + `dual_lr`·[1/(Nτ) − α²·weight_decay·τ − α·ε_prev ⊙ g], α = `global_scale`. At practical
      settings τ is next to the same number for all weights; `lr` is in SGD's units.
    - "none": τ = 1.

    The state is two values a weight, `momentum` and `second_moment` or `rho` ("none": one); the noise of the step before is drawn
    again from a counter.

    Args:
        params: Parameters or parameter groups, real float32 or float64.
        lr: Step size l > 0.
        num_data: Number of training examples N behind the mean loss.
        betas: Momentum retention β₁ in [0, 1) and gradient scale β₂ > 0 (not Adam's two averages).
        weight_decay: Prior precision over N (δ/N), None 10/N: a prior standard deviation of 0.32. Per parameter see
            `set_weight_decay`.
        temperature: T ≥ 0; 1 is the Bayes posterior, below 1 cold, 0 an optimizer.
        preconditioner: "rms", "paper" or "none".
        noise: "exact" or "paper".
        scale_decay: Retention β_ν of the second moment ("rms").
        eps: Added to the root of the second moment ("rms").
        dual_lr: Step size η of ρ; 0 freezes τ at 1/2, or at what `rho` holds ("paper").
        global_scale: "paper" couples α = k·l^{3/4}; a number fixes α; a callable (lr, step) -> α is a schedule ("paper").
        state_dtype: torch.bfloat16 keeps momentum and preconditioner so, with stochastic rounding; None is the weight's dtype.
        seed, generator, foreach, fused, nonfinite: As in `Sampler`; give every chain a seed of its own.

    Raises:
        ValueError: A hyper-parameter out of range, a complex or half-precision parameter, a kernel that is not available.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = CVAdam(model.parameters(), lr=1e-3, num_data=100)
        >>> loss = model(torch.ones(8, 3)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['injected', 'kinetic', 'kinetic_lr', 'momentum', 'moved', 'second_moment', 'step', 'stream']

    Reference:
        Ke & Fan, arXiv 2210.12957, Algorithm 2 and equations 3–5; Li et al., "Preconditioned stochastic gradient Langevin
        dynamics for deep neural networks" (2016), for the second moments.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        num_data: float,
        betas: tuple[float, float] = (0.9, 1.0),
        weight_decay: float | None = None,
        temperature: float = 1.0,
        preconditioner: Preconditioner = "rms",
        noise: Literal["exact", "paper"] = "exact",
        scale_decay: float = 0.99,
        eps: float = 1e-8,
        dual_lr: float = 0.1,
        global_scale: GlobalScale = "paper",
        state_dtype: torch.dtype | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        nonfinite: NonFinite = "raise",
    ) -> None:
        defaults: dict[str, Any] = dict(
            lr=lr, num_data=num_data, betas=as_betas(betas), weight_decay=weight_decay, temperature=temperature,
            preconditioner=preconditioner, noise=noise, adapt=True, scale_decay=scale_decay, eps=eps, dual_lr=dual_lr,
            global_scale=global_scale, state_dtype=state_dtype,
        )  # fmt: skip
        super().__init__(
            params, defaults, seed=seed, generator=generator, foreach=foreach, fused=fused, nonfinite=nonfinite
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch does; a `global_scale` schedule is named, not stored."""
        state = super().state_dict()
        for group in state["param_groups"]:
            if callable(group["global_scale"]):
                group["global_scale"] = "schedule"
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; a schedule of `global_scale` stays the one this optimizer was built with."""
        schedules = [group["global_scale"] for group in self.param_groups]
        for saved, schedule in zip(state_dict["param_groups"], schedules):
            if saved.get("global_scale") == "schedule" and not callable(schedule):
                raise ValueError(
                    "state_dict was saved with a global_scale schedule; build this optimizer with the same callable."
                )
        super().load_state_dict(state_dict)
        for group, schedule in zip(self.param_groups, schedules):
            if group.get("global_scale") == "schedule":
                group["global_scale"] = schedule

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_choice("noise", group["noise"], ("exact", "paper"))
        check_number("dual_lr", group["dual_lr"], minimum=0)
        if group["state_dtype"] not in (None, torch.bfloat16):
            raise ValueError(
                f"state_dtype={group['state_dtype']!r} is neither torch.bfloat16 nor None (the weight's dtype)."
            )
        scale = group["global_scale"]
        if isinstance(scale, str):
            check_choice("global_scale", scale, ("paper",))
        elif not callable(scale):
            check_number("global_scale", scale, minimum=0)

    def noise_std(self, group: dict[str, Any], lr: float) -> float:
        """Return the standard deviation of the noise that a step injects, for the exact law at τ = 1."""
        if group["noise"] == "exact":
            return super().noise_std(group, lr)
        return dynamics.paper_noise_std(
            dynamics.paper_noise_scale(group["temperature"], group["num_data"]), lr, group["betas"][0]
        )

    def _dual(self, group: dict[str, Any], lr: float, step: int) -> tuple[float, float]:
        scale = group["global_scale"]
        if isinstance(scale, str):
            alpha = dynamics.paper_global_scale(dynamics.paper_noise_scale(group["temperature"], group["num_data"]), lr)
        else:
            alpha = check_number("global_scale", scale(lr, step), minimum=0) if callable(scale) else scale
        return group["dual_lr"], alpha
