"""The source that torch.fx generates for a graph module: torch keeps every one for ever, here it goes with the module."""

from __future__ import annotations

import copy
import keyword
import linecache
import re
import weakref
from collections.abc import Callable
from typing import TypeVar

from torch import fx, nn

M = TypeVar("M", bound=nn.Module)

_RESERVED = re.compile(rf"((?:getattr\()*self(?:\.\w+|, \"[^\"]*\"\))*)\.({'|'.join(keyword.kwlist)})\b")


def graph_module(root: nn.Module, graph: fx.Graph, name: str = "GraphModule") -> fx.GraphModule:
    """A graph module, whose source goes with it, and in which parts may be named like Python's keywords."""
    return releasing_source(fx.GraphModule(root, spelled(graph), class_name=name))


def spelled(graph: fx.Graph) -> fx.Graph:
    """The graph, whose source reads the parts that are named like Python's keywords by ``getattr``."""

    def after(former: Callable[[list[str]], list[str]] | None) -> Callable[[list[str]], list[str]]:
        return lambda body: [_spelled(line) for line in (former(body) if former else body)]

    graph.on_generate_code(after)
    return graph


def _spelled(line: str) -> str:
    found = True
    while found:
        line, found = _RESERVED.subn(r'getattr(\1, "\2")', line)  # type: ignore[assignment]
    return line


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
