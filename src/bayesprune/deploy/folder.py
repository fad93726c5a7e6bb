"""A model as a folder: architecture.json and weights.safetensors, written whole or not at all, read without pickle."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from bayesprune._version import __version__
from bayesprune.common.artefact import ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import read_json
from bayesprune.common.files import replacing_folder, write_text
from bayesprune.common.manifest import file_digest, sealed, unsealed
from bayesprune.common.tensors import LIMIT, read_tensors, stored_bytes, write_tensors
from bayesprune.deploy.architecture import Spec, describe, rebuild
from bayesprune.deploy.arguments import dtype_name
from bayesprune.deploy.ensemble import Ensemble
from bayesprune.deploy.verify import as_inputs, check_members, check_same

FORMAT = "bayesprune-model"
VERSION = 2  # 1 had no seals
_TENSORS = f"{FORMAT}-{VERSION}"
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
    for bit: in evaluation at two batch sizes and, with the buffers after it, in one training pass. An ensemble is compared with
    its members first, one by one.

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
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     path = save(model, f"{parent}/model", example_input=torch.zeros(1, 1, 8, 8))
        ...     again = load(path)
        >>> x = torch.randn(5, 1, 8, 8)
        >>> torch.equal(again(x), model(x))
        True
    """
    inputs = as_inputs(model, example_input)
    whole = isinstance(model, Ensemble)  # it brings its own stacked tensors
    if isinstance(model, Ensemble):
        original, model = model, model.traced(inputs)
        check_members(model, inputs, original)
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
        architecture, weights = describe(dense, inputs)
        content["dense"] = {"architecture": architecture, "bytes": stored_bytes(weights, _TENSORS)}

    def write(path: Path) -> None:
        seal = write_tensors(path / WEIGHTS, tensors, _TENSORS)
        content["weights"] = {"file": WEIGHTS, "bytes": (path / WEIGHTS).stat().st_size, "sha256": seal}
        try:
            text = json.dumps(sealed(content), separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata: cannot be written as JSON: {error}") from error
        write_text(path / ARCHITECTURE, text + "\n")
        again = load(path)
        check_same(model, again, inputs.alone() if whole else inputs, evaluation_only="evaluation_only" in spec)
        if extras is not None:
            extras(again, path)

    return write_folder(folder, write)


def load(folder: str | os.PathLike[str], *, device: torch.device | str = "cpu", limit: int = LIMIT) -> nn.Module:
    """Read a model that `save` wrote.

    Only modules of ``torch.nn`` and functions on an allow-list are ever named by the file; nothing in it is executed. Both
    files are held against their SHA-256 before anything is built: a model loads as it was saved, or not at all.

    Args:
        folder: the folder.
        device: where to put the tensors.
        limit: the most bytes that the weights may have.

    Returns:
        A ``torch.fx.GraphModule`` in the mode in which it was saved, or a `bayesprune.deploy.Ensemble`.

    Raises:
        ArtefactError: if a file is damaged, was exchanged, or names something that is not allowed; if the folder holds no
            model, the error is a FileNotFoundError too.

    Example:
        >>> load("/nowhere")
        Traceback (most recent call last):
            ...
        bayesprune.common.artefact.MissingArtefactError: /nowhere: holds no model: there is no architecture.json
    """
    path, content = Path(folder), read_architecture(folder)
    file = path / WEIGHTS
    with reading(path / ARCHITECTURE, "the architecture of a model", _MEND):
        spec, size, digest = content["architecture"], content["weights"]["bytes"], content["weights"]["sha256"]
    found = file.stat().st_size if file.exists() else None
    if found is None:
        raise MissingArtefactError(file, "is missing", mend=_MEND)
    if found != size:
        raise ArtefactError(file, f"has {found} bytes of {size}", mend=_MEND)
    tensors, _, seal = read_tensors(file, [_TENSORS], older=[FORMAT], limit=limit)
    if (file_digest(file) if content["version"] == 1 else seal) != digest:
        raise ArtefactError(file, f"is not the file that {ARCHITECTURE} lists (the SHA-256 differs)", mend=_MEND)
    with reading(path, mend=_MEND):
        return build(spec, tensors).to(device)


_MEND = "restore it, or save the model again"


def build(spec: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """The model or ensemble of an architecture and its tensors.

    Raises:
        ValueError: whatever is wrong with the architecture.
    """
    try:
        if isinstance(spec, dict) and "members" in spec:
            return Ensemble.rebuild(spec, tensors)
        return rebuild(spec, tensors)
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError, SyntaxError, RecursionError) as error:
        raise ValueError(f"the architecture is damaged ({type(error).__name__}: {error})") from error


def read_architecture(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of architecture.json, its format checked; errors as `load`."""
    file = Path(folder) / ARCHITECTURE
    if not file.is_file():
        raise MissingArtefactError(folder, f"holds no model: there is no {ARCHITECTURE}")
    content = read_json(file)
    kind, version = content.get("format"), content.get("version")
    if kind != FORMAT or type(version) is not int or not 1 <= version <= VERSION:
        raise ArtefactError(file, f"is {kind!r}, version {version!r}", f"{FORMAT!r}, version 1 to {VERSION}")
    return unsealed(file, content, needed=version > 1)


def random_model(spec: Spec) -> fx.GraphModule:
    """The model of an architecture without weights, at random ones: for timing, where values play no part."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    if 8 * sum(math.prod(entry["shape"]) for entry in spec["tensors"].values()) > LIMIT:
        raise ValueError(f"architecture: its tensors would take more than {LIMIT} bytes")
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
    """Fill a new folder under a temporary name, and rename it when it is complete."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"folder={str(path)!r} is a file; name a folder")
    others = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if others and (ARCHITECTURE not in others or others - OURS):
        odd = sorted(others - OURS) or sorted(others)
        raise FileExistsError(
            f"folder={str(path)!r} holds {odd[0]!r}, which is no part of a model; name another folder"
        )
    with replacing_folder(path) as work:
        write(work)
    return path
