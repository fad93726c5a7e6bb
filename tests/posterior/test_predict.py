from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesprune.posterior import MemorySamples, SampleStore, predict, preserved, use_sample

INPUTS = torch.randn(23, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(23) % 3


def network(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, outputs))


def collected(count: int = 5, outputs: int = 3, store=None):
    torch.manual_seed(1)
    samples, members = MemorySamples() if store is None else store, []
    for _ in range(count):
        member = network(outputs)
        member(torch.randn(50, 6))  # its own normalisation statistics
        samples.collect(member)
        members.append(member.eval())
    return samples, members


class Excluding(nn.Module):
    """Logits of -1e30 are those of classes that cannot be."""

    def forward(self, logits):
        return torch.where(logits <= -1e30, -math.inf, logits)


def logits_model(*tables: list[list[float]]):
    """A model that ignores all but the index in its input and looks its logits up; one member for each table."""
    samples = MemorySamples()
    for table in tables:
        model = nn.Sequential(nn.Embedding(len(table), len(table[0])), Excluding())
        model[0].weight.data = torch.tensor(table)
        samples.collect(model)
    return model, samples, torch.arange(len(tables[0]))


def snapshot(model: nn.Module):
    return {n: t.clone() for n, t in model.state_dict().items()}, [m.training for m in model.modules()]


def unchanged(model: nn.Module, before) -> bool:
    state, modes = before
    same = all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    return same and modes == [m.training for m in model.modules()]


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
@pytest.mark.parametrize("on_disk", [False, True])
@torch.no_grad()
def test_equation_streaming_equals_the_average_of_all_members_at_once(tmp_path, batch_size: int, on_disk: bool) -> None:
    samples, members = collected(store=SampleStore(tmp_path) if on_disk else None)
    all_at_once = torch.stack([member(INPUTS).double().softmax(1) for member in members])
    result = predict(network(), samples, INPUTS, batch_size=batch_size, keep_members=True)
    torch.testing.assert_close(result.members, all_at_once, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result.probabilities, result.members.mean(0), rtol=1e-12, atol=1e-14)
    entropies = torch.special.entr(result.members).sum(2)
    torch.testing.assert_close(result.aleatoric, entropies.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.total, torch.special.entr(result.probabilities).sum(1), rtol=1e-12, atol=1e-14)
    assert torch.equal(result.member_classes, all_at_once.argmax(2))
    pairs = [(a, b) for a in range(5) for b in range(a)]
    choices = all_at_once.argmax(2)
    by_pairs = torch.stack([choices[a] != choices[b] for a, b in pairs]).double().mean(0)
    torch.testing.assert_close(result.disagreement, by_pairs)
    assert predict(network(), samples, INPUTS, batch_size=batch_size).members is None
    assert len(result) == 23 and torch.equal(result.classes, result.probabilities.argmax(1))
    assert torch.equal(result.confidence, result.probabilities.max(1).values)


def test_equation_entropy_split_in_closed_form() -> None:
    sure, even, far = [40.0, 0.0], [0.0, 0.0], [0.0, 40.0]
    model, samples, inputs = logits_model([sure, even, sure], [far, even, sure])
    result = predict(model, samples, inputs)
    log2 = math.log(2)
    #                     members contradict  members shrug  members agree
    expected = torch.tensor([[log2, 0.0, log2], [log2, log2, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64).T
    got = torch.stack([result.total, result.aleatoric, result.epistemic])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert result.disagreement.tolist() == [1.0, 0.0, 0.0]


def test_equation_mutual_information_by_hand() -> None:
    p, q = 0.9, 0.2
    model, samples, inputs = logits_model([[math.log(p), math.log(1 - p)]], [[math.log(q), math.log(1 - q)]])
    entropy = lambda x: -x * math.log(x) - (1 - x) * math.log(1 - x)  # noqa: E731
    result = predict(model, samples, inputs)
    assert result.epistemic.item() == pytest.approx(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, abs=1e-6)


def test_limit_one_member_has_no_epistemic_part_and_none_is_a_point_prediction() -> None:
    samples, (member,) = collected(count=1)
    result = predict(network(), samples, INPUTS)
    assert result.epistemic.abs().max() < 1e-12 and result.disagreement.abs().max() == 0
    point = predict(member.train(), None, INPUTS)
    assert torch.equal(point.probabilities, result.probabilities) and member.training


def test_limit_identical_members_have_epistemic_part_zero_and_never_below() -> None:
    model, samples, inputs = logits_model(*[[[0.3, 0.1, -2.0]] * 50] * 7)
    result = predict(model, samples, inputs)
    assert result.epistemic.min() >= 0 and result.epistemic.max() < 1e-14


def test_limit_excluded_classes_and_extreme_logits_stay_finite() -> None:
    model, samples, inputs = logits_model([[0.0, -1e30, 0.0]], [[900.0, -900.0, 0.0]])
    result = predict(model, samples, inputs)
    assert result.probabilities.tolist() == [[0.75, 0.0, 0.25]]
    assert result.aleatoric.item() == pytest.approx(math.log(2) / 2, abs=1e-12)


def test_limit_a_single_logit_is_the_second_class() -> None:
    model, samples, inputs = logits_model([[1.5], [-0.5]])
    result = predict(model, samples, inputs)
    torch.testing.assert_close(result.probabilities[:, 1].float(), torch.tensor([1.5, -0.5]).sigmoid())
    assert result.classes.tolist() == [1, 0]


def test_property_a_loader_gives_the_same_and_its_labels() -> None:
    samples, _ = collected()
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=5)
    from_loader, from_tensor = predict(network(), samples, loader), predict(network(), samples, INPUTS, batch_size=5)
    torch.testing.assert_close(from_loader.probabilities, from_tensor.probabilities, rtol=1e-6, atol=1e-7)
    assert torch.equal(from_loader.labels, LABELS) and from_tensor.labels is None
    bare = predict(network(), samples, [INPUTS[:9], INPUTS[9:]])
    torch.testing.assert_close(bare.probabilities, from_tensor.probabilities, rtol=1e-6, atol=1e-7)


def test_equation_member_accuracy() -> None:
    model, samples, inputs = logits_model([[1.0, 0.0]] * 4, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    result = predict(model, samples, inputs)
    assert result.member_accuracy(torch.tensor([0, 0, 0, 1])).tolist() == [0.75, 0.75]
    assert result.member_accuracy([0, 0, 1, 1]).tolist() == [0.5, 1.0]
    labelled = predict(model, samples, [(inputs, torch.tensor([0, 0, 1, 1]))])
    assert labelled.member_accuracy().tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="labels: none"):
        result.member_accuracy()
    with pytest.raises(ValueError, match=r"labels: shape \(1, 4\)"):
        result.member_accuracy(torch.zeros(1, 4))


def test_property_indices_choose_members() -> None:
    samples, _ = collected()
    chosen = predict(network(), samples, INPUTS, indices=[-1, 2], keep_members=True)
    everyone = predict(network(), samples, INPUTS, keep_members=True)
    assert torch.equal(chosen.members, everyone.members[[4, 2]])


def test_property_the_model_comes_back_whatever_happens() -> None:
    samples, _ = collected()
    model = network().train()
    model[1].eval()  # a frozen BatchNorm inside a training network
    before = snapshot(model)
    predict(model, samples, INPUTS)
    assert unchanged(model, before)
    with pytest.raises(RuntimeError):
        predict(model, samples, torch.randn(4, 99))
    assert unchanged(model, before)


def test_property_use_sample_restores_on_exception() -> None:
    samples, members = collected()
    model = network().train()
    model.scratch = None
    model[0].register_buffer("cache", torch.ones(3), persistent=False)
    before = snapshot(model)
    with pytest.raises(KeyError, match="stop"), use_sample(model, samples, -2) as member:
        assert member is model and not model.training and not model[1].training
        assert torch.equal(model(INPUTS), members[3](INPUTS))
        model.train()(torch.randn(8, 6))  # moves the normalisation buffers
        model[0].cache.zero_()
        raise KeyError("stop")
    assert unchanged(model, before) and torch.equal(model[0].cache, torch.ones(3))


def test_property_use_sample_keeps_parameters_gradients_and_optimizer_alive() -> None:
    samples, _ = collected()
    model = network()
    model(INPUTS).sum().backward()
    parameters, gradients = list(model.parameters()), [p.grad.clone() for p in model.parameters()]
    with use_sample(model, samples, 0):
        pass
    assert all(a is b for a, b in zip(parameters, model.parameters()))
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, model.parameters()))


def test_property_one_member_is_alive_at_a_time(monkeypatch) -> None:
    import weakref

    samples, _ = collected()
    alive: list[weakref.ref] = []
    most = 0
    read = MemorySamples._read

    def counting(self, index):
        nonlocal most
        tensors = read(self, index)
        alive.append(weakref.ref(tensors["0.weight"]))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensors

    monkeypatch.setattr(MemorySamples, "_read", counting)
    predict(network(), samples, INPUTS)
    assert len(alive) == 5 and most == 1


def test_property_preserved_survives_a_replaced_buffer() -> None:
    model = nn.BatchNorm1d(2)
    with preserved(model):
        model.running_mean = torch.full((2,), 5.0)  # as `model.to(device)` does
    assert model.running_mean.tolist() == [0.0, 0.0]


def test_equation_regression_splits_the_variance() -> None:
    samples, members = collected(outputs=2)
    noise = [0.1, 0.2, 0.3, 0.4, 0.5]
    with torch.no_grad():
        means = torch.stack([member(INPUTS).double() for member in members])
    result = predict(
        network(2), samples, INPUTS, task="regression", noise_variance=noise, batch_size=4, keep_members=True
    )
    torch.testing.assert_close(result.members, means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.mean, result.members.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.epistemic, result.members.var(0, correction=0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.aleatoric, torch.full_like(result.mean, 0.3))
    torch.testing.assert_close(result.variance, result.aleatoric + result.epistemic)
    assert len(result) == 23 and result.mean.shape == (23, 2)


def test_equation_regression_with_predicted_variances() -> None:
    class Both(nn.Module):
        def __init__(self, mean: float, variance: float) -> None:
            super().__init__()
            self.mean, self.noise = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(variance))

        def forward(self, x):
            return self.mean + 0 * x[:, 0], self.noise.expand(len(x))

    samples = MemorySamples()
    samples.collect(Both(1.0, 0.5))
    samples.collect(Both(3.0, 1.5))
    result = predict(Both(0.0, 0.0), samples, INPUTS, task="regression")
    for tensor, value in ((result.mean, 2.0), (result.aleatoric, 1.0), (result.epistemic, 1.0), (result.variance, 2.0)):
        assert tensor.shape == (23,) and (tensor == value).all()


@pytest.mark.parametrize("noise", [np.float32(0.25), torch.tensor(0.25), np.array([0.25]), [torch.tensor(0.25)]])
def test_property_a_noise_variance_may_be_a_number_of_any_library(noise) -> None:
    prediction = predict(network(1), None, INPUTS, task="regression", noise_variance=noise)
    assert prediction.variance.unique().tolist() == [0.25]


def test_error_a_noise_variance_that_is_none_or_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"noise_variance=-1.0: must not be negative"):
        predict(network(1), None, INPUTS, task="regression", noise_variance=-1.0)
    with pytest.raises(ValueError, match=r"means of shape \(4, 1\) and noise variances of shape \(4,\)"):
        predict(network(1), None, INPUTS[:4], task="regression", forward=lambda model, x: (model(x), x[:, 0].abs()))


def test_error_batches_that_change_between_members() -> None:
    samples, _ = collected()
    shuffled = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=23, shuffle=True)
    with pytest.raises(ValueError, match="switch off shuffling"):
        predict(network(), samples, shuffled)
    with pytest.raises(ValueError, match="read only once"):
        predict(network(), samples, iter([INPUTS]))
    assert len(predict(network(), samples, iter([INPUTS]), indices=[0])) == 23

    class Resuming:
        """Its first pass starts in the middle, as a resumed loader's does."""

        start = 10

        def __iter__(self):
            start, self.start = self.start, 0
            yield INPUTS[start:]

    with pytest.raises(ValueError, match="batches changed"):
        predict(network(), samples, Resuming())


def test_error_messages() -> None:
    samples, _ = collected()
    with pytest.raises(ValueError, match="no members"):
        predict(network(), MemorySamples(), INPUTS)
    with pytest.raises(ValueError, match="indices: 5 is out of range"):
        predict(network(), samples, INPUTS, indices=[0, 5])
    with pytest.raises(ValueError, match="no samples to choose from"):
        predict(network(), None, INPUTS, indices=[0])
    with pytest.raises(ValueError, match="task='ranking'"):
        predict(network(), samples, INPUTS, task="ranking")
    with pytest.raises(ValueError, match="batch_size=0"):
        predict(network(), samples, INPUTS, batch_size=0)
    with pytest.raises(ValueError, match="no input"):
        predict(network(), samples, INPUTS[:0])
    with pytest.raises(ValueError, match="2 values for 5 members"):
        predict(network(), samples, INPUTS, task="regression", noise_variance=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"'4.weight' is parameter float32\[4, 8\]"):
        predict(network(4), samples, INPUTS)
    with pytest.raises(ValueError, match=r"shape \(23, 6, 2\); .* give forward="):
        predict(nn.Unflatten(1, (6, 2)), None, torch.zeros(23, 12))
    with pytest.raises(ValueError, match="holds a str"):
        predict(network(), samples, ["images"])


def test_error_a_diverged_member_is_named() -> None:
    samples, members = collected()
    members[0][4].weight.data.fill_(3e38)  # finite weights, outputs that are not
    samples.collect(members[0])
    with pytest.raises(ValueError, match="sample 5 gives outputs that are not finite"):
        predict(network(), samples, INPUTS)
    with pytest.raises(ValueError, match="sample 5"):
        predict(network(), samples, INPUTS, task="regression")
    assert predict(network(), samples, INPUTS, indices=range(5)).probabilities.isfinite().all()


def test_property_a_prediction_prints_as_one_line():
    net, x = torch.nn.Linear(3, 2), torch.randn(500, 3)
    told = repr(predict(net, None, x))
    assert "500 inputs, 2 classes, 1 members" in told and "\n" not in told and len(told) < 200
    told = repr(predict(net, None, [(x, x[:, :2])], task="regression", noise_variance=0.25))
    assert "aleatoric 0.5" in told and told.endswith("labels)") and len(told) < 200


def test_parity_tensors_by_name_are_cut_into_batches() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, one, two):
            return self.layer(one + two)

    model, samples = Sum(), MemorySamples()
    for _ in range(2):
        nn.init.normal_(model.layer.weight)
        samples.collect(model)
    whole = {"one": torch.randn(5, 3), "two": torch.randn(5, 3), "labels": torch.arange(5)}
    found = predict(model, samples, whole, batch_size=2)
    expected = predict(model, samples, [whole])
    torch.testing.assert_close(found.probabilities, expected.probabilities)
    assert torch.equal(found.labels, whole["labels"])
