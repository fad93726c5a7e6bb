"""What users met and the tests had not: hooks, subclasses, optional arguments, compiled and normalised weights, zeros that stay."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.compaction import compact
from compact_families import settle_
from sparsity.plain import forward_pruning

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _seeded_(model: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.3 * torch.randn_like(param))
    return model


def _net() -> nn.Sequential:
    """Half of the middle channels are zero: rows, bias, and the columns that read them."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    _seeded_(model)
    with torch.no_grad():
        model[2].weight[4:], model[2].bias[4:], model[6].weight[:, 4:] = 0, 0, 0
    return model.eval()


def _off(model: nn.Module, small: nn.Module, *args, **kwargs) -> float:
    """Largest difference of the outputs in float32, in evaluation mode."""
    with torch.no_grad():
        one, two = model.eval()(*args, **kwargs), small.eval()(*args, **kwargs)
    assert one.shape == two.shape
    return float((one - two).abs().max())


def _parameters(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


# -- hooks -------------------------------------------------------------------------------------------------------------

FACTOR = torch.linspace(0.5, 2, 8).view(1, 8, 1, 1)
HOOKS = {
    "a layer's output plus one": lambda m: m[2].register_forward_hook(lambda module, args, out: out + 1),
    "a factor a channel": lambda m: m[2].register_forward_hook(lambda module, args, out: out * FACTOR),
    "in place": lambda m: m[2].register_forward_hook(lambda module, args, out: out.add_(1) and None),
    "a layer's input": lambda m: m[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "a layer's input, one tensor": lambda m: m[2].register_forward_pre_hook(lambda module, args: args[0] * 2),
    "with kwargs": lambda m: m[2].register_forward_hook(
        lambda module, args, kwargs, out: out + args[0].mean(), with_kwargs=True
    ),
    "pre with kwargs": lambda m: m[2].register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] - 1,), kwargs), with_kwargs=True
    ),
    "the model's output": lambda m: m.register_forward_hook(lambda module, args, out: out * 3),
    "the model's input": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] + 2,)),
    "in training only": lambda m: m[2].register_forward_hook(
        lambda module, args, out: out + 1 if module.training else out
    ),
}


@pytest.mark.parametrize("kind", list(HOOKS))
@pytest.mark.parametrize("constants", ["fold", "keep"])
def test_property_hooks_that_change_values_are_honoured(kind, constants):
    model = _net()
    HOOKS[kind](model)
    if kind == "in place":  # `add_` returns a tensor, whose truth is asked for above
        model[2]._forward_hooks.clear()
        model[2].register_forward_hook(_add_in_place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = compact(model, example_input=IMAGE, constants=constants).model
    assert _off(model, small, IMAGE) <= 1e-5
    assert _off(model, small, torch.randn(3, 3, 5, 9)) <= 1e-5
    if kind != "a factor a channel" and not (kind in ("a layer's output plus one", "in place") and constants == "keep"):
        assert small[2].out_channels == 4


def _add_in_place(module, args, out):
    out.add_(1)


def test_property_hooks_around_a_graph_that_changes_act_once():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.dead, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 2)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.head((x + self.dead(x)).mean((2, 3)))

    model = _seeded_(Residual())
    with torch.no_grad():
        model.dead.weight.zero_()
        model.dead.bias.zero_()
        model.head.weight[:, :2] = 0
    model.stem.register_forward_hook(lambda module, args, out: out * 2)
    model.register_forward_hook(lambda module, args, out: out + 5)
    result = compact(model, example_input=IMAGE)
    assert result.kind == "graph" and result.model.stem.out_channels == 4
    assert _off(model, result.model, IMAGE) <= 1e-5


def test_error_a_hook_that_decides_by_values_is_refused_by_name():
    model = _net()
    model[2].register_forward_hook(lambda module, args, out: out + 1 if float(out.max()) > 0.5 else None)
    with pytest.raises(ValueError, match=r"^not-traceable: .* \(hooks on 2 change values and are part of it\)"):
        compact(model, example_input=torch.zeros(2, 3, 8, 8))


def test_property_hooks_that_only_look_on_see_nothing_of_the_comparison():
    model, seen = _net(), []
    model[2].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model.register_forward_hook(lambda module, args, out: out)
    small = compact(model, example_input=IMAGE).model
    assert not seen and small[2].out_channels == 4
    small(IMAGE)
    assert [shape[1] for shape in seen] == [3, 4]


# -- zeros that stay ---------------------------------------------------------------------------------------------------


class _Scaled(nn.Conv2d):
    """Computes its weight: no part of it can be cut."""

    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.norm(), self.bias, padding=self.padding)


def test_property_zeros_that_stay_are_named_and_warned_of():
    model = _net()
    odd = _Scaled(8, 8, 3, padding=1)
    odd.load_state_dict(model[2].state_dict())
    model[2] = odd
    with torch.no_grad():
        model[0].weight[4:], model[2].weight[:, 4:] = 0, 0
    with pytest.warns(UserWarning, match=r"compact removed \d+ parameters where \d+ weights are zero"):
        result = compact(model, example_input=IMAGE)
    layers = {layer.name: layer for layer in result.report.leftovers.layers}
    assert "2.weight" in layers and "computed" in next(iter(layers["2.weight"].reasons))
    assert layers["2.weight"].zeros == int((model[2].weight == 0).sum())
    assert "zero weights left" in str(result.report) and _off(model, result.model, IMAGE) <= 1e-5
    assert "leftovers" in result.report.as_dict()


def test_property_output_groups_on_convolutions_with_a_bias_say_what_would_free_them():
    model = _net()
    _seeded_(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = forward_pruning(model, optimizer, groups="output")
    state = pruner.state_dict()
    for mask in state["keep"].values():
        mask[: len(mask) // 2] = False
    pruner.load_state_dict(state)
    pruner.apply_()
    with pytest.warns(UserWarning, match=r"constants='fold' \(for evaluation\) takes [\d,]+ parameters more"):
        kept = compact(model, pruner, optimizer, IMAGE)
    assert kept.report.parameters[0] == kept.report.parameters[1]
    left = kept.report.leftovers
    assert left.promised == sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)
    assert sum(layer.zeros for layer in left.layers) == left.promised
    folded = compact(model, pruner, optimizer, IMAGE, constants="fold")
    claim = int(left.frees[0].split(" takes ")[1].split()[0].replace(",", ""))
    assert folded.report.parameters[1] == kept.report.parameters[1] - claim < 0.6 * folded.report.parameters[0]


def test_property_no_warning_where_the_promise_is_kept():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compact(_net(), example_input=IMAGE)


def test_property_scattered_zeros_are_told_to_be_scattered():
    model = _seeded_(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.masked_fill_(torch.rand(layer.weight.shape) < 0.6, 0)
    with pytest.warns(UserWarning, match="single zeros inside channels"):
        compact(model, example_input=torch.zeros(2, 8))


# -- subclasses --------------------------------------------------------------------------------------------------------


class _Conv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 1.5


class _Same(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class _Norm(nn.BatchNorm2d):
    """timm's BatchNormAct2d: the normalisation and an activation in one."""

    def forward(self, x):
        self._check_input_dim(x)
        out = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.silu(out)


class _Dense(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias).clamp(-9, 9)


def test_property_subclasses_that_compute_with_their_own_weight_are_made_smaller():
    torch.manual_seed(1)
    model = nn.Sequential(
        _Conv(3, 8, 3, padding=1), _Norm(8), _Same(8, 8, 3), _Norm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        _Dense(8, 6), nn.ReLU(), _Dense(6, 3),
    )  # fmt: skip
    settle_(model, torch.randn(8, 3, 8, 8))
    before = _parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = forward_pruning(model, optimizer, groups="channel", example_input=IMAGE)
    assert {g.name for g in pruner.groups} == {"0.weight", "2.weight", "6.weight"}
    state = pruner.state_dict()
    for mask in state["keep"].values():
        mask.view(-1)[::2] = False
    pruner.load_state_dict(state)
    pruner.apply_()
    for constants in ("keep", "fold"):
        result = compact(model, pruner, optimizer, IMAGE, constants=constants)
        assert (result.model[0].out_channels, result.model[2].out_channels, result.model[6].out_features) == (4, 4, 3)
        assert type(result.model[0]) is _Conv and _parameters(result.model) < 0.4 * before
        assert _off(model, result.model, torch.randn(3, 3, 7, 9)) <= 1e-5


# -- calls -------------------------------------------------------------------------------------------------------------


class _Masked(nn.Module):
    """Optional arguments, keywords only, conditions and assertions on shapes, a loop over a size."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, mask=None, *, scale=None, flag=False):
        assert x.dim() == 2 and x.shape[1] == 6, "six features"
        if x.shape[0] > 10_000 or len(x.shape) != 2:
            raise ValueError("too many")
        x = torch.relu(self.up(x))
        if mask is not None:
            x = x * mask
        for _ in range(x.dim()):
            x = x + x
        if scale is not None:
            x = x * scale
        return self.down(x) if not flag else x


class _Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, batch):
        x = self.up(batch["x"]).relu()
        return self.down(x + batch.get("shift", 0))


def _half_(model):
    _seeded_(model)
    with torch.no_grad():
        model.down.weight[:, ::2] = 0
    return model


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
CALLS = {
    "one argument of two": (_Masked, X, (X,), {}),
    "all by name": (
        _Masked,
        {"x": X, "scale": torch.full((4, 1), 2.0)},
        (),
        {"x": X, "scale": torch.full((4, 1), 2.0)},
    ),
    "None given": (_Masked, (X, None), (X, None), {}),
    "a scalar mask": (_Masked, (X, torch.ones(4, 1)), (X, torch.ones(4, 1)), {}),
    "a dict": (_Dict, {"x": X}, ({"x": X},), {}),
    "a dict of two": (_Dict, {"x": X, "shift": torch.ones(4, 1)}, ({"x": X, "shift": torch.ones(4, 1)},), {}),
}


@pytest.mark.parametrize("kind", list(CALLS))
@pytest.mark.parametrize("constants", ["fold", "keep"])
def test_property_models_are_called_as_the_example_says(kind, constants):
    make, example, args, kwargs = CALLS[kind]
    model = _half_(make())
    small = compact(model, example_input=example, constants=constants).model
    assert small.up.out_features == 4
    assert _off(model, small, *args, **kwargs) <= 1e-5


def test_property_a_compiled_models_pruner_goes_by_the_models_own_names():
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    compiled = torch.compile(model, backend="eager")
    pruner = forward_pruning(compiled, optimizer, groups="channel", example_input=IMAGE)
    state = pruner.state_dict()
    for mask in state["keep"].values():
        mask[4:] = False
    pruner.load_state_dict(state)
    pruner.apply_()
    result = compact(compiled, pruner, optimizer, IMAGE)
    assert _off(model, result.model, IMAGE) <= 1e-5 and result.model[2].out_channels == 4
    assert all(name in dict(result.model.named_parameters()) for name in result.pruner.weight_masks())


NORMS = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(NORMS))
def test_property_computed_weights_are_baked_for_evaluation_and_named_where_they_train(kind):
    model = _net()
    NORMS[kind](model[0])
    model.train()(IMAGE)
    result = compact(model, example_input=IMAGE)
    name = kind.removeprefix("old ")
    assert f"0: {name} replaced by the weights that it computes" in result.report.notes
    assert result.model[2].out_channels == 4 and _off(model, result.model, IMAGE) <= 1e-5
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(t, result.model.state_dict()[n]) for n, t in result.convert(state).items())
    with torch.no_grad():
        model[2].weight[:, :4] = 0  # half of the normalised layer's rows are not read
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained = compact(model, None, optimizer, IMAGE)
    assert f"convolution 0 (its weight is computed by {name})" in str(trained.report)
    assert _off(model, trained.model, IMAGE) <= 1e-5


class _Auxiliary(nn.Module):
    """As GoogLeNet: a second head in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.aux, self.head = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        aux = self.aux(x.mean((2, 3))) if self.training else None
        x = self.head(F.relu(self.body(x)).mean((2, 3)))
        return (x, aux) if self.training else x


def test_property_auxiliary_heads_train_on():
    model = _seeded_(_Auxiliary())
    with torch.no_grad():
        model.stem.weight[:4], model.stem.bias[:4], model.body.weight[:, :4], model.aux.weight[:, :3] = 0, 0, 0, 0
        model.head.weight[:, 5:] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for param in (model.stem.weight, model.stem.bias, model.head.weight):
        param.requires_grad_(False)
    result = compact(model, None, optimizer, IMAGE)
    assert result.report.training == "exact" and _off(model, result.model, IMAGE) <= 1e-5
    assert (result.model.stem.out_channels, result.model.body.out_channels, result.model.aux.in_features) == (4, 5, 4)
    assert result.model.train()(IMAGE)[1].shape == (2, 4)
