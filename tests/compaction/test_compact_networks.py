"""Networks of the field that compaction met for the first time: whatever is pruned goes, and no code of theirs breaks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bayesprune as bp
from bayesprune.compaction import CompactionError, compact
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


# -- attention and graphs written out ----------------------------------------------------------------------------------


class _Attention(nn.Module):
    """Four heads of eight; ``how`` they are multiplied."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 5)
        self.register_buffer("seen", torch.ones(1, 1, 12, 12).tril())
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        seen = self.seen[:, :, :length, :length] == 0
        if self.how == "matmul":
            scores = (q @ k.transpose(-2, -1) * 8**-0.5).masked_fill(seen, float("-inf"))
            y = torch.matmul(F.softmax(scores, dim=-1), v)
        elif self.how == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k).mul(8**-0.5).masked_fill(seen, float("-inf"))
            y = torch.einsum("bhij, bhjd -> bhid", scores.softmax(-1), v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def _pruned(model: nn.Module, x) -> bp.Compaction:
    optimizer = bp.CVAdam(model.parameters(), num_data=10, seed=3)
    pruner = bp.ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=0, ramp_end_step=1, example_input=x)
    for _ in range(2):
        optimizer.zero_grad()
        (model(*x) if isinstance(x, tuple) else model(x)).square().sum().backward()
        optimizer.step()
    return compact(model, pruner, example_input=x)


@pytest.mark.parametrize("how", ["matmul", "einsum"])
def test_parity_heads_of_attention_written_out_go_like_those_of_torchs_own(how):
    model, twin, x = _Attention(how), _Attention("torch"), torch.randn(3, 12, 16)
    small, wanted = _pruned(model, x), _pruned(twin, x)
    assert small.model.k.out_features == wanted.model.k.out_features == 16 and small.report.training == "exact"
    torch.testing.assert_close(small.model.q.weight, wanted.model.q.weight)
    assert largest_difference(model.eval(), small.model.eval(), x) <= 1e-6
    assert largest_difference(twin.eval(), small.model, x) <= 1e-5


def test_property_channels_go_through_a_product_with_what_has_none():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x, edges):
            return self.head(edges @ F.relu(self.two(torch.bmm(edges, F.relu(self.one(x))))))

    model, x = Graph(), (torch.randn(2, 7, 6), torch.rand(2, 7, 7))
    small = _pruned(model, x)
    assert small.model.one.out_features == small.model.two.out_features == 10
    torch.testing.assert_close(small.model(*x), model(*x))


@pytest.mark.parametrize("equation", ["bnc,bmc->bnm", "bnc,bnd->bcd", "bnc,bnd->bd"])
def test_property_products_over_the_channels_keep_them(equation):
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x):
            return torch.einsum(equation, self.one(x), self.two(x)).flatten(1)

    model, x = Product(), torch.randn(2, 5, 4)
    with torch.no_grad():
        for part in (model.one, model.two):
            part.weight[0], part.bias[0] = 0, 0
    small = compact(model, example_input=x)
    assert small.model.one.out_features == 6 and largest_difference(model, small.model, x) == 0


# -- normalisation of each example's channels --------------------------------------------------------------------------


class ImageNorm(nn.InstanceNorm2d):
    """A subclass that says nothing of its dimensions in its name."""


@pytest.mark.parametrize(
    ("kind", "tracked"), [(nn.InstanceNorm2d, False), (nn.InstanceNorm2d, True), (ImageNorm, False)]
)
def test_property_channels_under_an_instance_norm_go_with_it(kind, tracked):
    torch.manual_seed(0)
    norm = kind(8, affine=True, track_running_stats=tracked)
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


def test_property_a_generators_channels_go_through_unflatten():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8 * 4), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 6, 2, 2), nn.Tanh(), nn.Conv2d(6, 3, 1)
    )  # fmt: skip
    with torch.no_grad():
        model[3].weight[3:] = 0
    x = torch.randn(4, 5)
    small = compact(model, example_input=x)
    assert small.model.get_submodule("0").out_features == 12 and largest_difference(model, small.model, x) <= 1e-6


class _Windows(nn.Module):
    """A batch that is counted from its windows by int(), and a number of channels in the code."""

    def __init__(self, counted) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.counted = nn.Linear(4, 8), nn.Linear(8, 2), counted

    def forward(self, x):
        parts = F.relu(self.one(x)).view(-1, 3, 8)  # two windows of three
        return self.two(parts.view(self.counted(parts.shape[0]), 6, -1))


def test_error_a_size_made_a_number_is_named_where_a_graph_cannot_hold_it():
    x = torch.randn(4, 6, 4)
    model = _Windows(lambda n: int(n / 2))
    _only_first(model.two, 5)
    with pytest.raises(CompactionError, match=r"test_compact_networks.py:\d+\): write // or -1 .* x.shape\[dim\]"):
        compact(model, example_input=x)
    model.counted = lambda n: n // 2
    small = compact(model, example_input=x)
    assert small.kind == "graph" and small.model.get_submodule("one").out_features == 5


def test_property_tokens_are_compared_at_several_lengths():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9))
    _only_first(model[3], 5)
    small = compact(model, example_input=torch.randint(0, 9, (2, 7)))
    assert {shape for shape, _ in small.report.evaluated} == {(2, 7), (2, 8), (2, 6), (3, 7)}
    assert not any("one size" in note for note in small.report.notes)
