"""Networks of the field that compaction met for the first time: whatever is pruned goes, and no code of theirs breaks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bayesprune as bp
from bayesprune.compaction import compact
from compact_families import largest_difference


def _only_first(layer: nn.Module, kept: int = 1) -> None:
    """Let a layer read its first columns alone."""
    with torch.no_grad():
        layer.weight[:, kept:] = 0


class _Squeezes(nn.Module):
    """Global pooling whose dimensions are squeezed away, as much of it is written."""

    def __init__(self, *dims) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.head, self.dims = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 4), dims

    def forward(self, x):
        x = self.hidden(F.relu(self.conv(x)))
        return self.head(F.relu(F.adaptive_avg_pool2d(x, 1).squeeze(*self.dims)))


@pytest.mark.parametrize(("dims", "left"), [((), 2), ((1,), 2), ((-1,), 1), (((2, 3),), 1)])
def test_property_a_squeeze_drops_no_channels(dims, left):
    model = _Squeezes(*dims)
    if dims in ((1,), (-1,)):
        model.head = nn.Conv2d(6, 4, 1) if dims == (1,) else nn.Conv1d(6, 4, 1)
    _only_first(model.head)
    x = torch.randn(4, 3, 8, 8)
    small = compact(model, example_input=x)
    assert small.kind == "modules" and small.model.hidden.out_channels == left
    assert largest_difference(model, small.model, x) <= 1e-6


class _OneNumber(nn.Module):
    """One output for each example, without a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(F.relu(self.hidden(x))).squeeze(-1)


def test_property_a_single_output_may_be_squeezed():
    model, x = _OneNumber(), torch.randn(4, 5)
    _only_first(model.head, 3)
    small = compact(model, example_input=x)
    assert small.model.hidden.out_features == 3 and largest_difference(model, small.model, x) <= 1e-6


class _Unread(nn.Module):
    """A WaveNet's last block: the sum that would go on to a next one is computed and never read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv1d(4, 8, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 16, 2) for _ in range(2))
        self.back = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(2))
        self.skip = nn.ModuleList(nn.Conv1d(8, 6, 1) for _ in range(2))
        self.head = nn.Conv1d(6, 3, 1)

    def forward(self, x):
        x, total = self.stem(x), 0.0
        for gate, back, skip in zip(self.gates, self.back, self.skip):
            one, two = gate(x).chunk(2, 1)
            inner = torch.tanh(one) * torch.sigmoid(two)
            x = x[..., 1:] + back(inner)
            total = skip(inner).mean(2, keepdim=True) + total
        return self.head(F.relu(total))


def test_property_layers_whose_results_nobody_reads_are_cut_with_what_they_read():
    model, x = _Unread(), torch.randn(3, 4, 9)
    for block in range(2):
        for reader in (model.back[block], model.skip[block]):
            _only_first(reader, 3)
    small = compact(model, example_input=x)
    assert small.kind == "modules" and small.model.back[1].in_channels == 3 and small.model.gates[1].out_channels == 6
    assert largest_difference(model, small.model, x) <= 1e-6


def test_property_samples_of_weight_normed_layers_are_converted():
    torch.manual_seed(0)
    norm = torch.nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer, x = bp.CVAdam(model.parameters(), num_data=10), torch.randn(3, 4)
    pruner = bp.ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=0, ramp_end_step=1, example_input=x)
    samples = bp.MemorySamples()
    for step in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        samples.collect(model, optimizer, step=step)
    small = compact(model, pruner, example_input=x)
    assert small.report.parameters[1] < small.report.parameters[0]
    small.model.load_state_dict(small.convert(samples[2]))
    model.load_state_dict(samples[2])
    assert largest_difference(model, small.model, x) <= 1e-6


# -- normalisation of each example's channels --------------------------------------------------------------------------


@pytest.mark.parametrize("tracked", [False, True])
def test_property_channels_under_an_instance_norm_go_with_it(tracked):
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=tracked)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 3, 9, 9)
    optimizer = bp.CVAdam(model.parameters(), num_data=10)
    pruner = bp.ForwardPruning(
        model, optimizer, sparsity=0.5, warmup_steps=0, ramp_end_step=1, example_input=x, keep_ends=False, round_to=1
    )
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    small = compact(model, pruner, example_input=x)
    assert small.report.training == "exact" and small.model[1].num_features == small.model[0].out_channels == 4
    assert largest_difference(model.eval(), small.model.eval(), x) <= 1e-5


def test_property_a_constant_under_an_instance_norm_is_not_taken_for_its_shift():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 1000.0  # less its mean: 1000 times float32's rounding over √ε
    small = compact(model, example_input=torch.randn(2, 3, 9, 9))
    assert small.model[0].out_channels == 4


def test_property_weights_that_a_power_iteration_moves_are_compared_in_training():
    torch.manual_seed(0)
    first = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    _only_first(model[4], 3)
    small = compact(model, constants="keep", example_input=torch.randn(3, 4))
    assert small.report.gradients is not None and small.report.gradients <= 1e-10
    assert not any("random" in note for note in small.report.notes)


# -- names -------------------------------------------------------------------------------------------------------------


class _Keywords(nn.Module):
    """Parts named like Python's keywords, one in another, one behind a number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({"in": nn.Linear(4, 8), "class": nn.Sequential(nn.ModuleDict({"is": nn.ReLU()}))})
        self.add_module("lambda", nn.Linear(8, 2))
        self.parts.register_buffer("not", torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["class"][0]["is"](self.parts["in"](x).view(-1, 8))
        return getattr(self, "lambda")(x) + getattr(self.parts, "not")


def test_roundtrip_parts_named_like_keywords(tmp_path):
    model, x = _Keywords(), torch.randn(3, 4)
    _only_first(getattr(model, "lambda"), 5)
    small = compact(model, example_input=x)
    assert small.kind == "graph" and small.model.get_submodule("parts.in").out_features == 5
    assert largest_difference(model, small.model, x) <= 1e-6
    bp.save(small.model, tmp_path / "model", example_input=x)
    assert torch.equal(bp.load(tmp_path / "model")(x), small.model(x))
    members = bp.Ensemble(model, [model.state_dict()] * 2, example_input=x)
    bp.save(members, tmp_path / "members", example_input=x)
    assert torch.equal(bp.load(tmp_path / "members").predict(x).probabilities, members.predict(x).probabilities)
