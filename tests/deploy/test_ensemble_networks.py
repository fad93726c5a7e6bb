"""Networks of many kinds as ensembles: every strategy gives each member's own outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bayesprune.deploy import Ensemble, load, save

STRATEGIES = ("auto", "vmap", "folded", "loop")


def pair(make: Callable[[], nn.Module], count: int = 2) -> list[nn.Module]:
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        nets.append(make().eval())
    return nets


def joined(nets: list[nn.Module], **options) -> Ensemble:
    return Ensemble(nets[0], [net.state_dict() for net in nets], **options)


class InPlace(nn.Module):
    """Writes into a value and does not take the result."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.c, self.o, self.act, self.how = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), nn.ReLU(inplace=True), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(x)
        if self.how == "method":
            h.relu_()
        elif self.how == "module":
            self.act(h)
        elif self.how == "scaled":
            h.mul_(0.5)
        else:  # through another name, which is a copy in another memory layout
            h.flatten(1).relu_()
        return self.o(h.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("how", ["method", "module", "scaled", "another name"])
def test_property_writes_in_place_are_kept(tmp_path, how, strategy):
    nets, x = pair(lambda: InPlace(how)), torch.randn(3, 1, 6, 6)
    ensemble = joined(nets, strategy=strategy)
    expected = torch.stack([net(x) for net in nets])
    assert torch.allclose(ensemble(x), expected, atol=1e-6)
    again = load(save(ensemble, tmp_path / "model", example_input=x))
    assert torch.allclose(again(x), expected, atol=1e-6)


def test_error_save_compares_an_ensemble_with_its_members(tmp_path, monkeypatch):
    nets = pair(lambda: nn.Linear(3, 2))
    ensemble = joined(nets)
    right = ensemble.forward
    monkeypatch.setattr(Ensemble, "forward", lambda self, x: right(x) + torch.tensor([0.0, 0.3])[:, None, None])
    with pytest.raises(ValueError, match=r"strategy='auto' differs from member 1 by 3\.\de-01 .* use strategy='loop'"):
        save(ensemble, tmp_path / "model", example_input=torch.zeros(2, 3))
    assert not list(tmp_path.iterdir())
