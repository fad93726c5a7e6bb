from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bayesprune.train import Interrupted, recipe, train
from bayesprune.train.folder import write_json
from bayesprune.train.settings import as_dict
from killed_run import PLACES, run

SMALL = [
    "train_size=160", "epochs=6", "batch_size=16", "width=8", "cycles=2", "samples_per_cycle=3", "sample_every=0.5",
    "prune_from=0.1", "prune_until=0.5", "threads=1", "trace_every=7", "device=cpu", "evaluate_every=2",
    "checkpoint_minutes=0.0005",
]  # fmt: skip
STEPS = 60


@pytest.fixture(scope="module")
def processes():
    # the fork server imports torch once for all runs; it is a process of its own and finds killed_run by PYTHONPATH
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_run"])
    return context


def in_process(processes, *arguments):
    child = processes.Process(target=run, args=arguments)
    child.start()
    child.join(300)
    return child.exitcode


def content(folder):
    """Return all that a run leaves behind, but times."""
    tensors = {
        str(path.relative_to(folder)): load_file(str(path))
        for path in [
            folder / "model.safetensors",
            folder / "traces.safetensors",
            *sorted(folder.glob("samples/*.safetensors")),
        ]
    }
    history = json.loads((folder / "history.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    for row in history:
        row.pop("seconds")
    for key in ("seconds", "environment"):
        result.pop(key)
    return tensors, history, result


def assert_same(first, second):
    assert first[1:] == second[1:]
    assert first[0].keys() == second[0].keys()
    for name, tensors in first[0].items():
        assert tensors.keys() == second[0][name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[0][name][key]), (name, key)


@pytest.mark.parametrize(
    ("name", "settings", "kills"),
    [
        ("digits-emmcmc", [], 10),
        ("digits-emmcmc", ["groups=channel", "target_sparsity=0.5"], 3),
        ("digits-emmcmc", ["feedback=dense_copy", "expectation=running"], 3),
        ("digits-emmcmc", ["feedback=masked", "every=5", "groups=kernel"], 3),
        ("digits-cvadam", ["global_scale=0.1"], 3),
        ("digits-sgd", [], 3),
    ],
)
def test_roundtrip_killed_runs_equal_the_uninterrupted_one(tmp_path, processes, name, settings, kills):
    config = as_dict(recipe(name, [*SMALL, *settings]))
    assert in_process(processes, config, str(tmp_path / "whole"), None, "") == 0
    dice = random.Random(f"{name} {settings}")
    # kills move forward through the run; the last one hits the evaluation
    steps = sorted(dice.randrange(1, STEPS - 12) for _ in range(kills))
    places = [PLACES[number % (len(PLACES) - 1)] for number in range(kills - 1)] + [PLACES[-1]]
    for step, place in zip(steps, places):
        code = in_process(processes, config, str(tmp_path / "killed"), step, place)
        assert code == -signal.SIGKILL, f"the run did not reach step {step} ({place})"
    assert in_process(processes, config, str(tmp_path / "killed"), None, "") == 0
    assert_same(content(tmp_path / "whole"), content(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("key", "value"), [("threads", "2"), ("lr", "0.5"), ("precision", "bf16-mixed"), ("epochs", "7")]
)
def test_error_resuming_with_what_changes_the_result_is_refused_by_name(tmp_path, key, value):
    config = recipe("digits-cvadam", SMALL)
    write_json(tmp_path / "run" / "config.json", as_dict(config))
    with pytest.raises(ValueError, match=rf"another configuration: {key}='?{value}.*\(it has"):
        train(recipe("digits-cvadam", [*SMALL, f"{key}={value}"]), tmp_path / "run", resume=True, quiet=True)


def test_error_resuming_where_other_threads_compute_is_refused(tmp_path):
    settings = [*(each for each in SMALL if not each.startswith("threads")), "train_size=32", "epochs=2", "cycles=1"]
    config, calls = recipe("digits-cvadam", [*settings, "samples_per_cycle=1"]), []
    threads = torch.get_num_threads()
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", quiet=True, stop=lambda: bool(calls.append(1)) or len(calls) > 2)
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(ValueError, match=f"begun with threads={threads}"):
            train(config, tmp_path / "run", resume=True, quiet=True)
    finally:
        torch.set_num_threads(threads)
    assert train(config, tmp_path / "run", resume=True, quiet=True)["num_samples"] == 1
