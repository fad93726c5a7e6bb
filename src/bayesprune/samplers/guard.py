"""Gradients that are not finite: what a sampler does with them, and how it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed

from bayesprune.samplers.layout import local_part

NonFinite = Literal["raise", "skip", "ignore"]


class NonFiniteGradientError(RuntimeError):
    """A gradient held NaN or infinity; no such number has reached a weight or the optimizer's state.

    Example:
        >>> import torch
        >>> from bayesprune import CVAdam
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = CVAdam([weight], num_data=10)
        >>> weight.grad = torch.tensor([1.0, float("nan")])
        >>> try:
        ...     optimizer.step()
        ... except NonFiniteGradientError:
        ...     print(bool(weight.isfinite().all()))
        True
    """


def not_finite(gradients: Sequence[Tensor]) -> list[int]:
    """Return the places of the tensors that hold NaN or infinity, after one wait for each device."""
    suspects = _spoilt(gradients, torch.sum)  # a sum may overflow; it is several times faster than the largest element
    largest = _spoilt([gradients[place] for place in suspects], lambda g: torch.linalg.vector_norm(g, torch.inf))
    return [suspects[place] for place in largest]


def _spoilt(tensors: Sequence[Tensor], number: Callable[[Tensor], Tensor]) -> list[int]:
    """Return the places of the tensors of which a number is not finite."""
    numbers, found = [number(tensor) for tensor in tensors], []
    for device in {value.device for value in numbers}:
        here = [place for place, value in enumerate(numbers) if value.device == device]
        fine = torch.stack([numbers[place].double() for place in here]).isfinite().tolist()
        found += [place for place, good in zip(here, fine) if not good]
    return found


def anywhere(flag: bool, params: Sequence[Tensor]) -> bool:
    """Return whether the flag is up in any process that holds a shard of a parameter; a plain tensor asks nobody."""
    for mesh in {param.device_mesh for param in params if hasattr(param, "device_mesh")}:  # type: ignore[attr-defined]
        up = torch.tensor(float(flag), device=mesh.device_type)
        for dim in range(mesh.ndim):
            distributed.all_reduce(up, distributed.ReduceOp.MAX, group=mesh.get_group(dim))
        flag = bool(up)
    return flag


class Pending:
    """What a GPU's kernel will have found, read once it is there: nobody waits for the device."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Any, list[int]]] = []

    def add(self, flags: Tensor, streams: list[int]) -> None:
        """Take one flag a tensor, on the device, and the tensors' noise streams."""
        if flags.device.type != "cuda":
            self._waiting.append((flags, None, streams))
            return
        held = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        held.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((held, event, streams))

    def found(self, wait: bool = False) -> list[int]:
        """Return the streams of the tensors that were refused in steps that the device has finished."""
        streams: list[int] = []
        while self._waiting:
            flags, event, owners = self._waiting[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()
            self._waiting.pop(0)
            streams += [stream for stream, bad in zip(owners, flags.tolist()) if bad]
        return streams


class Guarded:
    """What `Sampler` does about gradients that are not finite; `skipped` counts the steps that "skip" left out."""

    param_groups: list[dict[str, Any]]
    nonfinite: NonFinite
    skipped: int
    _streams: dict[Tensor, int]
    _pending: Pending

    def check_gradients(self, wait: bool = True) -> None:
        """Raise if a GPU's kernel has met a gradient that is not finite; `wait` for the steps that are under way."""
        streams = self._pending.found(wait)
        if streams:
            self._raise(streams)

    def _skips(self) -> bool:
        """Count and leave out a step with a gradient that is not finite, in any process that holds a shard."""
        if self.nonfinite != "skip":
            return False
        params = [param for group in self.param_groups for param in group["params"]]
        held = [local_part(p.grad)[0] for p in params if p.grad is not None and p.grad.layout is torch.strided]
        skips = anywhere(bool(not_finite(held)), params)
        self.skipped += skips
        return skips

    def _raise(self, streams: Sequence[int]) -> None:
        """Name the parameters of these streams."""
        told = []
        for group in self.param_groups:
            names = group.get("param_names") or [f"parameter {self._streams.get(param)}" for param in group["params"]]
            told += [
                f"{name} of shape {tuple(param.shape)}"
                for name, param in zip(names, group["params"])
                if self._streams.get(param) in streams
            ]
        raise NonFiniteGradientError(
            f"the gradient of {', '.join(told[:3])}{f' and {len(told) - 3} more' if len(told) > 3 else ''} is not finite (or its "
            "step overflows). Lower lr, clip the gradients, or pass nonfinite='skip' to leave such steps out; to be sure of "
            "all weights, go back to the last checkpoint."
        )
