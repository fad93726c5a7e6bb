"""Branches, attention and modules that are called in unusual ways: what compaction does with each."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from bayesprune.compaction import SlimAttention, compact
from bayesprune.vision import BasicBlock, ResNet
from bayesprune.vision.families import TransformerBlock, VisionTransformer
from compact_families import largest_difference, pruned_at_random, residual, settle_, zero_

IMAGE = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("constants", ["keep", "fold"])
def test_property_a_dead_branch_is_replaced_by_its_shortcut(constants):
    model = residual()
    block = model.stages[0][1]
    for tensor in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
        zero_(tensor)
        tensor.requires_grad_(False)  # its zeros stay
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = compact(model, None, optimizer, IMAGE, constants=constants)
    assert result.kind == "graph" and isinstance(result.model, fx.GraphModule)
    assert "lost a branch that is zero" in result.report.graph_reasons[0]
    assert not any(name.startswith("stages.0.1.conv") for name in result.model.state_dict())
    assert result.report.why("stages.0.1.conv1", 0) == "went: the branch is zero or constant and was left out"
    names = {node.target for node in fx.symbolic_trace(result.model).graph.nodes if node.op == "call_module"}
    assert "stages.0.0.conv1" in names and "stages.0.1.conv1" not in names
    held = {id(p) for group in result.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in result.model.parameters()}
    kept = compact(model, example_input=IMAGE, dead_branches="keep")
    assert kept.kind == "modules" and kept.model.stages[0][1].conv1.out_channels == 1


def test_property_a_constant_branch_is_replaced_by_its_constant():
    model = residual()
    with torch.no_grad():
        model.stages[0][1].bn2.bias.normal_()
    pruner = pruned_at_random(model, IMAGE, "channel", 0.0, min_groups=0)
    state = pruner.state_dict()
    state["keep"]["stages.0.1.conv1.weight"][:] = False
    pruner.load_state_dict(state)
    result = compact(model, pruner, None, IMAGE, constants="fold")
    assert result.kind == "graph" and "stages.0.1.conv2.weight" not in result.model.state_dict()
    assert all("stages.0.1" not in each.name for each in result.pruner.groups)
    (name,) = [name for name in result.model.state_dict() if name.startswith("constant_")]
    norm = model.stages[0][1].bn2
    wanted = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(result.model.state_dict()[name].flatten(), wanted)
    going_on = compact(model, pruner, None, IMAGE)
    assert going_on.kind == "modules" and going_on.model.stages[0][1].conv1.out_channels == 1
    assert going_on.report.training == "exact"


def test_property_indexed_coupling_cuts_each_branch_by_itself():
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (2, 1), (8, 8), num_classes=3)
    settle_(model, torch.randn(8, 3, 8, 8))
    block = model.stages[0][1]
    with torch.no_grad():
        for tensor in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
            tensor[[0, 1, 2]] = 0
        block.conv1.weight[:, [5, 6]] = 0
    together = compact(model, example_input=IMAGE)
    assert together.kind == "modules" and together.model.stages[0][1].conv2.out_channels == 8
    alone = compact(model, example_input=IMAGE, coupling="indexed")
    assert alone.kind == "graph"
    inner = alone.model.get_submodule("stages.0.1")
    assert (inner.conv1.in_channels, inner.conv2.out_channels, inner.bn2.num_features) == (6, 5, 5)
    index = [tensor.tolist() for name, tensor in alone.model.state_dict().items() if name.startswith("index_")]
    assert sorted(index) == [[0, 1, 2, 3, 4, 7], [3, 4, 5, 6, 7]]
    assert largest_difference(model, alone.model, torch.randn(2, 3, 9, 11)) <= 1e-5
    fx.symbolic_trace(alone.model)


class _Viewer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2).view(-1, 16))


def test_property_a_number_of_channels_in_the_code_is_rewritten():
    torch.manual_seed(0)
    model = _Viewer()
    zero_(model.head.weight, slice(None), slice(4, 8))
    result = compact(model, example_input=IMAGE)
    assert result.kind == "graph" and "names a number of channels in the code" in result.report.graph_reasons[0]
    assert result.model.conv.out_channels == 3
    assert largest_difference(model, result.model, torch.randn(3, 3, 9, 9)) <= 1e-5


def test_property_padded_shortcuts_are_cut_with_the_stream():
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1), (4, 8), num_classes=3, shortcut="A")
    settle_(model, torch.randn(8, 3, 8, 8))
    zero_(model.head.weight, slice(None), [0, 1, 3, 6, 7])
    result = compact(model, example_input=IMAGE)
    # The head reads 2, 4, 5; 3 is the stem's channel 1, read by the branch; what was padded is gone.
    assert result.kind == "graph" and result.model.get_submodule("stages.1.0").conv2.out_channels == 4


class _Packed(nn.Module):
    """Queries, keys and values in one linear layer, the number of heads in the code."""

    def __init__(self, literal: bool) -> None:
        super().__init__()
        self.heads, self.literal = 4, literal
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        if self.literal:
            q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.heads, 2).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = self.qkv(x).chunk(3, -1)
            q, k, v = (parts[n].unflatten(-1, (-1, 2)).transpose(1, 2) for n in range(3))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(x.shape[0], x.shape[1], 8) if self.literal else out.flatten(2))


@pytest.mark.parametrize("literal", [False, True])
def test_property_heads_of_packed_attention_go_whole(literal):
    torch.manual_seed(0)
    model = _Packed(literal)
    zero_(model.proj.weight, slice(None), [0, 2, 3, 6, 7])  # head 0 half, heads 1 and 3 whole
    result = compact(model, example_input=torch.zeros(2, 5, 8))
    assert (result.model.qkv.out_features, result.model.proj.in_features) == (12, 4)
    assert result.kind == ("graph" if literal else "modules")


def test_property_heads_and_hidden_units_of_torchs_own_attention():
    torch.manual_seed(0)
    model = VisionTransformer(num_classes=3, width=16, depth=1, heads=4, hidden=10, image_size=8)
    block = model.blocks[0]
    zero_(block.attention.out_proj.weight, slice(None), slice(4, 12))
    with torch.no_grad():
        block.attention.in_proj_weight[32:36] = 0  # the values of head 0, biases are zero
    zero_(block.fc2.weight, slice(None), [1, 2, 9])
    result = compact(model, example_input=torch.zeros(2, 3, 8, 8))
    small = result.model.blocks[0]
    assert isinstance(small, TransformerBlock) and isinstance(small.attention, SlimAttention)
    assert (small.attention.num_heads, small.attention.head_dim, small.fc1.out_features) == (1, 4, 7)
    heads = next(layer for layer in result.report.layers if layer.unit == "heads")
    assert heads.went == {"exactly zero at every reader": [0], "no reader uses it": [1, 2]}
    again = compact(result.model, example_input=torch.zeros(2, 3, 8, 8))
    assert again.report.parameters[0] == again.report.parameters[1]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_property_torchs_encoder_layers_are_looked_into(batch_first, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=batch_first, norm_first=norm_first)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    for each in model[0].layers:
        zero_(each.linear2.weight, slice(None), slice(0, 5))
        zero_(each.self_attn.out_proj.weight, slice(None), slice(0, 4))
    example = torch.randn(3, 5, 8)
    result = compact(model, example_input=example)
    layers = result.model[0].layers
    assert result.kind == "modules" and type(layers[1]) is nn.TransformerEncoderLayer
    assert layers[0].linear1.out_features == 7 and layers[1].self_attn.num_heads == 1
    assert largest_difference(model, result.model, example) <= 1e-5  # the fused path of torch, and ours


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", [None, "float", "bool", "padding", "both"])
def test_parity_slim_attention_is_torchs(batch_first, mask):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
    ours = SlimAttention(8, 2, 4, batch_first=batch_first, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    shape = (3, 5, 8) if batch_first else (5, 3, 8)
    q, k = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    ahead = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    settings = {}
    if mask in ("float", "both"):
        settings["attn_mask"] = torch.zeros(5, 5, dtype=torch.float64).masked_fill(ahead, float("-inf"))
    if mask == "bool":
        settings["attn_mask"] = ahead
    if mask in ("padding", "both"):
        settings["key_padding_mask"] = torch.zeros(3, 5).double().masked_fill(padding, float("-inf"))
        settings["key_padding_mask"] = settings["key_padding_mask"] if mask == "both" else padding
    for inputs in ((q, q, q), (q, k, k)):
        torch.testing.assert_close(ours(*inputs, **settings)[0], theirs(*inputs, **settings)[0])


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(F.relu(self.again(F.relu(self.again(self.stem(x))))).mean((2, 3)))


def test_property_a_layer_called_twice_is_cut_alike_both_times():
    torch.manual_seed(0)
    model = _Twice()
    zero_(model.again.weight, slice(None), [1, 4])
    zero_(model.head.weight, slice(None), [1, 4])
    result = compact(model, example_input=IMAGE)
    assert (result.model.again.in_channels, result.model.again.out_channels) == (4, 4)
    zero_(model.again.weight, [0])  # a constant at the second call only: one bias cannot hold two truths
    assert largest_difference(model, compact(model, example_input=IMAGE).model, torch.randn(2, 3, 5, 7)) <= 1e-5


def test_property_one_module_under_two_names_is_cut_under_both():
    torch.manual_seed(0)
    model = _Twice()
    model.other = model.again
    zero_(model.again.weight, slice(None), [1, 4])
    zero_(model.head.weight, slice(None), [1, 4])
    result = compact(model, example_input=IMAGE)
    assert result.model.other is result.model.again and result.model.again.out_channels == 4
    assert result.slices["other.weight"][0][1].tolist() == result.slices["again.weight"][0][1].tolist()
    result.model.load_state_dict(result.convert(model.state_dict()))


class _Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x, scale=2.0):
        x = F.relu(input=self.conv(x)) * scale
        return {"logits": self.head(x.mean(dim=(2, 3))), "size": (x.shape[2],)}


def test_property_unusual_calls_and_outputs_are_safe():
    torch.manual_seed(0)
    model = _Keywords()
    zero_(model.head.weight, slice(None), 0)
    result = compact(model, example_input=(IMAGE, torch.tensor(2.0)))
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(result.model(x)["logits"], model(x)["logits"])
    assert result.model.conv.out_channels == 3
    assert any("give check_inputs" in note for note in result.report.notes)


class _Padded(nn.Conv2d):
    """A convolution that pads by itself, as those of TensorFlow's networks do."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride, groups=self.groups)


class _Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("kind", [_Padded, _Doubled])
def test_property_groups_of_a_subclass_are_counted_where_the_graph_changes(kind):
    torch.manual_seed(0)
    model = _Viewer()
    model.conv = nn.Sequential(nn.Conv2d(3, 2, 3), kind(2, 4, 3, groups=2))
    zero_(model.head.weight, slice(None), slice(8, 16))  # what the second group writes
    result = compact(model, example_input=IMAGE)
    assert result.kind == "graph" and result.model.conv.get_submodule("0").out_channels == 1
    assert largest_difference(model, result.model, torch.randn(3, 3, 9, 9)) <= 1e-5


class _Idle(nn.Module):
    def __init__(self, idle) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head, self.idle = nn.LayerNorm(8), nn.Linear(8, 2), idle

    def forward(self, x):
        x = F.relu(self.stem(x))
        self.idle(self, x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("idle", "left"),
    [
        (lambda model, x: model.norm(model.side(x).movedim(1, -1)), 5),
        (lambda model, x: x.view(-1, 2, 4, x.size(2), x.size(3)).transpose(1, 2), 6),  # a grid
        (lambda model, x: torch.stack([model.side(x), x]), 8),  # has no rule
        (lambda model, x: x.std(), 5),  # nor has this, but it reads one tensor alone
    ],
)
def test_property_what_nobody_reads_still_runs_with_fewer_channels(idle, left):
    torch.manual_seed(0)
    model = _Idle(idle)
    for weight in (model.head.weight, model.side.weight):
        zero_(weight, slice(None), [0, 1, 4])
    result = compact(model, example_input=IMAGE)
    assert result.model.get_submodule("stem").out_channels == left
    assert largest_difference(model, result.model, torch.randn(3, 3, 8, 8)) <= 1e-5


def test_property_a_sum_that_nobody_reads_adds_by_index():
    torch.manual_seed(0)
    model = _Idle(lambda model, x: x + model.side(x))
    zero_(model.side.weight, [4, 5])
    zero_(model.side.bias, [4, 5])
    zero_(model.head.weight, slice(None), [0, 1, 4])
    result = compact(model, example_input=IMAGE, coupling="indexed", round_to=2)
    assert largest_difference(model, result.model, torch.randn(3, 3, 8, 8)) <= 1e-5
