"""The model's graph: traced with torch.fx on an example, whose values say what no symbol can."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from bayesprune.common.modes import evaluating
from bayesprune.graph.decisions import Decisions
from bayesprune.graph.errors import CompactionError
from bayesprune.graph.hooks import called_with_hooks, detached_copy, hooked
from bayesprune.graph.inputs import Inputs, holds_tensors
from bayesprune.graph.kinds import REGISTERED
from bayesprune.graph.layers import turned_linear
from bayesprune.graph.slim_attention import SlimAttention

_FINFO = torch.finfo
_UNFOLDED = (nn.TransformerEncoderLayer, nn.TransformerEncoder)
# They take no tensor: of torch.zeros(x.shape[0], 1), a proxy among several sizes, torch would make no node by itself.
_FACTORIES = "arange as_tensor empty eye full linspace normal ones rand randint randn scalar_tensor tensor zeros"


class _Known(fx.Proxy):
    """A proxy that knows the example's value, where that is a number or a structure."""

    def __getattr__(self, name: str) -> Any:
        return _KnownAttribute(self, name)

    def _value(self) -> Any:
        return self.tracer.known(self)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.tracer.counted(self))  # type: ignore[attr-defined]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __index__(self) -> int:
        return self._value().__index__()

    def __int__(self) -> int:
        code = sys._getframe(1)
        self.tracer.numbers.append(f"{Path(code.f_code.co_filename).name}:{code.f_lineno}")  # type: ignore[attr-defined]
        return int(self._value())

    def __float__(self) -> float:
        return float(self._value())


class _KnownAttribute(fx.proxy.Attribute, _Known):
    """``x.shape``, or a method that is about to be called."""


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one node of the analysed graph: it is torch's own code that runs, or its kind was registered."""
    if type(module) in _UNFOLDED or isinstance(module, (nn.Sequential, nn.Unflatten)) or "forward" in module.__dict__:
        return False
    if isinstance(module, SlimAttention) or type(module) in REGISTERED or turned_linear(module):
        return True
    owner = next(kind for kind in type(module).__mro__ if "forward" in kind.__dict__)
    return owner.__module__.startswith("torch.nn.") and owner is not nn.Module


class Tracer(fx.Tracer):
    """torch.fx's tracer, run on an example."""

    # Else arithmetic on a buffer alone would run while tracing, and its result be frozen into the graph.
    proxy_buffer_attributes = True

    def __init__(self, inputs: Inputs | None, is_leaf: Callable[[nn.Module], bool] = is_layer) -> None:
        super().__init__(autowrap_functions=tuple(getattr(torch, name) for name in _FACTORIES.split()))
        self._autowrap_search.append(torch)
        self.inputs = None if inputs is None else inputs.map(torch.clone)
        self.is_leaf = is_leaf
        self.values: dict[fx.Node, Any] = {}
        self.branches = 0
        self.numbers: list[str] = []
        self.decisions = Decisions()
        self._running = False
        self._origin = object()
        self._held: set[nn.Module] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace; into the functions that a library wrapped to be nodes of its own graphs, too."""
        self._held = set(root.modules())
        wrapped = fx._symbolic_trace._wrapped_fns_to_patch
        kept, torch.finfo = dict(wrapped), self._finfo  # type: ignore[misc, assignment]
        try:
            for key, names in kept.items():
                if not str(names.get("__name__", "")).startswith("torch."):
                    del wrapped[key]
            graph = super().trace(root, concrete_args)
            next(iter(graph.nodes)).meta["numbers"] = self.numbers
            return graph
        finally:
            torch.finfo = _FINFO  # type: ignore[misc]
            wrapped.clear()
            wrapped.update(kept)

    # -- the example's values ----------------------------------------------------------------------------------------

    def known(self, proxy: fx.Proxy) -> Any:
        """The value of a proxy that is no tensor; a tensor's must not be looked at."""
        value = self.values.get(proxy.node)
        alone = proxy.node.op == "get_attr" and isinstance(value, Tensor) and value.numel() == 1
        if (isinstance(value, Tensor) and not alone) or self.decisions.forbid(proxy.node, value):
            raise fx.proxy.TraceError("a tensor's value decides in Python")
        self.branches += 1
        return value

    def _finfo(self, dtype: Any = torch.float32) -> torch.finfo:
        """The limits of a type, of a tensor's known from the example."""
        return _FINFO(self.values.get(dtype.node, dtype) if isinstance(dtype, fx.Proxy) else dtype)

    def counted(self, proxy: fx.Proxy) -> Any:
        """The value of a proxy whose entries are counted, which a tensor's values must not decide."""
        if self.decisions.sized(proxy.node):
            raise fx.proxy.TraceError("a tensor's value decides in Python")
        return self.values[proxy.node]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows its example's value."""
        return fx.Proxy(node, self) if self.inputs is None else _Known(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Whether a condition holds for the example."""
        return super().to_bool(obj) if self.inputs is None else bool(self.known(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """As many entries as the example has."""
        if self.inputs is None:
            return super().iter(obj)
        value = self.counted(obj)
        return iter(list(value)) if isinstance(value, dict) else iter([obj[n] for n in range(len(value))])  # type: ignore[index]

    def keys(self, obj: fx.Proxy) -> Any:
        """The example's keys."""
        value = self.values.get(obj.node)
        return list(value) if isinstance(value, dict) else super().keys(obj)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A module's attribute: itself while a layer is run for its value."""
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node; tensors of the model are known at once."""
        node = super().create_node(kind, target, *args, **kwargs)
        if kind == "get_attr" and self.inputs is not None:
            value: Any = self.root
            for part in str(target).split("."):
                value = getattr(value, part) if not isinstance(value, nn.Module) else _attribute(value, part)
            self._note(node, value)
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """A node of the graph, and its value on the example; of a call with several results, a tuple of such."""
        if target is operator.add and self.inputs is not None and (joined := self._joined(args)):
            return joined
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if kind.startswith("call_") and self.inputs is not None:
            value = self._run(proxy.node)
            self._note(proxy.node, value)
            if type(value) is tuple and holds_tensors(value):  # that isinstance and unpacking see what they would see
                return tuple(None if entry is None else proxy[n] for n, entry in enumerate(value))  # type: ignore[index]
        return proxy

    def _joined(self, operands: Any) -> tuple[Any, ...]:
        """Sizes behind sizes, ``x.size()[:-1] + (4, 8)``, one by one, so that a number among them is found; else nothing."""
        values: list[Any] = [self.values.get(each.node) if isinstance(each, fx.Proxy) else each for each in operands]
        if not all(isinstance(value, tuple) for value in values):
            return ()
        return tuple(each[n] for each, value in zip(operands, values) for n in range(len(value)))

    def _note(self, node: fx.Node, value: Any) -> None:
        self.values[node] = value
        self.decisions.note(node, self.values)
        node.meta["shape"] = _shape_of(value)
        if isinstance(value, Tensor) and value.layout is torch.strided:
            node.meta["memory"] = (self._origin, value.untyped_storage().data_ptr())
            node.meta["places"] = (tuple(value.shape), value.stride(), value.storage_offset())

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        before, self._running = self._running, True
        try:
            if node.op == "call_function":
                return node.target(*args, **kwargs)  # type: ignore[operator]
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        finally:
            self._running = before

    # -- what is followed --------------------------------------------------------------------------------------------

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Placeholders for the tensors (and structures of tensors) that the example gives; the rest is as it is."""
        if self.inputs is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        bound = inspect.signature(self.root.forward).bind(*self.inputs.args, **self.inputs.kwargs)
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            star = (
                "*"
                if kind is inspect.Parameter.VAR_POSITIONAL
                else "**"
                if kind is inspect.Parameter.VAR_KEYWORD
                else ""
            )
            if holds_tensors(value):
                proxy = self.create_proxy("placeholder", star + name, (), {})
                self._note(proxy.node, value)
                bound.arguments[name] = self._spread(proxy, value)

        def call() -> Any:
            return root_fn(self.root, *bound.args, **bound.kwargs)

        return call, []

    def _spread(self, proxy: Any, value: Any) -> Any:
        """A structure of the input as one of proxies."""
        if type(value) is dict:
            return {key: self._spread(proxy[key], entry) for key, entry in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._spread(proxy[n], entry) for n, entry in enumerate(value))
        return proxy if holds_tensors(value) else value

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        return self.is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Follow a module's forward; for torch's transformer layers, the plain path of it."""
        if self._running:
            return m.forward(*args, **kwargs)
        if m not in self._held:  # made inside the forward: its code is the forward's own
            return forward(*args, **kwargs)
        if type(m) in _UNFOLDED and not self.is_leaf(m):
            plain = _encoder_layer if type(m) is nn.TransformerEncoderLayer else _encoder
            forward = partial(called_with_hooks, m, partial(plain, m))
            return super().call_module(m, lambda *given, **named: forward(given, named), args, kwargs)
        if not self.is_leaf(m):
            return super().call_module(m, forward, args, kwargs)
        leaf = super().call_module
        return called_with_hooks(m, lambda *given, **named: leaf(m, forward, given, named), args, kwargs)


def _attribute(module: nn.Module, name: str) -> Any:
    for held in (module._parameters, module._buffers, module._modules, module.__dict__):
        if name in held:
            return held[name]
    return object.__getattribute__(module, name)


def _encoder_layer(
    layer: Any, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Any:
    def attend(x: Any) -> Any:
        out = layer.self_attn(
            x, x, x, attn_mask=src_mask, key_padding_mask=src_key_padding_mask, need_weights=False, is_causal=is_causal
        )
        return layer.dropout1(out[0])

    def feed(x: Any) -> Any:
        return layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x)))))

    if layer.norm_first:
        src = src + attend(layer.norm1(src))
        return src + feed(layer.norm2(src))
    src = layer.norm1(src + attend(src))
    return layer.norm2(src + feed(src))


def _encoder(encoder: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> Any:
    for layer in encoder.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
    return src if encoder.norm is None else encoder.norm(src)


def _shape_of(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.shape
    if (
        isinstance(result, (tuple, list))
        and not isinstance(result, torch.Size)
        and any(isinstance(entry, Tensor) for entry in result)
    ):
        return tuple(_shape_of(entry) for entry in result)
    return None


def trace(model: nn.Module, example: Any) -> fx.Graph:
    """Trace a model in evaluation mode; ``node.meta["shape"]`` holds each tensor's shape on the example."""
    inputs = Inputs.of(model, example)
    with evaluating(model), torch.no_grad():
        try:
            inputs.map(torch.clone).run(model)
        except Exception as error:
            raise CompactionError(
                "example-input", f"example_input does not run through the model: {type(error).__name__}: {error}"
            ) from error
        try:
            return Tracer(inputs).trace(model)
        except Exception as error:  # torch.fx raises many types
            hooks = (
                f" (hooks on {', '.join(found)} change values and are part of it)" if (found := hooked(model)) else ""
            )
            raise CompactionError(
                "not-traceable",
                f"torch.fx cannot follow the model's forward{hooks} ({type(error).__name__}: {error}); rewrite it "
                "without control flow on tensors",
            ) from error


def depends_on_mode(model: nn.Module, example: Any) -> bool:
    """Whether the traced graph differs between training and evaluation (``F.dropout(x, training=self.training)``)."""
    inputs = Inputs.of(model, example)
    model = detached_copy(model)  # a step of its statistics
    code = []
    for mode in (False, True):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                code.append(str(Tracer(inputs).trace(model.train(mode))))
        except Exception:  # it cannot be followed in training
            return True
    return code[0] != code[1]


def with_training(model: nn.Module, graph: fx.Graph, example: Any) -> fx.Graph:
    """The graph of evaluation together with that of training, where training calls layers that evaluation does not (auxiliary
    heads): what they read must stay.
    """
    inputs = Inputs.of(model, example)
    model = detached_copy(model)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            further = Tracer(inputs).trace(model.train())
    except Exception:  # what cannot be followed is compared by a training step
        return graph
    called = [
        {str(node.target) for node in g.nodes if node.op in ("call_module", "get_attr")} for g in (graph, further)
    ]
    called[1] -= {name for name in called[1] if name.endswith("num_batches_tracked")}
    if called[1] <= called[0] or any("_tensor_constant" in name for name in called[1]):
        return graph
    both, first, second = fx.Graph(), {}, {}  # type: ignore[var-annotated]
    outputs = [both.graph_copy(graph, first)]
    for node in further.nodes:
        if node.op == "placeholder":
            second[node] = next(
                first[old] for old in graph.nodes if old.op == "placeholder" and old.target == node.target
            )
    outputs.append(both.graph_copy(further, second))
    both.output(tuple(outputs))
    return both
