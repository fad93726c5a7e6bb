"""What every sampler is: a torch optimizer that moves weights by preconditioned Langevin dynamics and can say how hot it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bayesprune.common.checks import check_choice, check_number
from bayesprune.samplers import dynamics, preconditioner
from bayesprune.samplers.admission import (
    check_added,
    check_state,
    checked_decay,
    checked_gradient,
    first_seed,
    group_of,
)
from bayesprune.samplers.guard import Guarded, NonFinite, Pending
from bayesprune.samplers.layout import (
    decay_layout,
    flat_like,
    flat_view,
    local_decay,
    local_part,
    memory_order,
    shaped,
    state_view,
    whole,
)
from bayesprune.samplers.noise import stream_key
from bayesprune.samplers.step import check_switches, sampler_step
from bayesprune.samplers.temperature import Thermometer, betas_of
from bayesprune.samplers.tensor_step import TensorStep

PRIOR_PRECISION = 10.0
"""Prior precision of a weight where no weight decay is given: a standard deviation of 0.32."""


class Sampler(Guarded, Thermometer, torch.optim.Optimizer):
    r"""Preconditioned Langevin dynamics with momentum, the common base of `CVAdam`, `SGHMC`, `SGLD` and `PSGLD`.

    With g the gradient of the **mean** loss at w, N = `num_data`, l = `lr`, (β₁, β₂) = `betas` and τ the diagonal of the
    preconditioner, one step is

        v ← β₁v − β₂·l·(g + weight_decay·w) + s·ε,   ε ~ N(0, I),   s = √(2(1−β₁)β₂·l·T/(τN))
        w ← w + τ ⊙ v

    whose stationary law, for a frozen τ, the full gradient and small steps, is the posterior at `temperature` T.
    `midpoint` removes the error of large steps on quadratics; `kinetic_temperature` measures what minibatches add.

    The noise is drawn from a counter: a step is deterministic given seed, stream and step number, on any device and for
    any sharding, and leaves torch's generators alone. Each parameter has a stream of its own. Chains need seeds of their
    own, replicas and shards of one chain (DDP, FSDP) the same; the ranks of a `ZeroRedundancyOptimizer` hold different
    parameters and need `seed=rank`.

    Args:
        params: Parameters or parameter groups, real float32 or float64; DTensors replicated or sharded along dimension 0.
        defaults: Hyper-parameters of a group; a subclass fills them in.
        seed: Seed of the noise; None draws one from `generator`.
        generator: Source of the seed, torch's default generator if None.
        foreach: True for torch's multi-tensor operations, False against them, None chooses.
        fused: True for one kernel (compiled C on a CPU, Triton on a GPU), False against it, None chooses.
        nonfinite: What a NaN or an infinity in a gradient does. "raise": the step says so and no such number reaches a weight
            or the state; it is seen inside the kernel at no cost, which may have moved other weights (a GPU's is told one
            step later, without a wait). "skip": the step moves nothing at all and is counted in `skipped`; the gradients are
            read once more for it, and a GPU is waited for. "ignore": it goes on into the weights.

    Raises:
        ValueError: A hyper-parameter out of range, a parameter of another dtype or with overlapping memory, a kernel that is
            not available, no seed in a job of several processes.

    Example:
        >>> from bayesprune.samplers import SGLD
        >>> optimizer = SGLD([torch.nn.Parameter(torch.zeros(3))], lr=0.1, num_data=100)
        >>> isinstance(optimizer, Sampler), isinstance(optimizer, torch.optim.Optimizer)
        (True, True)
    """

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        nonfinite: NonFinite = "raise",
    ) -> None:
        self._streams: dict[Tensor, int] = {}
        self._inside: list[str] = []
        check_choice("nonfinite", nonfinite, ("raise", "skip", "ignore"))
        self.nonfinite, self.skipped, self._pending = nonfinite, 0, Pending()
        seed = first_seed(type(self).__name__, seed, generator)
        super().__init__(params, {**defaults, "seed": seed, "foreach": foreach, "fused": fused})

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle needs beyond torch's own: the noise streams."""
        own = {"nonfinite": self.nonfinite, "skipped": self.skipped, "_pending": Pending()}
        return {**super().__getstate__(), "_streams": self._streams, "_inside": [], **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled, copied or loaded optimizer; torch's `load_state_dict` comes here after its hooks."""
        if "param_groups" in self.__dict__:
            check_state(type(self).__name__, self.defaults, self.param_groups, state)
        super().__setstate__(state)

    # ---- what torch.optim expects -----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own hyper-parameters; see `torch.optim.Optimizer.add_param_group`."""
        group = {**self.defaults, **param_group}
        if group["weight_decay"] is None:
            number = check_number("num_data", group["num_data"], minimum=0, strict=True)
            param_group = {**param_group, "weight_decay": PRIOR_PRECISION / number}
        self._check_group({**group, **param_group})
        super().add_param_group(param_group)
        check_added(self)
        self._number(self.param_groups[-1]["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, its seed too; the choice of `foreach` and `fused` stays this optimizer's.

        Raises:
            ValueError: The state is that of another kind of optimizer, of another preconditioner or of other shapes.
        """
        ways = [(group["foreach"], group["fused"]) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, (foreach, fused) in zip(self.param_groups, ways):
            group["foreach"], group["fused"] = foreach, fused
            for param in group["params"]:
                state = self.state.get(param, {})
                for name, value in state.items():  # torch casts all of a state to the weight's dtype
                    if name == "kinetic":
                        state[name] = value.float()
                    elif name in ("momentum", "rho", "second_moment") and group.get("state_dtype"):
                        state[name] = value.to(group["state_dtype"])
        loaded = {param: state["stream"] for param, state in self.state.items() if "stream" in state}
        taken, held = set(loaded.values()), [param for group in self.param_groups for param in group["params"]]
        clash = [param for param in held if param not in loaded and self._streams.get(param) in taken]
        self._streams = {**{p: s for p, s in self._streams.items() if p not in set(clash)}, **loaded}
        self._number(clash)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch._disable_dynamo  # as torch's own optimizers are; torch.compiler.disable would import the compiler at once
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step on every parameter that has a gradient; returns the closure's loss, if there is one.

        A step at lr = 0 draws no noise, and leaves the preconditioner and the noise counter where they are.

        Raises:
            RuntimeError: Called inside `midpoint()`, or a gradient is sparse.
            NonFiniteGradientError: A gradient is not finite, and `nonfinite` is "raise".
        """
        if self._inside:
            raise RuntimeError(
                "step() was called inside midpoint(); call it after the with block, where the iterate is back."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.check_gradients(wait=False)
        if self._skips():
            return loss
        work: dict[tuple[bool | None, bool | None], list[TensorStep]] = {}
        copies: list[tuple[Tensor, Tensor, list[int]]] = []
        moved: list[tuple[dict[str, Any], float, bool]] = []
        for group in self.param_groups:
            items = work.setdefault((group["foreach"], group["fused"]), [])
            lr = float(group["lr"])
            for state in self._collect(group, items, copies):
                moved.append((state, lr, bool(lr and group["temperature"])))
        refused: list[TensorStep] = []
        for (foreach, fused), items in work.items():
            refused += sampler_step(items, foreach=foreach, fused=fused, pending=self._pending)
        if refused:
            self._raise([item.stream for item in refused])
        for weight, flat, order in copies:
            weight.copy_(shaped(flat, weight.shape, order))
        for state, lr, injected in moved:
            state["kinetic_lr"] += dynamics.share_of_step(state["step"], lr) * (lr - state["kinetic_lr"])
            state["step"] += lr != 0
            state["injected"], state["moved"] = injected, True
        if len(moved) < len(self.state):
            moving = {id(state) for state, _, _ in moved}
            for state in self.state.values():
                state["moved"] = id(state) in moving
        return loss

    # ---- what a sampler adds ------------------------------------------------------------------------------------------

    @contextmanager
    def midpoint(self) -> Iterator[None]:
        """Hold w − τv/2, the midpoint of the last move, in the parameters; the iterate returns in `finally`, bit for bit.

        On a quadratic the midpoint's stationary variance is exactly T/(N·H) for every stable step size, where the
        iterate's is too large by 1/(1 − τβ₂lH/(2(1+β₁))). Take samples inside it. Parameters that did not move in the
        last step stay, and so do weights that are exactly 0, as pruned ones are.

        Raises:
            RuntimeError: Entered twice.

        Example:
            >>> from bayesprune.samplers import SGHMC
            >>> weight = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = SGHMC([weight], lr=0.5, num_data=10, temperature=0.0, weight_decay=0.0)
            >>> weight.grad = torch.ones(1); optimizer.step()
            >>> with optimizer.midpoint():
            ...     print(weight.data)
            tensor([0.7500])

        Reference:
            docs/temperature.md, "the midpoint".
        """
        if self._inside:
            raise RuntimeError("midpoint() was entered twice; leave the first with block before the next.")
        saved: list[tuple[Tensor, Tensor]] = []
        self._inside.append("midpoint")
        try:
            with torch.no_grad():
                for group in self.param_groups:
                    for param in group["params"]:
                        state = self.state.get(param, {})
                        if state.get("moved"):
                            saved.append((param, param.detach().clone()))
                            move = preconditioner.tau(group, state, param) * state["momentum"].to(param.dtype)
                            param.sub_(move.mul_(param != 0), alpha=0.5)
            yield
        finally:
            self._inside.pop()
            with torch.no_grad():
                for param, value in saved:
                    param.copy_(value)

    def set_weight_decay(self, param: Tensor, value: float | Tensor | None) -> None:
        """Give one parameter its own weight decay; a spike-and-slab prior is such a decay per group.

        Args:
            param: A parameter of this optimizer.
            value: A number, a tensor broadcastable to the parameter's shape (kept, not copied, where dtype and device
                already fit), or None to return to the group's number.

        Raises:
            ValueError: `param` is unknown here, or `value` does not broadcast or is negative or not finite.

        Example:
            >>> from bayesprune.samplers import SGHMC
            >>> layer = torch.nn.Linear(3, 2)
            >>> optimizer = SGHMC(layer.parameters(), lr=0.1, num_data=10)
            >>> optimizer.set_weight_decay(layer.weight, torch.tensor([[1e-2, 1e-4, 1e-4]]))
        """
        group_of(self, param)
        if value is None:
            self.state.get(param, {}).pop("weight_decay", None)
            return
        fits = (
            checked_decay(value, param) if isinstance(value, Tensor) else check_number("weight_decay", value, minimum=0)
        )
        if not self.state:  # torch.distributed.checkpoint makes the state of all parameters, or of none
            self._begin()
        self.state[param]["weight_decay"] = fits

    # ---- inside -------------------------------------------------------------------------------------------------------

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse hyper-parameters out of range, by name."""
        check_number("lr", group["lr"], minimum=0)
        check_number("num_data", group["num_data"], minimum=0, strict=True)
        check_switches(group["foreach"], group["fused"])
        if not isinstance(group["seed"], int):
            raise ValueError(
                f"seed={group['seed']!r} is not an integer; give one, or None for one of torch's generator."
            )
        if len(betas_of(group)) != 2:
            raise ValueError(f"betas={group['betas']!r} must be two numbers (β₁, β₂).")
        check_number("betas[0]", betas_of(group)[0], minimum=0, below=1)
        check_number("betas[1]", betas_of(group)[1], minimum=0, strict=True)
        for name in ("weight_decay", "temperature"):
            check_number(name, group[name], minimum=0)
        check_choice("preconditioner", group["preconditioner"], tuple(preconditioner.STATE))
        if group["preconditioner"] == "rms":
            check_number("scale_decay", group["scale_decay"], minimum=0, below=1)
            check_number("eps", group["eps"], minimum=0)

    def _dual(self, group: dict[str, Any], lr: float, step: int) -> tuple[float, float]:
        """Return the paper's dual step size η and scale α at one step."""
        return 0.0, 0.0

    def _number(self, params: list[Tensor]) -> None:
        """Give each parameter without a noise stream the next one; a stream is never given twice."""
        following = max(self._streams.values(), default=-1) + 1
        for param in params:
            if param not in self._streams:
                self._streams[param], following = following, following + 1

    def _begin(self) -> None:
        """Make the state of every parameter that is trained."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    self._state_of(group, param)

    def _state_of(self, group: dict[str, Any], param: Tensor) -> dict[str, Any]:
        """Return the state of a parameter, made where it is missing."""
        state = self.state[param]
        if state.get("step"):
            return state
        kind, dtype = group["preconditioner"], group.get("state_dtype")
        if "kinetic" not in state:
            self._number([param])
            state.setdefault("stream", self._streams[param])
            state.update(step=0, injected=False, moved=False, kinetic_lr=0.0)
            state.setdefault("momentum", torch.zeros_like(param, memory_format=torch.preserve_format, dtype=dtype))
            state["kinetic"] = torch.zeros((), dtype=torch.float32, device=param.device)
        name = preconditioner.STATE[kind]
        empty = kind == "rms" and "second_moment" in state and not whole(state["second_moment"].sum())
        if name and (name not in state or empty):  # empty: made without a gradient
            state[name] = preconditioner.first_scale(kind, param, dtype)
        return state

    def _collect(
        self,
        group: dict[str, Any],
        items: list[TensorStep],
        copies: list[tuple[Tensor, Tensor, list[int]]],
    ) -> list[dict[str, Any]]:
        """Append a group's work for the next step and the copies of weights whose memory has gaps; return the states it moves."""
        lr, (beta1, beta2) = check_number("lr", group["lr"], minimum=0), betas_of(group)
        kind, number, seed = group["preconditioner"], group["num_data"], group["seed"]
        owner, name, states = type(self).__name__, preconditioner.STATE[kind], []
        shared = {
            "lr": lr, "beta1": beta1, "beta2": beta2, "num_data": number, "preconditioner": kind, "adapt": group["adapt"] and lr > 0,
            "scale_decay": group.get("scale_decay", 0.0), "damping": preconditioner.damping(group) if kind == "rms" else 0.0,
            "noise_std": self.noise_std(group, lr), "exact": group.get("noise", "exact") == "exact",
            "guard": self.nonfinite == "raise", "kinetic_factor": dynamics.kinetic_temperature(1.0, 1.0, 1.0, beta1, beta2, number),
        }  # fmt: skip
        for param in group["params"]:
            if param.grad is None or not (param.requires_grad or param.grad.any()):  # frozen, its gradient set to zeros
                continue
            gradient = checked_gradient(owner, param, self.state.get(param, {}).get("momentum"))
            state = self._state_of(group, param)
            states.append(state)
            weight, offset = local_part(param.detach())
            if not weight.numel():
                continue
            order = memory_order(weight)
            flat = flat_view(weight, order)
            if flat is None:
                flat = flat_like(weight, order)
                copies.append((weight, flat, order))
            decay = state.get("weight_decay", group["weight_decay"])
            if isinstance(decay, Tensor):
                decay = decay_layout(local_decay(decay, param, offset), weight)
            step, stream = state["step"], state["stream"]
            dual_lr, alpha = self._dual(group, lr, step + 1) if kind == "paper" else (0.0, 0.0)
            recall = state["injected"] and kind == "paper" and alpha
            items.append(
                TensorStep(
                    weight=flat, gradient=flat_like(local_part(gradient)[0], order),
                    momentum=state_view(state, "momentum", order), scale=state_view(state, name, order) if name else None,
                    kinetic=state["kinetic"], weight_decay=decay, offset=offset, key=stream_key(seed, stream, step + 1),
                    previous_key=stream_key(seed, stream, step) if recall else None, dual_lr=dual_lr, alpha=alpha,
                    blend=dynamics.share_of_step(step, lr), stream=stream, **shared,
                )
            )  # fmt: skip
        return states
