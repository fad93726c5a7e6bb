"""A run that is told to stop, and goes on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from bayesprune.train import Interrupted, recipe, train

TINY = ("train_size=96", "epochs=3", "batch_size=16", "width=4", "threads=1", "device=cpu")


def stopping_after(steps):
    """Return a `stop` that is true once asked more often than that."""
    asked = []
    return lambda: asked.append(1) or len(asked) > steps


@pytest.mark.parametrize("steps", [4, 19, 21])  # within an epoch; in the last evaluation of the run and after it
def test_roundtrip_a_run_stopped_anywhere_equals_an_uninterrupted_one(tmp_path, steps):
    config = recipe("digits-emmcmc", [*TINY, "cycles=1", "samples_per_cycle=2", "prune_until=0.4", "trace_channels=0"])
    train(config, tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted, match="stopped at step"):
        train(config, tmp_path / "half", quiet=True, stop=stopping_after(steps))
    again = train(config, tmp_path / "half", quiet=True, resume=True)
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    for key in ("accuracy_mean", "nll", "members", "health"):
        assert again[key] == whole[key]
    first, second = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("whole", "half"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "half")]
    for one, other in zip(*histories, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
