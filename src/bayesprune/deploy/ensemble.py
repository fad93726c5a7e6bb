"""Posterior samples of one architecture as one model: stacked weights, all members in one call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from bayesprune.deploy.architecture import Spec, describe
from bayesprune.deploy.arguments import dtype_name
from bayesprune.deploy.members import averaged, batches, logits_of, stack_members
from bayesprune.deploy.strategies import Strategies
from bayesprune.deploy.tracing import closed
from bayesprune.graph.hooks import detached_copy, hooked
from bayesprune.graph.inputs import Inputs
from bayesprune.posterior.mixture import ClassMixture, MomentMixture, Prediction, RegressionPrediction, begin
from bayesprune.posterior.samples import Samples

STRATEGIES = ("auto", "vmap", "folded", "loop")


class Ensemble(Strategies):
    """Members that share one architecture, and so one keep mask, predict together.

    Every tensor that differs between members is held once, stacked along a new first axis; a tensor that all of them share
    (frozen weights, constants) is held once for all, and what depends on shared tensors and the inputs alone is computed once:
    a subnetwork ensemble, whose members differ in the last layers only, costs one trunk and as many heads (not with "loop").
    ``ensemble(x)`` gives all members' outputs, `predict` the mixture.

    Args:
        model: the architecture. It is left as it is. What cannot be traced (see `bayesprune.deploy.save`) runs as its own code,
            by "vmap" or "loop".
        members: a `SampleStore`, `MemorySamples`, or a sequence of state dicts of ``model``.
        strategy: how to run the members. "vmap": all at once, ``torch.func.vmap`` over the stacked weights. "folded": each
            by itself, with BatchNorm folded into the convolutions and channels last (outputs differ by rounding), and on a CPU, from
            eight inputs on and without gradients, in as many threads as torch may use;
            "loop": one after the other, as they are. "auto": "vmap" on a GPU and for models without convolutions or
            attention, else "folded": on a CPU a convolution over stacked weights becomes a grouped one, which is slower;
            "loop" where neither can run the network.
        example_input: an input, a tuple of them, or a dict of them by the names of forward's arguments: decides conditions on
            shapes and arguments that may be left out, so that such a network is traced too.

    Raises:
        ValueError: if there are no members, one does not fit the model, the model has forward hooks, or it cannot be traced
            and ``strategy`` is "folded".

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
        example_input: Any = None,
    ) -> None:
        _check_strategy(strategy)
        model = getattr(model, "_orig_mod", model)
        spec: Spec | None = None
        self_made: list[nn.Module] = []
        try:
            if example_input is None and strategy != "folded" and (optional := _optional(model)):
                raise ValueError(f"argument {optional!r} of forward may be left out: give example_input")
            if closed(model):
                raise ValueError(f"nn.{type(model).__name__} cannot be traced: it is the whole model")
            spec, own = describe(model, example_input)
            constants = {name for name, entry in spec["tensors"].items() if entry["kind"] == "constant"}
        except ValueError as error:
            if strategy == "folded" or hooked(model):
                raise
            reason = str(error)
            self_made = [detached_copy(model).eval().requires_grad_(False)]
            own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            constants = set(own) - set(model.state_dict())
        stacked, shared = stack_members(own, constants, members)
        super().__init__()
        self._own_copy = self_made  # of what cannot be traced; in a list, for its tensors are none of this module's
        self._reason = reason if self_made else ""
        self._begin(spec, stacked, shared, len(members), strategy)

    def _begin(
        self, spec: Spec | None, stacked: dict[str, Tensor], shared: dict[str, Tensor], count: int, strategy: str
    ) -> None:
        self.strategy, self.count = _check_strategy(strategy), count
        self._spec = None if spec is None else {**spec, "training": False, "other_mode": []}
        # Names of tensors have dots, which names of buffers must not.
        self.stacked, self.shared = nn.Module(), nn.Module()
        for holder, tensors in ((self.stacked, stacked), (self.shared, shared)):
            for name, tensor in tensors.items():
                holder.register_buffer(name.replace(".", "/"), tensor.detach())
        self._refused: set[str] = set()
        self._build()
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
        stacked = {name: tensors[name] for name in names}
        return cls._of(spec, stacked, {k: v for k, v in tensors.items() if k not in stacked}, count, strategy)

    @classmethod
    def _of(
        cls, spec: Spec, stacked: dict[str, Tensor], shared: dict[str, Tensor], count: int, strategy: str
    ) -> Ensemble:
        """An ensemble of a traced network and its tensors."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._own_copy, self._reason = [], ""
        self._begin(spec, stacked, shared, count, strategy)
        return self

    def parts(self) -> tuple[Spec, dict[str, Tensor]]:
        """The architecture with the names of its stacked tensors, and all tensors by name."""
        stacked, shared = self._tensors()
        spec = {**self._traced(), "members": self.count, "stacked": list(stacked), "strategy": self.strategy}
        return spec, {**stacked, **shared}

    def traced(self, example_input: Any) -> Ensemble:
        """This ensemble with a traced network, as files and exports need it: itself where it has one, else another.

        Args:
            example_input: an input, a tuple of them, or a dict of them by the names of forward's arguments.

        Returns:
            An ensemble of the same tensors.

        Raises:
            ValueError: if the network cannot be traced on the example either; the message says why.
        """
        if self._spec is not None:
            return self
        model = self._template[0]
        spec, own = describe(model, Inputs.of(model, example_input))
        names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        held = self._tensors()
        stacked: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}
        for name, tensor in own.items():
            known = names.get(id(tensor), "")
            if known in held[0]:
                stacked[name] = held[0][known]
            else:  # what forward makes is in no list of the model's
                shared[name] = held[1].get(known, tensor.detach())
        return self._of(spec, stacked, shared, self.count, self.strategy)

    def _traced(self) -> Spec:
        if self._spec is None:
            raise ValueError(f"{self._reason}; where an example decides, give Ensemble an example_input")
        return self._spec

    def __len__(self) -> int:
        return self.count

    def extra_repr(self) -> str:
        """The number of members and how they are run."""
        return f"members={self.count}, strategy={self.strategy!r}"

    def _apply(self, fn: Any, recurse: bool = True) -> Ensemble:
        super()._apply(fn, recurse)
        stacked, shared = self._tensors()
        first = {name: tensor[0] for name, tensor in stacked.items()} | shared
        for name, entry in (self._spec or {"tensors": {}})["tensors"].items():
            if name in first:
                entry["dtype"] = dtype_name(first[name].dtype)
        self._build()
        return self

    @property
    def template(self) -> nn.Module:
        """The network, with the first member's weights."""
        return self._template[0]

    def member(self, index: int) -> nn.Module:
        """One member as a model of its own, in evaluation mode; its weights are views of the stacked ones.

        Args:
            index: which; negative counts from the end.

        Returns:
            The model in evaluation mode.

        Raises:
            IndexError: if there is no such member.
        """
        if not -self.count <= index < self.count:
            raise IndexError(f"index {index}: there are {self.count} members")
        return self._member(index)

    def averaged(self) -> nn.Module:
        """A graph from inputs to a classifier's mean class probabilities (n, C), for ONNX and ``torch.export``; C at least 2.

        Returns:
            A graph from inputs to mean class probabilities (n, C), in evaluation mode.

        Raises:
            ValueError: if the network was not traced (see `traced`), or its outputs are none of logits.
        """
        self._traced()
        members = [self.member(index) for index in range(self.count)]
        return averaged([member for member in members if isinstance(member, fx.GraphModule)])

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """All members' outputs, stacked along a new first axis, in the form of the network's own (a tensor, tuple, dict).

        Args:
            *inputs: the network's arguments.
            **named: those given by name.

        Returns:
            The stacks.

        Raises:
            TypeError: if the network takes other arguments.
        """
        return self._outputs(inputs, named)

    @torch.no_grad()
    def predict(
        self,
        inputs: Tensor | Mapping[str, Tensor] | Iterable[Any],
        *,
        batch_size: int = 256,
        task: Literal["classification", "regression"] = "classification",
        keep_members: bool = False,
        noise_variance: float | Sequence[float] = 0.0,
    ) -> Prediction | RegressionPrediction:
        """Average the members' predictions, with the split of the uncertainty that `bayesprune.posterior.predict` gives.

        Args:
            inputs: a tensor, a dict of tensors by the names of forward's arguments, or an iterable of batches (either of these,
                or a tuple or list of inputs and labels), read once; "labels" in a dict are the labels.
            batch_size: inputs a forward pass, when ``inputs`` is a tensor or a dict.
            task: what an output is: logits (n, C), or means (or a pair of means and variances).
            keep_members: also return every member's probabilities (or means).
            noise_variance: for regression, the variance of the noise when the model gives means only; one number, or one
                for each member.

        Returns:
            A `Prediction` or a `RegressionPrediction`, on the CPU in float64.

        Raises:
            ValueError: if there are no inputs, or an output is not finite (the member is named).
        """
        mixture, variances = begin(task, batch_size, noise_variance, self.count, keep_members)
        parts: list[list[tuple[Tensor, ...]]] = [[] for _ in range(self.count)]
        labels = []
        for values, target in batches(inputs, batch_size):
            values = tree_map(lambda value: value.to(self.device), values)
            if not len(tree_flatten(values)[0][0]):
                continue
            output = logits_of(self(**values) if isinstance(values, dict) else self(values))
            for index, found in enumerate(self._mixed(output, mixture, variances)):
                if any(part.isnan().any() for part in found):
                    raise ValueError(f"members: member {index} gives outputs that are not finite; leave it out")
                parts[index].append(found)
            if isinstance(target, Tensor):
                labels.append(target.cpu())
        if not parts[0]:
            raise ValueError("inputs: no input to predict for")
        for rows in parts:
            mixture.add(tuple(torch.cat(columns) for columns in zip(*rows)))
        return mixture.result(torch.cat(labels) if labels else None)

    def _mixed(self, output: Any, mixture: ClassMixture | MomentMixture, variances: list[float]) -> list[Any]:
        """Of each member, what the mixture takes in; all members' logits (S, n, C) at once, as if they were one batch."""
        if isinstance(mixture, ClassMixture) and isinstance(output, Tensor) and output.ndim == 3:
            (rows,) = mixture.outputs(output.flatten(0, 1), 0.0)
            return [(part.cpu(),) for part in rows.unflatten(0, (self.count, -1))]
        found = []
        for index, variance in enumerate(variances):
            own: Any = output[index] if isinstance(output, Tensor) else tuple(part[index] for part in output)
            found.append(tuple(part.cpu() for part in mixture.outputs(own, variance)))
        return found


def _check_strategy(strategy: str) -> str:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: choose one of {', '.join(STRATEGIES)}")
    return strategy


def _optional(model: nn.Module) -> str | None:
    """An argument of forward that is None where it is left out: without an example, nothing says whether it is."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return next((p.name for p in parameters if p.kind in kinds and p.default is None), None)
