"""The proof that nothing changed: outputs at several sizes, and one training step, against the masked model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesprune.compaction.slices import Cut, take
from bayesprune.graph.errors import CompactionError
from bayesprune.graph.hooks import Changing, silent_copy
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.slim_attention import SlimAttention
from bayesprune.graph.source import deep_copy

MOST = 8  # examples compared
EXACT = 1e-9  # of float64 outputs, relative to the largest
EXACT_GRADIENT = 1e-7  # of float64 gradients: BatchNorm over a few values divides by small spreads
WORST_NOISE = 1e-2
_STEPS = {torch.float64: 1e-4, torch.float32: 1.0, torch.bfloat16: 2.0**13, torch.float16: 2.0**10}  # ten of their eps


@dataclass
class Verification:
    """What was compared."""

    evaluated: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    exact: float | None = None
    gradients: float | None = None
    notes: list[str] = field(default_factory=list)


def flat(outputs: Any, seen: tuple[int, ...] = ()) -> list[Tensor]:
    """All tensors of a model's output, in order: of structures, and of objects by their attributes."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        entries = list(outputs.values())
    elif isinstance(outputs, (tuple, list)):
        entries = list(outputs)
    else:
        names = (
            [each.name for each in fields(outputs)] if is_dataclass(outputs) else [*getattr(outputs, "__dict__", ())]
        )
        entries = [] if isinstance(outputs, type) else [getattr(outputs, name, None) for name in names]
    if id(outputs) in seen:
        return []
    return [t for entry in entries for t in flat(entry, (*seen, id(outputs)))]


def check_inputs(model: nn.Module, example: Inputs, further: Sequence[Any]) -> list[Inputs]:
    """Inputs to compare on: random ones of the example's size, then of an odd and of a smaller size, where the model takes
    them, and the further ones given.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor, shape: Sequence[int]) -> Tensor:
        if not like.is_floating_point():
            for dim, size in enumerate(shape):
                like = like.index_select(dim, (torch.arange(size) % like.shape[dim]).to(like.device))
            return like
        made = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like.device, like.dtype)
        last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
        return made.contiguous(memory_format=torch.channels_last) if last else made

    tensors = example.tensors
    if len(tensors) == 1 and tensors[0].dim() > 1:  # a few examples tell as much as many
        example = example.map(lambda t: t[:MOST])
    first = example.map(lambda t: noise(t, t.shape))
    found = [first, *[Inputs.of(model, each) for each in further]]
    tensors = example.tensors
    if len(tensors) != 1:
        return found
    shape = list(tensors[0].shape)
    spatial = [n for n in range(2, len(shape))] if len(shape) != 3 else [2, 1]
    tries: list[list[int]] = []
    for grow in (lambda n: n + 1 + n % 2, lambda n: max(n - 1 - n % 2, 1)):
        if len(shape) == 3:  # length first or last: whichever the model takes
            for n in spatial:
                tries.append([grow(s) if m == n else s for m, s in enumerate(shape)])
        elif spatial:
            tries.append([grow(s) + 2 * (n == 3 and grow(s) > s) if n in spatial else s for n, s in enumerate(shape)])
    if len(shape) == 2 and not tensors[0].is_floating_point():
        tries += [[shape[0], shape[1] + 1], [shape[0], max(shape[1] - 1, 1)]]
    tries.append([shape[0] + 1, *shape[1:]])
    for sizes in tries:
        attempt = example.map(lambda t: noise(t, [max(sizes[0], 1), *sizes[1:]]))  # noqa: B023
        try:
            with torch.no_grad():
                attempt.run(model)
        except Exception:  # the model takes no such size
            continue
        found.append(attempt)
    return found


def verify(
    masked: nn.Module,
    compact: nn.Module,
    example: Inputs,
    further: Sequence[Any],
    *,
    changing: Changing,
    in_double: Callable[[nn.Module], nn.Module],
    cuts: Mapping[str, Cut],
    frozen: Mapping[str, Tensor],
    train_alike: bool,
    tolerance: float,
) -> Verification:
    """Compare the compact model with the masked one."""
    report = Verification()
    left, right = masked.eval(), silent_copy(compact, changing).eval()
    inputs = check_inputs(left, example, further)
    if len({case.shape[1:] for case in inputs}) < 2:
        report.notes.append(
            "compared at one size of input, the only one that was found to run: give check_inputs for more"
        )
    with torch.no_grad():
        for case in inputs:
            wanted = flat(case.run(left))
            shape = case.shape
            if not wanted:
                raise CompactionError(
                    "no-outputs",
                    f"on an input of shape {shape} the model returns no tensor that could be compared; return tensors, in "
                    "tuples, lists, dicts or dataclasses",
                )
            if not all(bool(t.isfinite().all()) for t in wanted):
                raise CompactionError(
                    "not-finite", f"the masked model's outputs on an input of shape {shape} are not finite"
                )
            try:
                got = flat(case.run(right))
            except Exception as error:
                raise CompactionError(
                    "outputs-differ",
                    f"the compact model fails on an input of shape {shape} ({type(error).__name__}: {error}); the "
                    "forward depends on a number of channels in a way that was not seen",
                ) from error
            report.evaluated.append((shape, _difference(wanted, got, tolerance, shape)))
    try:
        exact = deep_copy(left).double()
        doubles = [case.map(lambda t: t.double() if t.is_floating_point() else t) for case in inputs]
        with torch.no_grad():
            truth = [flat(case.run(exact)) for case in doubles]
    except Exception as error:
        report.notes.append(f"float64 was not compared: the model does not run in it ({type(error).__name__})")
        return report
    small = in_double(exact)
    with torch.no_grad():
        report.exact = 0.0
        for outputs, case in zip(truth, doubles):
            report.exact = _worst([report.exact, _relative(outputs, flat(case.run(small)))])
    if not report.exact <= EXACT:
        raise CompactionError(
            "outputs-differ",
            f"in float64 the compact model's outputs differ by {report.exact:.1e} of the largest output; the forward "
            "depends on something that torch.fx does not show",
        )
    _compare_step(exact, small, doubles[0], cuts, frozen, train_alike, report)
    return report


def _difference(wanted: list[Tensor], got: list[Tensor], tolerance: float, shape: tuple[int, ...]) -> float:
    if [t.shape for t in wanted] != [t.shape for t in got]:
        raise CompactionError("outputs-differ", f"the outputs' shapes differ on an input of shape {shape}")
    worst = 0.0
    for one, two in zip(wanted, got):
        if not one.numel():
            continue
        off = float((one.double() - two.double()).abs().max())
        largest = float(one.double().abs().max())
        half = one.dtype in (torch.bfloat16, torch.float16)
        allowed = tolerance * _STEPS.get(one.dtype, 1.0) * (largest if half else max(1.0, largest))
        if not off <= allowed:
            raise CompactionError(
                "outputs-differ",
                f"on an input of shape {shape} the outputs differ by {off:.1e}, more than {allowed:.1e}; see the report's "
                "graph reasons, or raise tolerance if the model's outputs are ill-conditioned",
            )
        worst = max(worst, off)
    return worst


def _relative(wanted: list[Tensor], got: list[Tensor]) -> float:
    return _worst([_off(one, two) / max(1.0, _off(one, 0.0)) for one, two in zip(wanted, got)])


def _off(wanted: Tensor, got: Tensor | float) -> float:
    """Return the largest difference where what is wanted is finite; NaN where what was got is not a number."""
    off = (wanted - got).abs().masked_fill(~wanted.isfinite(), 0.0)
    return float(off.max()) if off.numel() else 0.0


def _worst(values: Iterable[float]) -> float:
    """Return the largest, 0 of none; NaN if one of them is, which max() lets pass."""
    return float(np.max([0.0, *values]))


def _compare_step(
    masked: nn.Module,
    compact: nn.Module,
    case: Inputs,
    cuts: Mapping[str, Cut],
    frozen: Mapping[str, Tensor],
    alike: bool,
    report: Verification,
) -> None:
    """Outputs, gradients and running statistics of one training step, entry by entry of what is left."""
    case = _larger_batch(case)
    try:
        with torch.no_grad():  # its outputs alone
            again, _, _ = _step(deep_copy(masked), case)
        first, gradients, statistics = _step(masked, case)
    except Exception as error:
        report.notes.append(f"training was not compared: the masked model does not train on this input ({error})")
        return
    try:
        got, own, moved = _step(compact, case)
    except Exception as error:
        raise CompactionError(
            "training-differs", f"the compact model does not train: {type(error).__name__}: {error}"
        ) from error
    if not all(bool(t.isfinite().all()) for t in got) and all(bool(t.isfinite().all()) for t in first):
        raise CompactionError("training-differs", "the compact model's outputs in training mode are not finite")
    if _relative(first, again) > EXACT:
        report.notes.append("training was not compared: the model draws random numbers outside nn.Dropout")
        return
    worst = _relative(first, got)
    scale = _worst(_off(g, 0.0) for g in gradients.values()) or 1.0
    known = dict(masked.named_parameters())
    for name, param in compact.named_parameters():
        if name in known and (name in gradients or name in own):
            cut = cuts.get(name, [])
            wanted = take(gradients.get(name, torch.zeros_like(known[name])), cut)  # without one, it does not move
            value = own.get(name, torch.zeros_like(param))
            if name in frozen:  # what is held at zero does not move, whatever its gradient
                held = take(frozen[name], cut).to(value.device)
                wanted, value = wanted.masked_fill(held, 0.0), value.masked_fill(held, 0.0)
            worst = _worst([worst, _off(wanted, value) / scale])
    for name, value in moved.items():
        if name in statistics and value.is_floating_point():
            worst = _worst([worst, _relative([take(statistics[name], cuts.get(name, []))], [value])])
    report.gradients = worst
    if not alike or worst <= EXACT_GRADIENT:
        return
    # Where ReLU's argument is a rounding error, a gradient is a matter of chance: how much does the masked model's own
    # change when its weights do in the last digits?
    own_noise = min(WORST_NOISE, _sensitivity(masked, case, first, gradients, scale))
    report.notes.append(
        f"the masked model's own gradients change by {own_noise:.0e} with the last digits of its weights"
    )
    if not worst <= 10 * own_noise:
        raise CompactionError(
            "training-differs",
            f"after one training step outputs, gradients or running statistics differ by {worst:.1e} in float64; compact "
            "with constants='fold' if the result is only to be evaluated",
        )


@torch.no_grad()
def _sensitivity(
    masked: nn.Module, case: Inputs, outputs: list[Tensor], gradients: dict[str, Tensor], scale: float
) -> float:
    generator = torch.Generator().manual_seed(3)
    for param in masked.parameters():
        noise = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.device)
        param.mul_(1 + 1e-15 * noise)
    with torch.enable_grad():
        again, moved, _ = _step(masked, case)
    return _worst([_relative(outputs, again), *(_off(gradients[name], value) / scale for name, value in moved.items())])


def _larger_batch(case: Inputs) -> Inputs:
    """At least four examples: normalisation over two of them passes no gradient on."""
    tensors = case.tensors
    if len(tensors) != 1 or not tensors[0].is_floating_point() or tensors[0].shape[0] >= 4:
        return case
    first = tensors[0]
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn((4, *first.shape[1:]), generator=generator, dtype=torch.float64).to(first.device, first.dtype)
    noise[: first.shape[0]] = first
    return case.map(lambda _: noise)


def _step(model: nn.Module, case: Inputs) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            module.p = 0.0
        elif isinstance(module, (nn.MultiheadAttention, SlimAttention)):
            module.dropout = 0.0
    for param in model.parameters():
        param.grad = None
    outputs = flat(case.run(model))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype)).sum()
        for t in outputs
        if t.is_floating_point()
    )
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [t.detach() for t in outputs], gradients, {name: b.clone() for name, b in model.named_buffers()}
