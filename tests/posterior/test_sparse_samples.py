from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from bayesprune import vision
from bayesprune.posterior import SampleStore, predict


def sparse(model: nn.Module, sparsity: float = 0.9, mask_seed: int = 1, seed: int = 0) -> nn.Module:
    places, values = torch.Generator().manual_seed(mask_seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                drop = torch.rand(parameter.shape, generator=places) < sparsity
                parameter.copy_(torch.randn(parameter.shape, generator=values)).masked_fill_(drop, 0)
    return model


def size_of(folder) -> int:
    return sum(os.path.getsize(folder / name) for name in os.listdir(folder) if name.endswith(".safetensors"))


def network(**settings) -> nn.Module:
    return sparse(vision.build("resnet20", num_classes=10, width=8), **settings)


def test_roundtrip_sparse_storage_bit_for_bit(tmp_path):
    stores = {kind: SampleStore(tmp_path / kind, storage=kind) for kind in ("dense", "sparse")}
    for seed in range(4):
        model = network(seed=seed)
        for store in stores.values():
            assert store.collect(model, step=seed) == seed
    again = {kind: SampleStore(tmp_path / kind) for kind in stores}  # the index knows how each sample is stored
    assert again["dense"].infos == again["sparse"].infos
    for one, other in zip(again["dense"], again["sparse"]):
        assert list(one) == list(other)
        assert all(a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
                   for a, b in zip(one.values(), other.values()))  # fmt: skip
    x = torch.randn(3, 3, 16, 16)
    one, other = (predict(network(), store, x).probabilities for store in again.values())
    assert torch.equal(one, other)


def test_target_twelve_members_at_ninety_percent_below_fifteen(tmp_path):
    for kind in ("dense", "sparse"):
        store = SampleStore(tmp_path / kind, storage=kind)
        for seed in range(12):
            store.collect(sparse(vision.build("resnet20", num_classes=10), seed=seed))
    assert len(list((tmp_path / "sparse").glob("masks-*"))) == 1
    assert size_of(tmp_path / "sparse") < 0.15 * size_of(tmp_path / "dense")


def test_property_new_masks_where_they_save_bytes(tmp_path):
    store = SampleStore(tmp_path, storage="sparse")
    for settings in ({}, {"seed": 1}, {"mask_seed": 2}, {"mask_seed": 2, "sparsity": 0.95}, {"sparsity": 0.5}):
        store.collect(network(**settings))
    masks = [entry["masks"]["file"] for entry in json.loads((tmp_path / "store.json").read_text())["samples"]]
    # The second shares the first's; the third's lie elsewhere; the fourth's are fewer by more than a mask costs.
    assert masks == [f"masks-{number:04d}.safetensors" for number in (0, 0, 2, 3, 4)]
    assert all(torch.equal(store[0][name], value) for name, value in network().state_dict().items())
    store.truncate(2)
    assert [path.name for path in sorted(tmp_path.glob("masks-*"))] == ["masks-0000.safetensors"]
    assert torch.equal(store[1]["stem.0.weight"], network(seed=1).state_dict()["stem.0.weight"])


def test_property_versions(tmp_path):
    SampleStore(tmp_path / "dense").collect(network())
    mixed = SampleStore(tmp_path / "dense", storage="sparse")
    mixed.collect(network(seed=1))
    index = json.loads((tmp_path / "dense" / "store.json").read_text())
    assert index["version"] == 3 and ["masks" in entry for entry in index["samples"]] == [False, True]
    assert torch.equal(mixed[0]["head.weight"], network().state_dict()["head.weight"])


def test_error_sparse_storage(tmp_path):
    with pytest.raises(ValueError, match="storage='tiny': choose 'dense' or 'sparse'"):
        SampleStore(tmp_path, storage="tiny")  # type: ignore[arg-type]
    store = SampleStore(tmp_path, storage="sparse")
    store.collect(network())
    (tmp_path / "masks-0000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"masks-0000\.safetensors: sample 0: it is missing"):
        SampleStore(tmp_path)[0]
