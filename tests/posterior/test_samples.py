from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from bayesprune import ArtefactError
from bayesprune.common.manifest import sealed
from bayesprune.common.tensors import write_tensors
from bayesprune.posterior import MemorySamples, Samples, SampleStore
from bayesprune.posterior.architecture import fingerprint
from bayesprune.samplers import SGHMC


class Network(nn.Module):
    """Convolution, BatchNorm (an int64 buffer among them), tied linear layers, a buffer that is not saved."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.norm(self.conv(images)).mean((2, 3))))


def randomise(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        else:
            tensor.fill_(seed)
    return model


def states_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(one.values(), other.values())
    )


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


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


def test_roundtrip_a_reopened_store_goes_on(tmp_path) -> None:
    model = Network()
    SampleStore(tmp_path).collect(
        randomise(model, 1), step=10, lr=0.5, note="a", cycle=torch.tensor(2), bad=float("nan")
    )
    assert SampleStore(tmp_path).collect(randomise(model, 2), step=20) == 1
    store = SampleStore(tmp_path)
    assert store.infos == [{"step": 10, "lr": 0.5, "note": "a", "cycle": 2, "bad": None}, {"step": 20}]
    assert states_equal(store[1], model.state_dict())
    json.loads((tmp_path / "store.json").read_text(), parse_constant=pytest.fail)  # no NaN in the JSON


def test_roundtrip_two_open_stores_lose_nothing(tmp_path) -> None:
    first, second = SampleStore(tmp_path), SampleStore(tmp_path)
    first.collect(Network(), who="first")
    second.collect(Network(), who="second")
    assert [info["who"] for info in SampleStore(tmp_path).infos] == ["first", "second"]


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


def test_property_tied_weights_are_written_once_and_load_strictly(tmp_path) -> None:
    from safetensors.torch import load_file

    store, model = SampleStore(tmp_path), Network()
    store.collect(model)
    assert "second.weight" not in load_file(tmp_path / "sample-0000.safetensors")
    assert Network().load_state_dict(store[0], strict=True)


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


def test_roundtrip_truncate_removes_files(tmp_path) -> None:
    store = SampleStore(tmp_path)
    for _ in range(3):
        store.collect(Network())
    store.truncate(1)
    assert sorted(os.listdir(tmp_path)) == ["sample-0000.safetensors", "store.json"]
    assert len(SampleStore(tmp_path)) == 1


@pytest.mark.parametrize("failing", ["sample-0001.safetensors", "store.json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_roundtrip_a_crash_in_the_middle_leaves_the_earlier_samples(tmp_path, monkeypatch, failing, when) -> None:
    model = randomise(Network(), 0)
    first = copy_of(model)
    SampleStore(tmp_path).collect(model, step=0)

    class Killed(BaseException):
        pass

    replace = os.replace

    def crash(source, target):
        if os.path.basename(target) != failing or when == "after":
            replace(source, target)
        if os.path.basename(target) == failing:
            raise Killed

    writer = SampleStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(Killed):
            writer.collect(randomise(model, 1), step=1)
    survived = 2 if (failing, when) == ("store.json", "after") else 1
    reader = SampleStore(tmp_path)
    assert len(reader) == survived
    assert states_equal(reader[0], first)
    # The writer, if it lives on, and a new process both go on cleanly.
    assert writer.collect(randomise(model, 2), step=2) == survived
    again = SampleStore(tmp_path)
    assert states_equal(again[survived], model.state_dict())
    assert sorted(os.listdir(tmp_path)) == [f"sample-{i:04d}.safetensors" for i in range(survived + 1)] + ["store.json"]


def test_roundtrip_strays_of_a_killed_process_are_ignored_and_replaced(tmp_path) -> None:
    store = SampleStore(tmp_path)
    store.collect(Network(), step=0)
    for stray in (
        "sample-0001.safetensors",
        "sample-0001.safetensors.tmp",
        "store.json.tmp",
        "sample-0007.safetensors",
    ):
        (tmp_path / stray).write_bytes(b"half a fi")
    (tmp_path / "notes.txt").write_text("not ours")
    reader = SampleStore(tmp_path)
    assert len(reader) == 1 and len(list(reader)) == 1
    assert (tmp_path / "sample-0007.safetensors").exists()  # reading removes nothing
    reader.collect(Network(), step=1)
    assert sorted(os.listdir(tmp_path)) == [
        "notes.txt",
        "sample-0000.safetensors",
        "sample-0001.safetensors",
        "store.json",
    ]


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


def test_error_damaged_stores(tmp_path) -> None:
    store = SampleStore(tmp_path / "run")
    for _ in range(2):
        store.collect(Network())
    path = tmp_path / "run" / "sample-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"sample 1: it has .* bytes instead of .*truncate\(1\)"):
        SampleStore(tmp_path / "run")[1]
    path.unlink()
    with pytest.raises(ValueError, match=r"sample 1: it is missing"):
        SampleStore(tmp_path / "run")[1]
    assert SampleStore(tmp_path / "run")[0]

    index = tmp_path / "run" / "store.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        SampleStore(tmp_path / "run")
    content["tensors"][0][2] = [7]
    index.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="its content is not what was written"):
        SampleStore(tmp_path / "run")
    del content["sha256"]
    index.write_text(json.dumps(sealed(content)))
    with pytest.raises(ArtefactError, match="fingerprint"):
        SampleStore(tmp_path / "run")
    index.write_text('{"format": "bayes')
    with pytest.raises(ValueError, match=r"store\.json: cannot be read"):
        SampleStore(tmp_path / "run")
    with pytest.raises(NotADirectoryError):
        SampleStore(index)


def test_error_swapped_samples_changed_bytes_and_names_outside(tmp_path) -> None:
    store, model = SampleStore(tmp_path), Network()
    for seed in range(2):
        store.collect(randomise(model, seed))
    one, two = tmp_path / "sample-0000.safetensors", tmp_path / "sample-0001.safetensors"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    before = copy_of(model)
    with pytest.raises(ArtefactError, match=r"sample 0: it is another file than store\.json lists"):
        SampleStore(tmp_path).load_(0, model)
    one.write_bytes(first[:-3] + bytes([first[-3] ^ 1]) + first[-2:])
    with pytest.raises(ArtefactError, match="the SHA-256 differs"):
        SampleStore(tmp_path).load_(0, model)
    assert states_equal(model.state_dict(), before)
    content = json.loads((tmp_path / "store.json").read_text())
    content.pop("sha256")
    for name in ("../sample-0000.safetensors", str(two), "store.json"):
        content["samples"][0]["file"] = name
        (tmp_path / "store.json").write_text(json.dumps(sealed(content)))
        with pytest.raises(ArtefactError, match="it lists the file"):
            SampleStore(tmp_path)


def test_error_a_sample_of_other_shapes_is_not_broadcast(tmp_path) -> None:
    store, model = SampleStore(tmp_path), nn.Linear(2, 3)
    store.collect(model)
    before = copy_of(model)
    mark = fingerprint(store.layout)
    path, content = tmp_path / "sample-0000.safetensors", json.loads((tmp_path / "store.json").read_text())
    seal = write_tensors(
        path, {"weight": torch.ones(1), "bias": torch.ones(3)}, "bayesprune-samples-3", {"fingerprint": mark}
    )
    content.pop("sha256")
    content["samples"][0] |= {"bytes": path.stat().st_size, "sha256": seal}
    (tmp_path / "store.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(
        ArtefactError, match=r"'weight' is parameter float32\[1\], the samples have parameter float32\[3, 2\]"
    ):
        SampleStore(tmp_path).load_(0, model)
    assert states_equal(model.state_dict(), before)


def test_error_a_lost_index_is_no_beginning(tmp_path) -> None:
    store = SampleStore(tmp_path)
    store.collect(Network())
    (tmp_path / "store.json").unlink()
    for act in (lambda: SampleStore(tmp_path), lambda: store.collect(Network()), lambda: store.truncate(0)):
        with pytest.raises(ArtefactError, match=r"store\.json: is missing, and 1 files of samples are there"):
            act()
    assert (tmp_path / "sample-0000.safetensors").exists()


def test_property_two_processes_collect_into_one_store(tmp_path) -> None:
    def work(number: int) -> None:
        for seed in range(5):
            SampleStore(tmp_path).collect(randomise(Network(), seed), who=number)

    children = []
    for number in range(3):
        if not (child := os.fork()):
            work(number)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    store = SampleStore(tmp_path)
    assert sorted(info["who"] for info in store.infos) == [0] * 5 + [1] * 5 + [2] * 5 and len(list(store)) == 15
    assert len(os.listdir(tmp_path)) == 16


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


def test_property_pruned_weights_stay_zero_in_a_midpoint() -> None:
    layer = nn.Linear(3, 1, bias=False)
    optimizer = SGHMC(layer.parameters(), lr=0.5, num_data=10, seed=0)
    layer(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    layer.weight.data[0, 1] = 0.0  # as a pruner with a dense copy does: the momentum lives on
    samples = MemorySamples()
    samples.collect(layer, optimizer)
    assert samples[0]["weight"][0, 1] == 0.0 and (samples[0]["weight"] != 0).sum() == 2
