"""One pass over the graph: which channels are tied, which layers mix them, what is constant.

The rules for each kind of operation stand in ``rules_layers``, ``rules_shapes`` and ``rules_joins``; whatever has no
rule keeps all channels it touches, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from bayesprune.graph.layers import Side, sides
from bayesprune.graph.values import NAN, Atoms, Value, overlap
from bayesprune.graph.zeros import Zeros

Rule = Callable[["Analysis", fx.Node, "nn.Module | None"], Any]


@dataclass(eq=False)
class Mixer:
    """A layer whose rows read its columns."""

    name: str
    node: fx.Node
    source: Tensor
    target: Tensor
    uses: Tensor
    const: Tensor
    folds: bool
    moves: bool = True  # a constant that it reads can be moved, into a bias or a carrier


@dataclass(eq=False)
class Call:
    """A module that has channels of its own, and where they lie."""

    name: str
    module: nn.Module
    node: fx.Node
    source: Tensor | None
    target: Tensor
    heads: Tensor | None = None

    def sides(self, module: nn.Module | None = None) -> list[Side]:
        """Where the channels lie on the tensors of the module (or of a copy of it)."""
        return sides(module or self.module, self.source, self.target, self.heads)


@dataclass(eq=False)
class Pin:
    """Atoms that stay, and why."""

    node: fx.Node
    atoms: Tensor
    reason: str


@dataclass(eq=False)
class Grid:
    """Atoms of which the kept ones must form a grid; along ``full`` axes all stay or none."""

    node: fx.Node
    atoms: Tensor
    full: tuple[int, ...]
    reason: str


@dataclass(eq=False)
class Implication:
    """Where ``cause`` is kept (and ``where`` holds), ``effect`` is kept."""

    node: fx.Node
    cause: Tensor
    effect: Tensor
    where: Tensor | None
    reason: str


@dataclass(eq=False)
class Gather:
    """An edge of the graph on which only some channels need travel on."""

    node: fx.Node
    source: fx.Node
    axis: int
    full: Tensor
    part: Tensor


@dataclass(eq=False)
class Scatter:
    """A sum whose second term may have fewer channels than the first."""

    node: fx.Node
    base: fx.Node
    branch: fx.Node
    axis: int
    full: Tensor
    part: Tensor


@dataclass(eq=False)
class Sizes:
    """A size in the arguments of an operation that counts channels: ``put(node, sizes)`` writes new ones."""

    node: fx.Node
    old: tuple[int, ...]
    new: Callable[[Callable[[Tensor], Tensor]], tuple[int, ...]]
    put: Callable[[fx.Node, tuple[int, ...]], None]
    computed: bool = False


@dataclass
class Analysis:
    """What one pass over the graph found; see the module's docstring."""

    model: nn.Module
    graph: fx.Graph
    zeros: Zeros
    fold: bool
    indexed: bool = False
    drop: bool = True
    dropped: dict[str, int] | None = None
    atoms: Atoms = field(default_factory=Atoms)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    mixers: list[Mixer] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    implications: list[Implication] = field(default_factory=list)
    gathers: list[Gather] = field(default_factory=list)
    scatters: list[Scatter] = field(default_factory=list)
    sizes: list[Sizes] = field(default_factory=list)
    drops: dict[fx.Node, int] = field(default_factory=dict)
    offsets: dict[fx.Node, Value] = field(default_factory=dict)
    sums: list[tuple[fx.Node, Value, Value]] = field(default_factory=list)
    floors: list[tuple[Tensor, int, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    alive: set[fx.Node] = field(default_factory=set)
    repeated: set[str] = field(default_factory=set)
    untaken: dict[str, str] = field(default_factory=dict)
    unruled: set[fx.Node] = field(default_factory=set)
    tensors: dict[str, tuple[int, Tensor, fx.Node]] = field(default_factory=dict)
    consumed: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    written: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules(remove_duplicate=False))
        self.owners: dict[int, str] = {}
        self.names: dict[int, str] = {}
        self._edges: dict[tuple[fx.Node, fx.Node], Value] = {}

    def walk(self, rule_for: Callable[[fx.Node, nn.Module | None], Rule]) -> None:
        """Visit every node in the graph's order."""
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                node.meta.setdefault("shape", None)
                given = node.op == "placeholder"
                what = "model input" if given else f"parameter or buffer {node.target} outside a layer"
                self.values[node] = self.opaque(node, what) if given else self._bare(node, what)
            elif node.op == "output":
                self.pin(node, [self.values.get(arg) for arg in node.all_input_nodes], "model output")
            else:
                module = self.modules.get(str(node.target)) if node.op == "call_module" else None
                if node.op == "call_module" and module is not None:
                    name = self.names.setdefault(id(module), str(node.target))
                    node.meta["name"] = name
                self.values[node] = rule_for(node, module)(self, node, module)
                if works_in_place(node, module):
                    self._overwritten(node)
        self._find_alive()
        self._pin_used_outside()
        for name, (_, atoms, node) in self.tensors.items():
            if name.rpartition(".")[0] in self.calls:
                reason = f"{name} is used by its layer and outside it"
                self.pins.append(Pin(node, atoms, reason))
                self.pins.append(Pin(node, self.calls[name.rpartition(".")[0]].target, reason))

    # -- values ------------------------------------------------------------------------------------------------------

    def opaque(self, node: fx.Node, why: str) -> Any:
        """Values of which nothing is known, in the structure of the node's result."""

        def build(shape: Any) -> Any:
            if isinstance(shape, torch.Size):
                return Value(shape, why=why)
            return tuple(build(entry) for entry in shape) if isinstance(shape, tuple) else None

        return build(node.meta.get("shape"))

    def _bare(self, node: fx.Node, why: str) -> Value:
        """A parameter or buffer used outside a layer: channels along its only dimension, or along one named later."""
        value: Value = self.opaque(node, why)
        name = str(node.target)
        path, _, which = name.rpartition(".")
        owner = self.modules.get(path)
        if not isinstance(value, Value) or owner is None or {**owner._parameters, **owner._buffers}.get(which) is None:
            return value
        value.tensor = name
        wide = [dim for dim, size in enumerate(value.shape) if size != 1]
        return self.along(node, value, wide[0]) if len(wide) == 1 else value

    def along(self, node: fx.Node, value: Value, dim: int) -> Value:
        """A parameter or buffer used outside a layer, with channels along a dimension (from the last: -1, -2, …)."""
        path, _, which = value.tensor.rpartition(".")
        tensor = getattr(self.modules[path], which)
        if tensor.shape[dim] != value.shape[dim]:
            return Value(value.shape, why=value.why)
        dim = dim % len(value.shape) - len(value.shape)
        held = self.tensors.get(value.tensor)
        if held is not None and held[0] != dim + tensor.dim():
            self.pins.append(Pin(node, held[1], f"{value.tensor} is used along several dimensions"))
            return Value(value.shape, why=f"{value.tensor} is used along several dimensions")
        atoms = self.atoms.fresh(tensor.shape[dim]) if held is None else held[1]
        self.tensors[value.tensor] = (dim + tensor.dim(), atoms, node)
        lines = tensor.detach().movedim(dim, 0).reshape(atoms.numel(), -1).double().cpu()
        zero = self.zeros.of(tensor).movedim(dim, 0).reshape(atoms.numel(), -1).all(1)
        zero &= self.fold or isinstance(tensor, nn.Parameter)  # a buffer may move
        const = torch.where(zero, 0.0, torch.full(atoms.shape, NAN, dtype=torch.float64))
        if self.fold:
            const = torch.where((lines == lines[:, :1]).all(1), lines[:, 0], const)
        return Value(value.shape, (dim + len(value.shape),), atoms, const, value.why, value.tensor)

    def unknown(self, node: fx.Node, label: str) -> Any:
        """Keep all channels that a node reads; nothing is known of what it returns."""
        if node.op != "call_module" and len(node.all_input_nodes) < 2:
            self.unruled.add(node)
        reason = f"{label} is not known to act on each channel alone"
        if node.op == "call_module":
            self.untaken[str(node.meta["name"])] = reason
        for arg in node.all_input_nodes:
            self.pin(node, self.values.get(arg), reason)
            self.pin(node, self._edges.get((node, arg)), reason)
            if arg.op == "get_attr":
                self.untaken[str(arg.target).rpartition(".")[0]] = reason
        return self.opaque(node, reason)

    def pin(self, node: fx.Node, value: Any, reason: str) -> None:
        """Keep all channels of a value (or of a structure of values)."""
        if isinstance(value, Value):
            if value.axes:
                self.pins.append(Pin(node, value.atoms, reason))
        elif isinstance(value, (tuple, list)):
            for entry in value:
                self.pin(node, entry, reason)

    def channels(self, node: fx.Node, value: Value, axis: int) -> Value:
        """An opaque value, with channels along ``axis`` that stay."""
        if value.axes:
            return value
        atoms = self.atoms.fresh(value.shape[axis])
        self.pins.append(Pin(node, atoms, value.why))
        return Value(value.shape, (axis % len(value.shape),), atoms, torch.full(atoms.shape, NAN, dtype=torch.float64))

    def collapsed(self, value: Value, axis: int) -> Value:
        """Channels along several dimensions, as those of one of them: along the others all stay or none."""
        if axis not in value.axes or value.single or 0 in value.axes:
            return value
        place = value.axes.index(axis)
        lines = value.atoms.movedim(place, 0).reshape(value.atoms.shape[place], -1)
        const = value.const.movedim(place, 0).reshape(lines.shape)
        for n in range(1, lines.shape[1]):
            self.atoms.tie(lines[:, 0], lines[:, n])
        alike = torch.where((const == const[:, :1]).all(1), const[:, 0], NAN)
        return Value(value.shape, (axis,), lines[:, 0], alike, value.why, value.tensor)

    def read(self, node: fx.Node, arg: Any) -> Any:
        """What a node reads; on an edge on which channels may be left behind, atoms of its own."""
        value = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if not (self.indexed and isinstance(value, Value) and value.single):
            return value
        if sum(user.op == "output" or user.meta.get("shape") is not None for user in arg.users) < 2:
            return value
        if (node, arg) not in self._edges:
            axis = value.axes[0]
            part = self.atoms.fresh(*value.atoms.shape)
            self.gathers.append(Gather(node, arg, axis, value.atoms, part))
            self.implications.append(Implication(node, part, value.atoms, None, f"read by {label(node)}"))
            self._edges[node, arg] = Value(value.shape, value.axes, part, value.const)
        return self._edges[node, arg]

    def settled(self, const: Tensor) -> Tensor:
        """The constants that count: all of them, or the zeros only."""
        return const if self.fold else torch.where(const == 0, const, NAN)

    # -- layers ------------------------------------------------------------------------------------------------------

    def call(self, node: fx.Node, module: nn.Module, source: Tensor | None, target: Tensor, heads: Any = None) -> None:
        """Remember where a module's channels lie; a second call ties them to the first's."""
        name = node.meta["name"]
        before = self.calls.get(name)
        if before is None:
            self.calls[name] = Call(name, module, node, source, target, heads)
            return
        self.repeated.add(name)
        if source is not None and before.source is not None:
            self.atoms.tie(before.source, source)
        self.atoms.tie(before.target, target)
        if heads is not None and before.heads is not None:
            self.atoms.tie(before.heads, heads)

    def shared(self, node: fx.Node, *tensors: Tensor | None) -> str | None:
        """Why a layer must stay whole because another one has the same tensor, if so."""
        name = node.meta["name"]
        for tensor in tensors:
            if tensor is not None:
                owner = self.owners.setdefault(id(tensor), name)
                if owner != name:
                    reason = f"layers {owner} and {name} share their weight"
                    self._keep_whole(node, owner, reason)
                    return reason
        return None

    def _keep_whole(self, node: fx.Node, name: str, reason: str) -> None:
        """Keep all channels of a layer, on both sides."""
        call = self.calls.get(name)
        for atoms in (call.source, call.target, call.heads) if call is not None else ():
            if atoms is not None:
                self.pins.append(Pin(node, atoms, reason))

    def _pin_used_outside(self) -> None:
        """Keep the layers whose own weights the forward uses in another way, too."""
        for bare in [each for each in self.graph.nodes if each.op == "get_attr"]:
            path, _, which = str(bare.target).rpartition(".")
            owner = self.modules.get(path)
            if owner is None or not isinstance(owner._parameters.get(which), Tensor) or bare.target in self.tensors:
                continue
            for user in bare.users:
                if (bare, user) not in self.consumed and (user.op == "output" or user.meta.get("shape") is not None):
                    self._keep_whole(user, self.names.get(id(owner), path), f"{bare.target} is used outside its layer")

    def _find_alive(self) -> None:
        """The nodes whose results still reach the output, and those whose results never did: they are computed all the same."""
        output = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        unread = set(self.graph.nodes) - self._reached([output], {})
        calls = [call.node for call in self.calls.values() if call.node in unread]
        idle = [node for node in unread if node.meta.get("shape") is not None]
        # What has no rule and reads one tensor runs with fewer channels too, or the comparison fails.
        self.alive = self._reached([output, *calls], self.drops) | (self._reached(idle, self.drops) - self.unruled)

    def _reached(self, waiting: list[fx.Node], drops: dict[fx.Node, int]) -> set[fx.Node]:
        """The nodes that these read, themselves among them."""
        found: set[fx.Node] = set()
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            args = node.all_input_nodes
            if node in drops:
                args = [node.args[1 - drops[node]]]  # type: ignore[list-item]
            waiting.extend(args)
            waiting.extend(writer for held, writer in self.written if held is node)
        return found

    def _overwritten(self, node: fx.Node) -> None:
        """What shares its memory with a tensor that changed in place, and is read later, is no longer what it was."""
        if (memory := node.meta.get("memory")) is None:
            return
        done = [each for each in self.values if each is not node and each.meta.get("memory") == memory]
        for held in [each for each in done if overlap(each.meta["places"], node.meta["places"])]:
            later = [user for user in held.users if user is not node and user not in self.values]
            value = self.values[held]
            if later and isinstance(value, Value):
                self.values[held] = value.with_const(torch.full_like(value.const, NAN))
                self.written.append((held, node))
                self.drops.pop(node, None)
                result = self.values[node]
                alike = (
                    isinstance(result, Value) and result.axes == value.axes and torch.equal(result.atoms, value.atoms)
                )
                for user in later if not alike or len(node.all_input_nodes) > 1 else ():
                    self.pin(user, value, f"{label(node)} changes it in place")


def works_in_place(node: fx.Node, module: Any = None) -> bool:
    """Whether a node writes over the tensor that it reads."""
    if getattr(module, "inplace", False) or node.kwargs.get("inplace"):
        return True
    name = str(getattr(node.target, "__name__", node.target))
    in_place = name.endswith("_") and not name.endswith("__") and node.op != "call_module"
    return in_place or name in ("iadd", "imul", "isub", "itruediv", "ipow")


def label(node: fx.Node) -> str:
    """A node's name in a report."""
    if node.op == "call_module":
        return str(node.meta.get("name", node.target))
    if node.op == "placeholder":
        return node.name
    return str(getattr(node.target, "__name__", node.target))


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by its place or by its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
