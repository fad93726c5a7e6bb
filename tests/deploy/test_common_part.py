"""Cutting a graph at the first tensor that differs, and ensembles that compute their common part once."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from bayesprune.deploy import Ensemble
from bayesprune.deploy.common_part import clones, cut

FAMILIES = ("resnet20-a", "wide", "vgg", "densenet", "mlp", "vit")


def last_tensors(net: nn.Module, count: int) -> list[str]:
    return list(dict(net.named_parameters()))[-count:]


def subnetwork(make, name, count=3, tensors=4):
    """Members that differ in their last few tensors."""
    nets = [make(name, 0).eval() for _ in range(count)]
    for seed, net in enumerate(nets):
        generator = torch.Generator().manual_seed(seed)
        for parameter in list(net.parameters())[-tensors:]:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return nets


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_property_both_parts_are_the_whole(make, images, name):
    net = make(name, 0).eval()
    model = fx.symbolic_trace(net) if name != "vit" else Ensemble(net, [net.state_dict()])._template[0]
    common, rest = cut(model, last_tensors(net, 2))
    assert torch.equal(rest(*clones(common(images.clone()))), model(images.clone()))
    assert not set(last_tensors(net, 2)) & {name for name, _ in common.named_parameters()}
    assert len(rest.graph.nodes) < len(common.graph.nodes)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("strategy", ["vmap", "folded", "loop"])
@pytest.mark.parametrize("name", FAMILIES)
def test_parity_members_that_share_a_trunk(make, images, name, strategy):
    nets = subnetwork(make, name)
    ensemble = Ensemble(nets[0], [net.state_dict() for net in nets], strategy=strategy).double()
    expected = torch.stack([net.double()(images.double()) for net in nets])
    assert (ensemble(images.double()) - expected).abs().max() <= 1e-13 * max(1.0, expected.abs().max())
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@torch.no_grad()
def test_property_the_trunk_runs_once(make, images):
    nets = subnetwork(make, "resnet20-a", count=5, tensors=2)
    ensemble = Ensemble(nets[0], [net.state_dict() for net in nets], strategy="folded")
    common, members = ensemble._fold()
    kinds = [type(module) for module in common.modules()]
    assert kinds.count(nn.Conv2d) == sum(isinstance(module, nn.Conv2d) for module in nets[0].modules())
    assert not any(isinstance(module, nn.Conv2d) for member in members for module in member.modules())
    ensemble.double()  # what was cut is cut again from the new tensors
    assert ensemble(images.double()).dtype == torch.float64


def test_property_nothing_is_cut_where_members_differ_from_the_start(make):
    nets = [make("mlp", seed) for seed in range(2)]
    assert Ensemble(nets[0], [net.state_dict() for net in nets])._halves is None


def test_property_an_order_that_matters_is_kept():
    class InPlace(nn.Module):
        """The varying layer reads a value before a shared operation overwrites it."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.act = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.first(x)
            early = self.second(h)
            return early + self.act(h)

    torch.manual_seed(0)
    nets = [InPlace().eval() for _ in range(2)]
    nets[1].first.load_state_dict(nets[0].first.state_dict())
    x = torch.randn(4, 3)
    ensemble = Ensemble(nets[0], [net.state_dict() for net in nets])
    assert ensemble._halves is None
    wanted = torch.stack([net(x) for net in nets])
    assert torch.allclose(ensemble(x), wanted, atol=1e-6)  # the wrong order would be wrong by more than rounding
    assert cut(fx.symbolic_trace(nets[0]), ["second.weight"]) is None


def test_property_a_member_may_overwrite_what_it_is_given():
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.first(x)
            h += self.second(x)
            return h

    torch.manual_seed(0)
    nets = [Adds().eval() for _ in range(3)]
    for net in nets[1:]:
        net.first.load_state_dict(nets[0].first.state_dict())
    x = torch.randn(4, 3)
    ensemble = Ensemble(nets[0], [net.state_dict() for net in nets], strategy="folded")
    assert ensemble._halves is not None
    assert torch.equal(ensemble(x), torch.stack([net(x) for net in nets]))
