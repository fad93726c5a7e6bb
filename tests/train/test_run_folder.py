"""One writer a run folder, whole files in it, and errors in one line: findings on what goes wrong around a run."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from bayesprune import ArtefactError, cli
from bayesprune.common.lock import FolderInUseError, locked
from bayesprune.report import load_run
from bayesprune.train import evaluate, memory, recipe, train
from bayesprune.train import folder as names

TINY = ["epochs=2", "cycles=1", "samples_per_cycle=2", "train_size=128", "threads=1", "evaluate_every=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(recipe("digits-cvadam", TINY), out, quiet=True)
    return out


def test_error_two_trainings_on_one_folder(tmp_path, capsys) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(FolderInUseError, match=rf"run is in use by process {os.getpid()} on .* since 20"):
            train(recipe("digits-cvadam", TINY), tmp_path / "run", quiet=True)
        arguments = ["train", "digits-cvadam", "--out", str(tmp_path / "run"), "--set", *TINY, "--quiet"]
        assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is in use by process" in said
    assert not (tmp_path / "run").exists()


def test_property_two_processes_started_at_once_leave_one_whole_run(tmp_path, finished) -> None:
    children = []
    for _ in range(2):
        if not (child := os.fork()):
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
            try:
                train(recipe("digits-cvadam", TINY), tmp_path / "run", quiet=True)
            except (FolderInUseError, FileExistsError):
                os._exit(3)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes == [0, 3]
    assert load_run(tmp_path / "run").result["nll"] == load_run(finished).result["nll"]
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(finished))
    assert len(os.listdir(tmp_path / "run" / "samples")) == len(os.listdir(finished / "samples"))


def test_property_leftovers_go_with_the_next_start(tmp_path, finished) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.0123abcd.partial").write_text("half a fi")
    (tmp_path / "run" / ".lock").write_text("{}")
    train(recipe("digits-cvadam", TINY), tmp_path / "run", quiet=True)
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(finished))


@pytest.mark.parametrize(
    "name", [names.RESULT, names.HISTORY, names.CONFIG, names.MODEL, names.TRACES, names.ENVIRONMENT]
)
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_error_a_finished_run_whose_file_was_changed(finished, name, damage) -> None:
    path = finished / name
    whole = path.read_bytes()
    place = max(i for i, byte in enumerate(whole) if 48 <= byte < 58)
    try:
        path.unlink() if damage == "missing" else path.write_bytes(whole[:place] + b"5" + whole[place + 1 :] + b" ")
        with pytest.raises((ArtefactError, FileNotFoundError), match=name.replace(".", r"\.")):
            load_run(finished).traces()
            evaluate(finished)
    finally:
        path.write_bytes(whole)
    assert load_run(finished).traces() is not None


def test_roundtrip_a_run_killed_before_its_manifest_gets_it_on_resuming(tmp_path) -> None:
    out = tmp_path / "run"
    result = train(recipe("digits-cvadam", TINY), out, quiet=True)
    manifest = (out / "manifest.json").read_bytes()
    (out / "manifest.json").unlink()
    assert train(recipe("digits-cvadam", TINY), out, resume=True, quiet=True) == result
    assert (out / "manifest.json").read_bytes() == manifest


def test_error_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path) -> None:
    said = tmp_path / "said"
    if not (child := os.fork()):
        sys.stderr = open(said, "w")  # noqa: SIM115 - lives as long as the process
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the configuration fits, the weights do not
        code = cli.main(["train", "digits-cvadam", "--out", str(tmp_path / "run"), "--set", *TINY, "--quiet"])
        sys.stderr.flush()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert said.read_text().count("\n") == 1 and said.read_text().endswith(": File too large\n")
    left = sorted(path.name for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert not [name for name in left if name.startswith(".") or name.endswith("safetensors")], left


def test_error_a_damaged_checkpoint_is_named(tmp_path, capsys) -> None:
    begun = time.monotonic()
    stopped = []

    def stop() -> bool:
        stopped.append(time.monotonic() - begun)
        return len(stopped) > 1

    with pytest.raises(RuntimeError, match="go on with --resume"):
        train(recipe("digits-cvadam", TINY), tmp_path / "run", quiet=True, stop=stop)
    path = tmp_path / "run" / names.CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(ArtefactError, match=r"checkpoint\.safetensors: tensor .* is not what was written"):
        train(recipe("digits-cvadam", TINY), tmp_path / "run", resume=True, quiet=True)
    path.write_bytes(whole)
    train(recipe("digits-cvadam", TINY), tmp_path / "run", resume=True, quiet=True)


def test_property_the_allocator_of_a_host_process_is_left_alone(tmp_path, monkeypatch) -> None:
    """Only the command, whose process is its own, has freed memory kept; nothing else in the library can."""
    told: list[str] = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: told.append("kept"))
    short = [*TINY, "epochs=1"]
    train(recipe("digits-cvadam", short), tmp_path / "one", quiet=True)
    assert not told
    assert cli.main(["train", "digits-cvadam", "--out", str(tmp_path / "two"), "--quiet", "--set", *short]) == 0
    assert told == ["kept"]
    sources = Path(memory.__file__).parents[1].rglob("*.py")
    assert [path.name for path in sources if "mallopt" in path.read_text()] == ["memory.py"]
