"""A model as a folder: architecture.json and weights.safetensors, written whole or not at all, read without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parsed
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from bayesprune._version import __version__
from bayesprune.deploy.architecture import Spec, describe, rebuild
from bayesprune.deploy.arguments import dtype_name
from bayesprune.deploy.ensemble import Ensemble
from bayesprune.deploy.verify import ALIGNMENT, as_inputs, check_same
from bayesprune.graph.inputs import Inputs

FORMAT = "bayesprune-model"
VERSION = 1
ARCHITECTURE, WEIGHTS, ONNX, EXPORTED = "architecture.json", "weights.safetensors", "model.onnx", "model.pt2"
OURS = {ARCHITECTURE, WEIGHTS, ONNX, EXPORTED, ONNX + ".data", "report.json"}


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    example_input: Any,
    metadata: Mapping[str, Any] | None = None,
    dense: nn.Module | None = None,
    extras: Callable[[nn.Module, Path], None] | None = None,
) -> Path:
    """Write a model so that `load` gives it back without its Python class, without the training code, without pickle.

    The folder gets ``architecture.json`` (the traced graph over torch's own modules and an allow-list of functions) and
    ``weights.safetensors``. Before it takes its name it is read back, and its outputs are compared with the model's bit
    for bit: in evaluation at two batch sizes and, with the buffers after it, in one training pass.

    Args:
        model: a module whose forward can be traced, or a `bayesprune.deploy.Ensemble`. Where forward takes another path in
            training than in evaluation, the file holds that of evaluation and refuses to run in training; a warning says so.
        folder: where to write. A folder that holds an earlier model is replaced, another one is refused.
        example_input: an input, a tuple of them, or a dict of them by the names of forward's arguments, with the batch on the
            first axis.
        metadata: what to remember with it, in JSON's own types.
        dense: the model before compaction; its architecture is written beside, for `profile`, and its weights are not.
        extras: called with the model read back and the unfinished folder, to add files of its own.

    Returns:
        The folder.

    Raises:
        ValueError: if something in the model cannot be written (the message names it), or the outputs differ.
        FileExistsError: if ``folder`` holds something else than a model of ours.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     path = save(model, f"{parent}/model", example_input=torch.zeros(1, 1, 8, 8))
        ...     again = load(path)
        >>> x = torch.randn(5, 1, 8, 8)
        >>> torch.equal(again(x), model(x))
        True
    """
    inputs = as_inputs(model, example_input)
    whole = isinstance(model, Ensemble)  # it brings its own stacked tensors
    spec, tensors = model.parts() if isinstance(model, Ensemble) else describe(model, inputs)
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "bayesprune": __version__,
        "inputs": [{"dtype": dtype_name(value.dtype), "shape": list(value.shape)} for value in inputs.tensors],
        "architecture": spec,
        "metadata": dict(metadata or {}),
    }
    if "evaluation_only" in spec and not whole:
        warnings.warn(f"saved for evaluation only: {spec['evaluation_only']}", stacklevel=2)
    if dense is not None:
        content["dense"] = _dense(dense, inputs)

    def write(path: Path) -> None:
        weights = path / WEIGHTS
        save_file({name: _plain(tensor) for name, tensor in tensors.items()}, weights, metadata={"format": FORMAT})
        content["weights"] = {"file": WEIGHTS, "bytes": weights.stat().st_size, "sha256": _digest(weights)}
        try:
            text = json.dumps(content, indent=None, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata: cannot be written as JSON: {error}") from error
        (path / ARCHITECTURE).write_text(text + "\n", encoding="utf-8")
        again = load(path)
        check_same(model, again, inputs, evaluation_only="evaluation_only" in spec)
        if extras is not None:
            extras(again, path)

    return write_folder(folder, write)


def load(folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> nn.Module:
    """Read a model that `save` wrote.

    Only modules of ``torch.nn`` and functions on an allow-list are ever named by the file; nothing in it is executed.

    Args:
        folder: the folder.
        device: where to put the tensors.

    Returns:
        A ``torch.fx.GraphModule`` in the mode in which it was saved, or a `bayesprune.deploy.Ensemble`.

    Raises:
        FileNotFoundError: if the folder holds no model.
        ValueError: if a file is damaged, was exchanged, or names something that is not allowed.

    Example:
        >>> load("/nowhere")
        Traceback (most recent call last):
            ...
        FileNotFoundError: folder='/nowhere' holds no model: there is no architecture.json
    """
    path, content = Path(folder), read_architecture(folder)
    try:
        spec, weights = content["architecture"], content["weights"]
        file, size, digest = path / WEIGHTS, weights["bytes"], weights["sha256"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"folder={str(path)!r}: {ARCHITECTURE} lacks the entry {error}") from error
    found = file.stat().st_size if file.exists() else None
    if found != size or _digest(file) != digest:
        how = "is missing" if found is None else f"has {found} bytes of {size}" if found != size else "was changed"
        raise ValueError(f"folder={str(path)!r}: {WEIGHTS} {how}; restore it, or save the model again")
    try:
        return build(spec, aligned({name: tensor.to(device) for name, tensor in parsed(file.read_bytes()).items()}))
    except ValueError as error:
        raise ValueError(f"folder={str(path)!r}: {error}") from error


def aligned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors at addresses that torch itself would choose: on some processors kernels round by the address."""
    return {name: value.clone() if value.data_ptr() % ALIGNMENT else value for name, value in tensors.items()}


def build(spec: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """The model or ensemble of an architecture and its tensors.

    Raises:
        ValueError: whatever is wrong with the architecture.
    """
    try:
        if isinstance(spec, dict) and "members" in spec:
            return Ensemble.rebuild(spec, tensors)
        return rebuild(spec, tensors)
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError, SyntaxError) as error:
        raise ValueError(f"the architecture is damaged ({type(error).__name__}: {error})") from error


def read_architecture(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of architecture.json, its format checked; errors as `load`."""
    path = Path(folder)
    file = path / ARCHITECTURE
    if not file.is_file():
        raise FileNotFoundError(f"folder={str(path)!r} holds no model: there is no {ARCHITECTURE}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, version = content["format"], content["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder={str(path)!r}: cannot read {ARCHITECTURE}: {error!r}") from error
    if kind != FORMAT or version != VERSION:
        raise ValueError(
            f"folder={str(path)!r}: {ARCHITECTURE} is {kind!r}, version {version!r}; expected {FORMAT!r}, version {VERSION}"
        )
    return content


def random_model(spec: Spec) -> fx.GraphModule:
    """The model of an architecture without weights, at random ones: for timing, where values play no part."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, entry in spec["tensors"].items():
        if "same_as" not in entry:
            dtype = getattr(torch, entry["dtype"])
            value = torch.zeros(entry["shape"], dtype=dtype)
            if dtype.is_floating_point and entry["kind"] == "parameter":
                fan_in = max(1, value[0].numel() if value.ndim > 1 else 1)
                value = torch.randn(entry["shape"], generator=generator).mul_(fan_in**-0.5).to(dtype)
            tensors[name] = value.fill_(1) if name.endswith("running_var") else value
    return rebuild(spec, tensors)


def write_folder(folder: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Fill a new folder under a temporary name, and rename it when it is complete.

    Args:
        folder: its name. A folder that holds an earlier model is replaced.
        write: fills the folder it is given.

    Returns:
        The folder.

    Raises:
        FileExistsError: if ``folder`` is a file, or holds something that is not ours.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"folder={str(path)!r} is a file; name a folder")
    others = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if others and (ARCHITECTURE not in others or others - OURS):
        odd = sorted(others - OURS) or sorted(others)
        raise FileExistsError(
            f"folder={str(path)!r} holds {odd[0]!r}, which is no part of a model; name another folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        write(work)
        for file in work.iterdir():
            with open(file, "r+b") as handle:
                os.fsync(handle.fileno())
        work.chmod(0o755)
        if path.exists():
            old = work.with_name(work.name + "-old")
            os.replace(path, old)
            os.replace(work, path)
            shutil.rmtree(old)
        else:
            os.replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


def _dense(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The architecture of a model, and the bytes its weights would take as safetensors."""
    spec, tensors = describe(model, inputs)
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT}}
    offset = 0
    # safetensors sorts by element size, large first, then by name; the order shows in the length of the offsets.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        end = offset + tensor.numel() * tensor.element_size()
        kind = (
            "BF16" if tensor.dtype == torch.bfloat16 else _SAFE[tensor.dtype.is_floating_point, tensor.element_size()]
        )
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")))
    return {"architecture": spec, "bytes": 8 + -(-length // 8) * 8 + offset}


_SAFE = {(True, 8): "F64", (True, 4): "F32", (True, 2): "F16"} | {(False, 2**n): f"I{8 * 2**n}" for n in range(4)}


def _plain(tensor: Tensor) -> Tensor:
    value = tensor.detach().cpu().contiguous()
    return value.clone() if value.untyped_storage().nbytes() != value.numel() * value.element_size() else value


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
