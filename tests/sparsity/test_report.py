from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bayesprune.sparsity import sparsity_report
from sparsity.plain import forward_pruning

EXAMPLE = torch.zeros(3, 2, 6, 6)


def _counted(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-adds by the textbook formula for the layers of the model in conftest."""
    positions = {"stem": 36, "conv1": 36, "conv2": 36, "conv3": 9, "short": 9, "head": 1}
    return sum(model.get_submodule(name).weight.numel() * at for name, at in positions.items())


def test_equation_the_three_figures_by_hand(residual):
    model = residual()
    with torch.no_grad():
        model.conv1.weight[:2] = 0  # 108 weights at 36 positions
        model.short.weight[0, :3] = 0  # 3 weights at 9 positions
        model.bn1.bias.fill_(1.0)
    report = sparsity_report(model, example_input=EXAMPLE, exclude=["short"])
    assert report.prunable_zeros == 108
    assert report.prunable_total == sum(
        model.get_submodule(name).weight.numel() for name in ("stem", "conv1", "conv2", "conv3", "head")
    )
    biases = sum(int((p == 0).sum()) for n, p in model.named_parameters() if n.endswith("bias"))
    assert report.all_zeros == 108 + 3 + biases
    assert report.all_total == sum(p.numel() for p in model.parameters())
    assert report.madds_dense == _counted(model, EXAMPLE)
    assert report.madds_dense - report.madds_left == 108 * 36 + 3 * 9
    assert report.madds == pytest.approx((108 * 36 + 27) / report.madds_dense)
    assert [(e.name, e.reason) for e in report.excluded] == [("short.weight", "excluded by 'short'")]


def test_parity_prunable_figure_equals_the_pruner(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = forward_pruning(model, optimizer, sparsity=0.5, exclude=["stem", "head"])
    train(model, optimizer, 2)
    report = sparsity_report(model, pruner)
    assert report.prunable == pruner.hard_sparsity
    assert report.madds is None and report.madds_left is None
    assert {layer.name for layer in report.per_layer if not layer.prunable} == {"stem.weight", "head.weight"}


def test_property_measuring_leaves_the_model_as_it_was(residual):
    model = residual().train()
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparsity_report(model, example_input=torch.randn(3, 2, 6, 6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.bn1.training and model.conv1.training
    assert not model.conv1._forward_hooks


@pytest.mark.parametrize(
    ("layer", "example", "madds"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), torch.zeros(2, 4, 5, 5), 6 * 2 * 9 * 25),
        (nn.Conv1d(4, 6, 3, stride=2), torch.zeros(1, 4, 9), 6 * 4 * 3 * 4),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), torch.zeros(1, 4, 3, 3), 4 * 6 * 4 * 9),
        (nn.Linear(4, 6), torch.zeros(2, 7, 4), 4 * 6 * 7),
    ],
)
def test_equation_multiply_adds_of_each_kind_of_layer(layer, example, madds):
    assert sparsity_report(nn.Sequential(layer), example_input=example).madds_dense == madds


def test_property_a_tied_weight_is_stored_once_and_works_twice():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    with torch.no_grad():
        net[0].weight[0] = 0
    report = sparsity_report(net, example_input=torch.zeros(1, 4))
    assert (report.all_total, report.prunable_total, report.madds_dense, report.madds_left) == (16, 16, 32, 24)


def test_roundtrip_as_dict_is_plain_and_the_table_names_every_layer(residual):
    report = sparsity_report(residual(), example_input=EXAMPLE, exclude=["head"])
    assert json.loads(json.dumps(report.as_dict()))["madds_dense"] == report.madds_dense
    text = str(report)
    for layer in report.per_layer:
        assert layer.name in text
    assert "prunable weights: 0.00% zero" in text and "head.weight: excluded by 'head'" in text


def test_parity_inputs_by_name_are_measured_like_those_in_order():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Conv1d(2, 4, 1)

        def forward(self, x, y):
            return self.a(x) + self.b(y).mean(2)

    model, x, y = Sum(), torch.zeros(5, 3), torch.zeros(5, 2, 7)
    named, ordered = (sparsity_report(model, example_input=each) for each in ({"y": y, "x": x}, (x, y)))
    assert named.madds_dense == ordered.madds_dense == 3 * 4 + 2 * 4 * 7
