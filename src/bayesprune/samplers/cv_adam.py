"""CV-Adam (Algorithm 2): SGHMC with a learned diagonal preconditioner, as a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bayesprune.samplers import dynamics
from bayesprune.samplers.functional import Implementation, TensorStep, cv_adam
from bayesprune.samplers.kernels import native
from bayesprune.samplers.layout import DecayLayout, decay_layout, flat_view, like_layout, memory_order
from bayesprune.samplers.noise import counter_normal, stream_key
from bayesprune.samplers.validation import check_choice, check_number

GlobalScale = float | Literal["paper"] | Callable[[float, int], float]


class CVAdam(torch.optim.Optimizer):
    r"""Constrained variational Adam: preconditioned SGHMC whose weights are posterior samples (Algorithm 2).

    With g the gradient of the **mean** loss at w, N = `num_data`, l = `lr`, (β₁, β₂) = `betas`, η = `dual_lr`, α =
    `global_scale`, τ = sigmoid(ρ), ε_prev the noise of the step before and s the injected standard deviation, one step
    is

        ρ ← ρ + η·[1/(Nτ) − α²·weight_decay·τ − α·ε_prev ⊙ g]
        v ← β₁v − β₂·l·(g + weight_decay·w) + s·ε,   ε ~ N(0, I)
        w ← w + τ ⊙ v

    with s = √(2(1−β₁)β₂·l·T/(τN)) for `noise="exact"` (the stationary law is the posterior at `temperature` T for every
    l, β₁ and τ) and s = √(2+2β₁²)·k·l^{3/4}, k = √(T/N), for `noise="paper"` (to the letter; its temperature drifts
    with l and τ).

    The state is two values a weight, `momentum` (v) and `rho` (ρ); the previous noise is drawn again from a counter.
    `step()` is deterministic given `seed`, the parameter order and the number of steps, and does not touch torch's
    global generators.

    Args:
        params: Parameters or parameter groups, real float32 or float64.
        lr: Step size l > 0.
        num_data: Number of training examples N behind the mean loss.
        betas: Momentum retention β₁ in [0, 1) and gradient scale β₂ > 0 (not Adam's two averages).
        dual_lr: Step size η of ρ; 0 freezes τ at 1/2 (or at what `rho` holds).
        weight_decay: Prior precision over N (δ/N); per parameter see `set_weight_decay`.
        temperature: T ≥ 0; 1 is the Bayes posterior, below 1 cold, 0 an optimizer.
        noise: "exact" or "paper".
        global_scale: "paper" couples α = k·l^{3/4}; a number fixes α; a callable (lr, step) -> α is a schedule.
        seed: Seed of the noise. Optimizers with the same seed inject the same noise: give every chain its own.
        implementation: "native" is the fused CPU step (float32), "plain" torch operations on any device, "auto"
            chooses.

    Raises:
        ValueError: A hyper-parameter out of range, a complex or half-precision parameter.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = CVAdam(model.parameters(), lr=0.1, num_data=100, temperature=1.0)
        >>> loss = model(torch.ones(8, 3)).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['injected', 'momentum', 'rho', 'step', 'stream']

    Reference:
        Ke & Fan, arXiv 2210.12957, Algorithm 2 and equations 3–5.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        num_data: float,
        betas: tuple[float, float] = (0.1, 1.0),
        dual_lr: float = 0.1,
        weight_decay: float = 5e-4,
        temperature: float = 1.0,
        noise: Literal["exact", "paper"] = "exact",
        global_scale: GlobalScale = "paper",
        seed: int = 0,
        implementation: Implementation = "auto",
    ) -> None:
        check_choice("implementation", implementation, ("auto", "plain", "native"))
        if implementation == "native" and not native.available():
            raise ValueError(f"implementation='native' is not available: {native.reason}; use implementation='auto'.")
        self._implementation = implementation
        defaults = dict(
            lr=lr, num_data=num_data, betas=tuple(betas), dual_lr=dual_lr, weight_decay=weight_decay,
            temperature=temperature, noise=noise, global_scale=global_scale, seed=int(seed),
        )  # fmt: skip
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied optimizer (torch keeps defaults, state and groups only)."""
        super().__setstate__(state)
        self.__dict__.setdefault("_implementation", "auto")

    # ---- what torch.optim expects -----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own hyper-parameters; see `torch.optim.Optimizer.add_param_group`."""
        _check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.dtype not in (torch.float32, torch.float64):
                self.param_groups.pop()
                raise ValueError(
                    f"parameter of dtype {param.dtype} and shape {tuple(param.shape)}: CVAdam samples real float32 or float64 "
                    "weights; keep float32 weights and use torch.autocast for half precision, or view complex weights as real."
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
            if saved["global_scale"] == "schedule" and not callable(schedule):
                raise ValueError(
                    "state_dict was saved with a global_scale schedule; build this optimizer with the same callable."
                )
        super().load_state_dict(state_dict)
        for group, schedule in zip(self.param_groups, schedules):
            if group["global_scale"] == "schedule":
                group["global_scale"] = schedule

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
        cv_adam(self._collect(), implementation=self._implementation)
        for group in self.param_groups:
            injected = bool(group["temperature"] and float(group["lr"]))
            for param in group["params"]:
                if param.grad is not None:
                    self.state[param]["step"] += 1
                    self.state[param]["injected"] = injected
        return loss

    # ---- what a sampler adds ------------------------------------------------------------------------------------------

    def set_weight_decay(self, param: Tensor, value: float | Tensor | None) -> None:
        """Give one parameter its own weight decay; a spike-and-slab prior is such a decay per group.

        Args:
            param: A parameter of this optimizer.
            value: A number, a tensor broadcastable to the parameter's shape (kept, not copied, where dtype and device
                already fit), or None to return to the group's number.

        Raises:
            ValueError: `param` is unknown here, or `value` does not broadcast or is negative or not finite.

        Example:
            >>> layer = torch.nn.Linear(3, 2)
            >>> optimizer = CVAdam(layer.parameters(), lr=0.1, num_data=10)
            >>> optimizer.set_weight_decay(layer.weight, torch.tensor([[1e-2, 1e-4, 1e-4]]))
        """
        self._group_of(param)
        if value is None:
            self.state[param].pop("weight_decay", None)
            return
        if not isinstance(value, Tensor):
            self.state[param]["weight_decay"] = check_number("weight_decay", value, minimum=0)
            return
        try:
            fits = torch.broadcast_shapes(value.shape, param.shape) == param.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"weight_decay of shape {tuple(value.shape)} does not broadcast to the parameter's {tuple(param.shape)}; use size 1 "
                "in every dimension that shares a decay."
            )
        if not bool((value >= 0).all() and value.isfinite().all()):
            raise ValueError(
                "weight_decay holds a negative or non-finite value; every decay must be finite and at least 0."
            )
        self.state[param]["weight_decay"] = value.detach().to(dtype=param.dtype, device=param.device)

    def weight_decay_of(self, param: Tensor) -> float | Tensor:
        """Return the weight decay that the next step applies to `param`: its own, else its group's."""
        group = self._group_of(param)
        own = self.state[param].get("weight_decay") if param in self.state else None
        return group["weight_decay"] if own is None else own

    def tau(self, param: Tensor) -> Tensor:
        """Return the local scale τ = sigmoid(ρ) of `param`, in its shape (1/2 before its first step)."""
        self._group_of(param)
        rho = self.state[param].get("rho") if param in self.state else None
        return dynamics.mirror_map(torch.zeros_like(param) if rho is None else rho)

    def last_noise(self, param: Tensor) -> Tensor:
        """Return ε of the last step of `param`, drawn again from its counter (zeros before the first step)."""
        group = self._group_of(param)
        state = self.state[param] if param in self.state else {}
        out = torch.zeros_like(param)
        if not state.get("injected"):
            return out
        key = stream_key(group["seed"], state["stream"], state["step"])
        flat = counter_normal(param.numel(), key, dtype=param.dtype, device=param.device)
        order = memory_order(param)
        inverse = sorted(range(param.dim()), key=lambda d: order[d])
        return out.copy_(flat.view([param.shape[d] for d in order]).permute(inverse))

    @torch.no_grad()
    def effective_temperature(self) -> list[dict[str, float]]:
        """Return mean, min and max over the weights of the temperature that the noise amounts to, one dict a group.

        Small-step limit; exact noise gives T. A group at lr = 0 reports nan.

        Example:
            >>> layer = torch.nn.Linear(3, 2)
            >>> CVAdam(layer.parameters(), lr=0.1, num_data=10, temperature=0.5).effective_temperature()[0]["mean"]
            0.5
        """
        result = []
        for group in self.param_groups:
            lr, (beta1, beta2), number = float(group["lr"]), group["betas"], group["num_data"]
            total, count, low, high = 0.0, 0, float("inf"), float("-inf")
            for param in group["params"] if lr > 0 else ():
                tau = self.tau(param)
                if tau.numel() == 0:
                    continue
                if group["noise"] == "exact":
                    values = torch.full_like(tau, group["temperature"])
                else:
                    k = dynamics.paper_noise_scale(group["temperature"], number)
                    std = dynamics.paper_noise_std(k, lr, beta1)
                    values = dynamics.effective_temperature(torch.full_like(tau, std), tau, lr, beta1, beta2, number)
                total, count = total + float(values.double().sum()), count + values.numel()
                low, high = min(low, float(values.min())), max(high, float(values.max()))
            nan = float("nan")
            result.append(
                {"mean": total / count, "min": low, "max": high} if count else {"mean": nan, "min": nan, "max": nan}
            )
        return result

    @torch.no_grad()
    def noise_to_gradient(self) -> float:
        """Return the root mean square of the injected noise over that of β₂·l·(g + weight_decay·w), at the present
        gradients.

        Call it after `backward()`. Far below 1, a step is an optimizer's; nan without gradients.
        """
        noise, drift = 0.0, 0.0
        for item in self._collect():
            own = item.weight_decay
            decay = own.slice(0, item.weight.numel()) if isinstance(own, DecayLayout) else own
            drift += float((item.gradient + decay * item.weight).mul_(item.beta2 * item.lr).square_().double().sum())
            scale = 1 / dynamics.mirror_map(item.rho).double() if item.exact else torch.ones_like(item.rho).double()
            noise += item.noise_std**2 * float(scale.sum())
        return (noise / drift) ** 0.5 if drift > 0 else float("nan")

    # ---- inside -------------------------------------------------------------------------------------------------------

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(param is p for p in group["params"]):
                return group
        raise ValueError(
            f"parameter of shape {tuple(param.shape)} is not in this optimizer; pass one of its own parameters."
        )

    def _collect(self) -> list[TensorStep]:
        """Return the work of the next step; creates the state of new parameters."""
        items, stream = [], -1
        for group in self.param_groups:
            lr, (beta1, beta2) = check_number("lr", group["lr"], minimum=0), group["betas"]
            k = dynamics.paper_noise_scale(group["temperature"], group["num_data"])
            exact = group["noise"] == "exact"
            if exact:
                noise_std = dynamics.exact_noise_std(group["temperature"], group["num_data"], lr, beta1, beta2, 1.0)
            else:
                noise_std = dynamics.paper_noise_std(k, lr, beta1)
            for param in group["params"]:
                stream += 1
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError(
                        f"gradient of the parameter of shape {tuple(param.shape)} is sparse; CVAdam needs dense gradients: build the "
                        "embedding with sparse=False."
                    )
                state = self.state[param]
                if "momentum" not in state:
                    state["step"], state["stream"], state["injected"] = 0, stream, False
                    state["momentum"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                    state["rho"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                step = state["step"] + 1
                weight, gradient, momentum, rho = _flat_operands(param, state)
                items.append(
                    TensorStep(
                        weight=weight,
                        gradient=gradient,
                        momentum=momentum,
                        rho=rho,
                        weight_decay=_decay_of(state.get("weight_decay"), group["weight_decay"], param),
                        key=stream_key(group["seed"], state["stream"], step),
                        previous_key=stream_key(group["seed"], state["stream"], step - 1)
                        if state["injected"]
                        else None,
                        lr=lr,
                        beta1=beta1,
                        beta2=beta2,
                        dual_lr=group["dual_lr"],
                        num_data=group["num_data"],
                        alpha=_alpha(group["global_scale"], k, lr, step),
                        noise_std=noise_std,
                        exact=exact,
                    )
                )
        return items


def _check_group(group: dict[str, Any]) -> None:
    """Refuse hyper-parameters out of range, by name."""
    check_number("lr", group["lr"], minimum=0)
    check_number("num_data", group["num_data"], minimum=0, strict=True)
    if len(group["betas"]) != 2:
        raise ValueError(f"betas={group['betas']!r} must be two numbers (β₁, β₂).")
    check_number("betas[0]", group["betas"][0], minimum=0, below=1)
    check_number("betas[1]", group["betas"][1], minimum=0, strict=True)
    for name in ("dual_lr", "weight_decay", "temperature"):
        check_number(name, group[name], minimum=0)
    check_choice("noise", group["noise"], ("exact", "paper"))
    scale = group["global_scale"]
    if isinstance(scale, str):
        check_choice("global_scale", scale, ("paper",))
    elif not callable(scale):
        check_number("global_scale", scale, minimum=0)


def _alpha(scale: GlobalScale, noise_scale: float, lr: float, step: int) -> float:
    if isinstance(scale, str):
        return dynamics.paper_global_scale(noise_scale, lr)
    return check_number("global_scale", scale(lr, step), minimum=0) if callable(scale) else scale


def _decay_of(own: float | Tensor | None, shared: float, param: Tensor) -> float | DecayLayout:
    if isinstance(own, Tensor):
        return decay_layout(own, param)
    return shared if own is None else own


def _flat_operands(param: Tensor, state: dict[str, Any]) -> list[Tensor]:
    """Return weight, gradient, momentum and rho as flat tensors in the parameter's memory order."""
    order = memory_order(param)
    for name in ("momentum", "rho"):
        state[name] = like_layout(state[name], param)
    tensors = (param.detach(), like_layout(cast(Tensor, param.grad).detach(), param), state["momentum"], state["rho"])
    flat = [flat_view(tensor, order) for tensor in tensors]
    if any(view is None for view in flat):
        raise RuntimeError(
            f"parameter of shape {tuple(param.shape)} and strides {param.stride()} has gaps or overlaps in memory; make it contiguous."
        )
    return cast(list[Tensor], flat)
