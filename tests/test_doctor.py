"""bayesprune doctor: a whole folder is told to be whole, and each kind of damage by its file."""

from __future__ import annotations

import os
import shutil

import pytest

from bayesprune.cli import doctor, main
from bayesprune.cli.doctor import examine
from bayesprune.common.files import replacing
from bayesprune.common.lock import locked
from bayesprune.train import recipe, train

TINY = ["train_size=64", "epochs=1", "batch_size=16", "width=4", "cycles=1", "samples_per_cycle=1", "device=cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe("digits-cvadam", TINY), folder, quiet=True)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_property_a_whole_run_is_whole(run, capsys):
    assert examine(run)[1] == []
    assert main(["doctor", str(run)]) == 0
    told = capsys.readouterr().out
    assert "all files that manifest.json lists" in told and "1 samples, all whole" in told


def test_error_damage_is_named_by_its_file(run, capsys):
    flip(run / "model.safetensors")
    flip(run / "samples" / "sample-0000.safetensors")
    (run / ".result.json.0123abcd.partial").write_text("half")
    assert main(["doctor", str(run)]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
    assert len(wrong) == 3
    for name in ("model.safetensors", "sample-0000.safetensors", ".result.json.0123abcd.partial"):
        assert any(name in line for line in wrong), name


def test_property_what_a_live_run_writes_or_removes_meanwhile_is_not_wrong(run, monkeypatch):
    checkpoint = run / "checkpoint.safetensors"
    checkpoint.write_bytes(b"of a run that ends now")

    def ended(folder):
        checkpoint.unlink()
        raise FileNotFoundError(checkpoint)

    monkeypatch.setattr(doctor, "_checkpoint", ended)
    with replacing(run / "history.json") as temporary:
        assert temporary.exists() and examine(run)[1] == []
        temporary.write_text("[]")


def test_property_a_killed_process_is_not_said_to_hold_its_folder(tmp_path):
    with locked(tmp_path):
        (told,) = examine(tmp_path)[0]
        assert f": in use by process {os.getpid()} on " in told
        left = (tmp_path / ".lock").read_bytes()
    (tmp_path / ".lock").write_bytes(left)  # as kill -9 leaves it
    (told,) = examine(tmp_path)[0]
    assert f": no longer in use by process {os.getpid()} on " in told


def test_error_no_folder(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nothing")]) == 1
    assert "is no folder" in capsys.readouterr().err


def test_property_the_machine_is_described(capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for name in ("bayesprune", "torch", "compiler", "compiled step", "BLAS", "threads", "gpu"):
        assert f"\n{name} " in f"\n{told}", name
