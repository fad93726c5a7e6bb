"""The source that torch.fx generates for a graph module: torch keeps every one for ever, here it goes with the module."""

from __future__ import annotations

import copy
import linecache
import weakref
from typing import TypeVar

from torch import fx, nn

M = TypeVar("M", bound=nn.Module)


def releasing_source(module: M) -> M:
    """Return the module; the source generated for it, and for graph modules in it, is forgotten when they are collected."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            weakref.finalize(part, _forget, type(part).forward.__code__.co_filename)
    return module


def deep_copy(module: M) -> M:
    """``copy.deepcopy``, which generates the sources of graph modules anew, and which releases them."""
    return releasing_source(copy.deepcopy(module))


def _forget(key: str) -> None:
    """Drop one generated source from torch's store, where this torch has it, and from `linecache`."""
    loader = getattr(fx.graph_module, "_loader", None)
    getattr(loader, "eval_cache", {}).pop(key, None)
    linecache.cache.pop(key, None)
