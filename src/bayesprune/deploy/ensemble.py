"""Posterior samples of one architecture as one model: stacked weights, all members in one call."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap

from bayesprune.deploy.architecture import Spec, describe, rebuild
from bayesprune.deploy.common_part import clones, cut, orderly
from bayesprune.deploy.folding import fold
from bayesprune.deploy.threads import side_by_side
from bayesprune.graph.source import releasing_source
from bayesprune.posterior.mixture import ClassMixture, MomentMixture, Prediction, RegressionPrediction
from bayesprune.posterior.samples import Samples

STRATEGIES = ("auto", "vmap", "folded", "loop")
FEW = 8  # of fewer inputs, operations are so short that threads mostly wait for the interpreter's lock


class Ensemble(nn.Module):
    """Members that share one architecture, and so one keep mask, predict together.

    Every tensor that differs between members is held once, stacked along a new first axis; a tensor that all of them share
    (frozen weights, constants) is held once for all, and what depends on shared tensors and the inputs alone is computed once:
    a subnetwork ensemble, whose members differ in the last layers only, costs one trunk and as many heads (not with "loop").
    ``ensemble(x)`` gives all members' outputs, `predict` the mixture.

    Args:
        model: the architecture; its forward must be traceable (see `bayesprune.deploy.save`). It is left as it is.
        members: a `SampleStore`, `MemorySamples`, or a sequence of state dicts of ``model``.
        strategy: how to run the members. "vmap": all at once, ``torch.func.vmap`` over the stacked weights. "folded": each
            by itself, with BatchNorm folded into the convolutions and channels last (outputs differ by rounding), and on a CPU, from
            eight inputs on and without gradients, in as many threads as torch may use;
            "loop": one after the other, as they are. "auto": "vmap" on a GPU and for models without convolutions or
            attention, else "folded": on a CPU a convolution over stacked weights becomes a grouped one, which is slower.

    Raises:
        ValueError: if there are no members, one does not fit the model, or the model cannot be traced.

    Example:
        >>> nets = [nn.Linear(3, 2) for _ in range(4)]
        >>> ensemble = Ensemble(nets[0], [net.state_dict() for net in nets])
        >>> x = torch.randn(5, 3)
        >>> ensemble(x).shape, torch.allclose(ensemble(x)[2], nets[2](x))
        (torch.Size([4, 5, 2]), True)
        >>> ensemble.predict(x).probabilities.sum(dim=1).allclose(torch.ones(5, dtype=torch.float64))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        members: Samples | Sequence[Mapping[str, Tensor]],
        *,
        strategy: Literal["auto", "vmap", "folded", "loop"] = "auto",
    ) -> None:
        spec, own = describe(model)
        stacked, shared = _stack(spec, own, members)
        super().__init__()
        self._begin(spec, stacked, shared, len(members), strategy)

    def _begin(
        self, spec: Spec, stacked: dict[str, Tensor], shared: dict[str, Tensor], count: int, strategy: str
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy={strategy!r}: choose one of {', '.join(STRATEGIES)}")
        self.strategy = strategy
        self.count = count
        self._spec = {**spec, "training": False, "other_mode": []}
        # Names of tensors have dots, which names of buffers must not.
        self.stacked, self.shared = nn.Module(), nn.Module()
        for holder, tensors in ((self.stacked, stacked), (self.shared, shared)):
            for name, tensor in tensors.items():
                holder.register_buffer(name.replace(".", "/"), tensor.detach())
        # In a list, so that the template's tensors are no part of this module's own.
        first = {name: tensor[0] for name, tensor in stacked.items()} | shared
        self._template: list[fx.GraphModule] = [rebuild(self._spec, first)]
        self._folded: tuple[fx.GraphModule | None, list[fx.GraphModule]] | None = None
        self._halves: tuple[fx.GraphModule, fx.GraphModule] | None = cut(self._template[0], stacked)
        self.eval()

    @classmethod
    def rebuild(cls, spec: Spec, tensors: dict[str, Tensor]) -> Ensemble:
        """From what `parts` gives, read back from a folder."""
        spec = dict(spec)
        count, names = spec.pop("members"), spec.pop("stacked", None)
        strategy = spec.pop("strategy", "auto")
        if not isinstance(count, int) or count < 1 or not isinstance(names, list):
            raise ValueError(f"members={count!r}: expected a positive number and a list of stacked tensors")
        for name in names:
            if name not in tensors or not tensors[name].ndim or len(tensors[name]) != count:
                raise ValueError(f"tensor {name!r}: expected {count} members along its first axis")
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        stacked = {name: tensors[name] for name in names}
        self._begin(spec, stacked, {k: v for k, v in tensors.items() if k not in stacked}, count, strategy)
        return self

    def parts(self) -> tuple[Spec, dict[str, Tensor]]:
        """The architecture with the names of its stacked tensors, and all tensors by name."""
        stacked, shared = self._tensors()
        spec = {**self._spec, "members": self.count, "stacked": list(stacked), "strategy": self.strategy}
        return spec, {**stacked, **shared}

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        stacked, shared = (
            {name.replace("/", "."): tensor for name, tensor in holder.named_buffers()}
            for holder in (self.stacked, self.shared)
        )
        return stacked, shared

    def __len__(self) -> int:
        return self.count

    def extra_repr(self) -> str:
        """The number of members and how they are run."""
        return f"members={self.count}, strategy={self.strategy!r}"

    def _apply(self, fn: Any, recurse: bool = True) -> Ensemble:
        super()._apply(fn, recurse)
        self._folded = None
        stacked, shared = self._tensors()
        first = {name: tensor[0] for name, tensor in stacked.items()} | shared
        for name, entry in self._spec["tensors"].items():
            if name in first:
                entry["dtype"] = str(first[name].dtype).removeprefix("torch.")
        self._template = [rebuild(self._spec, first)]
        self._halves = cut(self._template[0], stacked)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.buffers()).device

    def member(self, index: int) -> fx.GraphModule:
        """One member as a model of its own; its weights are views of the stacked ones.

        Args:
            index: which; negative counts from the end.

        Returns:
            The model in evaluation mode.

        Raises:
            IndexError: if there is no such member.
        """
        if not -self.count <= index < self.count:
            raise IndexError(f"index {index}: there are {self.count} members")
        stacked, shared = self._tensors()
        return rebuild(self._spec, {name: tensor[index] for name, tensor in stacked.items()} | shared)

    def averaged(self) -> nn.Module:
        """The mixture of a classifier with at least two logits as an ordinary module, for ONNX and ``torch.export``.

        Returns:
            A graph from inputs to mean class probabilities (n, C), in evaluation mode.
        """
        return _averaged([self.member(index) for index in range(self.count)])

    def forward(self, *inputs: Tensor) -> Any:
        """All members' outputs, stacked along a new first axis; a tuple of outputs gives a tuple of stacks."""
        how = self._how()
        if how == "vmap":
            return self._vmap(inputs)
        if how == "folded":
            common, members = self._fold()
            last = torch.channels_last
            values = tuple(value.contiguous(memory_format=last) if value.ndim == 4 else value for value in inputs)
            if common is not None:
                values = common(*clones(values))
            tasks = [lambda m=member: m(*clones(values)) for member in members]
            alone = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or self.device.type != "cpu"
            alone = alone or len(inputs[0]) < FEW
            outputs = [task() for task in tasks] if alone else side_by_side(tasks)
        else:
            outputs = [self._loop(index, inputs) for index in range(self.count)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs)
        return tuple(torch.stack(parts) for parts in zip(*outputs))

    def _fold(self) -> tuple[fx.GraphModule | None, list[fx.GraphModule]]:
        """What all members share, if anything, and of each member the rest; BatchNorm folded, channels last."""
        if self._folded is None:
            members = [self.member(index) for index in range(self.count)]
            common = None
            if self._halves is not None:
                common = _channels_last(fold(self._halves[0]))
                members = [found[1] for member in members if (found := cut(member, self._tensors()[0]))]
            self._folded = common, [_channels_last(fold(member)) for member in members]
        return self._folded

    def _how(self) -> str:
        if self.strategy != "auto":
            return self.strategy
        entries = [*self._spec["modules"].values(), *self._spec["nodes"]]
        names = [str(entry.get("class", entry.get("target"))) for entry in entries]
        slow = any(kind in name for name in names for kind in ("Conv", "conv", "Attention", "attention", "Transformer"))
        return "vmap" if self.device.type == "cuda" or not slow else "folded"

    def _loop(self, index: int, inputs: tuple[Tensor, ...]) -> Any:
        stacked, shared = self._tensors()
        weights = {name: tensor[index] for name, tensor in stacked.items()} | shared
        return functional_call(self._template[0], weights, tuple(value.clone() for value in inputs))

    def _vmap(self, inputs: tuple[Tensor, ...]) -> Any:
        stacked, shared = self._tensors()
        template, values = self._template[0], inputs
        if self._halves is not None:
            common, template = self._halves
            values = common(*clones(inputs))
            names = {name for name, _ in (*template.named_parameters(), *template.named_buffers())}
            shared = {name: tensor for name, tensor in shared.items() if name in names}

        def run(weights: dict[str, Tensor], *values: Tensor) -> Any:
            return functional_call(template, {**weights, **shared}, tuple(clones(values)))

        # Attention's fused kernel has no rule for stacked weights; its plain form does the same.
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return vmap(run, in_dims=(0, *[None] * len(values)))(stacked, *values)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    @torch.no_grad()
    def predict(
        self,
        inputs: Tensor | Iterable[Any],
        *,
        batch_size: int = 256,
        task: Literal["classification", "regression"] = "classification",
        keep_members: bool = False,
        noise_variance: float | Sequence[float] = 0.0,
    ) -> Prediction | RegressionPrediction:
        """Average the members' predictions, with the split of the uncertainty that `bayesprune.posterior.predict` gives.

        Args:
            inputs: a tensor, or an iterable of batches (a tensor, or a tuple or list of inputs and labels), read once.
            batch_size: inputs a forward pass, when ``inputs`` is a tensor.
            task: what an output is: logits (n, C), or means (or a pair of means and variances).
            keep_members: also return every member's probabilities (or means).
            noise_variance: for regression, the variance of the noise when the model gives means only; one number, or one
                for each member.

        Returns:
            A `Prediction` or a `RegressionPrediction`, on the CPU in float64.

        Raises:
            ValueError: if there are no inputs, or an output is not finite (the member is named).
        """
        if task not in ("classification", "regression"):
            raise ValueError(f"task={task!r}: choose 'classification' or 'regression'")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        one = isinstance(noise_variance, (int, float))
        variances = [float(noise_variance)] * self.count if one else list(noise_variance)  # type: ignore
        if len(variances) != self.count:
            raise ValueError(f"noise_variance: {len(variances)} values for {self.count} members; give one for each")
        mixture: ClassMixture | MomentMixture
        mixture = MomentMixture(keep_members) if task == "regression" else ClassMixture(keep_members)
        parts: list[list[tuple[Tensor, ...]]] = [[] for _ in range(self.count)]
        labels = []
        for batch in inputs.split(batch_size) if isinstance(inputs, Tensor) else inputs:
            values, target = (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)
            if not isinstance(values, Tensor):
                raise ValueError(
                    f"inputs: a batch holds a {type(values).__name__}; expected a tensor, or (inputs, labels)"
                )
            if not len(values):
                continue
            output = self(values.to(self.device))
            for index, found in enumerate(self._outputs(output, mixture, variances)):
                if any(part.isnan().any() for part in found):
                    raise ValueError(f"members: member {index} gives outputs that are not finite; leave it out")
                parts[index].append(found)
            if isinstance(target, Tensor):
                labels.append(target.cpu())
        if not parts[0]:
            raise ValueError("inputs: no input to predict for")
        for batches in parts:
            mixture.add(tuple(torch.cat(columns) for columns in zip(*batches)))
        return mixture.result(torch.cat(labels) if labels else None)

    def _outputs(self, output: Any, mixture: ClassMixture | MomentMixture, variances: list[float]) -> list[Any]:
        """Of each member, what the mixture takes in; all members' logits (S, n, C) at once, as if they were one batch."""
        if isinstance(mixture, ClassMixture) and isinstance(output, Tensor) and output.ndim == 3:
            (rows,) = mixture.outputs(output.flatten(0, 1), 0.0)
            return [(part.cpu(),) for part in rows.unflatten(0, (self.count, -1))]
        found = []
        for index, variance in enumerate(variances):
            own: Any = output[index] if isinstance(output, Tensor) else tuple(part[index] for part in output)
            found.append(tuple(part.cpu() for part in mixture.outputs(own, variance)))
        return found


def _averaged(members: Sequence[fx.GraphModule]) -> fx.GraphModule:
    """One graph that runs all members on the same inputs and averages their softmax."""
    root, graph = nn.Module(), fx.Graph()
    inputs = [graph.placeholder(str(node.target)) for node in members[0].graph.nodes if node.op == "placeholder"]
    total: Any = None
    for index, member in enumerate(members):
        root.add_module(f"member_{index}", member)
        output = graph.call_module(f"member_{index}", tuple(inputs))
        probabilities = graph.call_function(torch.softmax, (output, 1))
        total = probabilities if total is None else graph.call_function(operator.add, (total, probabilities))
    graph.output(graph.call_function(operator.truediv, (total, len(members))))
    return releasing_source(fx.GraphModule(root, graph)).eval()


def _channels_last(model: fx.GraphModule) -> fx.GraphModule:
    # Where a write is seen through another name, the layout would decide whether a reshape is one (or a copy).
    if any(isinstance(module, nn.Conv2d) for module in model.modules()) and orderly(model):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _stack(
    spec: Spec, own: dict[str, Tensor], members: Samples | Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The members' tensors stacked, and what all of them share; non-persistent buffers are the model's own."""
    count = len(members)
    if not count:
        raise ValueError(f"members={members!r}: no members; collect some samples")
    kinds = {name: entry["kind"] for name, entry in spec["tensors"].items()}
    stacked: dict[str, Tensor] = {}
    shared = {name: tensor.detach().clone() for name, tensor in own.items()}
    differs: set[str] = set()
    for index in range(count):
        member = members[index]
        for name, tensor in own.items():
            if kinds[name] == "constant":
                continue
            value = member.get(name)
            if value is None or value.shape != tensor.shape or value.dtype != tensor.dtype:
                found = "is missing" if value is None else f"is {value.dtype}{list(value.shape)}"
                raise ValueError(
                    f"members: tensor {name!r} of member {index} {found}, the model has {tensor.dtype}{list(tensor.shape)}"
                )
            if name not in stacked:
                stacked[name] = torch.empty((count, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
            stacked[name][index] = value
            if name not in differs and not torch.equal(stacked[name][0], stacked[name][index]):
                differs.add(name)
    for name in list(stacked):
        if name in differs:
            del shared[name]
        else:
            shared[name] = stacked.pop(name)[0].clone()
    return stacked, shared
