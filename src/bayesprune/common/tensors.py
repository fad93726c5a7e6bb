"""Tensors in a file (safetensors' format), each with its SHA-256: written whole, read whole into memory of one's own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn

from bayesprune.common.artefact import REWRITE, ArtefactError, MissingArtefactError, reading
from bayesprune.common.bounded import parse_json
from bayesprune.common.files import replacing

PLAIN = "bayesprune-tensors-2"
"""The format of a file that holds tensors and nothing else; before there were seals, it named none."""
LIMIT = 1 << 36
"""Bytes that a file of tensors may have: 64 GiB."""
HEADER_LIMIT = 1 << 25
"""Bytes of its header: 32 MiB, some 100,000 tensors."""
_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_DTYPES: dict[str, torch.dtype] = {key: getattr(torch, name) for key, name in _NAMES.items() if hasattr(torch, name)}
_KEYS = {dtype: key for key, dtype in _DTYPES.items()}
_META, _SEAL, _DIGESTS, _BLANK = "__metadata__", "sha256", "digests", "0" * 64
_SMALL = 1 << 20  # bytes that are hashed where they are read; more goes to a second thread meanwhile


class TensorFile(NamedTuple):
    """What `read_tensors` gives: the tensors on the CPU, the writer's metadata, the seal (None: an older file)."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    seal: str | None


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    format: str,
    metadata: Mapping[str, str] | None = None,
    *,
    flush_name: bool = True,
) -> str:
    """Write tensors whole or not at all, in safetensors' format, with the SHA-256 of each and one over the header."""
    views = {}
    for name in _ordered(tensors):
        tensor = tensors[name].detach()
        if tensor.layout != torch.strided or tensor.dtype not in _KEYS or name == _META:
            raise ValueError(
                f"tensors: {name!r} is {tensor.layout} {tensor.dtype}; give a dense tensor of real numbers"
            )
        views[name] = _bytes_of(tensor.cpu().contiguous())
    with replacing(path, flush_name=flush_name) as temporary, open(temporary, "r+b") as file:
        blank = {name: _BLANK for name in views}
        start = len(_header(tensors, format, blank, metadata))
        file.seek(start)
        digests = {}
        with _Hashing() as hashing:
            for name, view in views.items():
                digests[name] = hashing.of(view)
                file.write(view)
            found = {name: digest() for name, digest in digests.items()}
        header = _header(tensors, format, found, metadata)
        seal = hashlib.sha256(header[8:]).hexdigest()
        file.seek(0)
        file.write(header.replace(f'"{_SEAL}":"{_BLANK}"'.encode(), f'"{_SEAL}":"{seal}"'.encode(), 1))
        assert len(header) == start
    return seal


def read_tensors(
    path: str | os.PathLike[str],
    formats: Iterable[str],
    *,
    older: Iterable[str | None] = (),
    limit: int = LIMIT,
) -> TensorFile:
    """Read a file of tensors, every byte of it checked before anything is returned."""
    formats, older = list(formats), list(older)
    try:
        size = os.stat(path).st_size
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):
        raise MissingArtefactError(path, "there is no such file") from None
    with file, reading(path, "a whole safetensors file", REWRITE):
        entries, metadata, seal, digests = _head(file, size, limit)
        found = metadata.pop("format", None)
        if found not in (older if seal is None else formats):
            what = "without its SHA-256" if seal is None else "sealed"
            raise ArtefactError(path, f"is of the format {found!r}, {what}", " or ".join(map(repr, formats)))
        tensors, checks = {}, {}
        state = os.fstat(file.fileno())
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        known = seal is not None and _checked.get(identity) == seal
        with _Hashing() as hashing:
            for name, (dtype, shape, _, _) in entries.items():
                tensor = torch.empty(shape, dtype=dtype)
                view = _bytes_of(tensor)
                if file.readinto(view) != len(view):  # type: ignore[attr-defined]
                    raise ArtefactError(path, "ends in the middle", mend=REWRITE)
                if seal is not None and not known:
                    checks[name] = hashing.of(view)
                if dtype == torch.bool and len(view) and int(tensor.view(torch.uint8).max()) > 1:
                    raise ArtefactError(path, f"tensor {name!r} holds truth values that are neither 0 nor 1")
                tensors[name] = tensor
            for name, check in checks.items():
                if check() != digests.get(name):
                    raise ArtefactError(
                        path, f"tensor {name!r} is not what was written (the SHA-256 differs)", mend=REWRITE
                    )
    if seal is not None and time.time() - max(state.st_mtime, state.st_ctime) > _COARSE:
        if len(_checked) >= _MOST_CHECKED:
            _checked.clear()
        _checked[identity] = seal
    return TensorFile(tensors, metadata, seal)


_checked: dict[tuple[int, ...], str] = {}
_COARSE, _MOST_CHECKED = 2.0, 4096


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> nn.Module:
    """Copy tensors into a model, all of them or none: names, shapes and dtypes are compared first."""
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name, target in wanted.items():
        found = tensors.get(name)
        if found is None or found.shape != target.shape or found.dtype != target.dtype:
            what = "is missing" if found is None else f"is {found.dtype}{list(found.shape)}"
            raise ArtefactError(path, f"tensor {name!r} {what}", f"{target.dtype}{list(target.shape)}", _OTHER)
    if extra := sorted(set(tensors) - set(wanted)):
        raise ArtefactError(path, f"holds {extra[0]!r}, which the model lacks", mend=_OTHER)
    model.load_state_dict(dict(tensors))
    return model


_OTHER = "it was written for another architecture"


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: its sum tells, unless that overflows."""
    sums = tensor.dtype in (torch.float32, torch.float64)
    return (sums and bool(tensor.sum().isfinite())) or bool(tensor.isfinite().all())


def stored_bytes(tensors: Mapping[str, Tensor], format: str) -> int:
    """The size of the file that `write_tensors` makes of tensors; those on the meta device will do."""
    size = len(_header(tensors, format, {name: _BLANK for name in tensors}, None))
    return size + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _ordered(tensors: Mapping[str, Tensor]) -> list[str]:
    """Large elements first, then by name, as safetensors orders them."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _header(
    tensors: Mapping[str, Tensor], format: str, digests: Mapping[str, str], metadata: Mapping[str, str] | None
) -> bytes:
    """Length and header, the seal's place filled with zeros."""
    told = {"format": format, _SEAL: _BLANK, **(metadata or {})}
    told[_DIGESTS] = " ".join(digests[name] for name in _ordered(tensors))
    header: dict[str, Any] = {_META: told}
    offset = 0
    for name in _ordered(tensors):
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _KEYS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


_Entry = tuple[torch.dtype, list[int], int, int]


def _head(
    file: IO[bytes], size: int, limit: int
) -> tuple[dict[str, _Entry], dict[str, str], str | None, dict[str, str]]:
    """The header's entries in the order of their data, the metadata, the seal if there is one, and the digests."""
    if size > limit:
        raise ValueError(f"it has {size} bytes, more than limit={limit}")
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_LIMIT):
        raise ValueError(f"its header of {length} bytes is longer than the file, or than {HEADER_LIMIT} bytes")
    raw = file.read(length)
    header = parse_json(raw.decode("utf-8"))
    metadata = header.pop(_META, {})
    if not all(isinstance(part, str) for item in metadata.items() for part in item):
        raise ValueError("its metadata are not texts")
    entries = {name: _entry(name, entry) for name, entry in header.items()}
    entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    at = 0
    for name, (dtype, shape, begin, end) in entries.items():
        wanted = dtype.itemsize
        for length_of in shape:
            wanted *= length_of
        if begin != at or end - begin != wanted:
            raise ValueError(f"tensor {name!r} does not lie where the one before it ends, or not in {wanted} bytes")
        at = end
    if at != size - 8 - length:
        raise ValueError(f"it holds {size - 8 - length} bytes of data, its header speaks of {at}")
    seal, digests = metadata.pop(_SEAL, None), metadata.pop(_DIGESTS, None)
    if seal is None:
        if digests is not None:
            raise ValueError("its seal is missing")
        return entries, metadata, None, {}
    sealed = raw.replace(f'"{_SEAL}":"{seal}"'.encode(), f'"{_SEAL}":"{_BLANK}"'.encode(), 1)
    if digests is None or hashlib.sha256(sealed).hexdigest() != seal:
        raise ValueError("its header is not what was written (the SHA-256 differs)")
    listed = digests.split(" ") if entries else []
    return entries, metadata, seal, dict(zip(entries, listed, strict=True))


def _entry(name: str, entry: Any) -> _Entry:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    for number in (*shape, begin, end):
        if type(number) is not int or not 0 <= number < 1 << 62:
            raise ValueError(f"tensor {name!r} has the size or place {number!r}")
    return dtype, shape, begin, end


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, as they lie there."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class _Hashing(ThreadPoolExecutor):
    """SHA-256 of large pieces beside the reading and writing, of small ones at once; threads start with the first large one."""

    def __init__(self) -> None:
        super().__init__(min(4, os.cpu_count() or 1))

    def of(self, view: memoryview) -> Any:
        """A function that gives the digest."""
        if len(view) < _SMALL:
            digest = hashlib.sha256(view).hexdigest()
            return lambda: digest
        return self.submit(lambda: hashlib.sha256(view).hexdigest()).result
