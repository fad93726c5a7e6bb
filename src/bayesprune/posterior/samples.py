from __future__ import annotations

import math
import numbers
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.common.tensors import all_finite
from bayesprune.posterior.architecture import Layout, check_layout, model_tensors
from bayesprune.samplers import Sampler
from bayesprune.samplers.admission import unwrapped
from bayesprune.samplers.layout import whole


class Samples(ABC):
    """Posterior samples of one architecture, in the order in which they were collected.

    A sample is every parameter and persistent buffer, so each member predicts with its own normalisation statistics.
    ``len(samples)``, iteration and ``samples[i]`` give state dicts one at a time; nothing holds all of them in memory
    unless the subclass says so.

    Example:
        >>> model, samples = nn.Linear(2, 1), MemorySamples()
        >>> _ = samples.collect(model, step=7)
        >>> isinstance(samples, Samples), len(samples), sorted(samples[0]), samples.infos[0]["step"]
        (True, 1, ['bias', 'weight'], 7)
    """

    layout: Layout | None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def infos(self) -> list[dict[str, Any]]:
        """What was said of each sample when it was collected (step, cycle, learning rate, ...)."""

    @abstractmethod
    def truncate(self, n: int) -> None:
        """Drop every sample after the first ``n``, as a run does that resumes from an earlier checkpoint."""

    @abstractmethod
    def _write(self, tensors: dict[str, Tensor], layout: Layout, info: dict[str, Any]) -> None:
        """Append a sample that fits the layout; the tensors may be the model's own."""

    @abstractmethod
    def _read(self, index: int) -> dict[str, Tensor]:
        """The tensors of a sample, tied ones once; ``index`` is in range."""

    def collect(self, model: nn.Module, sampler: Optimizer | None = None, *, midpoint: bool = True, **info: Any) -> int:
        """Append the model's present weights and buffers as a sample.

        With the sampler that moves the model, the sample is the midpoint of its last move (`Sampler.midpoint`), which has
        no step error on quadratics, and its set and measured temperature are remembered.

        Args:
            model: the network; the first call fixes the architecture. Of one under ``fully_shard`` the whole tensors are
                gathered: all processes call this, one of them into a `SampleStore`, the others into `MemorySamples`.
            sampler: the optimizer, if it is a `bayesprune.samplers.Sampler`, accelerate's or Lightning's wrapper around it too;
                any other changes nothing.
            midpoint: False takes the raw iterate.
            **info: what to remember of the sample: numbers, strings, booleans, None, and lists or dicts of them.
                One-element tensors and arrays become numbers; a float that is not finite becomes None.

        Returns:
            The index of the new sample.

        Raises:
            ValueError: if the model's tensors differ from those of the earlier samples (the first that does is named), or
                one is not finite.
            TypeError: if a value of ``info`` cannot be written as JSON, or ``sampler`` is no optimizer.
        """
        sampler = None if sampler is None else unwrapped(sampler)
        if isinstance(sampler, Sampler):
            info = {**_temperatures(sampler), **info}
            _look_at_padding(model, sampler)
        with sampler.midpoint() if midpoint and isinstance(sampler, Sampler) else nullcontext():
            tensors, layout = model_tensors(model)
            if self.layout is not None:
                check_layout(self.layout, layout)
            held = {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}
            if spoilt := [name for name, tensor in held.items() if not all_finite(tensor)]:
                raise ValueError(
                    f"model: {', '.join(spoilt[:3])} holds NaN or infinity, which is no sample; "
                    "go back to the last checkpoint"
                )
            self._write(held, layout, {key: _plain(value, key) for key, value in info.items()})
        return len(self) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tensors = self._read(self._position(index))
        # Every name of the state dict, so that a strict `load_state_dict` of a model with tied weights is content.
        return {name: tensors[spec.tied_to or name] for name, spec in (self.layout or {}).items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(len(self)):
            yield self[index]

    @torch.no_grad()
    def load_(self, index: int, model: nn.Module) -> nn.Module:
        """Copy a sample into a model, in place; the model's device, memory format and train mode stay as they are.

        Args:
            index: which sample; negative counts from the end.
            model: a model of the architecture that was collected. It is left untouched if it is refused.

        Returns:
            The same model.

        Raises:
            ValueError: if the architecture differs; the message names the first tensor that does.
            IndexError: if there is no such sample.
        """
        position = self._position(index)
        targets, layout = model_tensors(model)
        check_layout(self.layout or {}, layout)
        sample = self._read(position)  # of the very shapes and dtypes of the layout
        for name, target in targets.items():
            target.copy_(sample[name])
        return model

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index}: there are {len(self)} samples")
        return index % len(self)

    def _check_truncation(self, n: int) -> None:
        if not 0 <= n <= len(self):
            raise ValueError(f"n={n}: must be between 0 and the {len(self)} samples present")


class MemorySamples(Samples):
    """Samples kept in main memory, for tests and small networks; the same interface as `SampleStore`.

    Example:
        >>> model, samples = nn.Linear(2, 1), MemorySamples()
        >>> samples.collect(model, step=10)
        0
        >>> _ = nn.init.zeros_(model.weight)
        >>> samples.load_(0, model).weight.abs().sum().item() > 0
        True
        >>> samples.infos
        [{'step': 10}]
    """

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self._samples: list[dict[str, Tensor]] = []
        self._infos: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def infos(self) -> list[dict[str, Any]]:
        """What was said of each sample when it was collected; a copy."""
        return [dict(info) for info in self._infos]

    def truncate(self, n: int) -> None:
        """Drop every sample after the first ``n``; the architecture stays fixed unless none is left."""
        self._check_truncation(n)
        del self._samples[n:], self._infos[n:]
        self.layout = self.layout if n else None

    def _write(self, tensors: dict[str, Tensor], layout: Layout, info: dict[str, Any]) -> None:
        self.layout = layout
        self._samples.append({name: tensor.clone() for name, tensor in tensors.items()})
        self._infos.append(info)

    def _read(self, index: int) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._samples[index].items()}


def _temperatures(sampler: Sampler) -> dict[str, Any]:
    """The set and the measured temperature, over the groups that move, as they weigh."""
    groups = [
        (sum(p.numel() for p in group["params"]), float(group["temperature"]), found["mean"])
        for group, found in zip(sampler.param_groups, sampler.kinetic_temperature())
    ]
    groups = [each for each in groups if not math.isnan(each[2])] or groups
    total = max(1, sum(size for size, _, _ in groups))
    wanted, measured = (sum(each[0] * each[place] for each in groups) / total for place in (1, 2))
    return {"temperature": wanted, "kinetic_temperature": measured}


def _look_at_padding(model: nn.Module, sampler: Sampler) -> None:
    """Warn where noise has moved an embedding's padding, which torch keeps still by a gradient of 0 alone."""
    for name, module in model.named_modules():
        row = module.padding_idx if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else None
        momentum = None if row is None else sampler.state.get(module.weight, {}).get("momentum")
        if momentum is None or hasattr(momentum, "to_local"):
            continue
        if bool(momentum[row].any() and module.weight[row].any()):
            warnings.warn(
                f"{name}.weight[{row}] is the row of padding_idx, which torch gives no gradient: the sampler's noise moves it. Put it "
                "back after each step: optimizer.register_step_post_hook(lambda *_: "
                f"model.get_submodule({name!r}).weight.data[{row}].zero_())",
                stacklevel=3,
            )


def _plain(value: Any, key: str) -> Any:
    """The value in JSON's own types."""
    if hasattr(value, "item") and hasattr(value, "ndim") and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{key}[{position}]") for position, item in enumerate(value)]
    raise TypeError(
        f"info {key}={value!r}: a {type(value).__name__} cannot be written as JSON; pass numbers or strings"
    )
