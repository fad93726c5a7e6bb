"""How the members of an ensemble are run: all at once, each by itself with folded layers, one after the other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_unflatten

from bayesprune.deploy.architecture import Spec, rebuild
from bayesprune.deploy.common_part import clones, cut
from bayesprune.deploy.folding import channels_last, fold, wants_channels_last
from bayesprune.deploy.members import joined, leaves
from bayesprune.deploy.threads import side_by_side
from bayesprune.graph.hooks import detached_copy
from bayesprune.graph.inputs import Inputs

SLOW = ("Conv", "conv", "Attention", "attention", "Transformer")  # over stacked weights, on a CPU
FEW = 8  # of fewer inputs, operations are so short that threads mostly wait for the interpreter's lock


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without attention's fused kernel, which has no rule for stacked weights and hides its products from a counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Strategies(nn.Module):
    """Members' tensors, what is made of them, and the three ways to run it."""

    strategy: str
    count: int
    stacked: nn.Module
    shared: nn.Module
    _spec: Spec | None
    _own_copy: list[nn.Module]
    _refused: set[str]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.buffers()).device

    def _build(self) -> None:
        """What is made from the tensors as they are now."""
        stacked, shared = self._tensors()
        self._template: list[nn.Module] = [self._model({name: tensor[0] for name, tensor in stacked.items()} | shared)]
        model = self._template[0]
        traced = model if self._spec is not None and isinstance(model, fx.GraphModule) else None
        self._halves = None if traced is None else cut(traced, stacked)
        self._folded: tuple[fx.GraphModule | None, list[fx.GraphModule]] | None = None
        self._layout = traced is not None and wants_channels_last(traced) and "channels_last" not in self._refused
        self._built = self._state()

    def _model(self, tensors: dict[str, Tensor]) -> nn.Module:
        """The network with these tensors, which it does not copy."""
        if self._spec is not None:
            return rebuild(self._spec, tensors)
        model = detached_copy(self._own_copy[0])
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, tensor in tensors.items():
            held[name].data = tensor  # tied ones follow
        return model

    def _member(self, index: int) -> nn.Module:
        """One member; its weights are views of the stacked ones."""
        stacked, shared = self._tensors()
        return self._model({name: tensor[index] for name, tensor in stacked.items()} | shared)

    def _state(self) -> list[tuple[int, int]]:
        """Tells whether a tensor was exchanged or written into."""
        return [(id(t), -1 if t.is_inference() else t._version) for t in self.buffers()]

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        stacked, shared = (
            {name.replace("/", "."): tensor for name, tensor in holder.named_buffers()}
            for holder in (self.stacked, self.shared)
        )
        return stacked, shared

    def _outputs(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """All members' outputs by the strategy; where "auto" chose one that cannot run the network, by "loop"."""
        if self._built != self._state():
            self._build()  # weights were loaded, or changed in place
        given = self._bound(inputs, named)
        how = self._how()
        try:
            return self._run(how, given)
        except (RuntimeError, ValueError) as error:
            if self.strategy != "auto" or how == "loop" or isinstance(error, torch.OutOfMemoryError):
                raise
        outputs = self._run("loop", given)  # an error of the network's own comes again
        self._refused.add(how)
        return outputs

    def _bound(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Inputs:
        """The arguments as the network takes them: of a traced one, all in order."""
        signature = inspect.signature(self._template[0].forward)
        try:
            bound = signature.bind(*inputs, **named)
        except TypeError as error:
            raise TypeError(f"inputs: {error}; the network takes {signature}") from None
        if self._spec is not None:
            bound.apply_defaults()
        return Inputs(bound.args, bound.kwargs)

    def _run(self, how: str, given: Inputs) -> Any:
        if how == "vmap":
            return self._vmap(given)
        if how == "loop":
            return joined([self._loop(index, given) for index in range(self.count)])
        try:
            return self._side_by_side(given)
        except RuntimeError:
            if not self._layout:
                raise
        self._refused.add("channels_last")  # x.view(n, -1) asks for the plain layout
        self._build()
        return self._side_by_side(given)

    def _side_by_side(self, given: Inputs) -> Any:
        common, members = self._fold()
        given = given.map(channels_last) if self._layout else given
        values = given.args
        if common is not None:
            values = common(*clones(values))
        tasks = [lambda m=member: m(*clones(values)) for member in members]
        alone = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or self.device.type != "cpu"
        alone = alone or given.shape[:1] < (FEW,)
        return joined([task() for task in tasks] if alone else side_by_side(tasks))

    def _fold(self) -> tuple[fx.GraphModule | None, list[fx.GraphModule]]:
        """What all members share, if anything, and of each member the rest; BatchNorm folded, channels last."""
        if self._folded is None:
            members = [self._member(index) for index in range(self.count)]
            graphs = [member for member in members if isinstance(member, fx.GraphModule)]
            common = None
            if self._halves is not None:
                common = fold(self._halves[0], self._layout)
                graphs = [found[1] for graph in graphs if (found := cut(graph, self._tensors()[0]))]
            self._folded = common, [fold(graph, self._layout) for graph in graphs]
        return self._folded

    def _how(self) -> str:
        if self.strategy != "auto":
            return self.strategy
        names = [type(module).__name__ for module in self._template[0].modules()]
        if isinstance(self._template[0], fx.GraphModule):
            names += [str(node.target) for node in self._template[0].graph.nodes if node.op == "call_function"]
        cpu, traced = self.device.type == "cpu", self._spec is not None
        recurrent = any(
            isinstance(module, nn.RNNBase) for module in self._template[0].modules()
        )  # vmap has no rule for them
        slow = cpu and any(kind in name for name in names for kind in SLOW)
        how = ("folded" if cpu and traced else "loop") if slow or recurrent else "vmap"
        return "loop" if how in self._refused else how

    def _loop(self, index: int, given: Inputs) -> Any:
        stacked, shared = self._tensors()
        weights = {name: tensor[index] for name, tensor in stacked.items()} | shared
        given = given.map(torch.clone)
        return functional_call(self._template[0], weights, given.args, given.kwargs)

    def _vmap(self, given: Inputs) -> Any:
        stacked, shared = self._tensors()
        if not stacked:  # one member, or all alike
            return joined([self._loop(0, given)] * self.count)
        template = self._template[0]
        if self._halves is not None:
            common, template = self._halves
            given = Inputs(common(*clones(given.args)))
            names = {name for name, _ in (*template.named_parameters(), *template.named_buffers())}
            shared = {name: tensor for name, tensor in shared.items() if name in names}
        found: list[Any] = []

        def run(weights: dict[str, Tensor]) -> list[Tensor]:
            args, kwargs = clones((given.args, given.kwargs))
            found[:] = leaves(functional_call(template, {**weights, **shared}, args, kwargs))
            return [leaf for leaf in found[0] if isinstance(leaf, Tensor)]

        with plain_attention():
            stacks = iter(vmap(run)(stacked))
        return tree_unflatten([next(stacks) if isinstance(leaf, Tensor) else leaf for leaf in found[0]], found[1])
