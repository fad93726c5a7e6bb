"""The networks by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from bayesprune.vision.families import densenet, vgg16, vit
from bayesprune.vision.frn import resnet20_frn
from bayesprune.vision.resnet import resnet18, resnet20, resnet34, resnet50
from bayesprune.vision.small import digits_resnet, mlp, small_cnn
from bayesprune.vision.whitened import whitened94, whitened95, whitened96
from bayesprune.vision.wide_resnet import wide_resnet, wrn28_10

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet20_frn": resnet20_frn,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "wide_resnet": wide_resnet,
    "wrn28_10": wrn28_10,
    "small_cnn": small_cnn,
    "digits_resnet": digits_resnet,
    "mlp": mlp,
    "vgg16": vgg16,
    "densenet": densenet,
    "vit": vit,
    "whitened94": whitened94,
    "whitened95": whitened95,
    "whitened96": whitened96,
}


def names() -> list[str]:
    """Return the names `build` knows.

    Returns:
        The names in alphabetical order.

    Example:
        >>> "resnet18" in names()
        True
    """
    return sorted(_BUILDERS)


def build(name: str, **kwargs: Any) -> nn.Module:
    """Build a network by its name.

    Args:
        name: One of `names()`.
        **kwargs: Arguments of the network's function, such as `num_classes`.

    Returns:
        The network, He-initialised from torch's global generator.

    Raises:
        ValueError: An unknown name; the message gives the nearest one.
        TypeError: A missing or unknown argument; the message gives the function's arguments.

    Example:
        >>> import torch
        >>> build("small_cnn", num_classes=10, width=4)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if name not in _BUILDERS:
        # Case, hyphens and underscores are what people get wrong: compare without them.
        plain = {_plain(known): known for known in _BUILDERS}
        nearest = plain[difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.0)[0]]
        raise ValueError(f"name={name!r} is no network: did you mean {nearest!r}? Known: {', '.join(names())}")
    builder = _BUILDERS[name]
    signature = inspect.signature(builder)
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; its arguments are {signature}") from None
    return builder(**kwargs)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
