"""What an outside trial of compaction found: zeros that move, values that decide, results that were not compared."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import bayesprune as bp
from bayesprune.compaction import compact


def off(model: nn.Module, small: nn.Module, *inputs: Tensor) -> float:
    """Largest difference of the outputs, relative to the largest."""
    with torch.no_grad():
        one, two = model(*inputs), small(*inputs)
    assert one.shape == two.shape
    return float((one - two).abs().max() / one.abs().max())


def _drift(model: nn.Module, small: nn.Module, optimizers: list, inputs: Tensor, steps: int = 5) -> float:
    """Largest difference of the outputs in the course of training both alike."""
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    target = torch.randn(model(inputs).shape, generator=generator, dtype=inputs.dtype)
    for _ in range(steps):
        for net, optimizer in zip((model, small), optimizers):
            optimizer.zero_grad()
            ((net(inputs) - target) ** 2).mean().backward()
            optimizer.step()
        worst = max(worst, off(model, small, inputs))
    return worst


# -- what training moves -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:compact removed")
@pytest.mark.parametrize("freeze", [False, True])
def test_property_zeros_that_no_pruner_holds_train_on(freeze):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[2].weight[:, 3:] = 0
    model[2].weight.requires_grad_(not freeze)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 4, dtype=torch.float64)
    result = compact(model, optimizer=optimizer, example_input=x)
    assert result.report.training == "exact" and result.model[0].out_features == (3 if freeze else 8)
    assert _drift(model, result.model, [optimizer, result.optimizer], x) <= 1e-12


def test_property_zeros_taken_to_stay_are_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].weight[:, 3:] = 0
    result = compact(model, example_input=torch.randn(2, 4), constants="keep")
    assert result.model[0].out_features == 3
    assert "neither a pruner nor an optimizer was given" in result.report.notes[0]


def test_property_a_shift_of_group_norm_that_trains_stays():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(8, 8), nn.GELU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2),
    ).double()  # fmt: skip
    with torch.no_grad():
        model[0].weight[:4] *= 1e-3
        model[3].weight *= 5
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = bp.ForwardPruning(
        model, optimizer, sparsity=0.5, warmup_steps=0, ramp_end_step=1, groups="output", prior=None, keep_ends=False,
        exclude=["3", "5"],
    )  # fmt: skip
    pruner.finish_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = compact(model, pruner, example_input=x)
    assert not model[0].weight[:4].any() and result.model[0].out_channels == 8
    assert _drift(model, result.model, [optimizer, result.optimizer], x, steps=2) <= 1e-9


# -- values that decide ------------------------------------------------------------------------------------------------

DECISIONS = {
    "item": lambda h: h.sum().item() > 0,
    "tolist": lambda h: h[0].tolist()[0] > 0,
    "equal": lambda h: torch.equal(h, h.abs()),
    "nonzero": lambda h: len(torch.nonzero(h > 0)) > 3,
    "shape of a mask": lambda h: h[h > 0].shape[0] > 3,
    "int": lambda h: int(h.argmax().item()) > 2,
}
SETTINGS = {
    "buffer": lambda h, module: module.flag.item() > 0,
    "shape": lambda h, module: h.shape[1] > 2 and h.size(0) > 0,
    "arange": lambda h, module: torch.arange(h.shape[1])[-1].item() > 2,
    "length": lambda h, module: len(h) > 0 and h.numel() > 0 and h.new_zeros(1).item() == 0,
}


class _Decided(nn.Module):
    def __init__(self, decide) -> None:
        super().__init__()
        self.one, self.two, self.decide = nn.Linear(4, 8), nn.Linear(8, 2), decide
        self.register_buffer("flag", torch.ones(1))

    def forward(self, x):
        h = self.one(x)
        return self.two(h) if self.decide(h) else self.two(h * 2)


@pytest.mark.parametrize("kind", list(DECISIONS))
def test_error_a_value_that_decides_is_refused(kind, tmp_path):
    model = _Decided(DECISIONS[kind]).eval()
    with pytest.raises(ValueError, match=r"^not-traceable: .*a tensor's value decides"):
        compact(model, example_input=torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"a tensor's value decides"):
        bp.save(model, tmp_path / "model", example_input=torch.randn(2, 4))


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_property_shapes_and_single_numbers_may_decide(kind):
    model = _Decided(lambda h: SETTINGS[kind](h, model)).eval()
    with torch.no_grad():
        model.two.weight[:, :3] = 0
    x = torch.randn(5, 4)
    result = compact(model, example_input=x[:2])
    assert result.model.one.out_features == 5 and off(model, result.model, x) <= 1e-5


# -- what works in place -----------------------------------------------------------------------------------------------

IN_PLACE = {
    "module": lambda h: nn.ReLU(inplace=True)(h),
    "method": lambda h: h.relu_(),
    "product": lambda h: h.mul_(0.5),
    "function": lambda h: nn.functional.relu(h, inplace=True),
    "of a view": lambda h: h.view(-1).relu_(),
}


class _Overwritten(nn.Module):
    def __init__(self, change, dtype=None) -> None:
        super().__init__()
        self.one, self.two, self.change, self.dtype = nn.Linear(8, 16), nn.Linear(16, 4), change, dtype
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.one(x if self.dtype is None else x.to(self.dtype))
        (self.change or self.relu)(h)
        return self.two(h)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["own", *IN_PLACE])
def test_property_what_changes_in_place_is_not_folded_as_it_was(kind, dtype):
    torch.manual_seed(0)
    model = _Overwritten(IN_PLACE.get(kind), dtype).to(dtype or torch.float32)
    with torch.no_grad():
        model.one.weight[8:], model.one.bias[8:] = 0, -1
    x = torch.randn(4, 8)
    small = compact(model, example_input=x).model
    with torch.no_grad():
        assert (model(x) - small(x)).abs().max() <= (1e-5 if dtype is None else 0.03)


def test_error_half_precision_is_compared_at_its_own_steps():
    from bayesprune.compaction.verify import _difference

    wanted = torch.tensor([0.5, -0.4])
    for dtype in (torch.bfloat16, torch.float16):
        near = [(wanted * (1 + 2 * torch.finfo(dtype).eps)).to(dtype)]
        assert _difference([wanted.to(dtype)], near, 1e-5, (2,)) > 0
        with pytest.raises(ValueError, match=r"the outputs differ by 1.0e-01"):
            _difference([wanted.to(dtype)], [(wanted + 0.1).to(dtype)], 1e-5, (2,))


@pytest.mark.parametrize("change", [lambda y: y.relu_(), lambda y: y.mul_(0.5), torch.relu_])
def test_property_a_dropped_branch_leaves_the_stream_as_it_was(change):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.dead, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = self.stem(x)
            y = change(h + self.dead(h))
            return self.head(y + 3 * h)

    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.dead.weight.zero_(), model.dead.bias.zero_()
    x = torch.randn(4, 4)
    result = compact(model, example_input=x)
    assert result.kind == "graph" and off(model, result.model, x) <= 1e-5


# -- results that were not compared ------------------------------------------------------------------------------------


@dataclass
class _Result:
    logits: object
    extra: object = None


class _Wrapped(nn.Module):
    """Its forward counts the first layer's channels, in a way that torch.fx does not show."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.one, self.two, self.wrap = nn.Linear(4, 8), nn.Linear(8, 2), wrap

    def forward(self, x):
        return self.wrap(self.two(torch.relu(self.one(x))) * self.one.out_features)


@pytest.mark.parametrize("wrap", [_Result, lambda y: _Result([{"y": y}]), lambda y: _Result(_Result(y))])
def test_error_what_a_dataclass_holds_is_compared(wrap):
    model = _Wrapped(wrap)
    with torch.no_grad():
        model.two.weight[:, 3:] = 0
    with pytest.raises(ValueError, match=r"^outputs-differ"):
        compact(model, example_input=torch.randn(2, 4))


# -- further samples ---------------------------------------------------------------------------------------------------


def _two_layers(constant: float) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = 0, 0
        model[0].bias[5] = constant
    return model


def test_error_a_sample_whose_constants_have_no_place():
    result = compact(_two_layers(0.0), example_input=torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"^sample-differs: .* need 2\.bias, which the compact model does not have"):
        result.convert(_two_layers(0.7).state_dict())


def test_property_a_sample_without_the_models_constants_has_zeros_in_their_place():
    result, sample, x = compact(_two_layers(0.7), example_input=torch.randn(2, 4)), _two_layers(0.0), torch.randn(5, 4)
    small = copy.deepcopy(result.model)
    small.load_state_dict(result.convert(sample.state_dict()))
    assert off(sample, small, x) <= 1e-5


class _Branches(nn.Module):
    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.f, self.g, self.head = (nn.Linear(4, 4) for _ in range(4))
        with torch.no_grad():
            for layer, value in ((self.f, first), (self.g, second)):
                layer.weight.zero_(), layer.bias.fill_(value)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        h = torch.relu(h + self.f(h))
        return self.head(torch.relu(h + self.g(h)))


@pytest.mark.parametrize("first, second", [(0.0, 0.5), (0.5, 0.0), (0.0, 0.0), (0.2, 0.3)])
def test_property_constants_of_dropped_branches_follow_the_sample(first, second):
    result, x = compact(_Branches(0.7, 0.4), example_input=torch.randn(2, 4)), torch.randn(5, 4)
    sample = _Branches(first, second)
    small = copy.deepcopy(result.model)
    small.load_state_dict(result.convert(sample.state_dict()))
    assert result.kind == "graph" and off(sample, small, x) <= 1e-5
