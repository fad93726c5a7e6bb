"""Readers that keep what they read: ties, uses outside a layer, layers that take no constant, blocks without gradients, inputs."""

from __future__ import annotations

import pytest
import torch
from tests.compaction.test_compact_trial import off
from torch import nn

import bayesprune as bp
from bayesprune.compaction import compact

# -- layers that stay --------------------------------------------------------------------------------------------------


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.relu(self.middle(self.embedding(x))))


def test_property_a_tied_weight_stays_tied():
    torch.manual_seed(0)
    model = _Tied()
    with torch.no_grad():
        model.middle.weight[:, 3] = 0
    x = torch.randint(0, 50, (4, 6))
    result = compact(model, example_input=x)
    assert result.model.head.weight is result.model.embedding.weight
    assert result.report.parameters[1] == result.report.parameters[0] and off(model, result.model, x) <= 1e-5
    assert "share their weight" in result.report.why("middle", 0)


@pytest.mark.parametrize("use", [lambda h, w: h @ w.t(), nn.functional.linear])
def test_property_a_layer_whose_weight_is_used_outside_it_stays(use):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.middle, self.last = nn.Embedding(50, 8), nn.Linear(8, 6), nn.Linear(6, 8)

        def forward(self, x):
            return use(self.last(torch.relu(self.middle(self.embedding(x)))), self.embedding.weight)

    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.middle.weight[:, 3], model.last.weight[:, 2:] = 0, 0
    x = torch.randint(0, 50, (4, 6))
    result = compact(model, example_input=x)
    assert (result.model.embedding.embedding_dim, result.model.middle.out_features) == (8, 2)
    assert off(model, result.model, x) <= 1e-5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention])
def test_property_constants_that_a_reader_cannot_take_stay(kind):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.reader = (
                nn.Linear(4, 8),
                kind(8, 2 if kind is nn.MultiheadAttention else 8, batch_first=True),
            )
            self.last = nn.Linear(8, 3)

        def forward(self, x):
            h = torch.relu(self.one(x))
            h = self.reader(h, h, h)[0] if kind is nn.MultiheadAttention else self.reader(h)[0]
            return self.last(h)

    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.one.weight[4:], model.one.bias[4:6], model.one.bias[6:] = 0, 0.5, 0
    x = torch.randn(3, 5, 4)
    result = compact(model, example_input=x)
    assert result.model.one.out_features == 6 and off(model, result.model, x) <= 1e-5


def test_property_indexed_streams_may_be_read_by_an_unknown_operation():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.p = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.p(h) + h.mean()

    torch.manual_seed(0)
    model, x = Net(), torch.randn(3, 4)
    with torch.no_grad():
        model.p.weight[:, 5:] = 0
    result = compact(model, example_input=x, coupling="indexed")
    assert result.model.a.out_features == 8 and result.model.p.in_features == 5
    assert off(model, result.model, x) <= 1e-5


def test_property_a_pool_with_a_divisor_of_its_own_makes_another_constant():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(96, 2)
    )
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = 0, 1
    x = torch.randn(2, 3, 8, 8)
    assert off(model, compact(model, example_input=x).model, x) <= 1e-5


# -- gradients switched off --------------------------------------------------------------------------------------------


class _Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    @torch.no_grad()
    def features(self, x):
        return torch.relu(self.stem(x))

    def forward(self, x):
        return self.head(self.features(x))


def test_error_a_saved_graph_that_lost_no_grad_does_not_train(tmp_path):
    model, x = _Frozen(), torch.randn(2, 4)
    bp.save(model, tmp_path / "model", example_input=x)
    again = bp.load(tmp_path / "model")
    assert off(model.eval(), again, x) == 0
    with pytest.raises(Exception, match=r"saved for evaluation only: .* switches gradients off for a part"):
        again.train()(x)


# -- inputs and optimizers ---------------------------------------------------------------------------------------------


class _Timed(nn.Module):
    """As a diffusion network: an image, and a time for each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.time, self.two = nn.Linear(4, 8), nn.Linear(1, 8), nn.Linear(8, 2)

    def forward(self, x, t):
        return self.two(torch.relu(self.one(x) + self.time(t.unsqueeze(1))))


def test_property_an_example_that_cannot_be_cut_is_taken_whole():
    torch.manual_seed(0)
    model = _Timed()
    with torch.no_grad():
        model.two.weight[:, 5:] = 0
    x, t = torch.randn(4, 4), torch.rand(4)
    result = compact(model, example_input=(x, t))
    assert result.model.one.out_features == 5 and off(model, result.model, x, t) <= 1e-5


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="needs torch.optim.Adafactor")
def test_error_an_optimizer_whose_steps_depend_on_shapes():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    with torch.no_grad():
        model[2].weight[:, 5:] = 0
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.Adafactor(model.parameters())
    with pytest.raises(ValueError, match=r"^optimizer-state: the steps of Adafactor depend on the shapes"):
        compact(model, optimizer=optimizer, example_input=x)


@pytest.mark.parametrize("groups", ["weight", "input", "output"])
def test_property_a_pruned_tied_weight_is_masked_under_whatever_name_it_has(groups):
    torch.manual_seed(0)
    model, x = _Tied(), torch.randint(0, 50, (4, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = bp.ForwardPruning(
        model, optimizer, sparsity=0.5, groups=groups, warmup_steps=0, ramp_end_step=1, every=1, keep_ends=False
    )
    pruner.finish_()
    with torch.no_grad():
        model.head.weight.add_(0.01)  # the masks are applied by compact
        masked = _Tied()
        masked.load_state_dict(model.state_dict())
        for name, mask in pruner.weight_masks().items():
            masked.get_parameter(name).masked_fill_(~mask, 0)
    with pytest.warns(UserWarning, match="compact removed"):
        result = compact(model, pruner, example_input=x)
    assert off(masked, result.model, x) <= 1e-5 < off(model, result.model, x)
