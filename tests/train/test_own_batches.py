"""What a batch, a loader and a label may be in a run on the user's own data: read as meant, or refused before the first step."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bayesprune.posterior import MemorySamples, predict
from bayesprune.train import NonFiniteLoss, RunConfig, Splits, evaluate, load_trained, override, train
from bayesprune.train.task import Regression, build_task

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0.8).long()
PAIRS = TensorDataset(INPUTS, LABELS)
CONFIG = override(
    RunConfig(), {"lr": 0.01, "epochs": 2, "samples_per_cycle": 2, "sample_every": 0.5, "batch_size": 8, "device": "cpu"}
)  # fmt: skip


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def run(out, config=CONFIG, model=network, data=(PAIRS, PAIRS), **more):
    return train(config, out, model=model, data=data, quiet=True, **more)


class Named(Dataset):
    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return {"a": INPUTS[index], "label": LABELS[index]}


class Normed(nn.Module):
    """Called by name, and answers by name."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, a):
        return {"logits": self.last(self.norm(self.first(a)).relu())}


class Summed(nn.Module):
    """Takes one pair of tensors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, pair):
        return self.layer(pair[0] + pair[1])


class Ranks(Regression):
    name = "ranks"


class Once:
    """Batches without a length."""

    def __iter__(self):
        yield INPUTS[:32], LABELS[:32]
        yield INPUTS[32:], LABELS[32:]


def test_error_a_batch_of_three_parts_is_not_guessed_at(tmp_path):
    noise = TensorDataset(INPUTS, torch.randn(64, 1), LABELS)
    with pytest.raises(ValueError, match="a batch of 3 parts"):
        run(tmp_path / "run", data=(noise, noise))
    with pytest.raises(ValueError, match="a batch of 3 parts"):
        predict(network(), None, DataLoader(noise, batch_size=8))


@pytest.mark.parametrize(
    "sampler, steps, number",
    [
        (lambda: SequentialSampler(range(16)), 2, 16),
        (lambda: RandomSampler(PAIRS, num_samples=16), 2, 64),
        (lambda: SubsetRandomSampler(range(16)), 2, 16),
        (lambda: WeightedRandomSampler(torch.ones(64), 24), 3, 64),
        (lambda: list(range(16)), 2, 16),
    ],
    ids=["sequential", "random", "subset", "weighted", "list"],
)
def test_property_a_loaders_sampler_decides_what_is_read(sampler, steps, number):
    data = Splits(DataLoader(PAIRS, batch_size=8, sampler=sampler()), PAIRS)
    assert data.count("train") == number
    loader = data.loader("train", batch_size=8)
    assert len(loader) == steps
    seen = torch.cat([batch[0] for batch in loader])
    if number == 16:  # the others may read all of them
        allowed = {tuple(row.tolist()) for row in INPUTS[:16]}
        assert {tuple(row.tolist()) for row in seen} == allowed


def test_property_a_batch_sampler_decides_what_is_read():
    weights = [1.0] + [0.0] * 63
    batches = BatchSampler(WeightedRandomSampler(weights, 64), 16, drop_last=False)
    data = Splits(DataLoader(PAIRS, batch_sampler=batches), PAIRS)
    loader = data.loader("train", batch_size=8)
    assert len(loader) == 4 and data.count("train") == 64
    assert all(torch.equal(batch[0], INPUTS[:1].expand(16, 6)) for batch in loader)
    subset = DataLoader(PAIRS, batch_sampler=BatchSampler(SubsetRandomSampler(range(16)), 8, drop_last=False))
    assert Splits(subset, PAIRS).count("train") == 16
    with pytest.raises(ValueError, match="WeightedRandomSampler reads another order"):
        Splits(PAIRS, DataLoader(PAIRS, batch_sampler=batches)).loader("test", batch_size=8)


def test_error_test_data_that_can_be_read_once_only(tmp_path):
    with pytest.raises(ValueError, match="can be read once only"):
        run(tmp_path / "run", data=(PAIRS, iter([(INPUTS, LABELS)])))


def test_property_a_subset_sampler_is_replayed_and_can_be_tested_on(tmp_path):
    data = Splits(*(DataLoader(PAIRS, batch_size=8, sampler=SubsetRandomSampler(range(32))) for _ in range(2)))
    assert run(tmp_path / "run", data=data)["exact"] is True
    (test,) = [torch.cat([batch[0] for batch in data.loader("test", batch_size=8)])]
    assert torch.equal(test, INPUTS[:32])


def test_property_a_worker_init_fn_is_not_dropped():
    loader = DataLoader(PAIRS, batch_size=8, worker_init_fn=print)
    assert type(Splits(loader, PAIRS).loader("train", batch_size=8)).__name__ == "StreamLoader"
    shuffled = DataLoader(PAIRS, batch_size=8, worker_init_fn=print, shuffle=True)  # of test data the order is ours
    assert torch.equal(next(iter(Splits(PAIRS, shuffled).loader("test", batch_size=8)))[0], INPUTS[:8])


def test_error_ready_batches_have_no_number_of_examples(tmp_path):
    ready = DataLoader([(INPUTS[:32], LABELS[:32])] * 2, batch_size=None)
    with pytest.raises(ValueError, match="num_data=None"):
        run(tmp_path / "run", data=(ready, PAIRS))
    assert Splits(ready, PAIRS, num_data=64).count("train") == 64


def test_error_test_data_in_another_order_each_time_are_refused_at_once(tmp_path):
    shuffled = DataLoader(PAIRS, batch_size=8, sampler=WeightedRandomSampler(torch.ones(64), 64))
    for trial in (False, True):
        with pytest.raises(ValueError, match="WeightedRandomSampler reads another order each time"):
            run(tmp_path / f"run{trial}", data=(PAIRS, shuffled), trial=trial)


class Shuffled(Sampler):
    """A sampler of the user's own."""

    def __iter__(self):
        return iter(torch.randperm(64).tolist())

    def __len__(self):
        return 64


@pytest.mark.parametrize("batches", [False, True])
def test_error_a_sampler_of_ones_own_that_draws_anew_is_refused_at_once(tmp_path, batches):
    how = {"batch_sampler": BatchSampler(Shuffled(), 8, False)} if batches else {"sampler": Shuffled(), "batch_size": 8}
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="Shuffled reads another order each time"):
        Splits(PAIRS, DataLoader(PAIRS, **how)).loader("test", batch_size=8)
    assert torch.equal(before, torch.get_rng_state())
    backwards = DataLoader(PAIRS, batch_size=8, sampler=list(reversed(range(64))))
    assert sum(1 for _ in Splits(PAIRS, backwards).loader("test", batch_size=8)) == 8


def test_property_a_list_in_a_loader_is_a_data_set(tmp_path):
    pairs = [(x, y) for x, y in zip(INPUTS, LABELS)]
    result = run(tmp_path / "run", data=(DataLoader(pairs, batch_size=8, shuffle=True), PAIRS))
    assert result["exact"] is True
    same = run(tmp_path / "same")
    assert result["accuracy_single"] == same["accuracy_single"] and result["nll"] == same["nll"]
    small = Splits(DataLoader(pairs, batch_size=8), PAIRS)
    assert small.subset(16).count("train") == 16


def test_property_test_data_need_no_length(tmp_path):
    whole, once = run(tmp_path / "whole"), run(tmp_path / "once", data=(PAIRS, Once()))
    assert once["nll"] == pytest.approx(whole["nll"], rel=1e-6)


def test_property_inputs_may_be_a_pair_of_tensors(tmp_path):
    halves = [((INPUTS[i : i + 8] / 2, INPUTS[i : i + 8] / 2), LABELS[i : i + 8]) for i in range(0, 64, 8)]
    run(tmp_path / "run", model=Summed, data=Splits(halves, halves, num_data=64))
    model, samples, _, _ = load_trained(tmp_path / "run", model=Summed, data=Splits(halves, halves, num_data=64))
    found = predict(model, samples, halves)
    said = []
    for index in range(2):
        samples.load_(index, model)
        said.append(model.eval()((INPUTS / 2, INPUTS / 2)).softmax(1))
    assert torch.allclose(found.probabilities, torch.stack(said).mean(0).double(), atol=1e-6)


@pytest.mark.parametrize("method", ["swag", "rank1", "cvadam"])
def test_property_batches_by_name_with_batch_norm_train_under_every_ensemble(tmp_path, method):
    config = override(CONFIG, {"method": method, "epochs": 8})
    result = run(tmp_path / "run", config, Normed, (Named(), Named()))
    assert result["num_samples"] > 0 and 0.3 < result["accuracy_mean"] <= 1


def test_property_a_members_output_by_name_is_read_for_its_logits():
    model = Normed().eval()
    found = predict(model, None, [{"a": INPUTS, "label": LABELS}])
    assert torch.allclose(found.probabilities, model(INPUTS)["logits"].softmax(1).double(), atol=1e-6)
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize("rows", ["one-hot", "softmax"])
def test_error_a_shuffled_pass_is_seen_where_all_rows_have_one_sum(rows):
    torch.manual_seed(0)
    x = torch.eye(6)[torch.randint(0, 6, (64,))] if rows == "one-hot" else INPUTS.softmax(1)
    model, samples = nn.Linear(6, 3), MemorySamples()
    for step in range(3):
        nn.init.normal_(model.weight)
        samples.collect(model, step=step)
    loader = DataLoader(TensorDataset(x, x.argmax(1) % 3), batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match="the batches changed from one member to the next"):
        predict(model, samples, loader)
    predict(model, samples, DataLoader(TensorDataset(x, x.argmax(1) % 3), batch_size=8))


def test_property_a_module_given_to_a_finished_run_gets_its_weights(tmp_path):
    run(tmp_path / "run")
    fresh = network()
    run(tmp_path / "run", model=fresh, resume=True)
    trained, *_ = load_trained(tmp_path / "run", model=network, data=(PAIRS, PAIRS))
    assert torch.equal(fresh(INPUTS), trained(INPUTS))


def test_property_the_task_of_a_run_is_remembered(tmp_path):
    numbers = TensorDataset(INPUTS, (INPUTS[:, :1] > 0).float())
    data, line = (numbers, numbers), lambda: nn.Linear(6, 1)
    result = run(tmp_path / "run", model=line, data=data, task=Regression(noise_variance=0.25))
    found = evaluate(tmp_path / "run", model=line, data=data)
    assert found["average"]["mse"] == pytest.approx(result["mse"]) and found["average"]["nll"] == pytest.approx(
        result["nll"]
    )
    run(tmp_path / "own", model=line, data=data, task=Ranks())
    with pytest.raises(ValueError, match="'ranks', which is not registered"):
        evaluate(tmp_path / "own", model=line, data=data)
    assert evaluate(tmp_path / "own", model=line, data=data, task=Ranks())["average"]["mse"] > 0


def test_property_rank1_regression_is_watched_by_its_mean(tmp_path):
    config = override(CONFIG, {"method": "rank1", "lr": 0.03, "epochs": 20, "weight_decay": 0.0, "random_sign": 1.0})
    numbers = TensorDataset(INPUTS[:, :1], 2 * INPUTS[:, :1] + 5)
    run(tmp_path / "run", config, lambda: nn.Linear(1, 1), (numbers, numbers), task="regression")
    last = json.loads((tmp_path / "run" / "history.json").read_text())[-1]
    assert last["train_mse"] < 0.5 and last["mse"] < 0.5


def test_error_views_of_what_is_no_image(tmp_path):
    with pytest.raises(ValueError, match=r"test_views='mirror': views are of images .*, not of \(1, 6\)"):
        run(tmp_path / "run", override(CONFIG, {"test_views": "mirror"}))


def test_property_labels_may_be_small_integers_or_probabilities():
    task, logits = build_task("classification"), torch.randn(4, 3)
    labels = torch.tensor([0, 2, 1, 2])
    wanted = nn.functional.cross_entropy(logits, labels)
    assert torch.equal(task.loss(logits, labels.to(torch.int32)), wanted)
    soft = nn.functional.one_hot(labels, 3).float()
    assert torch.allclose(task.loss(logits, soft), wanted)
    assert task.tally(logits, soft)[0] == task.tally(logits, labels)[0]


def test_property_one_logit_is_class_one_beside_class_zero(tmp_path):
    task, logit, labels = build_task("classification"), torch.tensor([[0.3], [-2.0]]), torch.tensor([1, 0])
    wanted = nn.functional.binary_cross_entropy_with_logits(logit[:, 0], labels.float())
    assert torch.allclose(task.loss(logit, labels), wanted) and task.tally(logit, labels)[0] == 2
    binary = TensorDataset(INPUTS, (INPUTS[:, 0] > 0).long())
    config = override(CONFIG, {"epochs": 20, "lr": 0.1})
    assert run(tmp_path / "run", config, lambda: nn.Linear(6, 1), (binary, binary))["accuracy_mean"] > 0.85
    config = override(config, {"method": "rank1", "random_sign": 1.0})
    run(tmp_path / "rank1", config, lambda: nn.Linear(6, 1), (binary, binary))
    assert json.loads((tmp_path / "rank1" / "history.json").read_text())[-1]["accuracy"] > 0.85


@pytest.mark.parametrize("labels", [LABELS[:, None], LABELS.float(), nn.functional.one_hot(LABELS, 3)])
def test_error_labels_of_another_shape(tmp_path, labels):
    data = TensorDataset(INPUTS, labels)
    with pytest.raises(ValueError, match="give class numbers of shape"):
        run(tmp_path / "run", data=(data, data))


def test_error_labels_that_no_output_stands_for(tmp_path):
    with pytest.raises(
        ValueError, match=r"labels from 1 to 3 .* logits \(8, 3\); .* whole numbers from 0, each with an output"
    ):
        run(tmp_path / "run", data=(TensorDataset(INPUTS, LABELS + 1), PAIRS))
    ignored = TensorDataset(INPUTS, LABELS.masked_fill(INPUTS[:, 2] > 1, -100))  # as torch's cross-entropy has it
    assert run(tmp_path / "ignored", data=(ignored, PAIRS))["num_samples"] == 2


def test_error_a_batch_that_holds_nan_is_told_from_a_step_that_is_too_large(tmp_path):
    spoilt = INPUTS.clone()
    spoilt[20, 3] = torch.nan
    with pytest.raises(NonFiniteLoss, match=r"step \d \(.*batch holds NaN or infinity: repair or leave out"):
        run(tmp_path / "train", data=(TensorDataset(spoilt, LABELS), PAIRS))
    with pytest.raises(ValueError, match="inputs: a batch holds NaN or infinity"):
        run(tmp_path / "test", data=(PAIRS, TensorDataset(spoilt, LABELS)))


def test_error_a_model_that_ends_in_softmax_is_warned_of(tmp_path):
    with pytest.warns(
        UserWarning, match="outputs are probabilities, and are taken for logits; end the model before its softmax"
    ):
        run(tmp_path / "run", model=lambda: nn.Sequential(network(), nn.Softmax(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(nn.Sequential(network(), nn.LogSoftmax(1)), None, INPUTS)


def test_parity_scores_by_class_and_the_constant_prediction_are_those_of_scikit_learn(tmp_path):
    from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score

    result = run(tmp_path / "run")
    model, samples, _, _ = load_trained(tmp_path / "run", model=network, data=(PAIRS, PAIRS))
    said = predict(model, samples, INPUTS).classes
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(LABELS, said))
    assert result["recall"] == pytest.approx(recall_score(LABELS, said, average=None))
    shares = torch.bincount(LABELS).double() / len(LABELS)
    constant = log_loss(LABELS, shares.expand(len(LABELS), 3).numpy())
    assert result["health"]["fit"]["constant"] == pytest.approx(constant) and constant < 0.98 * math.log(3)
    again = evaluate(tmp_path / "run", model=network, data=(PAIRS, TensorDataset(INPUTS[:2], LABELS[:2] * 0)))
    assert set(again["recall"]) == {"0", "1", "2"} and again["recall"]["1"] is None


def test_error_a_lazy_network_has_no_size_yet(tmp_path):
    with pytest.raises(ValueError, match=r"0\.weight has no size yet; run the network on a batch once"):
        run(tmp_path / "run", model=lambda: nn.Sequential(nn.LazyLinear(3)))


def test_property_the_ends_of_an_own_network_stay_dense_unless_asked(tmp_path):
    def conv():
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
        )  # fmt: skip

    pictures = TensorDataset(INPUTS.repeat(1, 6).reshape(64, 1, 6, 6), LABELS)
    given = {"method": "emmcmc", "target_sparsity": 0.5, "prune_from": 0.0, "prune_until": 0.5}
    zero = {}
    for name, more in (("default", {}), ("asked", {"keep_ends": False})):
        config = override(CONFIG, given | more)
        run(tmp_path / name, config, conv, (pictures, pictures))
        model, *_ = load_trained(tmp_path / name, model=conv, data=(pictures, pictures))
        zero[name] = [float((model[place].weight == 0).float().mean()) for place in (0, 2, 5)]
        with pytest.raises(FileExistsError):
            run(tmp_path / name, config, conv, (pictures, pictures))
        run(tmp_path / name, config, conv, (pictures, pictures), resume=True)  # the folder's configuration is the same
    path = tmp_path / "asked" / "config.json"  # as every run was written before the ends could be unset
    assert json.loads(path.read_text())["pruning"]["keep_ends"] is False
    run(tmp_path / "asked", override(CONFIG, given), conv, (pictures, pictures), resume=True)
    assert zero["default"][0] == zero["default"][2] == 0 and zero["default"][1] == pytest.approx(0.5, abs=0.01)
    assert zero["asked"][0] > 0 or zero["asked"][2] > 0
