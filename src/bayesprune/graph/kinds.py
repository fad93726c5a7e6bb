"""Kinds of layers that were registered, beside torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

REGISTERED: dict[type[nn.Module], Any] = {}


def register_layer(kind: type[nn.Module], rule: type[nn.Module] | Callable[..., Any]) -> None:
    """Tell the tracer what a layer of your own does to channels, where it cannot look inside.

    A layer that is written in torch's operations needs no rule: it is traced through. One that calls a kernel or an
    ``autograd.Function`` is taken as one operation from then on, by channel groups and compaction alike.

    Args:
        kind: the class; subclasses with a ``forward`` of their own are not meant.
        rule: a layer of torch that treats channels alike and has no weights, such as ``nn.ReLU`` (a function of each entry),
            ``nn.Identity`` or ``nn.AvgPool2d``; or a function of (analysis, node, module) like those in
            ``bayesprune/graph/rules_shapes.py``, which returns what comes out.

    Raises:
        TypeError: ``kind`` is no module class, or ``rule`` neither a layer of torch nor a function.

    Example:
        >>> class Doubled(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> register_layer(Doubled, nn.ReLU)
        >>> forget_layer(Doubled)
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"kind={kind!r} is no class of modules; give the layer's class")
    of_torch = isinstance(rule, type) and issubclass(rule, nn.Module) and rule.__module__.startswith("torch.nn.")
    if isinstance(rule, type) and not of_torch:
        raise TypeError(f"rule={rule!r} is no layer of torch; give one such as nn.ReLU, or a function")
    if not callable(rule):
        raise TypeError(f"rule={rule!r} is neither a layer of torch, such as nn.ReLU, nor a function")
    REGISTERED[kind] = rule


def forget_layer(kind: type[nn.Module]) -> None:
    """Take a registered kind of layer back; one that is not registered is left alone.

    Args:
        kind: the class.

    Example:
        >>> forget_layer(nn.Linear)
    """
    REGISTERED.pop(kind, None)
