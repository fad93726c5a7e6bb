"""The folder of samples: reopened, shared, killed in the middle, damaged, forged."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from bayesprune import ArtefactError
from bayesprune.common.manifest import sealed
from bayesprune.common.tensors import write_tensors
from bayesprune.posterior import SampleStore
from bayesprune.posterior.architecture import fingerprint
from posterior.tied_network import Network, copy_of, randomise, states_equal


def test_roundtrip_a_reopened_store_goes_on(tmp_path) -> None:
    model = Network()
    SampleStore(tmp_path).collect(
        randomise(model, 1), step=10, lr=0.5, note="a", cycle=torch.tensor(2), bad=float("nan")
    )
    assert SampleStore(tmp_path).collect(randomise(model, 2), step=20) == 1
    store = SampleStore(tmp_path)
    assert store.infos == [{"step": 10, "lr": 0.5, "note": "a", "cycle": 2, "bad": None}, {"step": 20}]
    assert states_equal(store[1], model.state_dict())
    json.loads((tmp_path / "store.json").read_text(), parse_constant=pytest.fail)  # no NaN in the JSON


def test_roundtrip_two_open_stores_lose_nothing(tmp_path) -> None:
    first, second = SampleStore(tmp_path), SampleStore(tmp_path)
    first.collect(Network(), who="first")
    second.collect(Network(), who="second")
    assert [info["who"] for info in SampleStore(tmp_path).infos] == ["first", "second"]


def test_property_tied_weights_are_written_once_and_load_strictly(tmp_path) -> None:
    from safetensors.torch import load_file

    store, model = SampleStore(tmp_path), Network()
    store.collect(model)
    assert "second.weight" not in load_file(tmp_path / "sample-0000.safetensors")
    assert Network().load_state_dict(store[0], strict=True)


def test_roundtrip_truncate_removes_files(tmp_path) -> None:
    store = SampleStore(tmp_path)
    for _ in range(3):
        store.collect(Network())
    store.truncate(1)
    assert sorted(os.listdir(tmp_path)) == ["sample-0000.safetensors", "store.json"]
    assert len(SampleStore(tmp_path)) == 1


@pytest.mark.parametrize("failing", ["sample-0001.safetensors", "store.json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_roundtrip_a_crash_in_the_middle_leaves_the_earlier_samples(tmp_path, monkeypatch, failing, when) -> None:
    model = randomise(Network(), 0)
    first = copy_of(model)
    SampleStore(tmp_path).collect(model, step=0)

    class Killed(BaseException):
        pass

    replace = os.replace

    def crash(source, target):
        if os.path.basename(target) != failing or when == "after":
            replace(source, target)
        if os.path.basename(target) == failing:
            raise Killed

    writer = SampleStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Killed):
            writer.collect(randomise(model, 1), step=1)
    survived = 2 if (failing, when) == ("store.json", "after") else 1
    reader = SampleStore(tmp_path)
    assert len(reader) == survived
    assert states_equal(reader[0], first)
    # The writer, if it lives on, and a new process both go on cleanly.
    assert writer.collect(randomise(model, 2), step=2) == survived
    again = SampleStore(tmp_path)
    assert states_equal(again[survived], model.state_dict())
    assert sorted(os.listdir(tmp_path)) == [f"sample-{i:04d}.safetensors" for i in range(survived + 1)] + ["store.json"]


def test_roundtrip_strays_of_a_killed_process_are_ignored_and_replaced(tmp_path) -> None:
    store = SampleStore(tmp_path)
    store.collect(Network(), step=0)
    for stray in (
        "sample-0001.safetensors",
        "sample-0001.safetensors.tmp",
        "store.json.tmp",
        "sample-0007.safetensors",
    ):
        (tmp_path / stray).write_bytes(b"half a fi")
    (tmp_path / "notes.txt").write_text("not ours")
    reader = SampleStore(tmp_path)
    assert len(reader) == 1 and len(list(reader)) == 1
    assert (tmp_path / "sample-0007.safetensors").exists()  # reading removes nothing
    reader.collect(Network(), step=1)
    assert sorted(os.listdir(tmp_path)) == [
        "notes.txt",
        "sample-0000.safetensors",
        "sample-0001.safetensors",
        "store.json",
    ]


def test_error_damaged_stores(tmp_path) -> None:
    store = SampleStore(tmp_path / "run")
    for _ in range(2):
        store.collect(Network())
    path = tmp_path / "run" / "sample-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"sample 1: it has .* bytes instead of .*truncate\(1\)"):
        SampleStore(tmp_path / "run")[1]
    path.unlink()
    with pytest.raises(ValueError, match=r"sample 1: it is missing"):
        SampleStore(tmp_path / "run")[1]
    assert SampleStore(tmp_path / "run")[0]

    index = tmp_path / "run" / "store.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        SampleStore(tmp_path / "run")
    content["tensors"][0][2] = [7]
    index.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="its content is not what was written"):
        SampleStore(tmp_path / "run")
    del content["sha256"]
    index.write_text(json.dumps(sealed(content)))
    with pytest.raises(ArtefactError, match="fingerprint"):
        SampleStore(tmp_path / "run")
    index.write_text('{"format": "bayes')
    with pytest.raises(ValueError, match=r"store\.json: cannot be read"):
        SampleStore(tmp_path / "run")
    with pytest.raises(NotADirectoryError):
        SampleStore(index)


def test_error_swapped_samples_changed_bytes_and_names_outside(tmp_path) -> None:
    store, model = SampleStore(tmp_path), Network()
    for seed in range(2):
        store.collect(randomise(model, seed))
    one, two = tmp_path / "sample-0000.safetensors", tmp_path / "sample-0001.safetensors"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    before = copy_of(model)
    with pytest.raises(ArtefactError, match=r"sample 0: it is another file than store\.json lists"):
        SampleStore(tmp_path).load_(0, model)
    one.write_bytes(first[:-3] + bytes([first[-3] ^ 1]) + first[-2:])
    with pytest.raises(ArtefactError, match="the SHA-256 differs"):
        SampleStore(tmp_path).load_(0, model)
    assert states_equal(model.state_dict(), before)
    content = json.loads((tmp_path / "store.json").read_text())
    content.pop("sha256")
    for name in ("../sample-0000.safetensors", str(two), "store.json"):
        content["samples"][0]["file"] = name
        (tmp_path / "store.json").write_text(json.dumps(sealed(content)))
        with pytest.raises(ArtefactError, match="it lists the file"):
            SampleStore(tmp_path)


def test_error_a_sample_of_other_shapes_is_not_broadcast(tmp_path) -> None:
    store, model = SampleStore(tmp_path), nn.Linear(2, 3)
    store.collect(model)
    before = copy_of(model)
    mark = fingerprint(store.layout)
    path, content = tmp_path / "sample-0000.safetensors", json.loads((tmp_path / "store.json").read_text())
    seal = write_tensors(
        path, {"weight": torch.ones(1), "bias": torch.ones(3)}, "bayesprune-samples-3", {"fingerprint": mark}
    )
    content.pop("sha256")
    content["samples"][0] |= {"bytes": path.stat().st_size, "sha256": seal}
    (tmp_path / "store.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(
        ArtefactError, match=r"'weight' is parameter float32\[1\], the samples have parameter float32\[3, 2\]"
    ):
        SampleStore(tmp_path).load_(0, model)
    assert states_equal(model.state_dict(), before)


def test_error_a_lost_index_is_no_beginning(tmp_path) -> None:
    store = SampleStore(tmp_path)
    store.collect(Network())
    (tmp_path / "store.json").unlink()
    for act in (lambda: SampleStore(tmp_path), lambda: store.collect(Network()), lambda: store.truncate(0)):
        with pytest.raises(ArtefactError, match=r"store\.json: is missing, and 1 files of samples are there"):
            act()
    assert (tmp_path / "sample-0000.safetensors").exists()


def test_property_two_processes_collect_into_one_store(tmp_path) -> None:
    def work(number: int) -> None:
        for seed in range(5):
            SampleStore(tmp_path).collect(randomise(Network(), seed), who=number)

    children = []
    for number in range(3):
        if not (child := os.fork()):
            work(number)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    store = SampleStore(tmp_path)
    assert sorted(info["who"] for info in store.infos) == [0] * 5 + [1] * 5 + [2] * 5 and len(list(store)) == 15
    assert len(os.listdir(tmp_path)) == 16
