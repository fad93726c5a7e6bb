"""Exact physical removal: the masked model made small, with the proof that its outputs are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.compaction.graph_edits import Reason, graph_module, graph_reasons, spared
from bayesprune.compaction.leftovers import leftovers, size_after
from bayesprune.compaction.masked import masked_copy
from bayesprune.compaction.optimizer_state import transfer_optimizer
from bayesprune.compaction.report import CompactionReport, count_parameters, layer_records
from bayesprune.compaction.rewrite import rewrite_
from bayesprune.compaction.slices import Cut, cut_state, cuts_of
from bayesprune.compaction.solve import Solution, check_agreement, solve, violations
from bayesprune.compaction.verify import Verification, verify
from bayesprune.graph.analysis import Analysis
from bayesprune.graph.computed import bake_, computed_weights
from bayesprune.graph.errors import CompactionError
from bayesprune.graph.hooks import FORWARD, changing_hooks, detached_copy, silent_copy, whole_copy
from bayesprune.graph.inputs import Inputs, few_that_run
from bayesprune.graph.rules import analyse
from bayesprune.graph.switches import switched
from bayesprune.graph.trace import depends_on_mode, trace, with_training
from bayesprune.graph.zeros import Zeros
from bayesprune.samplers.admission import unwrapped
from bayesprune.sparsity.groups import plain_name
from bayesprune.sparsity.masks import MaskHolder

COUPLINGS = ("group", "intersection", "indexed")


@dataclass
class Compaction:
    """What :func:`compact` returns.

    Attributes:
        model: The compact model.
        report: What was removed, and why each channel stayed or went.
        optimizer: The optimizer of the compact model, with its state; None if none was given.
        pruner: The pruner on both, with its masks; None if none was given.
        slices: What was cut from each tensor: name -> pairs of a dimension and the indices that are left.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = model[2].weight[:, 1].zero_()
        >>> small = compact(model, example_input=torch.zeros(2, 3))
        >>> small.model[0].out_features, small.convert(model.state_dict())["0.weight"].shape
        (3, torch.Size([3, 3]))
    """

    model: nn.Module
    report: CompactionReport
    optimizer: Optimizer | None
    pruner: MaskHolder | None
    slices: dict[str, Cut]
    _plan: _Plan = field(repr=False)

    @property
    def kind(self) -> str:
        """``"modules"``: the model's own class; ``"graph"``: a ``torch.fx.GraphModule``."""
        return self.report.kind

    def convert(self, state: Mapping[str, Tensor], *, check: bool = True) -> dict[str, Tensor]:
        """Bring a state dict of the old architecture onto the compact model's names and shapes.

        For posterior samples of the masked model, each with its own weights and statistics; constants are folded anew
        for each. For a running average whose pruned entries decay towards zero without reaching it, ``check=False``
        leaves those entries out.

        Args:
            state: All tensors of the old model's state dict.
            check: Refuse a state whose removed channels are not zero, unread or constant.

        Returns:
            A state dict that ``model.load_state_dict`` takes.

        Raises:
            CompactionError: ``sample-differs``.
        """
        return self._plan.convert(state, self.model, check)


@dataclass
class _Plan:
    """All that is needed to treat further weights of the same architecture alike."""

    masked: nn.Module
    original: nn.Module | None  # with its weights computed, where the masked model has them baked in
    analysis: Analysis
    solution: Solution
    masks: dict[str, Tensor] | None
    trained: set[str]
    as_graph: bool

    def analyse(self, model: nn.Module) -> Analysis:
        a = self.analysis
        return analyse(
            model, a.graph, Zeros(model, self.masks, self.trained), a.fold, indexed=a.indexed, drop=a.drop,
            dropped={node.name: place for node, place in a.drops.items()},
        )  # fmt: skip

    def small(self, model: nn.Module, analysis: Analysis) -> tuple[nn.Module, list[str]]:
        """A compact copy of a model of the old architecture."""
        result = whole_copy(model)
        notes = rewrite_(result, analysis, self.solution)
        return (graph_module(result, analysis, self.solution) if self.as_graph else result), notes

    def in_double(self, model: nn.Module) -> nn.Module:
        return self.small(model, self.analyse(model))[0]

    def convert(self, state: Mapping[str, Tensor], compact: nn.Module, check: bool) -> dict[str, Tensor]:
        cuts = cuts_of(self.analysis, self.solution)
        own = compact.state_dict()
        before = (self.original or self.masked).state_dict()
        odd = [n for n in before if n not in state] or [n for n in state if n not in before]
        wrong = [n for n in before if n in state and state[n].shape != before[n].shape]
        if odd or wrong:
            name = (odd + wrong)[0]
            raise CompactionError(
                "sample-differs", f"state[{name!r}] is missing, unknown or of another shape than the old model's"
            )
        if not check and not self.analysis.fold:
            return {n: cut_state({n: state[n]}, cuts)[n] if n in before else own[n].clone() for n in own}
        model = whole_copy(self.original or self.masked)
        model.load_state_dict(dict(state))
        if self.original is not None:
            bake_(model)
        analysis = self.analyse(model)
        if check and (found := violations(analysis, self.solution)):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise CompactionError(
                "sample-differs",
                f"{found[0]}{more}; a sample from before the pruner reached its target is of a larger network: leave it out, or "
                "convert(state, check=False) to cut it as it is",
            )
        small = self.small(model, analysis)[0].state_dict()
        if lacking := [name for name in small if name not in own]:
            raise CompactionError(
                "sample-differs",
                f"constants of the sample's removed channels need {lacking[0]}, which the compact model does not have; "
                "compact with constants='keep', or mask the sample as the model was",
            )
        for name in set(own) - set(small):  # constants that are zero in the sample
            small[name] = torch.zeros_like(own[name])
        return {name: small[name].to(state[name].device if name in state else small[name].device) for name in own}


def compact(
    model: nn.Module,
    pruner: MaskHolder | None = None,
    optimizer: Optimizer | None = None,
    example_input: Any = None,
    *,
    coupling: str = "intersection",
    constants: str = "auto",
    round_to: int = 1,
    dead_branches: str = "drop",
    check_inputs: Sequence[Any] = (),
    tolerance: float = 1e-5,
) -> Compaction:
    """Remove physically what a pruned model does not use, and prove that its outputs stay the same.

    A channel goes iff every reader ignores it (all columns zero), or its value is exactly 0 at every reader, or it is a
    constant c_j that every reader can do without: y_o = b_o + Σ_j W_oj x_j with x_j = c_j becomes b_o + W_oj c_j. A
    padded convolution does not fold (the border differs); one constant channel k with the kernel Σ_j (c_j/c_k) W_j
    carries them all, exactly. Zeros, constants and unused channels are followed through the graph, forwards and
    backwards, to a fixed point. The model, the pruner and the optimizer given are not changed.

    The result is the model's own class with smaller modules wherever its code does not depend on the numbers of
    channels; where the graph must change it is a ``torch.fx.GraphModule``, and the report says why.

    Args:
        model: The model; convolution (grouped: whole groups), linear, normalisation, pooling, attention (whole heads)
            layers of torch, subclasses that compute with their own weight, whatever torch.fx can trace around
            them. What it does not know stays, with a reason.
        pruner: The pruner of the model; its masks are applied first, and it comes along.
        optimizer: The optimizer of the model, which comes along; None: the pruner's, if there is one.
        example_input: An input tensor, a tuple of the inputs, or a dict of them by name.
        coupling: Of sums: ``"intersection"`` removes what all terms and readers agree on; ``"group"`` does too and
            refuses if a stream's terms do not agree; ``"indexed"`` cuts each branch by itself, reads some channels of
            the stream by index and adds into some by index.
        constants: ``"fold"`` moves constants into biases, for evaluation; ``"keep"`` removes only what is zero or
            unread for good, so that training goes on exactly as the masked model's; ``"auto"``: ``"keep"`` if there is
            a pruner or an optimizer, else ``"fold"``.
        round_to: Every layer keeps a multiple of this many channels, or all.
        dead_branches: ``"drop"``: a term of a sum that is zero is left out; ``"keep"``: it keeps one channel.
        check_inputs: Further inputs on which the outputs must agree.
        tolerance: Largest difference of float32 outputs, relative to the largest output where that exceeds 1.

    Returns:
        The compact model with its optimizer, pruner and report, and a ``convert`` for posterior samples.

    Raises:
        CompactionError: With a named ``reason``; nothing is returned whose outputs differ.
        ValueError: If a setting is unknown.

    Warns:
        UserWarning: If fewer than half as many parameters went as weights are zero, with why and what would free them.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[2].weight[:, 2:].zero_()
        >>> small = compact(model, example_input=torch.zeros(1, 4))
        >>> small.model[0], small.report.parameters
        (Linear(in_features=4, out_features=2, bias=True), (58, 16))

    Reference: method, section 7.
    """
    model = getattr(model, "_orig_mod", model)
    _check_settings(coupling, constants, round_to, dead_branches, tolerance, example_input)
    optimizer = _check_owners(model, pruner, optimizer)
    fold = constants == "fold" or (constants == "auto" and optimizer is None)
    example = Inputs.of(model, example_input)

    masked, notes = masked_copy(model, pruner)
    # Without a pruner nothing holds the zeros of what the optimizer trains.
    held_at_zero = {} if pruner is None else pruner.weight_masks()
    masks = None if optimizer is None else {plain_name(name): mask for name, mask in held_at_zero.items()}
    held = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {n for n, p in model.named_parameters() if p.requires_grad and (held is None or id(p) in held)}
    zeros_masks = None if fold else masks
    if not fold and optimizer is None:
        notes.append("neither a pruner nor an optimizer was given: what is zero is taken to stay at zero in training")
    original = masked
    if fold and optimizer is None and any(map(computed_weights, masked.modules())):
        masked = detached_copy(masked)
        notes += bake_(masked)
    few = few_that_run(lambda: silent_copy(masked, changing_hooks(masked, example)), example)
    changing = changing_hooks(masked, few)
    # What a hook only records is no part of the graph.
    bare = silent_copy(masked, changing)
    graph = trace(bare, few)
    if not fold:
        graph = with_training(bare, graph, few)
    zeros = Zeros(bare, zeros_masks, trained)
    analysis = analyse(
        bare, graph, zeros, fold, indexed=coupling == "indexed",
        drop=dead_branches == "drop",
    )  # fmt: skip
    floors = _floors(masked, analysis)
    solution = solve(analysis, round_to=round_to, floors=floors)
    if coupling == "group":
        check_agreement(analysis, solution)
    reasons = graph_reasons(analysis, solution)
    cuts = cuts_of(analysis, solution)
    frozen = {name: zeros.of(param) for name, param in bare.named_parameters()}

    def build(reasons: list[Reason]) -> tuple[_Plan, nn.Module, list[str], Verification]:
        """The compact model, by smaller modules or by a graph of its own, compared with the masked one."""
        if reasons and depends_on_mode(bare, few):
            raise CompactionError(
                "training-dependent-graph",
                f"{reasons[0].why}, and the forward branches on self.training; use nn.Dropout modules instead of F.dropout, "
                f"or {spared(reasons)}",
            )
        if reasons and not fold and (part := switched(bare, few)):
            raise CompactionError(
                "gradient-mode",
                f"{reasons[0].why}, and in forward {part}, which a graph does not hold; freeze by requires_grad_(False) and "
                "detach(), leave that part to the caller, or compact with constants='fold' for evaluation",
            )
        source = None if original is masked else original
        plan = _Plan(bare, source, analysis, solution, zeros_masks, trained, bool(reasons))
        small = whole_copy(masked)
        moved = rewrite_(small, analysis, solution)
        small = graph_module(small, analysis, solution) if reasons else small
        check = verify(
            bare, small, example, check_inputs, changing=changing, in_double=plan.in_double, cuts=cuts, frozen=frozen,
            train_alike=not fold, tolerance=tolerance,
        )  # fmt: skip
        return plan, small, moved, check

    try:
        plan, small, moved, check = build(reasons)
    except CompactionError as error:
        if error.reason == "outputs-differ" and reasons and (lines := next(iter(graph.nodes)).meta.get("numbers")):
            raise CompactionError(
                "outputs-differ",
                f"{reasons[0].why}, which needs a graph, and a graph holds as they are on the example the sizes that forward makes "
                f"numbers by int() ({', '.join(dict.fromkeys(lines))}): write // or -1 in place of int(… / …), or {spared(reasons)}",
            ) from error
        if error.reason != "outputs-differ" or reasons or not any(size.computed for size in analysis.sizes):
            raise
        reasons = [
            Reason(
                "the forward computes a size from other channels than those that it counts", "-1 in place of that size"
            )
        ]
        plan, small, moved, check = build(reasons)
    if reasons and any(set(getattr(m, kind)) - changing[kind] for m in _containers(masked) for kind in FORWARD):
        notes.append("hooks that only look on, on modules that are not layers, are not part of the new graph")
    new_optimizer: Optimizer | None = None
    new_pruner: MaskHolder | None = None
    if optimizer is not None:
        new_optimizer, said = transfer_optimizer(optimizer, model, small, cuts)
        notes += said
    if pruner is not None:
        assert new_optimizer is not None
        new_pruner, said = pruner.onto(small, new_optimizer, cuts)
        notes += said

    def other(fold: bool, indexed: bool) -> int:
        """What other settings would leave."""
        a = analyse(
            bare, graph, Zeros(bare, None if fold else zeros_masks, trained), fold, indexed=indexed,
            drop=dead_branches == "drop",
        )  # fmt: skip
        return size_after(bare, cuts_of(a, solve(a, round_to=round_to, floors=_floors(masked, a))))

    left = leftovers(analysis, solution, cuts, small, other)
    left.warn(count_parameters(model))
    report = CompactionReport(
        kind="graph" if reasons else "modules",
        graph_reasons=[reason.why for reason in reasons],
        layers=layer_records(analysis, solution),
        parameters=(count_parameters(model), count_parameters(small)),
        constants=moved,
        training="evaluation only" if fold else "exact",
        evaluated=check.evaluated,
        exact=check.exact,
        gradients=check.gradients,
        notes=[*notes, *check.notes],
        leftovers=left,
    )
    return Compaction(small, report, new_optimizer, new_pruner, cuts, plan)


def _check_settings(
    coupling: str, constants: str, round_to: int, dead_branches: str, tolerance: float, example_input: Any
) -> None:
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling={coupling!r} is unknown; choose one of {', '.join(map(repr, COUPLINGS))}")
    if constants not in ("auto", "fold", "keep"):
        raise ValueError(f"constants={constants!r} is unknown; choose 'auto', 'fold' or 'keep'")
    if dead_branches not in ("drop", "keep"):
        raise ValueError(f"dead_branches={dead_branches!r} is unknown; choose 'drop' or 'keep'")
    if round_to < 1:
        raise ValueError(f"round_to={round_to} must be at least 1")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive")
    if example_input is None:
        raise ValueError(
            "example_input is needed: an input tensor on which the graph is traced and the result verified"
        )


def _check_owners(model: nn.Module, pruner: MaskHolder | None, optimizer: Optimizer | None) -> Optimizer | None:
    optimizer = None if optimizer is None else unwrapped(optimizer)
    if pruner is None:
        return optimizer
    if getattr(pruner.model, "_orig_mod", pruner.model) is not model:
        raise CompactionError("pruner-mismatch", "the pruner was built on another model; give the model it prunes")
    if optimizer is not None and pruner.optimizer is not optimizer:
        raise CompactionError("pruner-mismatch", "the pruner is attached to another optimizer; give that one")
    return pruner.optimizer


def _floors(model: nn.Module, a: Analysis) -> list[tuple[Tensor, int, str]]:
    """What a squeeze must not drop; and torch's CPU kernels write past their buffers in channels_last, for strided 1×1
    convolutions of less than eight input channels: such a layer keeps eight.
    """
    found = list(a.floors)
    for call in a.calls.values():
        module: Any = call.module
        if not isinstance(module, nn.Conv2d) or call.source is None or call.node not in a.alive:
            continue
        risky = max(module.kernel_size) == 1 and max(module.stride) > 1
        last = any(
            p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
            for p in model.parameters()
        )
        if risky and last and module.weight.device.type == "cpu":
            found.append((call.source, 8, "torch needs eight channels here in channels_last"))
    return found


def _containers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if any(True for _ in module.children())]
