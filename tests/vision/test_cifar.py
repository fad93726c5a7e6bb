from __future__ import annotations

import io
import os
import pickle
import tarfile
import tracemalloc
import urllib.error
import urllib.request
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
import torch

from bayesprune import ArtefactError
from bayesprune.vision import cifar, load_cifar
from bayesprune.vision.unpickle import load_arrays

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


def fake_files(name, keys=str, protocol=2, per_file=3):
    """The official files in small: their contents by name, and the images and labels."""
    random = np.random.RandomState(0)
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    classes = 10 if name == "cifar10" else 100
    key = (lambda text: text.encode()) if keys is bytes else str
    label_key = "labels" if name == "cifar10" else "fine_labels"
    files, images, labels = {}, [], []
    for batch in batches:
        data = random.randint(0, 256, (per_file, 3072)).astype(np.uint8)
        label = random.randint(0, classes, per_file).tolist()
        content = {key("data"): data, key(label_key): label, key("filenames"): [key("a.png")] * per_file}
        if name == "cifar100":
            content[key("coarse_labels")] = [0] * per_file
        files[batch] = pickle.dumps(content, protocol=protocol)
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(label)
    meta, names_key = ("batches.meta", "label_names") if name == "cifar10" else ("meta", "fine_label_names")
    files[meta] = pickle.dumps({key(names_key): [key(f"class {i}") for i in range(classes)]}, protocol=protocol)
    return files, np.concatenate(images), np.concatenate(labels)


def write_folder(parent, name, files):
    folder = parent / FOLDERS[name]
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def tar_bytes(name, files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{FOLDERS[name]}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def check(data, images, labels, per_file=3):
    assert torch.equal(data.train_images, torch.from_numpy(images[:-per_file]))
    assert torch.equal(data.test_images, torch.from_numpy(images[-per_file:]))
    assert data.train_labels.tolist() + data.test_labels.tolist() == labels.tolist()
    assert data.train_labels.dtype == torch.int64 and data.train_images.dtype == torch.uint8
    assert data.classes[3] == "class 3" and len(data.mean) == 3


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("keys", [str, bytes])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_roundtrip_folder(tmp_path, name, keys, protocol):
    files, images, labels = fake_files(name, keys, protocol)
    folder = write_folder(tmp_path, name, files)
    for place in (tmp_path, folder, str(folder)):
        data = load_cifar(name, place)
        check(data, images, labels)
    assert data.num_classes == (10 if name == "cifar10" else 100)
    data.train_images.zero_()  # a copy of the file's array, which may be written to


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_roundtrip_archive_is_read_in_place(tmp_path, name):
    files, images, labels = fake_files(name)
    archive = tmp_path / ARCHIVES[name]
    archive.write_bytes(tar_bytes(name, files))
    for place in (tmp_path, archive):
        check(load_cifar(name, place), images, labels)
    assert os.listdir(tmp_path) == [ARCHIVES[name]]


def test_roundtrip_files_directly_in_a_folder_of_any_name(tmp_path):
    files, images, labels = fake_files("cifar10")
    write_folder(tmp_path, "cifar10", files).rename(tmp_path / "mine")
    check(load_cifar("cifar10", tmp_path / "mine"), images, labels)


def test_roundtrip_pickle_as_python_2_wrote_it():
    # cPickle, protocol 2: str keys as SHORT_BINSTRING, numpy's old module names, the array's bytes as a str.
    raw = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x03\x00\x80\xfftbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
    )
    content = load_arrays(raw)
    assert content["data"].tolist() == [[0, 128, 255]] and content["data"].dtype == np.uint8
    assert content["labels"] == [6, 9]


def test_roundtrip_every_protocol_and_kind_of_value():
    content = {
        "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "b": [3, -1, 2**40, 70000],
        "c": b"\xff",
        "d": (1, None, True),
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found = load_arrays(pickle.dumps(content, protocol=protocol))
        assert (found.pop("a") == content["a"]).all() and found == {key: content[key] for key in "bcd"}


class Malicious:
    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, ("touch {}",)),
        (eval, ("open({!r}, 'w')",)),
        (os.mkdir, ("{}",)),
        (np.save, ("{}", 0)),
        (getattr, ("", "join")),
    ],
)
def test_error_malicious_pickle_is_refused_and_does_nothing(tmp_path, protocol, function, args):
    mark = tmp_path / "mark"
    args = tuple(a.format(str(mark)) if isinstance(a, str) else a for a in args)
    attack = pickle.dumps({"data": Malicious(function, *args), "labels": []}, protocol=protocol)
    with pytest.raises(ValueError, match=r"the file (asks for|uses the opcode) .*only arrays"):
        load_arrays(attack)
    files, _, _ = fake_files("cifar10")
    folder = write_folder(tmp_path, "cifar10", {**files, "data_batch_3": attack})
    with pytest.raises(ValueError, match=r"data_batch_3: cannot be read \(the file (asks for|uses)"):
        load_cifar("cifar10", folder)
    assert not mark.exists()


def test_error_dotted_names_and_other_codecs_are_refused():
    for raw in (
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02c_codecs\ndecode\n.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
    ):
        with pytest.raises(ValueError, match="the file"):
            load_arrays(raw)


FORGED_DTYPE = (  # an array of objects whose bytes are taken for addresses
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb\x89U\x08AAAAAAAAtb."
)


@pytest.mark.parametrize(
    "raw",
    [
        FORGED_DTYPE,
        FORGED_DTYPE.replace(b"U\x02O8", b"U\x02u1"),  # one byte by its dtype, eight there
        b"\x80\x02]r\xff\xff\xff\x7f.",  # nine bytes: a memo of 2^31 places
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a text of 2^63 bytes
        b"\x80\x02]" + b"2" * 50 + b".",
        b"\x80\x02}(](K\x01tK\x02u.",  # a list for a key
        b"\x80\x02(((.",
    ],
)
def test_error_forged_pickles_neither_crash_nor_take_memory(raw):
    tracemalloc.start()
    try:
        load_arrays(raw)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def test_error_a_text_is_not_encoded_again_and_again():
    once = (
        b"\x80\x02X\x10\x27\x00\x00" + b"x" * 10000 + b"q\x00" + b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02"
    )
    with pytest.raises(ValueError, match="more bytes of its texts"):
        load_arrays(once + b"h\x01h\x00h\x02\x86R" * 5 + b".")


def test_error_half_a_folder_names_what_is_missing(tmp_path):
    files, _, _ = fake_files("cifar10")
    del files["data_batch_4"], files["batches.meta"]
    write_folder(tmp_path, "cifar10", files)
    wanted = "lacks data_batch_4, batches.meta of the official files; found data_batch_1, data_batch_2"
    for place in (tmp_path, tmp_path / FOLDERS["cifar10"]):
        with pytest.raises(FileNotFoundError, match=wanted):
            load_cifar("cifar10", place)
    with pytest.raises(FileNotFoundError, match=wanted):
        load_cifar("cifar10", tmp_path, download=True)  # not passed over in silence


def test_error_empty_official_folder(tmp_path):
    (tmp_path / FOLDERS["cifar100"]).mkdir()
    with pytest.raises(FileNotFoundError, match="lacks train, test, meta of the official files; found none of them"):
        load_cifar("cifar100", tmp_path)


def test_error_half_an_archive(tmp_path):
    files, _, _ = fake_files("cifar100")
    del files["test"]
    (tmp_path / ARCHIVES["cifar100"]).write_bytes(tar_bytes("cifar100", files))
    with pytest.raises(FileNotFoundError, match="lacks test of the official files; found train, meta"):
        load_cifar("cifar100", tmp_path)


@pytest.mark.parametrize("cut", [0, 40, 3000])
def test_error_archive_cut_short(tmp_path, cut):
    content = tar_bytes("cifar10", fake_files("cifar10")[0])
    (tmp_path / ARCHIVES["cifar10"]).write_bytes(content[:cut])
    with pytest.raises(ValueError, match="expected a whole"):
        load_cifar("cifar10", tmp_path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_error_archive_damaged(tmp_path, place):
    content = bytearray(tar_bytes("cifar10", fake_files("cifar10")[0]))
    start = int(place * len(content))
    content[start : start + 16] = bytes(16)
    (tmp_path / ARCHIVES["cifar10"]).write_bytes(content)
    with pytest.raises(ArtefactError, match=r"cannot be read .*expected a whole gzip file; fetch it again"):
        load_cifar("cifar10", tmp_path)


def test_error_wrong_folder_says_what_was_expected_and_found(tmp_path):
    write_folder(tmp_path, "cifar10", fake_files("cifar10")[0])
    wanted = "expected cifar-100-python/ with train, test, meta, or cifar-100-python.tar.gz; found cifar-10-batches-py"
    with pytest.raises(FileNotFoundError, match=wanted):
        load_cifar("cifar100", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"found batches\.meta, data_batch_1"):
        load_cifar("cifar100", tmp_path / FOLDERS["cifar10"])
    with pytest.raises(FileNotFoundError, match=r"'.*absent' does not exist: expected cifar-10-batches-py"):
        load_cifar("cifar10", tmp_path / "absent")
    with pytest.raises(ValueError, match="name='cifar': use 'cifar10' or 'cifar100'"):
        load_cifar("cifar", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "data_batch_2: cannot be read"),
        (b"", "data_batch_2: cannot be read"),
        (pickle.dumps([1]), "data_batch_2: holds a list, not a dict"),
        (pickle.dumps({"data": 1}), r"data_batch_2: has no 'labels' among \['data'\]"),
        (
            pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}),
            r"data_batch_2: holds uint8 data of shape \(2, 5\); expected uint8 \(n, 3072\)",
        ),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}), "other labels than 2 integers"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "labels run from 0 to 10"),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [0]}),
            "data_batch_2: cannot be read .*only arrays of uint8",
        ),
    ],
)
def test_error_wrong_contents(tmp_path, content, message):
    files, _, _ = fake_files("cifar10")
    write_folder(tmp_path, "cifar10", {**files, "data_batch_2": content})
    with pytest.raises(ValueError, match=message):
        load_cifar("cifar10", tmp_path)


def serve(monkeypatch, content, checksum=None):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    if checksum:
        monkeypatch.setitem(cifar.LAYOUTS, "cifar10", replace(cifar.LAYOUTS["cifar10"], md5=checksum))
    return asked


def test_roundtrip_download_once(tmp_path, monkeypatch):
    files, images, labels = fake_files("cifar10")
    content = tar_bytes("cifar10", files)
    asked = serve(monkeypatch, content, md5(content).hexdigest())
    for _ in range(2):
        check(load_cifar("cifar10", tmp_path / "new", download=True), images, labels)
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]
    assert os.listdir(tmp_path / "new") == [ARCHIVES["cifar10"]]


def test_error_download_with_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch):
    serve(monkeypatch, tar_bytes("cifar10", fake_files("cifar10")[0]))
    with pytest.raises(ValueError, match="expected c58f30108f718f92721af3b95e74349a"):
        load_cifar("cifar10", tmp_path, download=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), TimeoutError("slow")])
def test_error_no_network(tmp_path, monkeypatch, error):
    serve(monkeypatch, error)
    with pytest.raises(ConnectionError, match=r"could not be fetched .*: fetch it by other means and put it in"):
        load_cifar("cifar10", tmp_path, download=True)
    assert os.listdir(tmp_path) == []


def test_property_nothing_is_fetched_unasked(tmp_path, monkeypatch):
    asked = serve(monkeypatch, b"")
    with pytest.raises(
        FileNotFoundError, match=r"found an empty folder; fetch .* into it \(load_cifar\(…, download=True\) does\)"
    ):
        load_cifar("cifar10", tmp_path)
    assert asked == []
