from __future__ import annotations

import copy
import json
import random
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from bayesprune.common.manifest import sealed
from bayesprune.deploy import Ensemble, load, save
from bayesprune.deploy.architecture import describe, rebuild
from bayesprune.deploy.folder import build


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def parts():
    spec, tensors = describe(net().eval())
    return json.loads(json.dumps(spec)), tensors


def node(spec, name):
    return next(entry for entry in spec["nodes"] if entry["name"] == name)


def call(name, target, *args, op="call_function", **kwargs):
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


INPUT = {"node": "input_1"}
FORGED = {
    "a function that is not on the list": (
        call("x", "os.system", "touch /tmp/owned"), "function os.system is not on the list"),
    "an attribute chain as a function": (call("x", "torch.hub.load", "a", "b"), "function torch.hub.load is not on"),
    "an evaluating builtin": (call("x", "builtins.eval", "1"), "function builtins.eval is not on the list"),
    "getattr of a private name": (call("x", "builtins.getattr", INPUT, "__class__"), "attribute '__class__' is not one"),
    "getattr of a computed name": (call("x", "builtins.getattr", INPUT, INPUT), "is not one of"),
    "getattr with keywords": (call("x", "builtins.getattr", INPUT, "shape", default=1), "is not one of"),
    "a method that writes files": (call("x", "tofile", INPUT, "/tmp/x", op="call_method"), "method 'tofile' is not on"),
    "a method that runs code": (call("x", "apply_", INPUT, op="call_method"), "method 'apply_' is not on the list"),
    "a private method": (call("x", "__reduce__", INPUT, op="call_method"), "method '__reduce__' is not on the list"),
    "source in a keyword": (call("x", "torch.relu", INPUT, **{"a=print(1)": 1}), "'a=print(1)' is not an identifier"),
    "source in a node's name": (call("x\nimport os", "torch.relu", INPUT), "is not an identifier"),
    "an attribute of the model": (call("x", "state_dict", op="get_attr"), "'state_dict', which is not a listed tensor"),
    "an unlisted module": (call("x", "0.weight", INPUT, op="call_module"), "'0.weight', which is not listed"),
    "an input's name as source": (call("x", "y=print(1)", op="placeholder"), "is not an identifier"),
    "an unknown operation": (call("x", "forward", op="root"), "operation 'root' is not one a file may use"),
    "a later node": (call("x", "torch.relu", {"node": "output"}), "reads 'output', which no earlier node gives"),
    "an unknown kind of argument": (call("x", "torch.relu", {"pickle": "gASV"}), "cannot read the argument"),
    "an unknown dtype": (call("x", "torch.relu", {"dtype": "__init__"}), "dtype '__init__' is not one of"),
    "a name that is no string": ({"op": "call_function", "name": "x", "target": ["torch"]}, "'target' to be a str"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(FORGED))
def test_error_forged_node(parts, what):
    spec, tensors = parts
    entry, message = FORGED[what]
    spec["nodes"].insert(1, entry)
    with pytest.raises(ValueError, match=re.escape(message)):
        rebuild(spec, tensors)


def edit(spec, path, value):
    *parents, last = path
    for key in parents:
        spec = spec[key]
    spec[last] = value


BUFFER = {"kind": "buffer", "dtype": "float32", "shape": [4]}
EDITS = {
    "a module that is not on the list": (("modules", "0", "class"), "LazyLinear", "nn.LazyLinear is not on the list"),
    "a module outside torch": (("modules", "0", "class"), "os.system", "is not on the list"),
    "a missing argument": (("modules", "0", "arguments"), {"in_features": 3}, r"takes \['bias', 'in_features', "),
    "a wrong argument": (("modules", "0", "arguments", "in_features"), "x", "nn.Linear refuses"),
    "another shape": (("modules", "0", "arguments", "in_features"), 9, r"wants shape \[4, 9\], not \[4, 3\]"),
    "a tensor over a method": (("tensors", "forward"), BUFFER | {"same_as": "0.bias"}, "the name is taken"),
    "a tensor of another dtype": (("tensors", "0.bias", "dtype"), "float64", r"hold float32\[4\], the architecture says float64"),
    "a tensor without values": (("tensors", "0.new"), BUFFER, "'0.new' of the architecture is missing"),
    "a path with source": (("tensors", "0.a()"), BUFFER, "is not a name of letters"),
    "an unknown kind": (("tensors", "0.bias", "kind"), "pickle", "kind 'pickle' is not parameter, buffer or constant"),
    "an unknown format": (("tensors", "0.bias", "memory_format"), "odd", "memory format 'odd' is not one of"),
    "a mode of no module": (("other_mode",), ["nobody"], "there is no module 'nobody'"),
    "nodes that are no list": (("nodes",), {}, "'nodes' to be a list"),
    "no output": (("nodes",), [], "the last node is not the output"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(EDITS))
def test_error_forged_entry(parts, what):
    spec, tensors = parts
    path, value, message = EDITS[what]
    edit(spec, path, value)
    with pytest.raises(ValueError, match=message):
        rebuild(spec, tensors)


def test_error_tensors_must_all_be_there(parts):
    spec, tensors = parts
    missing = copy.deepcopy(spec)
    del missing["tensors"]["2.bias"]
    with pytest.raises(ValueError, match=r"tensor '2.bias' of the architecture has no values"):
        rebuild(missing, tensors)


JUNK = [None, True, -1, 10**9, 0.5, "", "x", "__class__", "forward", "a.b", "lambda", [], [[]], {}, {"node": "input_1"},
        {"node": 3}, {"mode": [1, 2]}, {"slice": [1, 2]}, {"float": "x"}, {"dict": {"a=b": 1}}, {"tuple": 3}]  # fmt: skip


def places(value, path=()):
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield from places(part, (*path, key))


@pytest.mark.parametrize("kind", ["model", "ensemble"])
def test_property_any_damage_is_a_clear_error_or_harmless(kind):
    model = net().eval()
    spec, tensors = (
        describe(model) if kind == "model" else Ensemble(model, [model.state_dict(), net().state_dict()]).parts()
    )
    spec, generator = json.loads(json.dumps(spec)), random.Random(0)
    everywhere = [path for path in places(spec) if path]
    refused = 0
    for _ in range(400):
        damaged, path = copy.deepcopy(spec), generator.choice(everywhere)
        edit(damaged, path, generator.choice(JUNK))
        try:
            build(damaged, {name: tensor.clone() for name, tensor in tensors.items()})
        except ValueError:
            refused += 1
    assert refused > 200


def test_error_names_the_folder_of_a_forged_file(tmp_path):
    path = save(net(), tmp_path / "model", example_input=torch.zeros(1, 3))
    content = json.loads((path / "architecture.json").read_text())
    content["architecture"]["nodes"].insert(1, call("x", "os.system", "true"))
    del content["sha256"]
    (path / "architecture.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(ValueError, match=r"model: .*node 'x': function os.system is not on the list"):
        load(path)


# ---- what cannot be saved ---------------------------------------------------------------------------------------------


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Escapes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


class FixedDevice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.device("meta"))


def reparametrised() -> nn.Module:
    model = net()
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


def hooked() -> nn.Module:
    model = net()
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def root_hook() -> nn.Module:
    model = net()
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def edited() -> nn.Module:
    model = net()
    model[0].extra = nn.Parameter(torch.zeros(2))
    return model


class Variadic(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] + 1


def named(name: str) -> nn.Module:
    """A submodule of that name."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({name: nn.Linear(3, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[name](x)

    return Named()


UNSUPPORTED = {
    "a space": (lambda: named("a b"), r"path 'parts.a b': 'a b' is not a name .* rename that part"),
    "an accent": (lambda: named("été"), r"path 'parts.été': 'été' is not a name .* rename that part"),
    "any number of arguments": (Variadic, r"forward takes '\*xs', which a file cannot hold; give each argument a name"),
    "control flow": (Branches, r"Branches cannot be traced \(TraceError"),
    "random numbers": (Random, "function torch.randn_like is not on the list"),
    "numbers out of tensors": (Escapes, "tensor method 'item' is not on the list"),
    "a fixed device": (FixedDevice, "the device meta is fixed in forward"),
    "pruning by torch": (reparametrised, r"module '0' has hooks \(_forward_pre_hooks\)"),
    "a hook": (hooked, r"module '1' has hooks \(_forward_hooks\)"),
    "a hook on the whole": (root_hook, "has forward hooks, which a file cannot hold"),
    "an extra parameter": (edited, r"module '0' is not what nn.Linear builds from its attributes \(\('extra'"),
}


@pytest.mark.parametrize("what", list(UNSUPPORTED))
def test_error_names_what_cannot_be_saved(tmp_path, what):
    make, message = UNSUPPORTED[what]
    with pytest.raises(ValueError, match=message):
        save(make(), tmp_path / "model", example_input=torch.zeros(2, 3))
    assert not list(tmp_path.iterdir())


def test_property_tracing_runs_nothing_on_buffers(tmp_path):
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            return F.relu(x) + self.seen

    model = Counts()
    describe(model)
    assert model.seen.item() == 0
