from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from torch import nn

from bayesprune.cli.main import build_parser
from bayesprune.deploy import Ensemble, compare_times, profile, save, unstructured_report
from bayesprune.deploy.profile import multiply_adds
from bayesprune.sparsity import sparsity_report


def test_target_ratio_of_known_times(monkeypatch):
    # A clock that the functions move: 3 ms ± 10 % against 1 ms ± 10 %, so the ratio's law is known.
    now, generator = [0.0], np.random.default_rng(0)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def run():
            now[0] += seconds * (1 + 0.1 * generator.uniform(-1, 1))

        return run

    result = compare_times(takes(3e-3), takes(1e-3), seconds=100.0, rounds=(15, 200))
    assert result.rounds == 200 and result.confidence == 0.95
    assert result.low < 3.0 < result.high
    # The median of 200 uniform draws has standard error 0.1 / sqrt(200) relative: four of each, twice.
    assert result.high - result.low < 2 * 3.0 * 4 * np.sqrt(2) * 0.1 / np.sqrt(200)
    assert result.before == pytest.approx(3e-3, rel=0.03) and result.after == pytest.approx(1e-3, rel=0.03)


def test_property_both_functions_are_called_alike():
    calls = []
    result = compare_times(lambda: calls.append("a"), lambda: calls.append("b"), seconds=0.0, rounds=(16, 400))
    assert result.rounds == 16
    assert calls[:2] == ["a", "b"] and calls.count("a") == calls.count("b") == 17
    assert calls[2:6] == ["a", "b", "b", "a"]  # in changing order


def test_equation_sizes(make, images, tmp_path):
    small, large = make("resnet20", 0), make("resnet20-a", 1)
    path = save(small, tmp_path / "model", example_input=images, dense=large)
    result = profile(path, batch_sizes=(1, 3), seconds=0.01)
    assert result.compact.bytes == (path / "weights.safetensors").stat().st_size
    assert result.compact.parameters == sum(p.numel() for p in small.parameters())
    assert result.compact.madds == sparsity_report(small, example_input=images).madds_dense
    assert result.dense is not None
    assert result.dense.madds == sparsity_report(large, example_input=images).madds_dense
    assert set(result.latency) == {1, 3} and all(row.low <= row.ratio <= row.high for row in result.latency.values())
    table = str(result)
    for word in ("bytes on disk", "parameters", "multiply-adds", "ms at batch 1", "ms at batch 3", "threads"):
        assert word in table
    json.dumps(result.as_dict())


def test_parity_multiply_adds_with_the_sparsity_report(make, images):
    for name in ("resnet20", "bottleneck", "wide", "vgg", "densenet", "mlp"):
        net = make(name, 0)
        assert multiply_adds(net, (images,)) == sparsity_report(net, example_input=images).madds_dense, name


def test_equation_multiply_adds_of_attention():
    # L tokens of width E: L E 3E (projections in), L L E twice (scores, mixing), L E E (projection out).
    length, width = 6, 8

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(width, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attend(x, x, x, need_weights=False)[0]

    expected = length * width * 3 * width + 2 * length * length * width + length * width * width
    assert multiply_adds(Attend(), (torch.randn(4, length, width),)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_equation_multiply_adds_of_recurrent_layers(kind, gates):
    # Five steps, each gate a product of (10 + 7) by 7; two layers and two directions read 14 then.
    x = torch.randn(4, 5, 10)
    assert multiply_adds(kind(10, 7, batch_first=True), x) == 5 * gates * 7 * (10 + 7)
    both = kind(10, 7, num_layers=2, bidirectional=True, batch_first=True)
    assert multiply_adds(both, x) == 5 * gates * 7 * 2 * ((10 + 7) + (14 + 7))
    whole = profile(kind(10, 7, batch_first=True), example_input=x, batch_sizes=(), seconds=0.01)
    assert whole.compact.madds == 5 * gates * 7 * 17 and not whole.notes


def test_equation_multiply_adds_of_bilinear():
    assert multiply_adds(nn.Bilinear(4, 5, 6), (torch.randn(3, 4), torch.randn(3, 5))) == 4 * 5 * 6


def test_equation_an_ensemble_counts_all_members(make, images):
    nets = [make("mlp", seed).eval() for seed in range(3)]
    ensemble = Ensemble(nets[0], [net.state_dict() for net in nets])
    one = profile(nets[0], example_input=images, batch_sizes=(), seconds=0.01)
    all_three = profile(ensemble, dense=nets[0], example_input=images, batch_sizes=(2,), seconds=0.01)
    assert one.dense is None and one.latency == {}
    assert all_three.compact.madds == 3 * one.compact.madds
    assert all_three.compact.parameters == one.compact.parameters and all_three.compact.members == 3
    assert any("an ensemble of 3" in note for note in all_three.notes)


def test_property_scattered_zeros_are_named(make, images):
    net = make("mlp", 0)
    with torch.no_grad():
        net[1].weight[torch.rand(net[1].weight.shape) < 0.5] = 0
    result = profile(net, example_input=images, batch_sizes=(), seconds=0.01)
    assert any("cost full time in dense kernels" in note for note in result.notes)
    assert not profile(make("mlp", 0), example_input=images, batch_sizes=(), seconds=0.01).notes


def test_property_zeros_of_biases_are_not_named():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    assert sum(int((p == 0).sum()) for p in net.parameters()) > 0.01 * sum(p.numel() for p in net.parameters())
    result = profile(net, example_input=torch.randn(2, 1, 6, 6), batch_sizes=(), seconds=0.01)
    assert result.compact.zeros == 0 and not result.notes


def test_property_modes_come_back(make, images):
    net, dense = make("vgg", 0).train(), make("vgg", 1).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    profile(net, dense=dense, example_input=images, batch_sizes=(1,), seconds=0.01)
    assert net.training and dense.training and net[1].training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_error_profile(tmp_path):
    with pytest.raises(ValueError, match="example_input is needed"):
        profile(nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError, match="holds no model"):
        profile(tmp_path)
    with pytest.raises(ValueError, match="confidence=1"):
        compare_times(list, list, confidence=1)
    with pytest.raises(ValueError, match=r"rounds=\(1, 2\)"):
        compare_times(list, list, rounds=(1, 2))
    with pytest.raises(ValueError, match="sparsity=1"):
        unstructured_report(1.0)


def test_property_unstructured_zeros_do_not_matter_to_dense_kernels():
    # Outputs with zeros are right, and the report says by which kernels: no claim about times here.
    report = unstructured_report(0.9, seconds=0.01)
    assert report.as_dict()["sparsity"] == 0.9 and report.convolution.rounds >= 15
    assert "a dense kernel multiplies its zeros" in str(report)


def test_property_command(make, images, tmp_path, capsys):
    path = save(make("mlp", 0), tmp_path / "model", example_input=images, dense=make("vgg", 0))

    def run(*words):
        arguments = build_parser().parse_args(["profile", str(path), "--seconds", "0.01", *words])
        assert arguments.handler(arguments) == 0
        return capsys.readouterr().out

    assert "dense / compact" in run("--batch", "1", "--unstructured")
    values = json.loads(run("--json", "--batch", "2"))
    assert set(values["latency"]) == {"2"} and values["dense"]["parameters"] > 0
    with pytest.raises(ValueError, match="--batch 0"):
        run("--batch", "0")
    with pytest.raises(ValueError, match="--seconds -1"):
        run("--seconds", "-1")
