from __future__ import annotations

import json
import math
import numbers
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.posterior.architecture import Layout, TensorSpec, check_layout, fingerprint, model_tensors
from bayesprune.samplers import Sampler
from bayesprune.sparsity.packing import VALUES, pack_masks, pack_state, unpack_state

FORMAT = "bayesprune-samples"
VERSION = 2  # 2 added samples stored under masks; a store without any is written as version 1
INDEX = "store.json"
TEMPORARY = ".tmp"


class Samples(ABC):
    """Posterior samples of one architecture, in the order in which they were collected.

    A sample is every parameter and persistent buffer, so each member predicts with its own normalisation statistics.
    ``len(samples)``, iteration and ``samples[i]`` give state dicts one at a time; nothing holds all of them in memory
    unless the subclass says so.

    Example:
        >>> model, samples = nn.Linear(2, 1), MemorySamples()
        >>> _ = samples.collect(model, step=7)
        >>> isinstance(samples, Samples), len(samples), sorted(samples[0]), samples.infos[0]["step"]
        (True, 1, ['bias', 'weight'], 7)
    """

    layout: Layout | None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def infos(self) -> list[dict[str, Any]]:
        """What was said of each sample when it was collected (step, cycle, learning rate, ...)."""

    @abstractmethod
    def truncate(self, n: int) -> None:
        """Drop every sample after the first ``n``, as a run does that resumes from an earlier checkpoint."""

    @abstractmethod
    def _write(self, tensors: dict[str, Tensor], layout: Layout, info: dict[str, Any]) -> None:
        """Append a sample that fits the layout."""

    @abstractmethod
    def _read(self, index: int) -> dict[str, Tensor]:
        """The tensors of a sample, tied ones once; ``index`` is in range."""

    def collect(self, model: nn.Module, sampler: Optimizer | None = None, *, midpoint: bool = True, **info: Any) -> int:
        """Append the model's present weights and buffers as a sample.

        With the sampler that moves the model, the sample is the midpoint of its last move (`Sampler.midpoint`), which has
        no step error on quadratics, and its set and measured temperature are remembered.

        Args:
            model: the network; the first call fixes the architecture.
            sampler: the optimizer, if it is a `bayesprune.samplers.Sampler`; any other changes nothing.
            midpoint: False takes the raw iterate.
            **info: what to remember of the sample: numbers, strings, booleans, None, and lists or dicts of them.
                One-element tensors and arrays become numbers; a float that is not finite becomes None.

        Returns:
            The index of the new sample.

        Raises:
            ValueError: if the model's tensors differ from those of the earlier samples (the first that does is named).
            TypeError: if a value of ``info`` cannot be written as JSON.
        """
        if isinstance(sampler, Sampler):
            info = {**_temperatures(sampler), **info}
        with sampler.midpoint() if midpoint and isinstance(sampler, Sampler) else nullcontext():
            tensors, layout = model_tensors(model)
            copies = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
        if self.layout is not None:
            check_layout(self.layout, layout)
        self._write(copies, layout, {key: _plain(value, key) for key, value in info.items()})
        return len(self) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tensors = self._read(self._position(index))
        # Every name of the state dict, so that a strict `load_state_dict` of a model with tied weights is content.
        return {name: tensors[spec.tied_to or name] for name, spec in (self.layout or {}).items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(len(self)):
            yield self[index]

    @torch.no_grad()
    def load_(self, index: int, model: nn.Module) -> nn.Module:
        """Copy a sample into a model, in place; the model's device, memory format and train mode stay as they are.

        Args:
            index: which sample; negative counts from the end.
            model: a model of the architecture that was collected. It is left untouched if it is refused.

        Returns:
            The same model.

        Raises:
            ValueError: if the architecture differs; the message names the first tensor that does.
            IndexError: if there is no such sample.
        """
        position = self._position(index)
        targets, layout = model_tensors(model)
        check_layout(self.layout or {}, layout)
        sample = self._read(position)
        for name, target in targets.items():
            target.copy_(sample[name])
        return model

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index}: there are {len(self)} samples")
        return index % len(self)

    def _check_truncation(self, n: int) -> None:
        if not 0 <= n <= len(self):
            raise ValueError(f"n={n}: must be between 0 and the {len(self)} samples present")


class MemorySamples(Samples):
    """Samples kept in main memory, for tests and small networks; the same interface as `SampleStore`.

    Example:
        >>> model, samples = nn.Linear(2, 1), MemorySamples()
        >>> samples.collect(model, step=10)
        0
        >>> _ = nn.init.zeros_(model.weight)
        >>> samples.load_(0, model).weight.abs().sum().item() > 0
        True
        >>> samples.infos
        [{'step': 10}]
    """

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self._samples: list[dict[str, Tensor]] = []
        self._infos: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def infos(self) -> list[dict[str, Any]]:
        """What was said of each sample when it was collected; a copy."""
        return [dict(info) for info in self._infos]

    def truncate(self, n: int) -> None:
        """Drop every sample after the first ``n``; the architecture stays fixed unless none is left."""
        self._check_truncation(n)
        del self._samples[n:], self._infos[n:]
        self.layout = self.layout if n else None

    def _write(self, tensors: dict[str, Tensor], layout: Layout, info: dict[str, Any]) -> None:
        self.layout = layout
        self._samples.append(tensors)
        self._infos.append(info)

    def _read(self, index: int) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._samples[index].items()}


class SampleStore(Samples):
    """Samples in a folder: one safetensors file each, and ``store.json``, which alone says which of them count.

    Both are written under a temporary name and renamed, the sample first. A process killed at any point leaves a store
    with all earlier samples; a sample file that ``store.json`` does not list is ignored by readers, and removed by the
    next `collect` or `truncate`.

    Args:
        directory: the folder; made by the first `collect`.
        storage: how new samples are written. "dense": whole tensors. "sparse": of each tensor that is smaller so, the
            values that are not zero, under a mask of one bit a weight that is written once for all samples it fits;
            read back bit for bit. It saves disk, not time or memory. Samples of both kinds may lie in one store.

    Raises:
        ValueError: if ``store.json`` is not an index this version can read, or ``storage`` is neither.
        NotADirectoryError: if ``directory`` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = SampleStore(folder).collect(nn.Linear(2, 1), step=10, cycle=0)
        ...     store = SampleStore(folder)
        ...     print(len(store), store.infos, sorted(store[0]))
        1 [{'step': 10, 'cycle': 0}] ['bias', 'weight']
    """

    def __init__(self, directory: str | os.PathLike[str], *, storage: Literal["dense", "sparse"] = "dense") -> None:
        if storage not in ("dense", "sparse"):
            raise ValueError(f"storage={storage!r}: choose 'dense' or 'sparse'")
        self.directory = Path(directory)
        self.storage = storage
        self.layout: Layout | None = None
        self._entries: list[dict[str, Any]] = []
        self._mask_cache: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        if self.directory.exists() and not self.directory.is_dir():
            raise NotADirectoryError(f"directory={str(self.directory)!r} is a file; give a folder")
        self._read_index()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"SampleStore({str(self.directory)!r}, {len(self)} samples)"

    @property
    def infos(self) -> list[dict[str, Any]]:
        """What was said of each sample when it was collected; a copy."""
        return [dict(entry["info"]) for entry in self._entries]

    def collect(self, model: nn.Module, sampler: Optimizer | None = None, *, midpoint: bool = True, **info: Any) -> int:
        """Append the model's present weights and buffers as a sample; arguments and errors as `Samples.collect`."""
        self._read_index()  # another object may have written to the folder meanwhile
        return super().collect(model, sampler, midpoint=midpoint, **info)

    def truncate(self, n: int) -> None:
        """Drop every sample after the first ``n``; the index is rewritten before any file goes."""
        self._read_index()
        self._check_truncation(n)
        self._write_index(self._entries[:n], self.layout if n else None)
        self._remove_strays()

    def _write(self, tensors: dict[str, Tensor], layout: Layout, info: dict[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_strays()
        entry: dict[str, Any] = {"file": f"sample-{len(self):04d}.safetensors", "info": info}
        if self.storage == "sparse":
            tensors, entry["masks"] = self._packed(tensors)
        entry["bytes"] = self._write_file(entry["file"], tensors, fingerprint(layout))
        self._write_index([*self._entries, entry], layout)

    def _packed(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors as stored under the newest masks, or under new ones where that takes fewer bytes."""
        own = pack_masks(tensors)
        best = pack_state(tensors, own)
        last = next((entry["masks"] for entry in reversed(self._entries) if entry["masks"]), None)
        if last is not None:
            try:
                shared = pack_state(tensors, self._masks(last, len(self)))
            except ValueError:  # a value outside the mask
                shared = None
            if shared is not None and _bytes(shared) <= _bytes(best) + _bytes(own):
                return shared, last
        name = f"masks-{len(self):04d}.safetensors"
        return best, {"file": name, "bytes": self._write_file(name, own, "")}

    def _write_file(self, name: str, tensors: dict[str, Tensor], mark: str) -> int:
        path = self.directory / name
        temporary = path.with_name(name + TEMPORARY)
        save_file(tensors, temporary, metadata={"format": FORMAT, "fingerprint": mark})
        _sync(temporary)
        size = temporary.stat().st_size
        os.replace(temporary, path)
        return size

    def _read(self, index: int) -> dict[str, Tensor]:
        entry = self._entries[index]
        stored = self._load(entry, index)
        if not entry["masks"]:
            return stored
        names = {name.removesuffix(f".{VALUES}") if name not in (self.layout or {}) else name for name in stored}
        shapes = {name: spec.shape for name, spec in (self.layout or {}).items() if name in names}
        return unpack_state(stored, self._masks(entry["masks"], index), shapes)

    def _masks(self, entry: dict[str, Any], index: int) -> dict[str, Tensor]:
        """The packed masks of a file; the last one read is kept."""
        if self._mask_cache is None or self._mask_cache[0] != entry:
            self._mask_cache = (entry, self._load(entry, index))
        return self._mask_cache[1]

    def _load(self, entry: dict[str, Any], index: int) -> dict[str, Tensor]:
        path = self.directory / entry["file"]
        size = path.stat().st_size if path.exists() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            raise ValueError(f"sample {index}: {path} {found}; restore the file, or drop it with truncate({index})")
        return load_file(path)

    def _read_index(self) -> None:
        path = self.directory / INDEX
        if not path.exists():
            self.layout, self._entries = None, []
            return
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            kind, version = index["format"], index["version"]
            if kind != FORMAT or version not in range(1, VERSION + 1):
                raise ValueError(f"format {kind!r}, version {version!r}; expected {FORMAT!r}, version 1 to {VERSION}")
            tensors = index["tensors"]
            layout = {name: TensorSpec(dtype, tuple(shape), *rest) for name, dtype, shape, *rest in tensors}
            if layout and fingerprint(layout) != index["fingerprint"]:
                raise ValueError("the fingerprint does not match the tensors listed")
            entries = [
                {**{key: entry[key] for key in ("file", "bytes", "info")}, "masks": entry.get("masks")}
                for entry in index["samples"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"directory={str(self.directory)!r}: cannot read {INDEX}: {error}") from error
        self.layout, self._entries = layout or None, entries

    def _write_index(self, entries: list[dict[str, Any]], layout: Layout | None) -> None:
        entries = [{"masks": None, **entry} for entry in entries]
        sparse = any(entry["masks"] for entry in entries)
        listed = [{k: v for k, v in entry.items() if k != "masks" or v} for entry in entries]
        index = {
            "format": FORMAT,
            "version": VERSION if sparse else 1,
            "fingerprint": fingerprint(layout or {}),
            "tensors": [[name, *spec] for name, spec in (layout or {}).items()],
            "samples": listed,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / INDEX
        temporary = path.with_name(INDEX + TEMPORARY)
        temporary.write_text(json.dumps(index, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, path)
        # Only now is it true on disk, so only now in memory: a failed write leaves the object as the folder is.
        self.layout, self._entries = layout, entries

    def _remove_strays(self) -> None:
        listed = {entry["file"] for entry in self._entries}
        listed |= {entry["masks"]["file"] for entry in self._entries if entry["masks"]}
        ours = [f"{kind}-*.safetensors{end}" for kind in ("sample", "masks") for end in ("", TEMPORARY)]
        for pattern in (*ours, INDEX + TEMPORARY):
            for path in self.directory.glob(pattern):
                if path.name not in listed:
                    path.unlink()


def _temperatures(sampler: Sampler) -> dict[str, Any]:
    """The set and the measured temperature, over all groups as they weigh."""
    sizes = [sum(p.numel() for p in group["params"]) for group in sampler.param_groups]
    total = max(1, sum(sizes))
    wanted = sum(size * float(group["temperature"]) for size, group in zip(sizes, sampler.param_groups)) / total
    measured = sum(size * found["mean"] for size, found in zip(sizes, sampler.kinetic_temperature())) / total
    return {"temperature": wanted, "kinetic_temperature": measured}


def _sync(path: Path) -> None:
    """Have the file on the disk before it is renamed, so that a power cut cannot leave a listed but empty file."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _plain(value: Any, key: str) -> Any:
    """The value in JSON's own types."""
    if hasattr(value, "item") and hasattr(value, "ndim") and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{key}[{position}]") for position, item in enumerate(value)]
    raise TypeError(
        f"info {key}={value!r}: a {type(value).__name__} cannot be written as JSON; pass numbers or strings"
    )
