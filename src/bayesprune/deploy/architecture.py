"""A model as a list of nodes, modules and tensors in JSON's own types, and the model rebuilt from that list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from bayesprune.deploy.arguments import ByMode, check_identifier, check_path, decode, dtype_name, dtype_of, encode
from bayesprune.deploy.operations import check_attribute, check_method, function_name, function_of
from bayesprune.deploy.stock import build_module, describe_module
from bayesprune.deploy.tracing import EVALUATION_ONLY, trace, whole
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.source import releasing_source, spelled

Spec = dict[str, Any]
_LAYOUTS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}


def describe(model: nn.Module, example_input: Any = None) -> tuple[Spec, dict[str, Tensor]]:
    """Write a model's forward as a list that `rebuild` turns into an equal one, without its Python class.

    The list names torch's own modules with their constructor arguments, and functions and methods from an allow-list.
    Tensors that no node uses are left out. Where forward takes another path in training than in evaluation, the list is
    that of evaluation, and the model made from it refuses to run in training.

    Args:
        model: a module whose forward the tracer can follow down to torch's own modules and functions.
        example_input: an example, which decides conditions on shapes; not needed where there are none. A recurrent or attention
            layer that is the whole model needs one; in the list it has the name "layer".

    Returns:
        The list in JSON's own types, and the tensors by name: not copied, tied ones once.

    Raises:
        ValueError: if something in the model cannot be written; the message names it.

    Example:
        >>> spec, tensors = describe(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> spec["modules"]["0"]
        {'class': 'Linear', 'arguments': {'in_features': 2, 'out_features': 3, 'bias': True}}
        >>> list(tensors)
        ['0.weight', '0.bias']
    """
    model = getattr(model, "_orig_mod", model)
    if model._forward_hooks or model._forward_pre_hooks:
        raise ValueError("model: has forward hooks, which a file cannot hold; remove them")
    if example_input is not None:
        example_input = Inputs.of(model, example_input)
        model = whole(model)
    found = trace(model, example_input)
    constants = found.constants
    nodes: list[Spec] = []
    used, read = set(), set()
    for node in found.graph.nodes:
        if found.evaluation_only and node.op != "placeholder" and not any(n["op"] != "placeholder" for n in nodes):
            nodes.append(_refusal(found.graph))
        args, kwargs = node.meta["arguments"]
        target = node.target
        if node.op == "call_function":
            if target is getattr:
                check_attribute(args, kwargs, node.name)
            target = function_name(target, node.name)
        elif node.op == "call_method":
            check_method(target, node.name)
        elif node.op == "call_module":
            used.add(target)
        elif node.op == "get_attr":
            read.add(target)
        entry = {"op": node.op, "name": node.name, "target": target}
        if args:
            entry["args"] = [encode(value, node.name) for value in args]
        if kwargs:
            entry["kwargs"] = {key: encode(value, node.name) for key, value in kwargs.items()}
        nodes.append(entry)

    modules: dict[str, Any] = {}
    modes: list[str] = []
    for path, module in model.named_modules():
        if path in used:
            name, arguments = describe_module(module, path)
            encoded = {key: encode(value, path) for key, value in arguments.items()}
            modules[path] = {"class": name, "arguments": encoded}
            prefixed = [f"{path}.{child}" if child else path for child, _ in module.named_modules()]
            modes += [name for name in prefixed if model.get_submodule(name).training != model.training]
    tensors, specs = _tensors(model, constants, used, read)
    _check_names(nodes, (*modules, *specs))
    spec = {"nodes": nodes, "modules": modules, "tensors": specs, "training": model.training, "other_mode": modes}
    if found.evaluation_only:
        spec |= {"training": False, "other_mode": [], "evaluation_only": found.evaluation_only}
    return spec, tensors


def _check_names(nodes: list[Spec], paths: Iterable[str]) -> None:
    """Refuse, by name, what `rebuild` would not take back."""
    for path in paths:
        try:
            check_path(path, "module or tensor")
        except ValueError as error:
            raise ValueError(f"model: {error} that a file may hold; rename that part of it") from None
    for node in nodes:
        if node["op"] == "placeholder":
            try:
                check_identifier(node["target"], "argument")
            except ValueError:
                raise ValueError(
                    f"model: forward takes {node['target']!r}, which a file cannot hold; give each argument a name of its "
                    "own in letters, digits and '_'"
                ) from None


def _refusal(graph: fx.Graph) -> Spec:
    """A node that refuses to run in training."""
    taken, name = {node.name for node in graph.nodes}, "evaluation_only"
    while name in taken:
        name += "_"
    args = [encode(ByMode(False, True), name), EVALUATION_ONLY]
    return {"op": "call_function", "name": name, "target": function_name(torch._assert, name), "args": args}


def _tensors(
    model: nn.Module, constants: dict[str, Tensor], used: set[str], read: set[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the used modules and those that nodes read, in the model's own order."""
    tensors: dict[str, Tensor] = {}
    specs: dict[str, Any] = {}
    first: dict[int, str] = {}
    for name, tensor, kind in _all_tensors(model, constants, read):
        owner = name.rpartition(".")[0]
        if name in specs or not (name in read or any(owner == path or owner.startswith(path + ".") for path in used)):
            continue
        spec: dict[str, Any] = {"kind": kind, "dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape)}
        dtype_of(spec["dtype"])
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(
                f"model: tensor {name!r} is {tensor.layout} or quantised; only dense tensors can be written"
            )
        if kind == "parameter":
            spec["requires_grad"] = tensor.requires_grad
        if (layout := _layout(tensor)) is not None:
            spec["memory_format"] = layout
        if first.setdefault(id(tensor), name) != name:
            spec["same_as"] = first[id(tensor)]
        else:
            tensors[name] = tensor
        specs[name] = spec
    missing = read - set(specs)
    if missing:
        raise ValueError(f"model: forward reads {sorted(missing)[0]!r}, which is no tensor")
    return tensors, specs


def _all_tensors(model: nn.Module, constants: dict[str, Tensor], read: set[str]) -> Iterator[tuple[str, Tensor, str]]:
    for path, module in model.named_modules():
        prefix = path + "." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, "parameter"
        for name, buffer in module._buffers.items():
            if buffer is not None:
                persistent = name not in module._non_persistent_buffers_set
                yield prefix + name, buffer, "buffer" if persistent else "constant"
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and prefix + name in read:
                yield prefix + name, value, "constant"
    for name, value in constants.items():
        yield name, value, "constant"


def _layout(tensor: Tensor) -> str | None:
    for name, layout in _LAYOUTS.items():
        fits = tensor.ndim == (4 if name == "channels_last" else 5)
        # Strides are compared too: a 1 x 1 kernel is contiguous in both formats, and kernels go by the strides.
        plain = tensor.stride() == torch.empty(tensor.shape, device="meta").stride()
        if fits and not plain and tensor.is_contiguous(memory_format=layout):
            return name
    return None


def rebuild(spec: Spec, tensors: dict[str, Tensor]) -> fx.GraphModule:
    """Build the model of a list that `describe` wrote; nothing outside the allow-lists is ever called."""
    model = releasing_source(fx.GraphModule(nn.Module(), fx.Graph()))
    for path, entry in _entry(spec, "modules", dict).items():
        name, encoded = _entry(entry, "class", str), _entry(entry, "arguments", dict)
        arguments = {key: decode(value, path, {}, ByMode) for key, value in encoded.items()}
        _attach(model, check_path(path, "module"), build_module(name, arguments, path))
    _place(model, _entry(spec, "tensors", dict), tensors)
    model.graph = spelled(_graph(model, _entry(spec, "nodes", list), set(spec["modules"]), set(spec["tensors"])))
    releasing_source(model)
    mode = bool(spec.get("training", False))
    model.train(mode)
    for path in _entry(spec, "other_mode", list):
        try:
            model.get_submodule(check_path(path, "module")).training = not mode
        except AttributeError as error:
            raise ValueError(f"other_mode: there is no module {path!r}") from error
    return model


def _entry(mapping: Any, key: str, kind: type) -> Any:
    if not isinstance(mapping, dict) or not isinstance(mapping.get(key), kind):
        raise ValueError(f"architecture: expected the entry {key!r} to be a {kind.__name__}")
    return mapping[key]


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a name, plain containers made on the way where there is none."""
    *parents, name = path.split(".")
    for parent in parents:
        child = model._modules.get(parent)
        if child is None:
            child = nn.Module()
            _attach(model, parent, child)
        model = child
    return model, name


def _attach(model: nn.Module, path: str, module: nn.Module) -> None:
    owner, name = _owner(model, path)
    try:
        owner.add_module(name, module)
    except (KeyError, TypeError) as error:
        raise ValueError(f"module {path!r}: the name is taken ({error})") from error


def _place(model: nn.Module, specs: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put every tensor where it belongs, and see that none is missing or of another kind."""
    placed: dict[str, Tensor] = {}
    for path, spec in specs.items():
        check_path(path, "tensor")
        same = spec.get("same_as")
        if same is not None:
            if same not in placed:
                raise ValueError(f"tensor {path!r}: is the same as {same!r}, which does not come before it")
            value = placed[same]
        else:
            value = _checked(path, spec, tensors)
        owner, name = _owner(model, path)
        parameter = spec.get("kind") == "parameter"
        there = owner._parameters.get(name) if parameter else owner._buffers.get(name)
        if there is not None:
            if there.shape != value.shape or not there.is_meta:
                raise ValueError(
                    f"tensor {path!r}: its module wants shape {list(there.shape)}, not {list(value.shape)}"
                )
            setattr(owner, name, value)  # a recurrent layer keeps a list of its own
        else:
            try:
                if parameter:
                    owner.register_parameter(name, value)  # type: ignore[arg-type]
                else:
                    owner.register_buffer(name, value, persistent=spec.get("kind") == "buffer")
            except (KeyError, TypeError) as error:
                raise ValueError(f"tensor {path!r}: the name is taken ({error})") from error
        placed[path] = value
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"tensor {name!r} of the architecture has no values in the file")


def _checked(path: str, spec: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    if path not in tensors:
        raise ValueError(f"tensor {path!r} of the architecture is missing from the weights")
    value = tensors[path].detach()
    if list(value.shape) != spec.get("shape") or value.dtype != dtype_of(spec.get("dtype")):
        raise ValueError(
            f"tensor {path!r}: the weights hold {dtype_name(value.dtype)}{list(value.shape)}, "
            f"the architecture says {spec.get('dtype')}{spec.get('shape')}"
        )
    layout = spec.get("memory_format")
    if layout is not None:
        if layout not in _LAYOUTS:
            raise ValueError(f"tensor {path!r}: memory format {layout!r} is not one of {', '.join(_LAYOUTS)}")
        value = value.clone(memory_format=_LAYOUTS[layout])
    if spec.get("kind") == "parameter":
        return nn.Parameter(value, requires_grad=spec.get("requires_grad") is True)
    if spec.get("kind") not in ("buffer", "constant"):
        raise ValueError(f"tensor {path!r}: kind {spec.get('kind')!r} is not parameter, buffer or constant")
    return value


def _graph(model: nn.Module, entries: list[Any], modules: set[str], tensors: set[str]) -> fx.Graph:
    graph = fx.Graph(owning_module=None)
    nodes: dict[str, fx.Node] = {}
    flag: list[fx.Node] = []

    def by_mode(train: Any, evaluate: Any) -> Any:
        if not flag:
            flag.append(graph.create_node("get_attr", "training"))
        if train is True and evaluate is False:
            return flag[0]
        return graph.call_function(function_of("operator.getitem", "mode"), ((evaluate, train), flag[0]))

    for entry in entries:
        name = check_identifier(_entry(entry, "name", str), "node")
        op, target = _entry(entry, "op", str), _entry(entry, "target", str)
        if name in nodes:
            raise ValueError(f"node {name!r} comes twice")
        entry = {"args": [], "kwargs": {}, **entry}
        args = tuple(decode(value, name, nodes, by_mode) for value in _entry(entry, "args", list))
        kwargs = {
            check_identifier(key, f"node {name!r}: argument"): decode(value, name, nodes, by_mode)
            for key, value in _entry(entry, "kwargs", dict).items()
        }
        if op == "call_function":
            function = function_of(target, name)
            if function is getattr:
                check_attribute(args, kwargs, name)
        elif op == "call_method":
            check_method(target, name)
        elif op == "call_module":
            if target not in modules:
                raise ValueError(f"node {name!r}: calls the module {target!r}, which is not listed")
        elif op == "get_attr":
            if target not in tensors:
                raise ValueError(f"node {name!r}: reads {target!r}, which is not a listed tensor")
        elif op == "placeholder":
            check_identifier(target, f"node {name!r}: input")
        elif op != "output" or target != "output":
            raise ValueError(f"node {name!r}: operation {op!r} is not one a file may use")
        called = function if op == "call_function" else target
        nodes[name] = graph.create_node(op, called, args, kwargs, name=name)
    if not entries or entries[-1].get("op") != "output":
        raise ValueError("architecture: the last node is not the output")
    return graph
