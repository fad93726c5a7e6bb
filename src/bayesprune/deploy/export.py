"""A model for other runtimes: ONNX, and torch.export's own format, each compared with torch before it is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bayesprune.common.files import replacing, write_bytes
from bayesprune.common.modes import evaluating
from bayesprune.deploy.ensemble import Ensemble
from bayesprune.deploy.verify import as_inputs, difference, flat
from bayesprune.graph.inputs import Inputs

TOLERANCE = 1e-4


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_input: Any,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a model as ONNX with a free batch size, and compare onnxruntime's outputs with torch's at two batch sizes.

    Args:
        model: the model; exported in evaluation mode. An `Ensemble` is exported as its mixture (``ensemble.averaged()``).
        path: the file; written under a temporary name and renamed if the outputs agree.
        example_input: an input, a tuple of them, or a dict of them by the names of forward's arguments, with the batch on the
            first axis.
        tolerance: the largest difference allowed, relative to the largest output where that exceeds 1.

    Returns:
        The largest difference found, on the same scale.

    Raises:
        ImportError: if onnx, onnxscript or onnxruntime is not installed.
        ValueError: if the model cannot be exported, or onnxruntime's outputs differ by more.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     worst = export_onnx(torch.nn.Linear(3, 2), f"{folder}/model.onnx", example_input=torch.zeros(2, 3))
        >>> worst < 1e-4
        True
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(f"ONNX export needs {name}: pip install 'bayesprune[export]'") from error
    import onnxruntime

    inputs = _two(model, example_input)
    model = _ready(model, inputs)
    with replacing(path) as temporary:
        with evaluating(model), _quiet():
            try:
                torch.onnx.export(
                    model,
                    inputs.args,
                    str(temporary),
                    kwargs=inputs.kwargs,
                    dynamo=True,
                    external_data=False,
                    dynamic_shapes=_free_batch(inputs),
                )
            except Exception as error:  # the exporter wraps many types in its own
                if isinstance(cause := _cause(error), OSError):  # a full disk
                    raise cause from error
                raise ValueError(f"model: torch cannot export it to ONNX: {_line(cause)}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(temporary), options, providers=["CPUExecutionProvider"])

        def run(batch: Inputs) -> list[Tensor]:
            feed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), batch.tensors)}
            return [torch.from_numpy(value) for value in session.run(None, feed)]

        return _compare(model, run, inputs, tolerance, "onnxruntime")


def export_program(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_input: Any,
    tolerance: float = TOLERANCE,
) -> float:
    """Write a model with ``torch.export`` (.pt2) with a free batch size, read it back and compare at two batch sizes.

    Args:
        model: the model; exported in evaluation mode. An `Ensemble` is exported as its mixture (``ensemble.averaged()``).
        path: the file, which ends in ".pt2"; written under a temporary name and renamed if the outputs agree.
        example_input: an input, a tuple of them, or a dict of them by the names of forward's arguments, with the batch on the
            first axis.
        tolerance: the largest difference allowed, relative to the largest output where that exceeds 1.

    Returns:
        The largest difference found, on the same scale.

    Raises:
        ValueError: if the model cannot be exported, or the outputs differ by more.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     worst = export_program(nn.Linear(3, 2), folder + "/model.pt2", example_input=torch.ones(1, 3))
        >>> worst <= 1e-4
        True
    """
    inputs = _two(model, example_input)
    model = _ready(model, inputs)
    if Path(path).suffix != ".pt2":
        raise ValueError(f"path={str(path)!r}: torch.export's files end in .pt2")
    content = io.BytesIO()
    with evaluating(model), _quiet():
        try:
            program = torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=_free_batch(inputs))
            torch.export.save(program, content)
            content.seek(0)
            again = torch.export.load(content).module()
        except Exception as error:  # the exporter raises many types
            raise ValueError(f"model: torch.export refuses it: {_line(_cause(error))}") from error
    worst = _compare(model, lambda batch: batch.run(again), inputs, tolerance, "torch.export")
    write_bytes(path, content.getvalue())
    return worst


def _ready(model: nn.Module, inputs: Inputs) -> nn.Module:
    """What is exported of a model: the mixture of an ensemble, on the CPU."""
    if isinstance(model, Ensemble):
        model = model.traced(inputs).averaged()
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("model: is not on the CPU; move it there before exporting")
    return model


def _cause(error: BaseException) -> BaseException:
    """What the exporter ran into, under the layers of its own errors."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _two(model: nn.Module, example_input: Any) -> Inputs:
    """Inputs of batch size at least 2: an exporter may take a size of 1 for fixed."""
    inputs = as_inputs(model, example_input).map(lambda value: value.detach().cpu())
    return inputs.repeated(max(2, inputs.batch))


def _free_batch(inputs: Inputs) -> Any:
    """Every tensor's free axes, in the structure of the arguments."""
    batch = torch.export.Dim("batch", min=1)

    def free(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        return {0: batch} if len(value) == inputs.batch else {}

    shapes = tree_map(free, (inputs.args, inputs.kwargs))
    return shapes[1] if inputs.kwargs else shapes[0]  # an example is positional or by name, never both


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print their progress and log their deprecations; an error still comes as one."""
    level = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@torch.no_grad()
def _compare(model: nn.Module, run: Any, inputs: Inputs, tolerance: float, name: str) -> float:
    worst = 0.0
    with evaluating(model):
        for size in (1, inputs.batch + 3):
            batch = inputs.repeated(size)
            expected = flat(batch.map(torch.clone).run(model))
            found = flat(run(batch))
            if [value.shape for value in expected] != [value.shape for value in found]:
                shapes = [tuple(value.shape) for value in found]
                raise ValueError(f"model: {name} gives outputs of shape {shapes} at batch size {size}")
            for got, wanted in zip(found, expected):
                off = difference(got, wanted)
                if not off <= tolerance:
                    raise ValueError(
                        f"model: {name} differs from torch by {off:.1e}, more than tolerance={tolerance:g}"
                    )
                worst = max(worst, off)
    return worst
