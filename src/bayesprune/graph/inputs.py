"""The inputs of one call of a model: positional and by name, tensors in any structure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from bayesprune.common.modes import evaluating


@dataclass(frozen=True)
class Inputs:
    """What a model is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, example: Any) -> Inputs:
        """Read an example: a tensor, a tuple or list of arguments, a dict of arguments by name (or one that forward takes)."""
        if isinstance(example, Inputs):
            return example
        return cls._read(model, example)._without_cache(model)

    @classmethod
    def _read(cls, model: nn.Module, example: Any) -> Inputs:
        if isinstance(example, (tuple, list)):
            return cls(tuple(example))
        if isinstance(example, Mapping):
            parameters = inspect.signature(model.forward).parameters.values()
            named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            required = {p.name for p in parameters if p.name in named and p.default is p.empty}
            if example and required <= set(example) <= set(named):
                return cls((), {name: example[name] for name in named if name in example})
        return cls((example,))

    def _without_cache(self, model: nn.Module) -> Inputs:
        """The same without a decoder's cache, which is no tensor, where the example does not ask for it."""
        open_ones = list(inspect.signature(model.forward).parameters)[len(self.args) :]
        return Inputs(self.args, {"use_cache": False, **self.kwargs}) if "use_cache" in open_ones else self

    @property
    def values(self) -> list[Any]:
        """The arguments that hold tensors, in the order of the model's own."""
        return [value for value in (*self.args, *self.kwargs.values()) if holds_tensors(value)]

    def alone(self) -> Inputs:
        """What a traced model takes of them: the arguments that hold tensors, in order."""
        return Inputs(tuple(self.values))

    @property
    def batch(self) -> int:
        """The size of the first tensor's first axis."""
        return len(self.tensors[0])

    def repeated(self, size: int) -> Inputs:
        """The inputs repeated along the batch to a given size; those of another batch size than the first stay."""
        first = self.batch
        order = torch.arange(size) % first
        return self.map(lambda t: t[order.to(t.device)] if t.dim() and len(t) == first else t)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, Tensor)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first tensor."""
        return next((tuple(t.shape) for t in self.tensors), ())

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same structure with other tensors."""
        args, kwargs = tree_map(
            lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, (self.args, self.kwargs)
        )
        return Inputs(args, kwargs)

    def run(self, model: nn.Module) -> Any:
        """Call a model."""
        return model(*self.args, **self.kwargs)


def holds_tensors(value: Any) -> bool:
    """Whether a tensor lies anywhere in a structure."""
    return any(isinstance(leaf, Tensor) for leaf in tree_flatten(value)[0])


def small_batch(example: Inputs) -> Inputs:
    """Two examples: enough to tell the batch from a dimension of size 1."""
    batches = {int(t.shape[0]) for t in example.tensors if t.dim() > 1}
    if len(batches) != 1:
        return example
    return example.map(lambda t: t if t.dim() < 2 else torch.cat([t, t]) if t.shape[0] == 1 else t[:2])


def few_that_run(copied: Callable[[], nn.Module], example: Inputs) -> Inputs:
    """Two examples if the model takes them; else, where inputs belong together in another way, the example as it is."""
    few = small_batch(example)
    if few is example or len(example.tensors) < 2:
        return few
    model = copied()
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            few.map(torch.clone).run(model)
        except Exception:  # whatever it is: the whole example is run next, and its error is the one that counts
            return example
    return few
