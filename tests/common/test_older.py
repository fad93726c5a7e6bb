"""Files of earlier versions: read as they were, or refused by name; a sealed file that says it is older is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayesprune import ArtefactError, SampleStore, load, save
from bayesprune.common.manifest import file_digest, sealed
from bayesprune.posterior.architecture import fingerprint, model_tensors
from bayesprune.sparsity.packing import pack_masks, pack_state
from bayesprune.train import folder as names
from bayesprune.train import load_tree, save_tree


def test_roundtrip_a_checkpoint_of_version_1(tmp_path) -> None:
    tree = {"d": [["step", {"v": 3}], ["w", {"t": "0/w"}]]}
    save_file(
        {"0/w": torch.ones(2)}, tmp_path / "a", metadata={"format": "bayesprune-tree-1", "tree": json.dumps(tree)}
    )
    found = load_tree(tmp_path / "a")
    assert found["step"] == 3 and torch.equal(found["w"], torch.ones(2))
    save_file({}, tmp_path / "a", metadata={"format": "bayesprune-tree-9", "tree": json.dumps(tree)})
    with pytest.raises(
        ArtefactError, match="format 'bayesprune-tree-9', without its SHA-256; expected 'bayesprune-tree-2'"
    ):
        load_tree(tmp_path / "a")
    save_tree(tmp_path / "a", {"step": 3})
    raw = (tmp_path / "a").read_bytes().replace(b"bayesprune-tree-2", b"bayesprune-tree-1")
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(ArtefactError, match="its header is not what was written"):
        load_tree(tmp_path / "a")


@pytest.mark.parametrize("version", [1, 2])
def test_roundtrip_a_store_of_samples_of_versions_1_and_2(tmp_path, version) -> None:
    model = nn.Linear(16, 16)
    with torch.no_grad():
        model.weight[4:] = 0
    tensors, layout = model_tensors(model)
    held = {name: tensor.detach() for name, tensor in tensors.items()}
    mark, entry = fingerprint(layout), {"file": "sample-0000.safetensors", "info": {"step": 1}}
    if version == 2:
        masks = pack_masks(held)
        held = pack_state(held, masks)
        save_file(
            masks, tmp_path / "masks-0000.safetensors", metadata={"format": "bayesprune-samples", "fingerprint": ""}
        )
        size = (tmp_path / "masks-0000.safetensors").stat().st_size
        entry["masks"] = {"file": "masks-0000.safetensors", "bytes": size}
    save_file(held, tmp_path / entry["file"], metadata={"format": "bayesprune-samples", "fingerprint": mark})
    entry["bytes"] = (tmp_path / entry["file"]).stat().st_size
    index = {
        "format": "bayesprune-samples", "version": version, "fingerprint": mark,
        "tensors": [[name, *spec] for name, spec in layout.items()], "samples": [entry],
    }  # fmt: skip
    (tmp_path / "store.json").write_text(json.dumps(index))
    store = SampleStore(tmp_path, storage="sparse" if version == 2 else "dense")
    assert torch.equal(store[0]["weight"], model.weight) and store.infos == [{"step": 1}]
    store.collect(model, step=2)
    again = SampleStore(tmp_path)
    assert json.loads((tmp_path / "store.json").read_text())["version"] == 3
    assert all(torch.equal(again[i]["weight"], model.weight) for i in range(2))
    (tmp_path / "store.json").write_text(json.dumps(sealed(index)))
    with pytest.raises(ArtefactError, match="its content is not what was written"):
        SampleStore(tmp_path)


def test_roundtrip_a_model_of_version_1(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    path = save(model, tmp_path / "model", example_input=torch.zeros(2, 3))
    content = json.loads((path / "architecture.json").read_text())
    tensors = {name: tensor for name, tensor in model.state_dict().items()}
    save_file(tensors, path / "weights.safetensors", metadata={"format": "bayesprune-model"})
    weights = {"file": "weights.safetensors", "bytes": (path / "weights.safetensors").stat().st_size}
    content |= {"version": 1, "weights": {**weights, "sha256": file_digest(path / "weights.safetensors")}}
    with_seal = json.dumps(content)
    del content["sha256"]
    (path / "architecture.json").write_text(json.dumps(content))
    assert torch.equal(load(path)(torch.ones(1, 3)), model(torch.ones(1, 3)))
    (path / "architecture.json").write_text(with_seal)
    with pytest.raises(ArtefactError, match="its content is not what was written"):
        load(path)
    (path / "architecture.json").write_text(json.dumps(content | {"version": 3}))
    with pytest.raises(ArtefactError, match="version 3; expected 'bayesprune-model', version 1 to 2"):
        load(path)


def test_roundtrip_weights_without_a_format(tmp_path) -> None:
    model = nn.Linear(3, 2)
    save_file(dict(model.state_dict()), tmp_path / names.MODEL)
    assert torch.equal(names.load_model_(nn.Linear(3, 2), tmp_path).weight, model.weight)
    other, before = nn.Linear(3, 2), None
    before = other.weight.clone()
    for change in ({"bias": torch.ones(1)}, {"extra": torch.ones(1)}, {"bias": torch.ones(2).double()}, None):
        changed = {**model.state_dict(), **change} if change else {"weight": torch.ones(2, 3)}
        save_file(changed, tmp_path / names.MODEL)
        with pytest.raises(ArtefactError, match="written for another architecture"):
            names.load_model_(other, tmp_path)
        assert torch.equal(other.weight, before)  # nothing was half loaded


def test_roundtrip_an_estimator_of_version_1(tmp_path) -> None:
    pytest.importorskip("sklearn")
    import numpy as np

    from bayesprune.common.tensors import read_tensors
    from bayesprune.tabular import SparseBNNRegressor
    from bayesprune.tabular import load as load_estimator

    X = np.random.default_rng(0).standard_normal((60, 4))
    model = SparseBNNRegressor(search_steps=50, evidence_steps=30, fit_steps=50, random_state=0).fit(X, X[:, 1])
    model.save(tmp_path)
    found = read_tensors(tmp_path / "estimator.safetensors", ["bayesprune-estimator-2"])
    save_file(found.tensors, tmp_path / "estimator.safetensors")
    about = json.loads(found.metadata["estimator"]) | {"version": 1}
    (tmp_path / "estimator.json").write_text(json.dumps(about))
    assert (load_estimator(tmp_path).predict(X) == model.predict(X)).all()
    (tmp_path / "estimator.json").write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(ArtefactError, match="is not a bayesprune tabular estimator of version 1"):
        load_estimator(tmp_path)
