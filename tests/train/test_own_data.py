"""The user's own network on the user's own data: any module, any Dataset or DataLoader, exact on resuming where it can be."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from bayesprune.train import Splits, Tokens, evaluate, load_trained, train
from bayesprune.train.config import DataConfig, RunConfig, RuntimeConfig, SamplerConfig, ScheduleConfig
from bayesprune.train.loop import Trainer
from bayesprune.train.settings import override
from bayesprune.vision.dataset_loader import DatasetLoader, StreamLoader, seeded

CONFIG = RunConfig(
    data=DataConfig(batch_size=8),
    sampler=SamplerConfig("cvadam", lr=0.01),
    schedule=ScheduleConfig(epochs=3, samples_per_cycle=2, sample_every=0.5),
    runtime=RuntimeConfig(device="cpu", checkpoint_minutes=0, trace_channels=0),
)
BATCH = (torch.zeros(8, 6), torch.zeros(8, dtype=torch.long))
STOP = 9  # of 3 × 5 steps: inside the second epoch


class Noisy(Dataset):
    """40 points with random noise from all three generators, drawn while an example is made."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        x = torch.full((6,), index / 40.0) + 0.1 * torch.randn(6)
        x += 0.1 * float(np.random.standard_normal()) + 0.1 * random.random()
        return x, index * 3 // 40


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def held():
    return TensorDataset(torch.linspace(0, 1, 12)[:, None].expand(12, 6).contiguous(), torch.arange(12) * 3 // 12)


def stopped_and_resumed(tmp_path, monkeypatch, make, config=CONFIG, model=network, stop=STOP, **more):
    """The results and weights of a whole run and of one that was stopped, inside an epoch, and resumed."""
    whole = train(config, tmp_path / "whole", model=model, data=make(), quiet=True, **more)
    step = Trainer._train_step

    def stopping(self, inputs, targets):
        if self.step == stop:
            raise KeyboardInterrupt
        step(self, inputs, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "half", model=model, data=make(), quiet=True, **more)
    again = train(config, tmp_path / "half", model=model, data=make(), quiet=True, resume=True, **more)
    weights = [load_file(str(tmp_path / place / "model.safetensors")) for place in ("whole", "half")]
    return whole, again, all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class Remembering:
    """A loader with a state of its own, as torchdata's StatefulDataLoader has."""

    def __init__(self):
        self.place = 0

    def __len__(self):
        return 5

    def __iter__(self):
        while True:
            self.place += 1
            with seeded(self.place):
                x = torch.rand(8, 6)
            yield x, (3 * x[:, 0]).long()
            if self.place % 5 == 0:
                return

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Noisy(), held()),
        lambda: Splits(Noisy(), held(), workers=2),
        lambda: {"train": DataLoader(Noisy(), batch_size=8, shuffle=True), "test": DataLoader(held(), batch_size=5)},
        lambda: (TensorDataset(torch.rand(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3), held()),
        lambda: Splits(Remembering(), held(), num_data=40),
    ],
    ids=["map-style", "workers", "DataLoader", "tensors", "state_dict"],
)  # fmt: skip
def test_roundtrip_a_run_on_own_data_stopped_inside_an_epoch_equals_the_whole_one(make, tmp_path, monkeypatch):
    whole, again, equal = stopped_and_resumed(tmp_path, monkeypatch, make)
    assert equal and again["nll"] == whole["nll"] and again["exact"]
    assert (whole["network"], whole["dataset"], whole["task"], whole["num_samples"]) == (
        "own",
        "own",
        "classification",
        2,
    )
    assert whole["classes"] == ["0", "1", "2"]


def test_property_batches_are_the_same_for_any_number_of_workers():
    loaders = [DatasetLoader(Noisy(), batch_size=8, shuffle=True, workers=number) for number in (0, 2)]
    for first, second in zip(*loaders):
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    list(loaders[0])
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    loaders[1].close()


class Stream(IterableDataset):
    def __iter__(self):
        for number in range(40):
            yield torch.full((6,), number / 40.0), number * 3 // 40


def test_property_what_cannot_be_replayed_says_so(tmp_path, monkeypatch):
    def make():
        return Splits(Stream(), held(), num_data=40, steps_per_epoch=5)

    with pytest.warns(UserWarning, match=r"step 9 lies inside an epoch.*not the uninterrupted one bit for bit"):
        whole, again, _ = stopped_and_resumed(tmp_path, monkeypatch, make)
    assert whole["exact"] and not again["exact"] and again["num_samples"] == 2


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from Stream()


@pytest.mark.parametrize(
    ("train_data", "exact"),
    [
        (DataLoader(Endless(), batch_size=7), False),  # its pass goes on over the epoch's end
        ([(torch.full((8, 6), number / 5.0), torch.arange(8) % 3) for number in range(5)], True),
    ],
    ids=["endless", "list"],
)
def test_property_a_stop_at_the_end_of_an_epoch_is_exact_only_where_the_next_pass_is_known(
    train_data, exact, tmp_path, monkeypatch, recwarn
):
    def make():
        return Splits(train_data, held(), num_data=40, steps_per_epoch=5)

    _, again, equal = stopped_and_resumed(tmp_path, monkeypatch, make, stop=10)
    assert again["exact"] == equal == exact
    assert any("step 10 ends an epoch" in str(each.message) for each in recwarn) != exact


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"steps_per_epoch": 4}, "epoch of the saved loader has 5 batches, one of this 4"), ({"num_data": 400}, "begun with 40;")],
)  # fmt: skip
def test_error_a_run_on_a_stream_is_resumed_with_other_numbers(changed, message, tmp_path, monkeypatch):
    numbers = iter([{"num_data": 40, "steps_per_epoch": 5}] * 2 + [{"num_data": 40, "steps_per_epoch": 5, **changed}])

    def make():
        return Splits([BATCH] * 5, held(), **next(numbers))

    with pytest.raises(ValueError, match=message):
        stopped_and_resumed(tmp_path, monkeypatch, make)


def test_property_a_workers_first_sigterm_is_for_the_loop():
    loaders = [DatasetLoader(Noisy(), batch_size=8, shuffle=True, workers=number) for number in (0, 1)]
    batches = [iter(loader) for loader in loaders]
    for number, (first, second) in enumerate(zip(*batches)):
        assert torch.equal(first[0], second[0])
        if number == 0:
            os.kill(loaders[1]._batches._workers[0].pid, signal.SIGTERM)  # as a job's manager does to all processes
    assert number == 4
    loaders[1].close()


def test_property_a_run_without_test_data_is_tested_on_what_it_holds_out(tmp_path):
    result = train(
        override(CONFIG, ["validation_size=10", "train_size=24"]),
        tmp_path / "run",
        model=network,
        data=Noisy(),
        quiet=True,
    )
    assert result["split"] == "validation"
    _, samples, data, config = load_trained(tmp_path / "run", model=network, data=Noisy())
    assert (data.count("train"), data.count("validation"), len(samples), config.data.dataset) == (24, 10, 2, "own")
    trained_on = {data.train.dataset.indices[place] for place in data.train.indices}
    assert not trained_on & set(data.validation.indices)
    scores = evaluate(tmp_path / "run", split="validation", model=network, data=Noisy())
    assert scores["average"]["nll"] == pytest.approx(result["nll"], rel=1e-5)


def test_target_regression_finds_the_line(tmp_path):
    x = torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, 2 * x - 1)
    config = override(CONFIG, ["epochs=30", "lr=0.02", "temperature=0.1", "checkpoint_minutes=5"])
    line = nn.Linear(1, 1)
    result = train(config, tmp_path / "run", model=line, data=(data, data), task="regression", quiet=True)
    assert result["rmse"] < 0.2 and "accuracy_mean" not in result
    assert line.weight.item() == pytest.approx(2, abs=0.5)  # a module is trained in place
    row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "train_mse" in row and "accuracy" not in row


def test_roundtrip_a_token_model_with_batches_by_name(tmp_path, monkeypatch):
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)

        def forward(self, input_ids, attention_mask=None):
            return type("Output", (), {"logits": self.head(self.embed(input_ids))})

    class Counting(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            ids = (torch.arange(6) + index) % 5
            return {"input_ids": ids, "attention_mask": torch.ones(6, dtype=torch.long)}

    def make():
        return (Counting(), Counting())

    config = override(CONFIG, ["lr=0.1", "temperature=0.001"])
    whole, again, equal = stopped_and_resumed(tmp_path, monkeypatch, make, config, Causal, task=Tokens(next_token=True))
    assert equal and whole["perplexity"] == again["perplexity"] and whole["accuracy_mean"] > 0.9


def test_property_a_function_builds_the_network_from_the_runs_seed(tmp_path):
    ensemble = override(CONFIG, ["method=ensemble", "cycles=3", "samples_per_cycle=1", "lr=0.1"])
    train(ensemble, tmp_path / "members", model=network, data=(Noisy(), held()), quiet=True)
    with pytest.raises(ValueError, match="give a function that builds the network"):
        train(ensemble, tmp_path / "one", model=network(), data=(Noisy(), held()), quiet=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: Noisy(), "nothing to test on"),
        (lambda: {"trian": Noisy()}, "give 'train'"),
        (lambda: Splits(Stream(), held(), steps_per_epoch=5), "num_data=None"),
        (lambda: Splits(Stream(), held(), num_data=40), "steps_per_epoch=None"),
        (lambda: Splits(iter([BATCH, BATCH]), held(), num_data=8, steps_per_epoch=5), "read once only"),
    ],
)  # fmt: skip
def test_error_data_name_what_is_missing(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(CONFIG, tmp_path / "run", model=network, data=data(), quiet=True)


def test_error_a_network_by_name_and_a_folder_of_own_things(tmp_path):
    with pytest.raises(ValueError, match="give yours with model="):
        train(CONFIG, tmp_path / "run", data=(Noisy(), held()), quiet=True)
    train(override(CONFIG, ["epochs=1"]), tmp_path / "run", model=network, data=(Noisy(), held()), quiet=True)
    with pytest.raises(ValueError, match="dataset='own'"):
        load_trained(tmp_path / "run")
    with pytest.raises(ValueError, match="split='test'"):
        Splits(Noisy()).loader("test", batch_size=2)


def test_property_a_stream_goes_on_over_its_passes():
    batches = [torch.tensor([float(number)]) for number in range(3)]
    loader = StreamLoader(batches, steps=2)
    assert [b.item() for b in loader] + [b.item() for b in loader] == [0, 1, 2, 0]
    assert loader.epoch == 2
