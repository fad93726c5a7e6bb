"""What compaction gives goes through files and exporters: smaller modules, cut heads, graphs with index buffers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayesprune.compaction import compact
from bayesprune.deploy import Ensemble, export_onnx, export_program, load, save


@torch.no_grad()
def kill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Zero half of the columns of every layer, half of the BatchNorm pairs, and the first head."""
    generator = torch.Generator().manual_seed(seed)

    def half(size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator) < 0.5

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            module.weight[:, half(module.in_channels)] = 0
        elif isinstance(module, nn.BatchNorm2d):
            drop = half(module.num_features)
            module.weight[drop] = module.bias[drop] = 0
        elif isinstance(module, nn.MultiheadAttention):
            module.out_proj.weight[:, : module.head_dim] = 0
        elif isinstance(module, nn.Linear) and module.in_features >= 24:
            module.weight[:, half(module.in_features)] = 0
    return model.eval()


CASES = [("resnet20", "intersection"), ("resnet20", "indexed"), ("densenet", "indexed"), ("vit", "intersection"),
         ("mlp", "intersection"), ("vgg", "intersection")]  # fmt: skip


@pytest.mark.parametrize(("name", "coupling"), CASES)
def test_roundtrip_of_a_compact_model(make, images, tmp_path, name, coupling):
    model = kill(make(name, 0))
    result = compact(model, example_input=images, coupling=coupling)
    assert result.report.parameters[1] < result.report.parameters[0]
    again = load(save(result.model, tmp_path / "model", example_input=images, dense=model))
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))
        assert torch.allclose(again(x), model(x), atol=1e-5)
    assert any("index" in key for key in again.state_dict()) == (result.kind == "graph" and coupling == "indexed")
    assert export_program(again, tmp_path / "model.pt2", example_input=images) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "coupling"), CASES)
def test_parity_onnx_of_a_compact_model(make, images, tmp_path, name, coupling):
    pytest.importorskip("onnxscript")
    result = compact(kill(make(name, 0)), example_input=images, coupling=coupling)
    assert export_onnx(result.model, tmp_path / "model.onnx", example_input=images) <= 1e-4


@pytest.mark.parametrize(("name", "coupling"), [("resnet20", "indexed"), ("vit", "intersection")])
def test_parity_ensemble_of_converted_samples(make, images, tmp_path, name, coupling):
    nets = [kill(make(name, seed)) for seed in range(3)]
    # "keep": a constant that one member's activation sets to zero need not be zero in another's.
    result = compact(nets[0], example_input=images, coupling=coupling, constants="keep")
    ensemble = Ensemble(result.model, [result.convert(net.state_dict()) for net in nets])
    again = load(save(ensemble, tmp_path / "ensemble", example_input=images))
    with torch.no_grad():
        expected = torch.stack([net(images) for net in nets])
        assert torch.allclose(again(images), expected, atol=1e-5)
