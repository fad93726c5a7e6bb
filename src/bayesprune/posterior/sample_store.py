"""Posterior samples in a folder: one file of tensors each, and an index that alone says which of them count."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from bayesprune.common.artefact import ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import read_json
from bayesprune.common.files import sweep, write_text
from bayesprune.common.lock import locked
from bayesprune.common.manifest import sealed, unsealed
from bayesprune.common.tensors import LIMIT, read_tensors, write_tensors
from bayesprune.posterior.architecture import Layout, TensorSpec, check_layout, fingerprint, layout_of
from bayesprune.posterior.samples import Samples
from bayesprune.sparsity.packing import pack_masks, pack_state, unpack_state

FORMAT = "bayesprune-samples"
VERSION = 3  # 2 added samples stored under masks, 3 the SHA-256 of everything
INDEX = "store.json"
_TENSORS = f"{FORMAT}-{VERSION}"
_PATIENCE = 60.0  # seconds to wait for another writer


class SampleStore(Samples):
    """Samples in a folder: one safetensors file each, and ``store.json``, which alone says which of them count.

    Both are written whole or not at all, the sample first, and ``store.json`` holds the SHA-256 of every sample. A process
    killed at any point leaves a store with all earlier samples; a sample file that ``store.json`` does not list is ignored
    by readers, and removed by the next `collect` or `truncate`. Writers take turns: the folder is locked meanwhile.

    Args:
        directory: the folder; made by the first `collect`.
        storage: how new samples are written. "dense": whole tensors. "sparse": of each tensor that is smaller so, the
            values that are not zero, under a mask of one bit a weight that is written once for all samples it fits;
            read back bit for bit. It saves disk, not time or memory. Samples of both kinds may lie in one store.
        limit: the most bytes that a sample may have, on disk and in memory.

    Raises:
        ArtefactError: if ``store.json`` is damaged, or not an index this version can read.
        ValueError: if ``storage`` is neither.
        NotADirectoryError: if ``directory`` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = SampleStore(folder).collect(nn.Linear(2, 1), step=10, cycle=0)
        ...     store = SampleStore(folder)
        ...     print(len(store), store.infos, sorted(store[0]))
        1 [{'step': 10, 'cycle': 0}] ['bias', 'weight']
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, storage: Literal["dense", "sparse"] = "dense", limit: int = LIMIT
    ) -> None:
        if storage not in ("dense", "sparse"):
            raise ValueError(f"storage={storage!r}: choose 'dense' or 'sparse'")
        self.directory = Path(directory)
        self.storage = storage
        self.limit = limit
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
        """Append the model's present weights and buffers as a sample; arguments and errors as `Samples.collect`.

        Raises:
            FolderInUseError: if another process writes to the folder for a minute.
        """
        with locked(self.directory, wait=_PATIENCE):
            self._read_index()  # another object may have written to the folder meanwhile
            return super().collect(model, sampler, midpoint=midpoint, **info)

    def truncate(self, n: int) -> None:
        """Drop every sample after the first ``n``; the index is rewritten before any file goes."""
        with locked(self.directory, wait=_PATIENCE):
            self._read_index()
            self._check_truncation(n)
            self._write_index(self._entries[:n], self.layout if n else None)
            self._remove_strays()

    def _write(self, tensors: dict[str, Tensor], layout: Layout, info: dict[str, Any]) -> None:
        if not (self.directory / INDEX).exists():
            self._write_index([], None)  # so that samples without an index are never a beginning
        self._remove_strays()
        entry: dict[str, Any] = {"info": info}
        if self.storage == "sparse":
            tensors, entry["masks"] = self._packed(tensors)
        entry |= self._write_file(f"sample-{len(self):04d}.safetensors", tensors, fingerprint(layout))
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
        return best, self._write_file(f"masks-{len(self):04d}.safetensors", own, "")

    def _write_file(self, name: str, tensors: dict[str, Tensor], mark: str) -> dict[str, Any]:
        """Write a file, and say how the index lists it."""
        # The index that follows flushes the names of both.
        seal = write_tensors(self.directory / name, tensors, _TENSORS, {"fingerprint": mark}, flush_name=False)
        return {"file": name, "bytes": (self.directory / name).stat().st_size, "sha256": seal}

    def _read(self, index: int) -> dict[str, Tensor]:
        entry, layout = self._entries[index], self.layout or {}
        wanted = {name: spec for name, spec in layout.items() if spec.tied_to is None}
        path = self.directory / entry["file"]
        found = self._load(entry, index)
        with reading(path, "a sample of this store", f"restore it from a copy, or drop it with truncate({index})"):
            if sum(spec.bytes for spec in wanted.values()) > self.limit:
                raise ValueError(f"it takes more than limit={self.limit} bytes")
            if entry["masks"]:
                found = unpack_state(
                    found, self._masks(entry["masks"], index), {name: spec.shape for name, spec in wanted.items()}
                )
            check_layout(wanted, layout_of(found, wanted), "the sample")
        return found

    def _masks(self, entry: dict[str, Any], index: int) -> dict[str, Tensor]:
        """The packed masks of a file; the last one read is kept."""
        if self._mask_cache is None or self._mask_cache[0] != entry:
            self._mask_cache = (entry, self._load(entry, index))
        return self._mask_cache[1]

    def _load(self, entry: dict[str, Any], index: int) -> dict[str, Tensor]:
        path, mend = self.directory / entry["file"], f"restore it from a copy, or drop it with truncate({index})"
        size = path.stat().st_size if path.exists() else None
        if size is None:
            raise MissingArtefactError(path, f"sample {index}: it is missing", mend=mend)
        if size != entry["bytes"]:
            raise ArtefactError(path, f"sample {index}: it has {size} bytes instead of {entry['bytes']}", mend=mend)
        found = read_tensors(path, [_TENSORS], older=[FORMAT], limit=self.limit)
        if found.seal != entry.get("sha256"):
            raise ArtefactError(path, f"sample {index}: it is another file than {INDEX} lists", mend=mend)
        return found.tensors

    def _read_index(self) -> None:
        path = self.directory / INDEX
        if not path.exists():
            if found := [file for file in self.directory.glob("*.safetensors") if _FILE.fullmatch(file.name)]:
                fault = f"is missing, and {len(found)} files of samples are there"
                raise MissingArtefactError(path, fault, mend="restore it from a copy, or remove them to begin again")
            self.layout, self._entries = None, []
            return
        index = read_json(path)
        with reading(path, "an index of samples", "restore it from a copy, or collect the samples again"):
            kind, version = index["format"], index["version"]
            if kind != FORMAT or version not in range(1, VERSION + 1) or isinstance(version, bool):
                raise ValueError(f"format {kind!r}, version {version!r}; expected {FORMAT!r}, version 1 to {VERSION}")
            index = unsealed(path, index, needed=version >= 3)
            layout = {name: TensorSpec.of(*rest) for name, *rest in index["tensors"]}
            if layout and fingerprint(layout) != index["fingerprint"]:
                raise ValueError("the fingerprint does not match the tensors listed")
            entries = [_entry(entry) for entry in index["samples"]]
        self.layout, self._entries = layout or None, entries

    def _write_index(self, entries: list[dict[str, Any]], layout: Layout | None) -> None:
        entries = [{"masks": None, **entry} for entry in entries]
        index = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": fingerprint(layout or {}),
            "tensors": [[name, *spec] for name, spec in (layout or {}).items()],
            "samples": [{k: v for k, v in entry.items() if k != "masks" or v} for entry in entries],
        }
        write_text(self.directory / INDEX, json.dumps(sealed(index), indent=1, allow_nan=False) + "\n")
        # Only now is it true on disk, so only now in memory: a failed write leaves the object as the folder is.
        self.layout, self._entries = layout, entries

    def _remove_strays(self) -> None:
        listed = {entry["file"] for entry in self._entries}
        listed |= {entry["masks"]["file"] for entry in self._entries if entry["masks"]}
        sweep(self.directory)
        for path in self.directory.iterdir():
            if path.name not in listed and _STRAY.fullmatch(path.name):
                path.unlink()


_FILE = re.compile(r"(sample|masks)-\d{4,}\.safetensors")
_STRAY = re.compile(rf"{_FILE.pattern}(\.tmp)?|store\.json\.tmp")  # the temporary names of earlier versions too


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """A sample as the index lists it, its files' names checked."""
    masks = entry.get("masks")
    for each in (entry, masks) if masks else (entry,):
        if not isinstance(each["file"], str) or not _FILE.fullmatch(each["file"]):
            raise ValueError(f"it lists the file {each['file']!r}")
    if not isinstance(entry["info"], dict):
        raise ValueError(f"the info of {entry['file']} is no object")
    return {key: entry[key] for key in ("file", "bytes", "info", "sha256") if key in entry or key != "sha256"} | {
        "masks": masks
    }


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
