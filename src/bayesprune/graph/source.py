"""The source that torch.fx generates for a graph module: torch keeps every one for ever, here it goes with the module."""

from __future__ import annotations

import linecache
import weakref

from torch import fx


def releasing_source(module: fx.GraphModule) -> fx.GraphModule:
    """Return the module, whose generated source is forgotten when it is collected."""
    weakref.finalize(module, _forget, type(module).forward.__code__.co_filename)
    return module


def _forget(key: str) -> None:
    """Drop one generated source from torch's store, where this torch has it, and from `linecache`."""
    loader = getattr(fx.graph_module, "_loader", None)
    getattr(loader, "eval_cache", {}).pop(key, None)
    linecache.cache.pop(key, None)
