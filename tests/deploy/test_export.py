from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from torch import Tensor, nn

from bayesprune.deploy import Ensemble, export_onnx, export_program, load, save
from bayesprune.deploy.export import _compare
from bayesprune.graph.inputs import Inputs

QUICK = ("resnet20-a", "vit")
SLOW = ("bottleneck", "wide", "vgg", "densenet", "mlp", "vit-linear")
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", FAMILIES)
def test_parity_onnxruntime(make, images, tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = load(save(make(name, 0), tmp_path / "model", example_input=images)).train()
    worst = export_onnx(model, tmp_path / "model.onnx", example_input=images[:1])
    assert 0 <= worst <= 1e-4 and model.training
    assert sorted(os.listdir(tmp_path)) == ["model", "model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    model.eval()
    for batch in (1, 6):  # sizes that export_onnx did not compare at, too
        x = torch.randn(batch, 3, 16, 16)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_parity_torch_export(make, images, tmp_path, name):
    model = load(save(make(name, 0).eval(), tmp_path / "model", example_input=images))
    assert export_program(model, tmp_path / "model.pt2", example_input=images[:1]) <= 1e-4
    again = torch.export.load(str(tmp_path / "model.pt2")).module()
    for batch in (1, 6):
        x = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(again(x), model(x), atol=1e-4, rtol=1e-4)


def test_parity_mixture_of_an_ensemble(make, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    nets = [make("vgg", seed).eval() for seed in range(3)]
    ensemble = Ensemble(nets[0], [net.state_dict() for net in nets])
    expected = ensemble.predict(images).probabilities
    assert export_onnx(ensemble, tmp_path / "model.onnx", example_input=images) <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(found).double(), expected, atol=1e-5)
    export_program(ensemble, tmp_path / "model.pt2", example_input=images)
    found = torch.export.load(str(tmp_path / "model.pt2")).module()(images)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_error_differences_are_refused_and_leave_no_file(make, images, tmp_path):
    with pytest.raises(ValueError, match=r"torch.export differs from torch by .*, more than tolerance=-1"):
        export_program(make("mlp", 0), tmp_path / "model.pt2", example_input=images, tolerance=-1.0)
    with pytest.raises(ValueError, match=r"torch.export's files end in .pt2"):
        export_program(make("mlp", 0), tmp_path / "model.bin", example_input=images)
    assert not os.listdir(tmp_path)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_error_outputs_that_are_not_finite_are_refused(spoilt):
    model, inputs = nn.Linear(3, 2), Inputs((torch.ones(2, 3),))
    with pytest.raises(ValueError, match="differs from torch by"):
        _compare(model, lambda batch: batch.run(model).fill_(spoilt), inputs, 1e-4, "onnxruntime")


def test_error_what_torch_cannot_export(tmp_path):
    with pytest.raises(ValueError, match=r"torch.export refuses it: "):
        export_program(Branches(), tmp_path / "model.pt2", example_input=torch.ones(1, 3))
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match=r"torch cannot export it to ONNX: "):
        export_onnx(Branches(), tmp_path / "model.onnx", example_input=torch.ones(1, 3))
    assert not os.listdir(tmp_path)


def test_error_onnx_is_an_extra(make, images, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *arguments, **keywords)

    pytest.importorskip("onnxscript")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs onnxruntime: pip install 'bayesprune\[export\]'"):
        export_onnx(make("mlp", 0), tmp_path / "model.onnx", example_input=images)


def test_property_extras_lie_in_the_folder(make, images, tmp_path):
    worst = {}

    def extras(model: nn.Module, folder) -> None:
        worst["pt2"] = export_program(model, folder / "model.pt2", example_input=images)
        (folder / "report.json").write_text(json.dumps(worst))

    path = save(make("mlp", 0), tmp_path / "model", example_input=images, extras=extras)
    assert sorted(os.listdir(path)) == ["architecture.json", "model.pt2", "report.json", "weights.safetensors"]
    save(make("mlp", 0), path, example_input=images)  # what belongs to the earlier model goes with it
    assert sorted(os.listdir(path)) == ["architecture.json", "weights.safetensors"]


def test_error_a_full_disk_is_no_fault_of_the_model(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("failed to export") from error

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(OSError, match=r"No space left on device.*model.onnx"):
        export_onnx(nn.Linear(3, 2), tmp_path / "model.onnx", example_input=torch.zeros(2, 3))
    assert not list(tmp_path.iterdir())
