"""Writing whole or not at all, locks, leftovers, seals and manifests."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import stat
import time
from collections.abc import Callable

import pytest
import torch

import bayesprune
from bayesprune import ArtefactError
from bayesprune.common import files
from bayesprune.common.artefact import MissingArtefactError, reading
from bayesprune.common.files import leftovers, plain_name, replacing, replacing_folder, sweep, write_json, write_text
from bayesprune.common.lock import FolderInUseError, holder, locked
from bayesprune.common.manifest import check_manifest, sealed, unsealed, write_manifest
from bayesprune.common.tensors import write_tensors


def forked(work: Callable[[], object]) -> int:
    """Run something in a forked process and return its exit status, -9 for SIGKILL; far faster than a fresh one."""
    return os.waitstatus_to_exitcode(os.waitpid(started(work), 0)[1])


def started(work: Callable[[], object]) -> int:
    """The forked process's number."""
    number = os.fork()
    if not number:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return number


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["in the block", "at the rename"])
def test_roundtrip_a_killed_write_leaves_the_earlier_file_and_nothing_after_the_next_start(tmp_path, when) -> None:
    write_text(tmp_path / "a.json", "earlier")

    def work() -> None:
        with replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            if when == "in the block":
                die()
            os.replace = die

    assert forked(work) == -signal.SIGKILL
    assert (tmp_path / "a.json").read_text() == "earlier" and len(os.listdir(tmp_path)) == 2
    assert len(sweep(tmp_path)) == 1 and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("rename", [1, 2, 3, 4])
def test_roundtrip_a_folder_killed_at_any_rename_is_whole_after_the_next_start(tmp_path, exchange, rename) -> None:
    write_text(tmp_path / "model" / "a", "earlier")

    def work() -> None:
        count, replace = [0], os.replace
        if not exchange:
            files._exchanged = lambda *_: False

        def counted(*names: object, **_: object) -> None:
            count[0] += 1
            die() if count[0] == rename else replace(*names)

        os.replace = files.shutil.rmtree = counted
        with replacing_folder(tmp_path / "model") as folder:
            (folder / "a").write_text("new")

    forked(work)
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "model"):
        _ = 1 / 0
    assert (tmp_path / "model" / "a").read_text() in ("earlier", "new")
    assert os.listdir(tmp_path) == ["model"]


def test_property_a_failed_block_leaves_the_earlier_file_and_no_leftover(tmp_path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan")})
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None} and os.listdir(tmp_path) == ["a.json"]


def test_property_the_file_and_then_its_folder_are_flushed(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    write_text(tmp_path / "a", "x")
    assert done == ["file", "rename", "folder"]


def test_property_sweeping_leaves_a_living_writer_and_other_files_alone(tmp_path) -> None:
    write_text(tmp_path / "mine.partial", "mine")
    with replacing(tmp_path / "a") as temporary:
        assert sweep(tmp_path) == [] and leftovers(tmp_path) == [temporary]
        temporary.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole" and sorted(os.listdir(tmp_path)) == ["a", "mine.partial"]


def test_property_long_names_and_modes(tmp_path) -> None:
    name = "x" * 250
    write_text(tmp_path / name, "x")
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "")
        with replacing_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640 and (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", name]


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_error_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, kind) -> None:
    write_text(tmp_path / "a", "earlier")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path}/a'"):
            if kind == "text":
                write_text(tmp_path / "a", "x" * 10**6)
            else:
                write_tensors(tmp_path / "a", {"w": torch.ones(10**6)}, "f")

    assert forked(work) == 0
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "earlier"


def test_error_a_folder_that_cannot_be_written_names_the_file(tmp_path, monkeypatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "claim", refused)
    with pytest.raises(PermissionError, match=rf"Permission denied: '{tmp_path}/a'"):
        write_text(tmp_path / "a", "x")


def test_error_names_that_leave_the_folder() -> None:
    assert plain_name("sample-0000.safetensors") and plain_name("...")
    for name in ("", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", "C:a", "a\0", None, 3):
        assert not plain_name(name), name


# ---- locks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True])
def test_error_the_second_comer_is_told_who_holds_the_folder(tmp_path, beside) -> None:
    def work() -> None:
        with locked(tmp_path / "run", beside=beside):
            (tmp_path / "held").touch()
            time.sleep(60)

    process = started(work)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    (tmp_path / "held").unlink()
    begun = time.monotonic()
    message = rf"run is in use by process {process} on .+ since 20.*; wait until it ends"
    with pytest.raises(FolderInUseError, match=message), locked(tmp_path / "run", beside=beside, wait=0.1):
        pass
    assert 0.1 <= time.monotonic() - begun < 5
    os.kill(process, signal.SIGKILL)  # the lock goes with its holder
    os.waitpid(process, 0)
    with locked(tmp_path / "run", beside=beside):
        assert holder(tmp_path / "run", beside=beside)["pid"] == os.getpid()
        with pytest.raises(FolderInUseError), locked(tmp_path / "run", beside=beside):
            pass
    assert holder(tmp_path / "run", beside=beside) == {}
    assert os.listdir(tmp_path) == ([] if beside else ["run"]) and not list(tmp_path.glob("run/*"))


def test_property_a_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path) -> None:
    with locked(tmp_path / "run"):
        worker = started(lambda: time.sleep(60))
    try:
        with locked(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_property_many_writers_of_one_file_lose_none(tmp_path) -> None:
    place = tmp_path / "count"

    def work() -> None:
        for _ in range(10):
            with locked(tmp_path, wait=60):
                write_text(place, str(int(place.read_text()) + 1 if place.exists() else 1))

    assert [os.waitpid(process, 0)[1] for process in [started(work) for _ in range(4)]] == [0] * 4
    assert place.read_text() == "40" and os.listdir(tmp_path) == ["count"]


# ---- seals, manifests, errors ---------------------------------------------------------------------------------------


def test_error_sealed_json_shows_every_change() -> None:
    content = sealed({"a": [1, 0.1, None], "b": {"c": "ü"}})
    assert unsealed("f", json.loads(json.dumps(content))) == {"a": [1, 0.1, None], "b": {"c": "ü"}}
    for changed in (
        {**content, "a": [1, 0.2, None]},
        {**content, "d": 1},
        {"a": content["a"]},
        {**content, "sha256": 3},
    ):
        with pytest.raises(ArtefactError, match="f: its content is not what was written"):
            unsealed("f", changed)
    assert unsealed("f", {"a": 1}, needed=False) == {"a": 1}
    with pytest.raises(ArtefactError):  # a sealed file that says it is older
        unsealed("f", content, needed=False)


def test_error_manifest(tmp_path) -> None:
    check_manifest(tmp_path)  # none: not checked
    for name in ("a", "b"):
        write_text(tmp_path / name, name)
    write_text(tmp_path / "c", "later")
    write_manifest(tmp_path, ["a", "b", "c", "absent"])
    (tmp_path / "c").unlink()
    with pytest.raises(MissingArtefactError, match=r"c: is missing: manifest\.json lists it"):
        check_manifest(tmp_path)
    write_text(tmp_path / "c", "later")
    check_manifest(tmp_path)
    write_text(tmp_path / "a", "A")
    check_manifest(tmp_path, ["b", "c", "unlisted"])
    with pytest.raises(ArtefactError, match=r"a: is not the file that manifest\.json lists"):
        check_manifest(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    del content["sha256"]
    content["files"] = {"../x": content["files"]["a"]}
    write_json(tmp_path / "manifest.json", sealed(content))
    with pytest.raises(ArtefactError, match=r"lists '\.\./x'"):
        check_manifest(tmp_path)


def test_error_family() -> None:
    error = MissingArtefactError("a.json", "is missing", "an index", "copy it again")
    assert isinstance(error, (ArtefactError, ValueError)) and isinstance(error, FileNotFoundError)
    assert str(error) == "a.json: is missing; expected an index; copy it again" and error.mend == "copy it again"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is MissingArtefactError and str(again) == str(error) and again.path == "a.json"
    assert bayesprune.ArtefactError is ArtefactError and repr(ArtefactError("a", "b")).startswith("ArtefactError(")
    with pytest.raises(PermissionError), reading("a"):  # what the system refuses is no damage
        raise PermissionError(13, "Permission denied", "a")
    with pytest.raises(ArtefactError, match="a: cannot be read \\(there is no 'k'\\)"), reading("a"):
        raise KeyError("k")
