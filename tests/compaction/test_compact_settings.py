"""What decides nothing stays allowed: masks and repeats of the model's own, blocks without gradients that had none, halves apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayesprune as bp


class Masked(nn.Module):
    """Reads the channels that a mask of its own names, and decides on their number."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("keep", torch.tensor([True, True, False, True, True]))

    def forward(self, x):
        x = x[:, self.keep]
        if x.shape[1] < 4:
            raise ValueError("too few")
        return self.last(self.first(x).relu())


class Repeated(nn.Module):
    """Enlarges by a number, which is not known to keep channels apart, and decides on a shape."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(5, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        h = self.first(x).relu().repeat_interleave(2, 2)
        return self.last(h * 2 if h.shape[2] > 4 else h)


class Halves(nn.Module):
    """Two halves of one tensor, one of which is changed in place."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Conv2d(5, 16, 1), nn.ReLU(inplace=True)
        self.one, self.two = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        p, q = self.first(x).chunk(2, 1)
        return self.one(self.act(p)) + self.two(q.sigmoid())


class Positions(nn.Module):
    """Adds a code that is computed without gradients from numbers that have none."""

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.arange(8.0).view(1, 8, 1, 1))
        self.first, self.last = nn.Conv2d(5, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        with torch.no_grad():
            code = torch.cos(self.places * 2)
        return self.last(self.first(x).relu() + 0.1 * code)


@pytest.mark.parametrize("network", [Masked, Repeated, Halves])
def test_property_a_models_own_settings_and_views_apart_are_compacted(network):
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(3, 5, 4, 4)
    with torch.no_grad():
        for name in ("last", "one", "two"):
            if hasattr(model, name):
                getattr(model, name).weight[:, 5:] = 0
    small = bp.compact(model, example_input=x).model
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), atol=1e-6)
    assert small.get_submodule("first").out_channels == {Masked: 5, Repeated: 8, Halves: 10}[network]


@pytest.mark.parametrize("inside", [False, True], ids=["as usual", "saved in inference mode"])
def test_roundtrip_a_block_without_gradients_that_had_none_leaves_a_model_trainable(tmp_path, inside):
    model, x = Positions(), torch.randn(3, 5, 4, 4)
    with torch.inference_mode(inside):
        bp.save(model, tmp_path / "model", example_input=x)
    loaded = bp.load(tmp_path / "model").train()
    loaded(x).sum().backward()
    model.train()(x).sum().backward()
    assert torch.allclose(loaded.get_submodule("first").weight.grad, model.first.weight.grad, atol=1e-6)


class Dropped(nn.Module):
    """Two branches that only add constants, beside a buffer of the name that the first would take."""

    def __init__(self, one, two):
        super().__init__()
        self.stem, self.f, self.g, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("constant_1", torch.zeros(4))
        with torch.no_grad():
            for layer, value in ((self.f, one), (self.g, two)):
                layer.weight.zero_()
                layer.bias.fill_(value)

    def forward(self, x):
        h = self.stem(x).relu()
        h = (h + self.f(h)).tanh()
        return self.head((3 * h + self.g(h)).tanh())


def test_property_a_sample_without_the_first_constant_keeps_the_second():
    torch.manual_seed(0)
    model, x = Dropped(0.7, 0.4).eval(), torch.randn(5, 4)
    result = bp.compact(model, example_input=x)
    sample = Dropped(0.0, 0.5).eval()
    sample.load_state_dict({**model.state_dict(), "f.bias": torch.zeros(4), "g.bias": torch.full((4,), 0.5)})
    result.model.load_state_dict(result.convert(sample.state_dict()))
    assert torch.allclose(result.model(x), sample(x), atol=1e-6)


def test_property_folded_members_run_no_part_that_nobody_reads():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.aux, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.Linear(4, 3)

        def forward(self, x, scale=1.0):
            h = self.first(x).relu()
            self.aux(h)
            return self.last(h.mean((2, 3))) * scale

    members = [Auxiliary().eval() for _ in range(2)]
    ensemble = bp.Ensemble(members[0], [each.state_dict() for each in members])
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(ensemble(x), torch.stack([each(x) for each in members]), atol=1e-6)
    assert ensemble.averaged() is not None  # it was traced: a default that is a number decides nothing
