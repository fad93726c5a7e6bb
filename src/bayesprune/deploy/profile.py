"""What compaction bought: disk, parameters, multiply-adds and measured time, dense beside compact."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesprune.common.modes import device_of, evaluating
from bayesprune.deploy.ensemble import Ensemble
from bayesprune.deploy.folder import WEIGHTS, load, random_model, read_architecture, save
from bayesprune.deploy.strategies import plain_attention
from bayesprune.deploy.timing import Comparison, compare_times
from bayesprune.deploy.verify import as_inputs
from bayesprune.graph.inputs import Inputs
from bayesprune.graph.source import deep_copy


@dataclass(frozen=True)
class Size:
    """What a model takes up; ``zeros`` are those of weights, of two axes or more."""

    bytes: int
    parameters: int
    zeros: int
    madds: int
    members: int = 1


@dataclass(frozen=True)
class Profile:
    """A compact model beside the dense one, see `profile`; ``print`` shows it as a table.

    Attributes:
        compact: Size of the compact model.
        dense: Size of the dense model, if one is known.
        latency: By batch size, the two times and their ratio; without a dense model, the compact model against itself.
        environment: Processor threads, device and versions the times belong to.
        notes: What the numbers do not say by themselves.

    Example:
        >>> import torch
        >>> found = profile(torch.nn.Linear(4, 2), example_input=torch.zeros(1, 4), batch_sizes=(1,), seconds=0.01)
        >>> found.compact.parameters, found.dense is None
        (10, True)
    """

    compact: Size
    dense: Size | None
    latency: dict[int, Comparison]
    environment: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The profile as plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        rows: list[tuple[str, str, str, str]] = [("", "dense" if self.dense else "", "compact", "dense / compact")]
        for title, key in (("bytes on disk", "bytes"), ("parameters", "parameters"), ("multiply-adds", "madds")):
            small = getattr(self.compact, key)
            large = getattr(self.dense, key) if self.dense else None
            ratio = f"{large / small:.2f}" if large and small else ""
            rows.append((title, "" if large is None else f"{large:,}", f"{small:,}", ratio))
        for batch, times in self.latency.items():
            title = f"ms at batch {batch}"
            if self.dense:
                ratio = f"{times.ratio:.2f} ({times.low:.2f} to {times.high:.2f})"
                rows.append((title, f"{1e3 * times.before:.2f}", f"{1e3 * times.after:.2f}", ratio))
            else:
                rows.append((title, "", f"{1e3 * times.after:.2f}", ""))
        width = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{row[0]:<{width[0]}}  {row[1]:>{width[1]}}  {row[2]:>{width[2]}}  {row[3]:<{width[3]}}".rstrip()
            for row in rows
        ]
        where = ", ".join(f"{key} {value}" for key, value in self.environment.items())
        return "\n".join([*lines, where, *self.notes])


def profile(
    model: nn.Module | str | os.PathLike[str],
    *,
    dense: nn.Module | None = None,
    example_input: Any = None,
    batch_sizes: Sequence[int] = (1, 64),
    seconds: float = 4.0,
    confidence: float = 0.95,
) -> Profile:
    """Measure a model's size and speed beside the dense one, both in turns in the same run.

    Args:
        model: a folder that `save` wrote, a model, or an `Ensemble` (whose time is that of all members).
        dense: what to compare with; default: for a folder, the dense architecture written with it, at random weights.
        example_input: an input, a tuple of them, or a dict of them by name; default: for a folder, zeros of the shape it was saved with.
        batch_sizes: the batch sizes to time.
        seconds: time to spend on each batch size.
        confidence: coverage of the ratio's interval.

    Returns:
        A `Profile`.

    Raises:
        ValueError: if there is no example input to run.
        FileNotFoundError: if ``model`` is a path that holds no model.

    Example:
        >>> small, large = nn.Linear(10, 10), nn.Linear(100, 10)
        >>> nets = [nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 2)) for width in (8, 80)]
        >>> result = profile(nets[0], dense=nets[1], example_input=torch.zeros(1, 10), batch_sizes=(1,), seconds=0.02)
        >>> result.compact.madds, result.dense.madds, result.compact.parameters, result.dense.parameters
        (96, 960, 106, 1042)
    """
    large: Size | None = None
    if isinstance(model, nn.Module):
        compact = model
        disk = None
    else:
        content = read_architecture(model)
        compact = load(model)
        disk = (Path(model) / WEIGHTS).stat().st_size
        if example_input is None:
            example_input = tuple(
                torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"])) for entry in content["inputs"]
            )
        if dense is None and "dense" in content:
            dense = random_model(content["dense"]["architecture"])
            large = Size(content["dense"]["bytes"], 0, 0, 0)
    if example_input is None:
        raise ValueError("example_input is needed: an input of the model, or a tuple of them")
    inputs = as_inputs(compact, example_input)
    small = _size(compact, inputs, disk)
    if dense is not None:
        large = _size(dense, inputs, None if large is None else large.bytes)
    latency = {}
    with torch.no_grad(), evaluating(compact), evaluating(dense if dense is not None else compact):
        for batch in batch_sizes:
            values = _noise(inputs.repeated(batch))
            other = dense if dense is not None else compact
            latency[batch] = compare_times(
                lambda other=other, values=values: values.run(other),  # type: ignore[misc]
                lambda values=values: values.run(compact),  # type: ignore[misc]
                seconds=seconds,
                confidence=confidence,
            )
    environment = {
        "threads": torch.get_num_threads(),
        "device": str(device_of(compact)),
        "torch": torch.__version__,
        "processor": _processor(),
    }
    return Profile(small, large, latency, environment, _notes(small))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _notes(small: Size) -> list[str]:
    notes = []
    if small.members > 1:
        notes.append(f"compact: an ensemble of {small.members}; parameters of one member, all else of all of them")
    share = small.zeros / small.parameters if small.parameters else 0.0
    if share > 0.01:
        notes.append(
            f"{share:.1%} of the compact parameters are zero weights that no structure removes: they cost full time in dense "
            "kernels (sparse storage saves their disk, see bayesprune.sparsity.packing)"
        )
    return notes


def _size(model: nn.Module, inputs: Inputs, disk: int | None) -> Size:
    single: nn.Module = model.member(0) if isinstance(model, Ensemble) else model
    members = len(model) if isinstance(model, Ensemble) else 1
    if disk is None:
        with tempfile.TemporaryDirectory() as folder:
            path = save(deep_copy(model).cpu(), Path(folder) / "model", example_input=inputs)
            disk = (path / WEIGHTS).stat().st_size
    madds = members * multiply_adds(single, inputs.map(lambda value: value.to(device_of(single))))
    parameters = list(single.parameters())
    # Of weights: biases, shifts and scales begin at zero, or may, and cost nothing.
    zeros = sum(int((p == 0).sum()) for p in parameters if p.ndim > 1)
    return Size(disk, sum(p.numel() for p in parameters), zeros, madds, members)


def multiply_adds(model: nn.Module, inputs: Any) -> int:
    """Multiply-adds of a model's matrix products and convolutions for one input of a batch."""
    inputs = Inputs.of(model, inputs)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Fused kernels (attention, LSTM) hide their products from the counter; the plain forms do the same arithmetic.
    with (
        torch.no_grad(),
        evaluating(model),
        plain_attention(),
        sdpa_kernel(SDPBackend.MATH),
        _plain_kernels(),
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten._trilinear: _bilinear}) as counter,
    ):
        inputs.map(torch.clone).run(model)
    return counter.get_total_flops() // (2 * inputs.batch)


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without the libraries whose recurrent layers are one kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an Intel GPU that is not there
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


def _bilinear(one: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Operations of ``nn.Bilinear``: every weight (out, in1, in2) once for each row."""
    return 2 * int(one[0]) * math.prod(weight)


def _noise(inputs: Inputs) -> Inputs:
    """Zeros could be faster than data (and denormals slower): time on noise where the input is of real numbers."""
    generator = torch.Generator().manual_seed(0)
    return inputs.map(
        lambda value: torch.randn(value.shape, generator=generator).to(value) if value.is_floating_point() else value
    )
