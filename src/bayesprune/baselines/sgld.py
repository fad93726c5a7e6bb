"""Cyclical SGLD and SGHMC (Zhang et al., 2020) as torch optimizers, with the temperature in plain sight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bayesprune.samplers import stationary_variance
from bayesprune.samplers.validation import check_number

PUBLISHED_TEMPERATURE = 1 / 50_000
"""The released scripts' default on CIFAR (1/N): in effect an optimizer with snapshots, far from the posterior's T = 1."""


class CyclicalSGHMC(torch.optim.Optimizer):
    r"""SGHMC as csgmcmc's scripts run it: momentum with friction α, and noise that can be switched on and off.

    With g the gradient of the **mean** loss at w, N = `num_data`, l = `lr`, T = `temperature` and ε ~ N(0, I), one step
    is

        d = g + weight_decay·w
        b ← (1−α)·b − l·d  [ + √(2·l·α·T/N)·ε  while the group's `inject` is True ]
        w ← w + b

    The exact law. On a quadratic of curvature H (of mean loss plus prior), constant l and exact gradients, (w, b) is a
    linear recursion; solving its Lyapunov equation gives, in discrete time and for every l·H < 2(2−α),

        Var(w) = T/(N·H) · 1 / (1 − l·H/(2(2−α))),

    so the temperature means what it says in the limit l·H → 0 and is too high by the factor 1/(1 − l·H/(2(2−α)))
    before (α = 1: SGLD's 1/(1 − l·H/2)). Minibatch noise of variance V in g adds l·N·V/(2α) to T: `sghmc_variance`
    has both.

    The noise comes from a generator of the optimizer's own, one a device, which `state_dict` carries: a resumed run is
    the uninterrupted one, bit for bit, and torch's global generators are left alone.

    Args:
        params: Parameters or parameter groups, real float32 or float64.
        lr: Step size l; drive it with `CyclicalLR`.
        num_data: Number of training examples N behind the mean loss.
        temperature: T ≥ 0. 1 is the Bayes posterior; csgmcmc's scripts have `PUBLISHED_TEMPERATURE` = 1/50,000, which
            is an optimizer with snapshots; 1/200 lies between. There is no default, since the choice decides what is run.
        alpha: Friction α in (0, 1]; 0.9 is the published one (momentum 0.1), 1 is SGLD and needs no state.
        weight_decay: Prior precision over N (δ/N).
        inject: Whether noise is injected; a key of each group. `CyclicalNoise` drives it.
        seed: Seed of the noise; give every chain its own.

    Raises:
        ValueError: A hyper-parameter out of range, a complex or half-precision parameter.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = CyclicalSGHMC(model.parameters(), lr=0.5, num_data=50_000, temperature=1 / 200)
        >>> model(torch.ones(8, 3)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.effective_temperature()[0]["mean"]
        0.005

    Reference:
        Zhang, Li, Zhang, Chen & Wilson, "Cyclical stochastic gradient MCMC for Bayesian deep learning", ICLR 2020,
        Algorithms 1 and 2; Chen, Fox & Guestrin (2014), equation 15.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        num_data: float,
        temperature: float,
        alpha: float = 0.9,
        weight_decay: float = 5e-4,
        inject: bool = True,
        seed: int = 0,
    ) -> None:
        self._seed = int(seed)
        self._generators: dict[str, torch.Generator] = {}
        defaults = dict(
            lr=lr, num_data=num_data, temperature=temperature, alpha=alpha, weight_decay=weight_decay, inject=bool(inject)
        )  # fmt: skip
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs (torch keeps defaults, state and groups only)."""
        return {**super().__getstate__(), "noise": self._noise_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied optimizer; torch's `load_state_dict` passes here too, with states and groups only."""
        state = dict(state)
        noise = state.pop("noise", None)
        if noise is not None:
            self._set_noise_state(noise)
        super().__setstate__(state)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own hyper-parameters; see `torch.optim.Optimizer.add_param_group`."""
        group = {**self.defaults, **param_group}
        check_number("lr", group["lr"], minimum=0)
        check_number("num_data", group["num_data"], minimum=0, strict=True)
        check_number("temperature", group["temperature"], minimum=0)
        check_number("weight_decay", group["weight_decay"], minimum=0)
        if check_number("alpha", group["alpha"], minimum=0, strict=True) > 1:
            raise ValueError(f"alpha={group['alpha']!r} is out of range; friction lies in (0, 1], and 1 is SGLD.")
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.dtype not in (torch.float32, torch.float64):
                self.param_groups.pop()
                raise ValueError(
                    f"parameter of dtype {param.dtype} and shape {tuple(param.shape)}: samples are real float32 or float64 "
                    "weights; keep float32 weights and use torch.autocast for half precision."
                )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step on every parameter that has a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights: list[Tensor] = [param for param in group["params"] if param.grad is not None]
            if not weights:
                continue
            gradients = [param.grad for param in weights if param.grad is not None]
            if any(gradient.is_sparse for gradient in gradients):
                raise RuntimeError("a gradient is sparse; build the embedding with sparse=False.")
            lr, alpha, decay = float(group["lr"]), group["alpha"], group["weight_decay"]
            # lists of tensors at once: few launches on a GPU, and no temporary but the noise
            if alpha == 1:
                torch._foreach_mul_(weights, 1 - lr * decay)
                torch._foreach_add_(weights, gradients, alpha=-lr)
                self._inject_(weights, group, lr)
                continue
            buffers = [self._buffer(param) for param in weights]
            torch._foreach_mul_(buffers, 1 - alpha)
            torch._foreach_add_(buffers, gradients, alpha=-lr)
            torch._foreach_add_(buffers, weights, alpha=-lr * decay)
            self._inject_(buffers, group, lr)
            torch._foreach_add_(weights, buffers)
        return loss

    # ---- state ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state and, beside it, the seed and the generators' positions."""
        return {**super().state_dict(), "noise": self._noise_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: The state holds no generators, as that of another optimizer.
        """
        if "noise" not in state_dict:
            raise ValueError(
                f"state_dict has no entry 'noise'; load one that {type(self).__name__}.state_dict() returned."
            )
        super().load_state_dict(state_dict)
        self._set_noise_state(state_dict["noise"])

    # ---- what a health report asks --------------------------------------------------------------------------------------

    def effective_temperature(self) -> list[dict[str, float]]:
        """Return the temperature that the injected noise means in the small-step limit, one dict a group: T, or 0 while
        `inject` is False. Minibatch noise comes on top (`sghmc_variance`).
        """
        values = [float(group["temperature"]) if group["inject"] else 0.0 for group in self.param_groups]
        return [{"mean": value, "min": value, "max": value} for value in values]

    @torch.no_grad()
    def noise_to_gradient(self) -> float:
        """Return the root mean square of the injected noise over that of l·(g + weight_decay·w), at the present
        gradients: below 1, a step is mostly an optimizer's. nan without gradients.
        """
        noise, drift = 0.0, 0.0
        for group in self.param_groups:
            lr = float(group["lr"])
            for param in group["params"]:
                if param.grad is None:
                    continue
                noise += _noise_std(group, lr) ** 2 * param.numel()
                step = param.grad.add(param, alpha=group["weight_decay"])
                drift += lr**2 * float(step.square_().sum(dtype=torch.float64))
        return math.sqrt(noise / drift) if drift > 0 else float("nan")

    # ---- inside ---------------------------------------------------------------------------------------------------------

    def _noise_state(self) -> dict[str, Any]:
        positions = {device: generator.get_state() for device, generator in self._generators.items()}
        return {"seed": self._seed, "generators": positions}

    def _set_noise_state(self, state: dict[str, Any]) -> None:
        self._seed, self._generators = int(state["seed"]), {}
        for device, position in state["generators"].items():
            self._generators[device] = torch.Generator(device=device)
            self._generators[device].set_state(position.cpu())

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state["momentum"]

    def _inject_(self, targets: list[Tensor], group: dict[str, Any], lr: float) -> None:
        std = _noise_std(group, lr)
        if std:
            noise = [torch.empty_like(target).normal_(generator=self._generator(target.device)) for target in targets]
            torch._foreach_add_(targets, noise, alpha=std)

    def _generator(self, device: torch.device) -> torch.Generator:
        name = str(device)
        if name not in self._generators:
            self._generators[name] = torch.Generator(device=device).manual_seed(self._seed)
        return self._generators[name]


class CyclicalSGLD(CyclicalSGHMC):
    r"""SGLD as csgmcmc's scripts run it: `CyclicalSGHMC` at friction α = 1, which keeps no momentum.

        w ← w − l·(g + weight_decay·w)  [ + √(2·l·T/N)·ε  while `inject` is True ]

    On a quadratic, Var(w) = T/(N·H) · 1/(1 − l·H/2), exactly.

    Args:
        params: As `CyclicalSGHMC`.
        lr: l.
        num_data: N.
        temperature: T; no default, as in `CyclicalSGHMC`.
        weight_decay: δ/N.
        inject: Whether noise is injected.
        seed: Seed of the noise.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = CyclicalSGLD([weight], lr=0.1, num_data=10, temperature=1.0, weight_decay=0.0, inject=False)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step(); weight.data
        tensor([0.9000])

    Reference:
        Welling & Teh (2011), equation 4; Zhang et al. (2020), Algorithm 1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        num_data: float,
        temperature: float,
        weight_decay: float = 5e-4,
        inject: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params, lr, num_data=num_data, temperature=temperature, alpha=1.0, weight_decay=weight_decay, inject=inject,
            seed=seed,
        )  # fmt: skip


def sghmc_variance(
    curvature: float, lr: float, *, alpha: float, temperature: float, num_data: float, gradient_variance: float = 0.0
) -> float:
    """Return the stationary variance of a weight under `CyclicalSGHMC` on a quadratic loss, exact in discrete time.

    With H = `curvature`, l = `lr` and V = `gradient_variance` the momentum receives noise of variance s² = 2lαT/N + l²V,
    and Var(w) = s²(2−α) / [α·lH·(2(2−α) − lH)], which at V = 0 is T/(NH) / (1 − lH/(2(2−α))).

    Args:
        curvature: H > 0, the second derivative of mean loss plus prior.
        lr: Constant step size l.
        alpha: Friction α.
        temperature: T.
        num_data: N.
        gradient_variance: Variance V of the minibatch gradient of the mean loss.

    Raises:
        ValueError: The step is unstable, l·H ≥ 2(2−α).

    Example:
        >>> round(sghmc_variance(1.0, 1e-6, alpha=0.9, temperature=0.5, num_data=100) * 100, 6)   # T/H
        0.5

    Reference:
        The Lyapunov equation of the recursion; Mandt, Hoffman & Blei (2017), section 4, in continuous time.
    """
    std = math.sqrt(2 * lr * alpha * temperature / num_data + lr**2 * gradient_variance)
    return stationary_variance(curvature, 1.0, lr, 1 - alpha, 1.0, std)


def _noise_std(group: dict[str, Any], lr: float) -> float:
    """Return √(2lαT/N), or 0 while the noise is off."""
    return math.sqrt(2 * lr * group["alpha"] * group["temperature"] / group["num_data"]) if group["inject"] else 0.0
