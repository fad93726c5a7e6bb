from __future__ import annotations

import copy
import gc
import json
import linecache
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesprune.compaction import compact
from bayesprune.deploy import Ensemble, load, save
from bayesprune.deploy.folder import read_architecture
from bayesprune.deploy.folding import fold
from bayesprune.deploy.profile import profile
from bayesprune.graph.source import deep_copy

BLOCKED = ("sklearn", "lightning_fabric", "tqdm", "tensorboard", "PIL", "matplotlib", "onnx", "onnxruntime", "onnxscript",
           "scipy", "pandas", "conftest", "bayesprune.train", "bayesprune.vision")  # fmt: skip


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@torch.no_grad()
def test_roundtrip_every_family_in_both_modes(network, images, tmp_path):
    network.eval()
    path = save(network, tmp_path / "model", example_input=images)
    again = load(path)
    assert sorted(os.listdir(path)) == ["architecture.json", "weights.safetensors"]
    assert not again.training
    one, other = network.state_dict(), again.state_dict()
    assert list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in again.named_parameters()]
    for batch in (1, 5):  # neither is the example's
        x = torch.randn(batch, 3, 16, 16)
        assert same(network(x), again(x))
    network.train(), again.train()
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(3)
    expected = network(x)
    torch.manual_seed(3)
    assert same(expected, again(x))
    one, other = network.state_dict(), again.state_dict()
    assert all(same(one[name], other[name]) for name in one)


def test_roundtrip_of_a_loaded_model_is_the_same_file(network, images, tmp_path):
    first = save(network, tmp_path / "a", example_input=images)
    second = save(load(first), tmp_path / "b", example_input=images)
    assert (first / "weights.safetensors").read_bytes() == (second / "weights.safetensors").read_bytes()
    one, other = (read_architecture(path)["architecture"] for path in (first, second))
    assert one["modules"] == other["modules"] and one["tensors"] == other["tensors"]
    assert len(one["nodes"]) == len(other["nodes"])


def test_roundtrip_trains_alike(network, images, tmp_path):
    network.train()
    again = load(save(network, tmp_path / "model", example_input=images))
    assert again.training
    results = []
    for model in (network, again):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        torch.manual_seed(0)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(images), torch.tensor([0, 3])).backward()
            optimizer.step()
        results.append(model.state_dict())
    assert all(same(results[0][name], results[1][name]) for name in results[0])


def test_property_loads_with_core_dependencies_only(make, tmp_path):
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    for name in ("resnet20", "vit"):
        model = make(name, 0).eval()
        path = save(model, tmp_path / name, example_input=x)
        with torch.no_grad():
            expected = model(x)
        script = f"""
            import sys
            class Block:
                def find_spec(self, name, path=None, target=None):
                    if any(name == blocked or name.startswith(blocked + ".") for blocked in {BLOCKED!r}):
                        raise ImportError("blocked: " + name)
            sys.meta_path.insert(0, Block())
            import torch
            from bayesprune.deploy import load
            model = load({str(path)!r})
            x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
            with torch.no_grad():
                y = model(x)
            assert "pickle" not in type(model).__module__
            print(y.double().tolist())
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert torch.allclose(torch.tensor(json.loads(run.stdout), dtype=torch.float64), expected.double(), atol=1e-6)


class Odd(nn.Module):
    """Ties, frozen and half-precision tensors, a plain tensor attribute, two inputs, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.decode = nn.Linear(4, 7, bias=False)
        self.decode.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.weight.requires_grad_(False)
        self.register_buffer("scale", torch.tensor([2.0, 3.0, 4.0, 5.0], dtype=torch.float64))
        self.shift = torch.tensor(0.25)
        self.norm = nn.BatchNorm1d(4)
        self.norm.eval()

    def forward(self, tokens: Tensor, weight: Tensor) -> dict[str, Tensor]:
        y = self.frozen(self.embed(tokens).mean(1)) * self.scale.to(torch.float32) + self.shift
        y = self.norm(y) * weight.unsqueeze(1).clamp(-float("inf"), 2.0)
        return {"logits": self.decode(y), "hidden": y + torch.arange(4)}


def test_roundtrip_ties_flags_dtypes_modes_and_constants(tmp_path):
    model = Odd().train()
    model.norm.eval()
    inputs = (torch.randint(7, (3, 5)), torch.randn(3))
    again = load(save(model, tmp_path / "model", example_input=inputs, metadata={"classes": ["a", "b"]}))
    assert again.decode.weight is again.embed.weight
    assert again.training and not again.norm.training and again.frozen.training
    assert {n: (p.requires_grad, p.dtype) for n, p in model.named_parameters()} == {
        n: (p.requires_grad, p.dtype) for n, p in again.named_parameters()
    }
    assert list(model.state_dict()) == list(again.state_dict())
    one, other = model(*inputs), again(*inputs)
    assert one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    assert read_architecture(tmp_path / "model")["metadata"] == {"classes": ["a", "b"]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_roundtrip_dtype(make, images, tmp_path, dtype):
    model = make("resnet20", 0).eval().to(dtype)
    again = load(save(model, tmp_path / "model", example_input=images.to(dtype)))
    with torch.no_grad():
        assert same(model(images.to(dtype)), again(images.to(dtype)))


def test_roundtrip_memory_format(make, images, tmp_path):
    model = make("resnet20", 0).eval().to(memory_format=torch.channels_last)
    again = load(save(model, tmp_path / "model", example_input=images))
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters()):
        assert one.stride() == other.stride(), name


def test_property_replaces_an_earlier_model_and_nothing_else(make, images, tmp_path):
    save(make("mlp", 0), tmp_path / "model", example_input=images)
    path = save(make("mlp", 1), tmp_path / "model", example_input=images)
    assert same(load(path).state_dict()["1.weight"], make("mlp", 1).state_dict()["1.weight"])
    assert os.listdir(tmp_path) == ["model"]
    (tmp_path / "model" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'thesis.tex', which is no part of a model"):
        save(make("mlp", 1), path, example_input=images)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        save(make("mlp", 1), tmp_path / "file", example_input=images)
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


def test_property_a_failed_save_leaves_the_earlier_model(make, images, tmp_path):
    path = save(make("mlp", 0), tmp_path / "model", example_input=images)
    before = (path / "architecture.json").read_bytes()

    def fail(model: nn.Module, folder: os.PathLike[str]) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save(make("mlp", 1), path, example_input=images, extras=fail)
    assert (path / "architecture.json").read_bytes() == before and os.listdir(tmp_path) == ["model"]


def test_equation_bytes_of_the_dense_model_are_those_of_its_file(make, images, tmp_path):
    dense = make("resnet20", 0)
    real = save(dense, tmp_path / "dense", example_input=images)
    path = save(make("mlp", 0), tmp_path / "small", example_input=images, dense=dense)
    assert read_architecture(path)["dense"]["bytes"] == (real / "weights.safetensors").stat().st_size
    result = profile(path, batch_sizes=(1,), seconds=0.01)
    assert result.dense is not None and result.dense.parameters == sum(p.numel() for p in dense.parameters())


def test_error_files_damaged_or_exchanged(make, images, tmp_path):
    one = save(make("mlp", 0), tmp_path / "one", example_input=images)
    two = save(make("mlp", 1), tmp_path / "two", example_input=images)
    (one / "weights.safetensors").write_bytes((two / "weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"weights.safetensors: is not the file that architecture.json lists"):
        load(one)
    (one / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has 0 bytes of"):
        load(one)
    (one / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights.safetensors: is missing"):
        load(one)
    (two / "architecture.json").write_text("{}")
    with pytest.raises(ValueError, match=r"architecture.json: is None, version None; expected"):
        load(two)
    with pytest.raises(FileNotFoundError, match=r"there is no architecture.json"):
        load(tmp_path)


def test_error_metadata_and_inputs(make, images, tmp_path):
    with pytest.raises(ValueError, match="metadata: cannot be written as JSON"):
        save(make("mlp", 0), tmp_path / "a", example_input=images, metadata={"x": images})
    with pytest.raises(ValueError, match="example_input: NoneType"):
        save(make("mlp", 0), tmp_path / "a", example_input=None)
    assert not os.listdir(tmp_path)


class Remembers(nn.Module):
    """Its output depends on how often it was called, which no graph tells."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_error_outputs_that_the_graph_does_not_hold(images, tmp_path):
    with pytest.raises(ValueError, match="read back, its values in evaluation at batch size 2 are not the original's"):
        save(Remembers(), tmp_path / "model", example_input=images)
    assert not os.listdir(tmp_path)


def test_property_the_model_is_left_as_it_was(network, images, tmp_path):
    network.train()
    next(network.children()).eval()
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    names = set(vars(network))
    save(network, tmp_path / "model", example_input=images)
    assert modes == [module.training for module in network.modules()] and names == set(vars(network))
    assert all(same(before[name], tensor) for name, tensor in network.state_dict().items())


def test_property_generated_sources_go_with_their_modules(tmp_path):
    """torch.fx keeps the source of every graph module for ever, of copies too: an hour of saving grew by them."""

    def kept() -> int:
        gc.collect()
        store = getattr(torch.fx.graph_module, "_loader", None)
        return len(getattr(store, "eval_cache", {})) + sum(
            name.startswith("<eval_with_key") for name in linecache.cache
        )

    inputs = torch.randn(2, 1, 8, 8)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)).eval()
    before = kept()
    save(model, tmp_path / "model", example_input=inputs)
    loaded = load(tmp_path / "model")
    fold(loaded)(inputs)
    compact(deep_copy(loaded), example_input=inputs)
    assert kept() > before  # of the one that is still there
    del loaded
    assert kept() == before


def test_roundtrip_an_ensemble_of_a_network_with_a_cache_that_counts(tmp_path):
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x, use_cache=True):
            out = self.layer(x) + (x > 0).int().sum(1, keepdim=True)
            return (out, object()) if use_cache else out

    model, x = Cached().eval(), torch.randn(3, 4)
    save(Ensemble(model, [model.state_dict()] * 2), tmp_path / "pair", example_input={"x": x})
    torch.testing.assert_close(load(tmp_path / "pair")(x)[1], model(x, use_cache=False))
