"""Constrained variational Adam with an explicit mean (Algorithm 1): literal and slow, the reference of `CVAdam`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bayesprune.common.checks import check_number
from bayesprune.samplers import dynamics
from bayesprune.samplers.admission import check_added, check_state, checked_gradient, first_seed, group_of
from bayesprune.samplers.noise import counter_normal, stream_key


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
        params: Real float32 or float64 parameters or groups; they hold the mean μ.
        lr: l.
        num_data: N.
        global_scale: α, the largest posterior standard deviation.
        betas: (β₁, β₂).
        dual_lr: η.
        weight_decay: δ/N.
        seed: Seed of ε; None draws one from `generator`.
        generator: Source of the seed; torch's default generator if None.

    Raises:
        ValueError: A hyper-parameter out of range, a parameter of another dtype or with overlapping memory.

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
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._inside: list[str] = []
        defaults = dict(
            lr=lr, num_data=num_data, global_scale=global_scale, betas=tuple(betas), dual_lr=dual_lr,
            weight_decay=weight_decay, seed=first_seed(type(self).__name__, seed, generator),
        )  # fmt: skip
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled, copied or loaded optimizer."""
        if "param_groups" in self.__dict__:
            check_state(type(self).__name__, self.defaults, self.param_groups, state)
        super().__setstate__({"_inside": [], **state})

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
        check_added(self)

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Hold w = μ + ατε in the parameters; the gradients taken inside feed the next `step()`. The mean returns in
        `finally`.
        """
        if self._inside:
            raise RuntimeError("sampled() was entered twice; leave the first with block before the next.")
        means: list[tuple[Tensor, Tensor]] = []
        self._inside.append("sampled")
        try:
            with torch.no_grad():
                for group in self.param_groups:
                    for param in group["params"]:
                        state = self._state_of(param)
                        state["step"] += 1
                        key = stream_key(group["seed"], state["stream"], state["step"])
                        noise = counter_normal(param.numel(), key, dtype=param.dtype, device=param.device)
                        state["noise"].copy_(noise.view(param.shape))
                        means.append((param, param.clone()))
                        param.add_(group["global_scale"] * dynamics.mirror_map(state["rho"]) * state["noise"])
                        state["offset"] = param - means[-1][1]
            yield
        finally:
            self._inside.pop()
            with torch.no_grad():
                for param, mean in means:
                    param.copy_(mean)

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        state = self.state[param]
        if "momentum" not in state:
            state["stream"] = 1 + max((other["stream"] for other in self.state.values() if other), default=-1)
            state["step"] = 0
            for name in ("momentum", "rho", "noise"):
                state[name] = torch.zeros_like(param)
        return state

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; a closure is evaluated at sampled weights.

        Raises:
            RuntimeError: Called inside `sampled()`.
        """
        if self._inside:
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
                gradient = checked_gradient(type(self).__name__, param, self.state.get(param, {}).get("momentum"))
                state = self._state_of(param)
                if "offset" not in state and not float(group["lr"]):
                    continue  # so torch.distributed.checkpoint makes the state
                if "offset" not in state:
                    raise RuntimeError(
                        "step() found no sampled weights; take the gradient inside `with optimizer.sampled():`."
                    )
                weight = param + state.pop("offset")
                state["momentum"].mul_(beta1).add_(gradient + group["weight_decay"] * weight, alpha=beta2)
                dynamics.dual_step_(
                    state["rho"], gradient, state["noise"], group["weight_decay"],
                    group["global_scale"], group["dual_lr"], group["num_data"],
                )  # fmt: skip
                param.addcmul_(dynamics.mirror_map(state["rho"]), state["momentum"], value=-group["lr"])
        return loss

    def std(self, param: Tensor) -> Tensor:
        """Return the posterior standard deviation σ = ατ of one parameter, in its shape."""
        group = group_of(self, param)
        rho = self.state.get(param, {}).get("rho", torch.zeros_like(param))
        return group["global_scale"] * dynamics.mirror_map(rho)
