"""A method is one file and one row: a sampler and a sparse-training method that only this file knows, trained and resumed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from bayesprune.baselines import SparseTraining
from bayesprune.baselines.topology import lowest, random_entries
from bayesprune.posterior import SampleStore
from bayesprune.train import Method, Procedure, recipe, register_method, train
from bayesprune.train.idle import refuse_idle
from bayesprune.train.loop import Trainer
from bayesprune.train.methods import RAMP, SCHEDULE_KEYS, SGD_KEYS, SPARSE_KEYS, sgd, sparse
from bayesprune.train.registry import forget_method, method, methods
from bayesprune.train.settings import as_dict, from_dict, keys, override

TINY = ("train_size=96", "epochs=4", "batch_size=16", "width=4", "cycles=1", "samples_per_cycle=2", "device=cpu")

# ---- a sampler: signed gradients with noise of its own size, and a procedure that remembers it ---------------------------


@dataclasses.dataclass(frozen=True)
class SignOptions:
    """Its own keys."""

    jitter: float = 0.1
    """Noise, as a share of the step."""


class SignLangevin(torch.optim.Optimizer):
    def __init__(self, parameters, lr, jitter, seed):
        super().__init__(parameters, {"lr": lr, "jitter": jitter, "seed": seed})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                count = state["count"] = state.get("count", 0) + 1
                generator = torch.Generator().manual_seed(group["seed"] + 1000 * count)
                noise = torch.randn(param.shape, generator=generator)
                param -= group["lr"] * (param.grad.sign() + group["jitter"] * noise)


class Remembering(Procedure):
    """Counts its steps, and says so with every sample."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.count = 0

    def end_(self, step):
        self.count += 1

    def info(self, step):
        return {"count": self.count}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


SIGN = Method(
    "sign", "signed Langevin",
    lambda config, parameters, num_data: SignLangevin(
        parameters, config.sampler.lr, config.options.jitter, config.seed
    ),
    keys=SCHEDULE_KEYS | {"lr"}, procedure=Remembering, options=SignOptions,
)  # fmt: skip

# ---- a sparse-training method: a share of the smallest weights goes, as many grow at random ------------------------------


class Shuffled(SparseTraining):
    def _update_(self):
        gone = [lowest(p.detach().abs(), mask, int(mask.sum()) // 4) for p, mask in zip(self.params, self._keep)]
        left = self._remove_(gone)
        grown = [mask | random_entries(~mask, int(g.sum()), self.generator) for mask, g in zip(left, gone)]
        self._set_keep_(grown)


_KEYS = SGD_KEYS | SCHEDULE_KEYS | SPARSE_KEYS | {"prune_until", "distribution"}
SHUFFLED = Method("shuffled", "shuffled sparse training", sgd, _KEYS, pruner=sparse(Shuffled, _KEYS, every=3))


@pytest.fixture(autouse=True)
def registered():
    for row in (SIGN, SHUFFLED):
        register_method(row)
    yield
    for row in (SIGN, SHUFFLED):
        forget_method(row.name)


def chosen(name):
    own = {"sign": ["lr=0.003", "jitter=0.3"], "shuffled": ["target_sparsity=0.7", "prune_until=0.8"]}[name]
    return recipe("digits-sgd", [f"method={name}", *TINY, *own])


@pytest.mark.parametrize("name", ["sign", "shuffled"])
def test_roundtrip_a_method_of_ones_own_trains_and_resumes_bit_for_bit(name, tmp_path, monkeypatch):
    whole = train(chosen(name), tmp_path / "whole", quiet=True)
    step = Trainer._train_step

    def stopping(self, *batch):
        if self.step == 13:
            raise KeyboardInterrupt
        step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(override(chosen(name), ["checkpoint_minutes=0"]), tmp_path / "half", quiet=True)
    again = train(override(chosen(name), ["checkpoint_minutes=0"]), tmp_path / "half", quiet=True, resume=True)
    assert again["nll"] == whole["nll"] and again["method"] == name
    first, second = (load_file(str(tmp_path / place / "model.safetensors")) for place in ("whole", "half"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    if name == "shuffled":
        assert whole["sparsity_prunable"] == pytest.approx(0.7, abs=0.01)
    else:
        assert [info["count"] for info in SampleStore(tmp_path / "half" / "samples").infos] == [18, 24]


def test_roundtrip_its_own_keys_are_set_checked_written_and_read():
    config = chosen("sign")
    assert config.options == SignOptions(0.3) and keys("sign")["jitter"] == "options"
    assert from_dict(as_dict(config)) == config
    assert override(config, ["options.jitter=0.5"]).options.jitter == 0.5
    assert override(config, ["method=sgd"]).options is None and override(config, ["method=sgd", "method=sign"]).options
    with pytest.raises(ValueError, match="jitter='much' is not a number"):
        override(config, ["jitter=much"])
    with pytest.raises(ValueError, match="unknown key 'jitter'"):
        override(recipe("digits-sgd"), ["jitter=1"])


def test_error_keys_that_a_row_does_not_name_are_refused():
    refuse_idle(chosen("sign"), "jitter")
    for name, key in (("sign", "beta1"), ("sign", "target_sparsity"), ("shuffled", "drop_fraction")):
        with pytest.raises(ValueError, match=f"{key} changes nothing with method={name}"):
            refuse_idle(chosen(name), key)
    with pytest.raises(ValueError, match=r"method='shuffledd': did you mean 'shuffled'.*has been imported"):
        recipe("digits-sgd", ["method=shuffledd"])


def test_property_every_row_names_keys_that_exist_and_ramped_ones_their_ramp():
    known = {name for name, section in keys().items() if section in ("sampler", "schedule", "pruning", "baseline")}
    for row in methods().values():
        assert row.keys <= known, row.name
        assert row.text and row.ramped == (row.keys >= RAMP), row.name
        assert method(row.name) is row
