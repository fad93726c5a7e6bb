from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.posterior import MemorySamples, classification_metrics, predict
from bayesprune.train import task as tasks
from bayesprune.train.task import Classification, Regression, Task, Tokens, build_task, register_task


class Causal(nn.Module):
    """An output with `logits`, called by name, as transformers' models are."""

    def __init__(self, vocabulary=7, width=5):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


def sampled(make, number=3):
    samples = MemorySamples()
    for seed in range(number):
        torch.manual_seed(seed)
        samples.collect(make(), step=seed)
    return make(), samples


def sentences(sizes=((2, 5), (3, 4), (1, 6))):
    torch.manual_seed(0)
    masks = [torch.ones(size, dtype=torch.long) for size in sizes]
    masks[1][:, 3:] = 0
    return [
        {"input_ids": torch.randint(7, size), "attention_mask": mask} for size, mask in zip(sizes, masks, strict=True)
    ]


def test_equation_gaussian_loss_is_minus_the_log_density():
    mean, targets = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.5])
    normal = torch.distributions.Normal(mean, math.sqrt(0.3))
    assert Regression(0.3).loss(mean, targets) == pytest.approx(-float(normal.log_prob(targets).mean()))
    variance = torch.tensor([0.2, 0.7])
    normal = torch.distributions.Normal(mean, variance.sqrt())
    assert Regression().loss((mean, variance), targets) == pytest.approx(-float(normal.log_prob(targets).mean()))


def test_equation_regression_scores_are_of_the_mixture():
    model, samples = sampled(lambda: nn.Linear(3, 1))
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    found = Regression(0.5).evaluate(model, samples, [(x[:12], y[:12]), (x[12:], y[12:])])
    means = []
    for index in range(3):
        samples.load_(index, model)
        means.append(model(x).detach().double())
    means = torch.stack(means)
    mean, variance = means.mean(0), means.var(0, unbiased=False) + 0.5
    log_density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(y.double())
    assert found.scores["mse"] == pytest.approx(float((mean - y).square().mean()), rel=1e-6)
    assert found.scores["nll"] == pytest.approx(-float(log_density.mean()), rel=1e-6)
    assert found.members == pytest.approx([float((m - y).square().mean()) for m in means], rel=1e-6)
    assert found.uncertainty["epistemic"] == pytest.approx(float(means.var(0, unbiased=False).mean()), rel=1e-6)
    assert 0 < found.scores["coverage_90"] <= 1 and found.count == 20


@pytest.mark.parametrize("chunk", [1 << 24, 60])
def test_parity_token_scores_are_those_of_one_long_classification(chunk, monkeypatch):
    """Whatever the chunks, padding counts for nothing and position i predicts token i + 1."""
    monkeypatch.setattr(tasks, "_CHUNK", chunk)
    model, samples = sampled(Causal)
    batches = sentences()
    found = Tokens(next_token=True).evaluate(model, samples, batches)

    labels, probabilities, hits = [], [], []
    for batch in batches:
        counted = batch["attention_mask"][:, 1:] == 1
        labels.append(batch["input_ids"][:, 1:][counted])
        members = []
        for index in range(3):
            samples.load_(index, model)
            members.append(model(batch["input_ids"]).logits[:, :-1][counted].double().softmax(-1).detach())
        probabilities.append(torch.stack(members).mean(0))
        hits.append(torch.stack([m.argmax(1) == labels[-1] for m in members]))
    expected = classification_metrics(torch.cat(probabilities), torch.cat(labels))
    assert found.count == len(torch.cat(labels)) == 2 * 4 + 3 * 2 + 5
    for name, value in expected.items():
        assert found.scores[name] == pytest.approx(value, rel=1e-6), name
    assert found.scores["perplexity"] == pytest.approx(math.exp(expected["nll"]), rel=1e-6)
    assert found.members == pytest.approx(torch.cat(hits, 1).double().mean(1).tolist())


def test_equation_token_losses_leave_out_what_is_ignored():
    model, batch = Causal(), sentences()[1]
    task = Tokens(next_token=True)
    inputs, labels = task.split(batch)
    logits = task.output(model, inputs)
    counted = batch["attention_mask"][:, 1:] == 1
    expected = F.cross_entropy(logits[:, :-1][counted], batch["input_ids"][:, 1:][counted])
    torch.testing.assert_close(task.loss(logits, labels), expected)
    assert int(task.tally(logits, labels)[1]) == int(counted.sum())
    given = Tokens().split({**batch, "labels": labels})
    assert "labels" not in given[0] and torch.equal(given[1], labels)
    with pytest.raises(ValueError, match=r"logits \(n, L, V\)"):
        Tokens().loss(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))


def test_parity_classes_of_mappings_and_of_tensors():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, pixels):
            return {"unused": 0} and SimpleNamespace(logits=self.linear(pixels))

    model, x, y = Named(), torch.randn(9, 4), torch.arange(9) % 3
    found = Classification().evaluate(model, None, [{"pixels": x, "labels": y}])
    plain = Classification().evaluate(model.linear, None, [(x, y)])
    assert found.scores == plain.scores and found.members == plain.members
    assert predict(model, None, [{"pixels": x}]).labels is None


def test_property_a_task_of_ones_own_has_a_name():
    class Absolute(Regression):
        def loss(self, output, targets):
            return (output - targets).abs().mean()

    register_task("absolute", Absolute)
    try:
        assert isinstance(build_task("absolute"), Absolute)
    finally:
        tasks._TASKS.pop("absolute")
    mine = Absolute(noise_variance=2.0)
    assert build_task(mine) is mine


def test_error_tasks_name_argument_value_and_mend():
    for call, message in (
        (lambda: build_task("clasification"), "task='clasification': did you mean 'classification'"),
        (lambda: build_task("regression", 0.1), "label_smoothing=0.1 changes nothing with task=regression"),
        (lambda: build_task(Classification(), 0.1), "task=Classification; set it on the task"),
        (lambda: Regression(0.0), "noise_variance=0.0"),
        (lambda: Regression().loss(torch.zeros(4, 1), torch.zeros(4)), "would broadcast"),
        (lambda: Tokens().evaluate(Causal(), None, []), "no batch"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(NotImplementedError):
        Task().loss(torch.zeros(1), torch.zeros(1))
