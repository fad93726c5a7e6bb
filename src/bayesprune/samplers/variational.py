"""Constrained variational Adam with an explicit mean (Algorithm 1): literal and slow, the reference of `CVAdam`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bayesprune.samplers import dynamics
from bayesprune.samplers.validation import check_number


class VariationalCVAdam(torch.optim.Optimizer):
    r"""Mean-field variational inference with σ = α·τ, τ in (0, 1), by natural-gradient-like mirror descent (Algorithm
    1).

        w = μ + α τ ⊙ ε,  ε ~ N(0, I),  g the gradient of the mean loss at w
        m ← β₁m + β₂(g + weight_decay·w)
        ρ ← ρ + η·[1/(Nτ) − α²·weight_decay·τ − α·ε ⊙ g],  τ = sigmoid(ρ)
        μ ← μ − l·τ ⊙ m

    On a quadratic loss with curvature H of the mean NLL its fixed point is σ² = (ατ)² = 1/(N(H + weight_decay))
    wherever that lies below α². The parameters hold μ, except inside `sampled()`, where they hold w.

    Args:
        params: Real floating-point parameters or groups; they hold the mean μ.
        lr: l.
        num_data: N.
        global_scale: α, the largest posterior standard deviation.
        betas: (β₁, β₂).
        dual_lr: η.
        weight_decay: δ/N.
        generator: Source of ε; torch's default generator if None.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = VariationalCVAdam(model.parameters(), lr=0.1, num_data=100, global_scale=0.5)
        >>> with optimizer.sampled():
        ...     model(torch.ones(8, 3)).square().mean().backward()
        >>> optimizer.step()

    Reference:
        Ke & Fan, arXiv 2210.12957, Algorithm 1 and equations 3–5.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        num_data: float,
        global_scale: float,
        betas: tuple[float, float] = (0.1, 1.0),
        dual_lr: float = 0.1,
        weight_decay: float = 5e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        self._generator = generator
        self._sampling = False
        defaults = dict(
            lr=lr, num_data=num_data, global_scale=global_scale, betas=betas, dual_lr=dual_lr, weight_decay=weight_decay
        )
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer (torch keeps defaults, state and groups only)."""
        super().__setstate__(state)
        self.__dict__.setdefault("_generator", None)
        self.__dict__.setdefault("_sampling", False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own hyper-parameters; see `torch.optim.Optimizer.add_param_group`."""
        group = {**self.defaults, **param_group}
        for name in ("num_data", "global_scale"):
            check_number(name, group[name], minimum=0, strict=True)
        for name in ("lr", "dual_lr", "weight_decay"):
            check_number(name, group[name], minimum=0)
        check_number("betas[0]", group["betas"][0], minimum=0, below=1)
        check_number("betas[1]", group["betas"][1], minimum=0, strict=True)
        super().add_param_group(param_group)

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Hold w = μ + ατε in the parameters; the gradients taken inside feed the next `step()`. The mean returns in
        `finally`.
        """
        if self._sampling:
            raise RuntimeError("sampled() was entered twice; leave the first with block before the next.")
        means: list[tuple[Tensor, Tensor]] = []
        self._sampling = True
        try:
            with torch.no_grad():
                for group in self.param_groups:
                    for param in group["params"]:
                        state = self._state_of(param)
                        state["noise"].normal_(generator=self._generator)
                        means.append((param, param.clone()))
                        param.add_(group["global_scale"] * dynamics.mirror_map(state["rho"]) * state["noise"])
                        state["offset"] = param - means[-1][1]
            yield
        finally:
            self._sampling = False
            with torch.no_grad():
                for param, mean in means:
                    param.copy_(mean)

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        for name in ("momentum", "rho", "noise"):
            if name not in state:
                state[name] = torch.zeros_like(param)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; a closure is evaluated at sampled weights.

        Raises:
            RuntimeError: Called inside `sampled()`.
        """
        if self._sampling:
            raise RuntimeError(
                "step() was called inside sampled(); call it after the with block, where the parameters hold the mean."
            )
        loss = None
        if closure is not None:
            with self.sampled(), torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self._state_of(param)
                if "offset" not in state:
                    raise RuntimeError(
                        "step() found no sampled weights; take the gradient inside `with optimizer.sampled():`."
                    )
                weight = param + state.pop("offset")
                state["momentum"].mul_(beta1).add_(param.grad + group["weight_decay"] * weight, alpha=beta2)
                dynamics.dual_step_(
                    state["rho"], param.grad, state["noise"], group["weight_decay"],
                    group["global_scale"], group["dual_lr"], group["num_data"],
                )  # fmt: skip
                param.addcmul_(dynamics.mirror_map(state["rho"]), state["momentum"], value=-group["lr"])
        return loss

    def std(self, param: Tensor) -> Tensor:
        """Return the posterior standard deviation σ = ατ of one parameter, in its shape."""
        group = next((g for g in self.param_groups if any(param is p for p in g["params"])), None)
        if group is None:
            raise ValueError(
                f"parameter of shape {tuple(param.shape)} is not in this optimizer; pass one of its own parameters."
            )
        return group["global_scale"] * dynamics.mirror_map(self._state_of(param)["rho"])
