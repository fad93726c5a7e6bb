"""Samples in memory and on the disk alike: what is collected comes back, and what does not fit is refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from bayesprune.posterior import MemorySamples, Samples, SampleStore
from bayesprune.samplers import SGHMC, CVAdam
from posterior.tied_network import Network, copy_of, randomise, states_equal


@pytest.fixture(params=["memory", "disk"])
def samples(request: pytest.FixtureRequest, tmp_path) -> Samples:
    return MemorySamples() if request.param == "memory" else SampleStore(tmp_path / "new" / "run")


def test_roundtrip_samples_come_back_bit_for_bit_with_their_own_buffers(samples: Samples) -> None:
    model, saved = Network(), []
    for seed in range(3):
        randomise(model, seed)
        with torch.no_grad():
            model.conv.weight[0, 0, 0, 0] = 1e-45  # compared by their bytes
            model.conv.weight[0, 0, 0, 1] = -0.0
        saved.append(copy_of(model))
        assert samples.collect(model, step=seed) == seed
    randomise(model, 99)
    assert len(samples) == 3 and len(list(samples)) == 3
    for index, (state, iterated) in enumerate(zip(saved, samples)):
        assert states_equal(samples[index], state)
        assert states_equal(iterated, state)
        assert states_equal(samples.load_(index, Network()).state_dict(), state)
    assert states_equal(samples[-1], saved[-1])
    assert saved[0]["norm.num_batches_tracked"] != saved[1]["norm.num_batches_tracked"]


def test_roundtrip_other_dtypes_and_odd_shapes(samples: Samples) -> None:
    model = nn.Module()
    model.low = nn.Parameter(torch.randn(3, 5, dtype=torch.float64).to(torch.bfloat16))
    model.empty = nn.Parameter(torch.zeros(0, 4))
    model.scalar = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    model.register_buffer("mask", torch.tensor([True, False]))
    model.register_buffer("view", torch.arange(12.0).reshape(3, 4).T)  # not contiguous
    samples.collect(model)
    for name, tensor in model.state_dict().items():
        assert samples[0][name].dtype == tensor.dtype and torch.equal(samples[0][name], tensor)


def test_property_a_sample_is_a_copy(samples: Samples) -> None:
    model = randomise(Network(), 0)
    before = copy_of(model)
    samples.collect(model)
    samples.load_(0, model)
    randomise(model, 1)
    for tensor in samples[0].values():
        tensor.zero_()
    assert states_equal(samples[0], before)


def test_property_loading_keeps_identity_memory_format_mode_and_ties(samples: Samples) -> None:
    model = randomise(Network(), 0)
    samples.collect(model)
    target = Network().to(memory_format=torch.channels_last).train()
    parameter, gradient = target.conv.weight, torch.ones_like(target.conv.weight)
    parameter.grad = gradient
    samples.load_(0, target)
    assert target.conv.weight is parameter and parameter.grad is gradient and target.training
    assert parameter.is_contiguous(memory_format=torch.channels_last)
    assert target.second.weight is target.first.weight and parameter.requires_grad
    assert torch.equal(parameter, model.conv.weight)


def test_property_a_compiled_wrapper_is_the_same_architecture(samples: Samples) -> None:
    model = Network()
    samples.collect(torch.compile(model))
    samples.load_(0, Network())
    samples.load_(0, torch.compile(Network()))


def test_roundtrip_truncate(samples: Samples) -> None:
    model, states = Network(), []
    for seed in range(4):
        states.append(copy_of(randomise(model, seed)))
        samples.collect(model, step=seed)
    samples.truncate(2)
    assert len(samples) == 2 and [info["step"] for info in samples.infos] == [0, 1]
    assert samples.collect(randomise(model, 7), step=7) == 2
    assert states_equal(samples[1], states[1]) and states_equal(samples[2], model.state_dict())
    samples.truncate(0)
    assert len(samples) == 0
    assert samples.collect(Network(width=6)) == 0  # an empty store takes any architecture
    with pytest.raises(ValueError, match="n=5"):
        samples.truncate(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: setattr(m, "conv", nn.Conv2d(1, 5, 3)),
            r"'conv.weight' is parameter float32\[5, 1, 3, 3\], the samples",
        ),
        (
            lambda m: m.norm.double(),
            r"'norm.weight' is parameter float64\[4\], the samples have parameter float32\[4\]",
        ),
        (lambda m: setattr(m, "conv", nn.Conv2d(1, 4, 3, bias=False)), r"'conv.bias' .* missing from the model"),
        (lambda m: setattr(m, "head", nn.Linear(4, 2)), r"'head.weight' .* missing from the samples"),
        (
            lambda m: setattr(m.second, "weight", nn.Parameter(torch.zeros(4, 4))),
            r"'second.weight' .*tied to 'first.weight'",
        ),
        (lambda m: m.norm.running_var.resize_(5), r"'norm.running_var'"),
    ],
    ids=["shape", "dtype", "missing", "extra", "untied", "buffer"],
)
def test_error_another_architecture_names_the_first_differing_tensor(samples: Samples, change, message) -> None:
    samples.collect(randomise(Network(), 0))
    other = randomise(Network(), 1)
    change(other)
    before = copy_of(other)
    with pytest.raises(ValueError, match=message):
        samples.load_(0, other)
    assert states_equal(other.state_dict(), before)  # nothing was half loaded
    with pytest.raises(ValueError, match=message):
        samples.collect(other)
    assert len(samples) == 1


def test_property_the_order_of_definition_plays_no_part(samples: Samples) -> None:
    one, other = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 3)}), nn.ModuleDict()
    other["b"], other["a"] = nn.Linear(2, 3), nn.Linear(2, 2)
    samples.collect(one)
    samples.load_(0, other)
    assert torch.equal(one["a"].weight, other["a"].weight) and torch.equal(one["b"].bias, other["b"].bias)


def test_error_indices(samples: Samples) -> None:
    samples.collect(Network())
    for index in (1, -2):
        with pytest.raises(IndexError, match="1 samples"):
            samples[index]
        with pytest.raises(IndexError):
            samples.load_(index, Network())


def test_error_info_that_json_cannot_hold(samples: Samples) -> None:
    with pytest.raises(TypeError, match="info where"):
        samples.collect(Network(), where=object())
    assert len(samples) == 0


def test_error_extra_state_is_refused(samples: Samples) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"n": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match="_extra_state"):
        samples.collect(Extra(2, 2))


def test_equation_with_the_sampler_a_sample_is_the_midpoint_of_the_last_move(tmp_path) -> None:
    layer = nn.Linear(2, 1, bias=False)
    optimizer = SGHMC(layer.parameters(), lr=0.5, num_data=10, temperature=1.0, seed=0)
    layer(torch.ones(4, 2)).square().mean().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    after = layer.weight.detach().clone()
    store = SampleStore(tmp_path)
    store.collect(layer, optimizer, step=1)
    store.collect(layer, optimizer, midpoint=False)
    store.collect(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert torch.allclose(store[0]["weight"], (before + after) / 2)
    assert torch.equal(store[1]["weight"], after) and torch.equal(store[2]["weight"], after)
    assert torch.equal(layer.weight, after)
    assert store.infos[0]["temperature"] == 1.0 and store.infos[0]["kinetic_temperature"] > 0 and store.infos[2] == {}


def test_equation_a_frozen_group_does_not_hide_the_measured_temperature() -> None:
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    model = nn.Sequential(body.requires_grad_(False), head)
    groups = [{"params": body.parameters(), "temperature": 0.5}, {"params": head.parameters()}]
    optimizer, samples = CVAdam(groups, lr=1e-2, num_data=10, seed=0), MemorySamples()
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    samples.collect(model, optimizer)
    measured = optimizer.kinetic_temperature()[1]["mean"]
    assert samples.infos[0] == {"temperature": 1.0, "kinetic_temperature": pytest.approx(measured)} and measured > 0


def test_property_a_padding_row_that_noise_moves_is_named_and_the_mend_that_is_named_holds_it() -> None:
    def collected(held: bool) -> tuple[nn.Sequential, Samples]:
        torch.manual_seed(0)
        model, samples = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Linear(3, 2)), MemorySamples()
        optimizer = CVAdam(model.parameters(), lr=1e-2, num_data=10, seed=0)
        if held:
            optimizer.register_step_post_hook(lambda *_: model.get_submodule("0").weight.data[1].zero_())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.tensor([0, 1, 2])).square().mean().backward()
            optimizer.step()
        samples.collect(model, optimizer)
        return model, samples

    with pytest.warns(UserWarning, match=r"0\.weight\[1\] is the row of padding_idx.*get_submodule") as told:
        model, _ = collected(held=False)
    assert told[0].filename == __file__ and bool(model[0].weight[1].any())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, samples = collected(held=True)
    assert not model[0].weight[1].any() and not samples[0]["0.weight"][1].any()


def test_property_pruned_weights_stay_zero_in_a_midpoint() -> None:
    layer = nn.Linear(3, 1, bias=False)
    optimizer = SGHMC(layer.parameters(), lr=0.5, num_data=10, seed=0)
    layer(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    layer.weight.data[0, 1] = 0.0  # as a pruner with a dense copy does: the momentum lives on
    samples = MemorySamples()
    samples.collect(layer, optimizer)
    assert samples[0]["weight"][0, 1] == 0.0 and (samples[0]["weight"] != 0).sum() == 2


class Prepared:
    """An optimizer inside a trainer's wrapper."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


def test_property_a_wrapped_sampler_gives_its_midpoint_and_temperatures(samples: Samples) -> None:
    model = nn.Linear(3, 1)
    optimizer = CVAdam(model.parameters(), lr=0.1, num_data=10, seed=0)
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    plain = MemorySamples()
    plain.collect(model, optimizer)
    samples.collect(model, Prepared(Prepared(optimizer)))
    assert states_equal(samples[0], plain[0]) and not torch.equal(plain[0]["weight"], model.weight)
    assert samples.infos == plain.infos and samples.infos[0]["temperature"] == 1.0
    with pytest.raises(TypeError, match="optimizer=str is no torch"):
        samples.collect(model, "optimizer")
