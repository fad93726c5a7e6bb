"""The source that torch.fx generates for a graph module: torch keeps every one for ever, here it goes with the module."""

from __future__ import annotations

import linecache
import weakref

from torch import fx


def releasing_source(module: fx.GraphModule) -> fx.GraphModule:
    """Return the module, whose generated source is forgotten when it is collected.

    Example:
        >>> import torch
        >>> module = releasing_source(fx.symbolic_trace(torch.nn.ReLU()))
        >>> key = type(module).forward.__code__.co_filename
        >>> _ = linecache.getline(key, 1)
        >>> del module
        >>> import gc; _ = gc.collect()
        >>> key in linecache.cache
        False
    """
    weakref.finalize(module, _forget, type(module).forward.__code__.co_filename)
    return module


def _forget(key: str) -> None:
    """Drop one generated source from torch's store, where this torch has it, and from `linecache`."""
    loader = getattr(fx.graph_module, "_loader", None)
    getattr(loader, "eval_cache", {}).pop(key, None)
    linecache.cache.pop(key, None)
