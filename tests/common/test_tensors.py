"""Files of tensors and bounded readers: against safetensors, under every damage, within their memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayesprune import ArtefactError
from bayesprune.common import bounded, tensors
from bayesprune.common.artefact import MissingArtefactError
from bayesprune.common.bounded import opened_bytes, opened_text, read_bytes, read_json, tar_members, zip_members
from bayesprune.common.tensors import read_tensors, stored_bytes, write_tensors

ODD = {
    "scalar": torch.tensor(2.0, dtype=torch.float64), "empty": torch.zeros(0, 4), "mask": torch.tensor([True, False]),
    "low": torch.randn(3, 5).bfloat16(), "half": torch.randn(2).half(), "view": torch.arange(12.0).view(3, 4).T,
    "long": torch.tensor([-1, 2**40]), "byte": torch.tensor([255], dtype=torch.uint8), "complex": torch.ones(2) * 1j,
    "nan": torch.tensor([float("nan"), -0.0]), "ü/x": torch.ones(1), "large": torch.randn(1 << 19),
}  # fmt: skip


def equal(one, other) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
    )


def test_parity_with_safetensors(tmp_path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, ODD, "mine-1", {"note": "x"})
    read = load_file(ours)
    assert read.keys() == ODD.keys() and all(equal(read[name], tensor) for name, tensor in ODD.items())
    save_file({name: tensor.contiguous() for name, tensor in ODD.items()}, theirs)
    found = read_tensors(theirs, [], older=[None])
    assert found.seal is None and all(equal(found.tensors[name], tensor) for name, tensor in ODD.items())
    write_tensors(ours, ODD, "mine-1")
    assert stored_bytes({name: tensor.to("meta") for name, tensor in ODD.items()}, "mine-1") == ours.stat().st_size


def test_roundtrip_bits_seal_and_own_memory(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    seal = write_tensors(path, ODD, "mine-1", {"note": "x"})
    found = read_tensors(path, ["mine-1"])
    assert found.seal == seal and found.metadata == {"note": "x"}
    assert all(equal(found.tensors[name], tensor) for name, tensor in ODD.items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.tensors.values())  # as torch's own
    write_tensors(path, {"large": torch.zeros(1 << 19)}, "mine-1")
    assert equal(found.tensors["large"], ODD["large"])
    assert write_tensors(path, {}, "mine-1") and read_tensors(path, ["mine-1"]).tensors == {}


def test_error_every_byte_is_checked(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(
        path, {"w": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False])}, "mine-1", {"note": "[1, 2]"}
    )
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ArtefactError, match=r"a\.safetensors"):
            read_tensors(path, ["mine-1"], older=[None, "mine-0"])
    for cut in range(0, len(whole), 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArtefactError):
            read_tensors(path, ["mine-1"], older=[None])
    path.write_bytes(whole + b"x")
    with pytest.raises(ArtefactError, match="bytes of data, its header speaks of"):
        read_tensors(path, ["mine-1"])


def forged(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header of 0 bytes"),
        (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes"),
        (forged(b"["), "cannot be read"),
        (forged(b"[" * 5000), "cannot be read"),
        (forged([]), "cannot be read"),
        (forged({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"0000"), "not in 4398046511104 bytes"),
        (forged({"a": {"dtype": "F32", "shape": [2**61, 16], "data_offsets": [0, 0]}}), "does not lie"),
        (forged({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"0000"), "size or place -1"),
        (forged({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"0000"), "size or place True"),
        (forged({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"0" * 8), "does not lie where"),
        (forged({k: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for k in "ab"}, b"0000"), "'b' does not lie"),
        (forged(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "twice"),
        (forged({"a": {"dtype": "Q8", "shape": [1], "data_offsets": [0, 1]}}, b"0"), "there is no 'Q8'"),
        (forged({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\x02"), "neither 0 nor 1"),
        (forged({"__metadata__": {"format": 3}}), "not texts"),
        (forged({"__metadata__": {"format": "other-9"}}), "format 'other-9', without its SHA-256"),
        (forged({"__metadata__": {"format": "mine-1"}}), "format 'mine-1', without its SHA-256; expected 'mine-1'"),
    ],
)  # fmt: skip
def test_error_forged_headers(tmp_path, content, message) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        read_tensors(path, ["mine-1"], older=[None, "mine-0"])


def test_error_limits_and_absence(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.ones(100)}, "mine-1")
    with pytest.raises(ArtefactError, match="more than limit=400"):
        read_tensors(path, ["mine-1"], limit=400)
    with pytest.raises(MissingArtefactError):
        read_tensors(tmp_path / "b", ["mine-1"])
    with pytest.raises(ValueError, match=r"'w' is torch\.sparse_coo"):
        write_tensors(path, {"w": torch.eye(2).to_sparse()}, "mine-1")
    assert os.listdir(tmp_path) == ["a.safetensors"]


# ---- text, JSON, packed files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff{}", b"[1]", b'{"a": 1, "a": 2}', b"[" * 100000, b'{"a": 1' + b"0" * 5000 + b"}", b"{}x"],
)
def test_error_json(tmp_path, content) -> None:
    (tmp_path / "a.json").write_bytes(content)
    if content.startswith(b'{"a": 10'):
        pytest.skip("a long integer, which older Pythons read")
    with pytest.raises(ArtefactError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ArtefactError, match="is a folder"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_text("[1, 2]")
    assert read_json(tmp_path / "a.json", list) == [1, 2]
    with pytest.raises(ArtefactError, match="more than 3 bytes"):
        read_bytes(tmp_path / "a.json", limit=3)


def test_error_a_small_gzip_that_unpacks_to_much(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"x," * 10**6 + b"\n"))
    with opened_text(path) as lines:
        assert len(next(lines)) == 2 * 10**6 + 1
    with pytest.raises(ArtefactError, match="more than 1000000 bytes"), opened_text(path, limit=10**6) as lines:
        list(lines)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))  # another checksum
    with pytest.raises(ArtefactError, match="cannot be read"), opened_bytes(path) as file:
        file.read()
    monkeypatch.setattr(bounded, "_LINE", 1000)
    path.write_bytes(gzip.compress(b"x" * 1000 + b"\n"))
    with pytest.raises(ArtefactError, match="a line of 1000 characters"), opened_text(path) as lines:
        list(lines)


def test_error_zip_and_tar(tmp_path) -> None:
    place = tmp_path / "a.npz"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(10**6))
    assert zip_members(place, ("a", "b")) == ({"a": bytes(10**6)}, ["a"])
    with pytest.raises(ArtefactError, match="unpacks to more than 1000 bytes"):
        zip_members(place, ("a",), limit=1000)
    place.write_bytes(place.read_bytes()[:-30])
    with pytest.raises(ArtefactError):
        zip_members(place, ("a",))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("x/one", "../two"):
            member = tarfile.TarInfo(name)
            member.size = 1000
            archive.addfile(member, io.BytesIO(bytes(1000)))
    place.write_bytes(buffer.getvalue())
    assert {name: len(held) for name, held in tar_members(place, lambda name: True).items()} == {
        "one": 1000,
        "two": 1000,
    }
    with pytest.raises(ArtefactError, match="unpacks to more than 5000 bytes"):
        tar_members(place, lambda name: True, limit=5000)
    place.write_bytes(buffer.getvalue()[:-6])
    with pytest.raises(ArtefactError):
        tar_members(place, lambda name: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_property_a_sum_tells_of_what_is_not_finite(dtype) -> None:
    largest, infinity = torch.finfo(dtype).max, float("inf")
    for values, fine in (
        ([], True), ([1.0, -2.0], True), ([largest, largest], True), ([infinity], False), ([infinity, -infinity], False),
        ([0.0, float("nan")], False), ([largest, largest, -infinity], False),
    ):  # fmt: skip
        assert tensors.all_finite(torch.tensor(values, dtype=dtype)) is fine, values
    assert tensors.all_finite(torch.arange(3)) and not tensors.all_finite(torch.tensor([1j * infinity]))


def test_property_a_file_is_hashed_once_while_it_stays_the_same(tmp_path, monkeypatch) -> None:
    path, hashed = tmp_path / "a.safetensors", []
    of = tensors._Hashing.of
    monkeypatch.setattr(tensors._Hashing, "of", lambda self, view: hashed.append(len(view)) or of(self, view))
    write_tensors(path, {"w": torch.ones(100)}, "mine-1")
    hashed.clear()
    for _ in range(2):
        read_tensors(path, ["mine-1"])
    assert hashed == [400, 400]  # a file as new as that may change within a tick of its clock
    monkeypatch.setattr(tensors, "_COARSE", -1.0)
    for _ in range(3):
        read_tensors(path, ["mine-1"])
    assert hashed == [400] * 3
    whole = path.read_bytes()
    times = path.stat()
    path.write_bytes(whole[:-1] + b"\x00")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # whoever sets the time back leaves a trace
    with pytest.raises(ArtefactError, match="'w' is not what was written"):
        read_tensors(path, ["mine-1"])
