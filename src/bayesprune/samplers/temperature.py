"""How hot a sampler runs: the temperature measured from its momentum, the one that its noise alone amounts to, the excess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayesprune.common.checks import check_number
from bayesprune.samplers import dynamics, preconditioner
from bayesprune.samplers.admission import group_of
from bayesprune.samplers.layout import local_decay, local_part, memory_order, shaped
from bayesprune.samplers.noise import counter_normal, stream_key


def betas_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """Return (β₁, β₂) of a group, (0, 1) of a sampler without momentum."""
    return group.get("betas", (0.0, 1.0))


def as_betas(given: Any) -> tuple[Any, ...]:
    """Return what was given for (β₁, β₂) as the tuple that is checked."""
    return tuple(given) if isinstance(given, (tuple, list)) else (given,)


class Thermometer:
    """What `Sampler` reads off its own state: decay, preconditioner, noise, and how hot it runs."""

    param_groups: list[dict[str, Any]]
    state: Any

    def tau(self, param: Tensor) -> Tensor:
        """Return the preconditioner's diagonal τ of `param`, in its shape."""
        return preconditioner.tau(group_of(self, param), self.state.get(param, {}), param)

    def weight_decay_of(self, param: Tensor) -> float | Tensor:
        """Return the weight decay that the next step applies to `param`: its own, else its group's."""
        group, own = group_of(self, param), self.state.get(param, {}).get("weight_decay")
        return group["weight_decay"] if own is None else own

    def noise_std(self, group: dict[str, Any], lr: float) -> float:
        """Return the standard deviation of the noise that a step injects, at τ = 1."""
        beta1, beta2 = betas_of(group)
        return dynamics.exact_noise_std(group["temperature"], group["num_data"], lr, beta1, beta2, 1.0)

    def last_noise(self, param: Tensor) -> Tensor:
        """Return ε of the last step of `param` (of its local shard), drawn again from its counter; zeros where there was none."""
        group, state = group_of(self, param), self.state.get(param, {})
        local, offset = local_part(param.detach())
        if not state.get("injected"):
            return torch.zeros_like(local)
        key, order = stream_key(group["seed"], state["stream"], state["step"]), memory_order(local)
        flat = counter_normal(local.numel(), key, start=offset, dtype=local.dtype, device=local.device)
        return shaped(flat, local.shape, order)

    @torch.no_grad()
    def kinetic_temperature(self) -> list[dict[str, float]]:
        """Return the measured temperature, mean, min and max over the tensors, one dict a group; nan before a step."""
        result = []
        for group in self.param_groups:
            states = self._measured(group)
            if not states:
                result.append(dict.fromkeys(("mean", "min", "max"), math.nan))
                continue
            values = torch.stack([state["kinetic"] for _, _, state in states]).double().cpu()
            sizes, alive, rates = (
                torch.tensor(column, dtype=torch.float64)
                for column in zip(*((size, count, state["kinetic_lr"]) for size, count, state in states))
            )
            values *= sizes / alive / rates  # the mean over the weights that live
            mean = float((values * alive).sum() / alive.sum())
            result.append({"mean": mean, "min": float(values.min()), "max": float(values.max())})
        return result

    def _measured(self, group: dict[str, Any]) -> list[tuple[int, int, dict[str, Any]]]:
        """Return the number of weights, that of weights not 0, and the state of the tensors of a group that have moved."""
        parts = [(local_part(p.detach())[0], self.state.get(p, {})) for p in group["params"]]
        counts = [(part.numel(), int(part.count_nonzero()), state) for part, state in parts if state.get("step")]
        return [(size, alive, state) for size, alive, state in counts if alive]

    @torch.no_grad()
    def injected_temperature(self) -> list[dict[str, float]]:
        """Return mean, min and max over the weights of the temperature that the injected noise alone amounts to."""
        result = []
        for group in self.param_groups:
            lr, (beta1, beta2), number = float(group["lr"]), betas_of(group), group["num_data"]
            if group.get("noise", "exact") == "exact":
                result.append(dict.fromkeys(("mean", "min", "max"), float(group["temperature"])))
                continue
            taus = [local_part(self.tau(p))[0].double().flatten() for p in group["params"] if p.numel() and lr > 0]
            if not taus:
                result.append(dict.fromkeys(("mean", "min", "max"), math.nan))
                continue
            std = torch.tensor(self.noise_std(group, lr))
            values = dynamics.injected_temperature(std, torch.cat(taus), lr, beta1, beta2, number)
            result.append({"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())})
        return result

    def suggest_lr(self, excess: float = 0.1) -> list[float]:
        """Return, for each group, the step size at which minibatch noise raises the temperature by the share `excess`."""
        check_number("excess", excess, minimum=0, strict=True)
        result = []
        for group, injected, measured in zip(
            self.param_groups, self.injected_temperature(), self.kinetic_temperature()
        ):
            wanted, found = injected["mean"], measured["mean"]
            if not wanted > 0 or math.isnan(found):
                result.append(math.nan)
            else:
                lr = max(state["kinetic_lr"] for _, _, state in self._measured(group))
                result.append(lr * excess * wanted / (found - wanted) if found > wanted else math.inf)
        return result

    @torch.no_grad()
    def noise_to_gradient(self) -> float:
        """Return the root mean square of the injected noise over that of β₂·l·(g + weight_decay·w), at the present gradients."""
        noise, drift = 0.0, 0.0
        for group in self.param_groups:
            lr, beta2 = float(group["lr"]), betas_of(group)[1]
            std, exact = self.noise_std(group, lr), group.get("noise", "exact") == "exact"
            for param in group["params"]:
                if param.grad is None or not param.numel():
                    continue
                weight, offset = local_part(param.detach())
                decay = self.weight_decay_of(param)
                decay = local_decay(decay, param, offset) if isinstance(decay, Tensor) else decay
                move = (local_part(param.grad)[0] + decay * weight).mul_(beta2 * lr)
                drift += float(move.square_().sum(dtype=torch.float64))
                scale = (
                    local_part(self.tau(param))[0].double().reciprocal() if exact else torch.ones_like(weight).double()
                )
                noise += std**2 * float(scale.sum())
        return (noise / drift) ** 0.5 if drift > 0 else math.nan
