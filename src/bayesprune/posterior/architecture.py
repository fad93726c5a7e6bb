from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class TensorSpec(NamedTuple):
    """What a sample must find in a model under one name: dtype, shape, kind, and the name it is tied to, if any."""

    dtype: str
    shape: tuple[int, ...]
    kind: str  # "parameter" or "buffer"
    tied_to: str | None = None

    @classmethod
    def of(cls, dtype: Any, shape: Any, kind: Any, tied_to: Any = None) -> TensorSpec:
        """The spec of an entry that a file gives."""
        sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        known = isinstance(getattr(torch, str(dtype), None), torch.dtype) and kind in ("parameter", "buffer")
        if not (sizes and known and isinstance(tied_to, (str, type(None)))):
            raise ValueError(f"{kind!r} {dtype!r}{shape!r:.80}, tied to {tied_to!r}, is no tensor of a model")
        return cls(dtype, tuple(shape), kind, tied_to)

    @classmethod
    def like(cls, tensor: Tensor, kind: str, tied_to: str | None) -> TensorSpec:
        """The spec of a tensor."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), kind, tied_to)

    @property
    def bytes(self) -> int:
        """The bytes of its values."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    def __str__(self) -> str:
        tied = f", tied to {self.tied_to!r}" if self.tied_to else ""
        return f"{self.kind} {self.dtype}{list(self.shape)}{tied}"


Layout = dict[str, TensorSpec]


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], Layout]:
    """The model's own parameters and persistent buffers by name (not copied), and the layout they follow."""
    model = getattr(model, "_orig_mod", model)
    parameters = {id(parameter) for parameter in model.parameters()}
    tensors: dict[str, Tensor] = {}
    layout: Layout = {}
    first_name: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"model: state entry {name!r} is a {type(tensor).__name__}, and samples hold only tensors")
        tied_to = first_name.setdefault(id(tensor), name)
        kind = "parameter" if id(tensor) in parameters else "buffer"
        layout[name] = TensorSpec.like(tensor, kind, None if tied_to == name else tied_to)
        if tied_to == name:
            tensors[name] = tensor
    return tensors, layout


def fingerprint(layout: Mapping[str, TensorSpec]) -> str:
    """A hash of an architecture's tensor names, dtypes, shapes and ties; the order of definition plays no part."""
    entries = [[name, spec.dtype, list(spec.shape), spec.kind, spec.tied_to] for name, spec in sorted(layout.items())]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def layout_of(tensors: Mapping[str, Tensor], like: Mapping[str, TensorSpec]) -> Layout:
    """The layout of tensors that were read, each of the kind that another layout gives its name."""
    known = {name: (spec.kind, spec.tied_to) for name, spec in like.items()}
    return {name: TensorSpec.like(tensor, *known.get(name, ("buffer", None))) for name, tensor in tensors.items()}


def check_layout(expected: Mapping[str, TensorSpec], found: Mapping[str, TensorSpec], whose: str = "the model") -> None:
    """Refuse a model whose tensors are not those of the samples, naming the first that differs."""
    mend = "build the model with the arguments used when the samples were collected"
    for name, spec in expected.items():
        if name not in found:
            raise ValueError(f"model: tensor {name!r} ({spec}) of the samples is missing from {whose}; {mend}")
        if found[name] != spec:
            raise ValueError(f"model: tensor {name!r} is {found[name]}, the samples have {spec}; {mend}")
    for name, spec in found.items():
        if name not in expected:
            raise ValueError(f"model: tensor {name!r} ({spec}) of {whose} is missing from the samples; {mend}")
