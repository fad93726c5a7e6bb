from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bayesprune.report import find_runs, load_run, run_labels

CLOCK = {"steps": np.zeros(2), "lr": np.zeros(2)}


def test_roundtrip_a_run_is_read_as_it_was_written(make_run):
    folder = make_run()
    run = load_run(str(folder))
    for name in ("config", "environment", "history", "result"):
        assert getattr(run, name) == json.loads((folder / f"{name}.json").read_text())
    assert (run.name, run.recipe, run.method, run.seed) == ("digits-dfp-seed0", "digits-dfp", "emmcmc", 0)
    assert (run.dataset, run.network, run.epochs_planned, run.epochs_done) == ("digits", "digits_resnet", 18, 18)
    assert run.finished
    assert run.column("accuracy").tolist() == [row["accuracy"] for row in run.history]


def test_roundtrip_traces(make_run):
    traces = load_run(make_run(weights=7)).traces()
    assert traces is not None
    assert [key for key in traces.channels] == [
        ("input", "stage1.block0.conv1.weight", 0),
        ("input", "stage1.block0.conv1.weight", 1),
        ("output", "stage1.block0.conv1.weight", 2),
        ("output", "stage1.block0.conv1.weight", 3),
    ]
    assert all(path.shape == (180, 7) for path in traces.channels.values())
    assert traces.steps[:3].tolist() == [0, 2, 4]


def test_limit_unfinished_run_has_no_result(make_run):
    run = load_run(make_run(finished=False, done=5, traced=False))
    assert run.result is None and not run.finished and run.traces() is None
    assert (run.epochs_done, run.dataset, run.network) == (5, "digits", "digits_resnet")


def test_limit_a_run_that_only_started_is_a_run(make_run):
    folder = make_run(finished=False, traced=False)
    (folder / "history.json").unlink()
    (folder / "environment.json").unlink()
    run = load_run(folder)
    assert (run.history, run.environment, run.epochs_done) == ([], {}, 0)
    assert run.column("lr").size == 0


def test_property_an_absent_value_is_nan(make_run):
    values = load_run(make_run(pruned=False)).column("soft_sparsity")
    assert np.isnan(values).all() and len(values) == 18


@pytest.mark.parametrize("content, found", [([], "an empty folder"), (["notes.txt"], "notes.txt")])
def test_error_not_a_run_names_the_expected_file(tmp_path: Path, content, found):
    for name in content:
        (tmp_path / name).write_text("")
    with pytest.raises(FileNotFoundError) as error:
        load_run(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value) and found in str(error.value)


def test_error_a_file_is_not_a_folder(tmp_path: Path):
    (tmp_path / "report.html").write_text("")
    with pytest.raises(FileNotFoundError, match="a file, not a folder"):
        load_run(tmp_path / "report.html")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "{", r"config.json: cannot be read \(.*line 1"),
        ("config.json", "[]", r"config.json: holds \[\]; expected an object"),
        ("config.json", '{"method": "sgd", "seed": 0}', "expected the entry 'recipe'"),
        ("config.json", '{"recipe": "a", "method": "sgd", "seed": "x"}', "seed='x' is not a whole number"),
        ("history.json", "{}", "history.json: holds {}; expected a list"),
        ("history.json", '[{"step": 1}]', "row 0: .*expected an object with 'step' and 'epoch'"),
        ("history.json", '[{"step": 1, "epoch": 1, "lr": "high"}]', "row 0: lr='high' is not a number"),
        ("result.json", '{"nll": true}', "result.json: nll=True is not a number"),
    ],
)
def test_error_a_damaged_file_is_named(make_run, name, content, message):
    folder = make_run(traced=False)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_run(folder)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"lr": np.zeros(2)}, r"\['steps'\] are missing"),
        ({**CLOCK, "middle:a:1": np.zeros((2, 3))}, "'middle:a:1'; expected 'input:NAME"),
        ({**CLOCK, "input:a:1": np.zeros((3, 3))}, r"is \(3, 3\); expected \(2, weights\)"),
    ],
)
def test_error_traces(make_run, tensors, message):
    folder = make_run(traced=False)
    save_file(tensors, folder / "traces.safetensors")
    with pytest.raises(ValueError, match=message):
        load_run(folder).traces()


def test_error_truncated_traces(make_run):
    folder = make_run()
    whole = (folder / "traces.safetensors").read_bytes()
    (folder / "traces.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        load_run(folder).traces()


def test_property_find_runs_looks_below_but_not_inside_a_run(make_run, tmp_path):
    make_run("b/one", traced=False)
    make_run("a", traced=False)
    make_run("a/inner", traced=False)
    make_run(".hidden", traced=False)
    assert [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)] == ["a", "b/one"]
    assert [run.path for run in find_runs(tmp_path / "a")] == [tmp_path / "a"]


def test_property_labels_differ_and_are_short(make_run):
    runs = [load_run(make_run(name, traced=False)) for name in ("x/seed0", "y/seed0", "y/seed1")]
    assert run_labels(runs) == ["x/seed0", "y/seed0", "seed1"]
    assert run_labels([]) == []
    assert run_labels([runs[0], runs[0]])[0] == run_labels([runs[0], runs[0]])[1]  # one run twice: nothing can tell
