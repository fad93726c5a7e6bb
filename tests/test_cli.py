from __future__ import annotations

import json

import pytest

from bayesprune.cli import main

TINY = ["train_size=96", "epochs=2", "batch_size=16", "width=4", "cycles=1", "samples_per_cycle=2", "sample_every=0.25"]


def test_property_train_evaluate_report(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["train", "digits-cvadam", "--out", run, "--quiet", "--set", *TINY]) == 0
    assert main(["train", "digits-cvadam", "--out", run, "--quiet", "--resume", "--set", *TINY]) == 0
    capsys.readouterr()
    assert main(["evaluate", run]) == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 2
    assert main(["report", run, "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits-sdg", "--out", "OUT"], "did you mean 'digits-sgd'"),
        (["train", "digits-sgd", "--out", "OUT", "--set", "lrr=1"], "did you mean 'lr'"),
        (["train", "digits-sgd", "--out", "OUT", "--device", "tpu"], "device='tpu'"),
        (["train", "cifar10-resnet20", "--out", "OUT"], "needs --data-dir"),
        (["train", "cifar10-resnet20", "--out", "OUT", "--data-dir", "OUT"], "cifar-10-batches-py"),
        (
            ["train", "digits-cvadam", "--out", "OUT", "--set", "target_sparsity=0.8"],
            "changes nothing with method=cvadam",
        ),
        (["train", "digits-sgd", "--out", "OUT", "--set", "temperature=1"], "changes nothing with method=sgd"),
        (["train", "digits-sgd", "--out", "OUT", "--set", "network=resnet18", "width=8"], "does not take what was set"),
        (["evaluate", "OUT"], "is missing"),
        (["report", "OUT"], "config.json"),
    ],
)
def test_error_goes_to_stderr_without_a_traceback(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("BAYESPRUNE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main([a.replace("OUT", str(tmp_path / "nothing")) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_property_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in ("digits-emmcmc", "cifar10-resnet20", "cifar10-94-sgd"):
        assert name in listed
