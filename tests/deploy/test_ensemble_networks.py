"""Networks of many kinds as ensembles: every strategy gives each member's own outputs."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bayesprune.deploy import Ensemble, export_onnx, export_program, load, profile, save

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


def outputs(nets: list[nn.Module], *x: Tensor) -> Tensor:
    return torch.stack([net(*x) for net in nets])


@torch.no_grad()
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frozen", [False, True])
def test_property_loaded_and_changed_weights_are_used(strategy, frozen):
    nets, others = pair(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))), []
    for seed in (7, 8):
        torch.manual_seed(seed)
        others.append(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)))
    if frozen:  # a common part, which must follow too
        nets[1][0].load_state_dict(nets[0][0].state_dict())
        others[1][0].load_state_dict(others[0][0].state_dict())
    x = torch.randn(3, 1, 6, 6)
    ensemble = joined(nets, strategy=strategy)
    assert torch.allclose(ensemble(x), outputs(nets, x), atol=1e-6)
    ensemble.load_state_dict(joined(others, strategy=strategy).state_dict())
    assert torch.allclose(ensemble(x), outputs(others, x), atol=1e-6)
    for tensor in ensemble.buffers():
        tensor.mul_(0.5)
    for parameter in (p for net in others for p in net.parameters()):
        parameter.mul_(0.5)
    assert torch.allclose(ensemble(x), outputs(others, x), atol=1e-6)


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.o = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(x).relu()
        return self.o(h.view(h.size(0), -1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], convolution: bool = False) -> None:
        super().__init__()
        self.c = nn.Conv1d(3, 3, 3, padding=1) if convolution else nn.Identity()
        self.r, self.o = kind(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(self.c(x))[0][:, -1])


class Sampling(nn.Module):
    """What vmap refuses: dropout in evaluation (of nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.o(x), 1e-9, training=True)


RUN = {
    "view": (Viewed, (9, 1, 6, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM), (9, 3, 5)),
    "gru": (lambda: Recurrent(nn.GRU), (9, 3, 5)),
    "rnn": (lambda: Recurrent(nn.RNN), (9, 3, 5)),
    "lstm after a convolution": (lambda: Recurrent(nn.LSTM, True), (9, 3, 5)),
    "dropout": (Sampling, (9, 5)),
}


@torch.no_grad()
@pytest.mark.parametrize("what", list(RUN))
def test_property_auto_runs_what_the_model_runs(tmp_path, what):
    make, shape = RUN[what]
    nets, x = pair(make), torch.randn(shape)
    ensemble = joined(nets)
    expected = outputs(nets, x)
    assert torch.allclose(ensemble(x), expected, atol=1e-6)
    again = load(save(ensemble, tmp_path / "model", example_input=x))
    assert torch.allclose(again(x), expected, atol=1e-6)
    mean = torch.softmax(expected.double(), 2).mean(0)
    assert torch.allclose(again.predict(x, batch_size=4).probabilities, mean, atol=1e-6)
    if what == "view":
        folded = joined(nets, strategy="folded")
        assert torch.allclose(folded(x), expected, atol=1e-6)
        assert not folded._refused  # channels last, and at the first try: torch.fx prints what fails


@torch.no_grad()
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 3])
def test_limit_members_that_are_all_alike(tmp_path, strategy, count):
    net, x = pair(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))[0], torch.randn(5, 3)
    ensemble = joined([net] * count, strategy=strategy)
    assert torch.allclose(ensemble(x), outputs([net] * count, x), atol=1e-6)
    again = load(save(ensemble, tmp_path / "model", example_input=x))
    assert torch.allclose(again(x), outputs([net] * count, x), atol=1e-6)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


@torch.no_grad()
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_property_arguments_by_name(tmp_path, strategy):
    nets, x, y = pair(Two), torch.randn(4, 3), torch.randn(4, 2)
    ensemble, expected = joined(nets, strategy=strategy), outputs(nets, x, y)
    example = {"y": y, "x": x}
    for found in (ensemble(x, y), ensemble(y=y, x=x), ensemble(x, y=y)):
        assert torch.allclose(found, expected, atol=1e-6)
    again = load(save(ensemble, tmp_path / "model", example_input=example))
    assert torch.allclose(again(y=y, x=x), expected, atol=1e-6)
    mean = torch.softmax(expected.double(), 2).mean(0)
    for inputs in (example, [(example, torch.zeros(4))], [{**example, "labels": torch.zeros(4)}]):
        assert torch.allclose(ensemble.predict(inputs, batch_size=3).probabilities, mean, atol=1e-6)
    with pytest.raises(TypeError, match="inputs: missing a required argument: 'y'; the network takes"):
        ensemble(x)


@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_property_profile_and_exports_by_name(tmp_path, strategy):
    nets, x, y = pair(Two), torch.randn(4, 3), torch.randn(4, 2)
    ensemble, example = joined(nets, strategy=strategy), {"y": y, "x": x}
    assert profile(ensemble, example_input=example, batch_sizes=(2,), seconds=0.01).compact.madds == 2 * (12 + 8)
    assert export_program(ensemble, tmp_path / "model.pt2", example_input=example) < 1e-6
    again = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        mean = torch.softmax(outputs(nets, x, y), 2).mean(0)
        assert torch.allclose(again(x=x, y=y), mean, atol=1e-6)
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert export_onnx(ensemble, tmp_path / "model.onnx", example_input=example) < 1e-4


class Shapes(nn.Module):
    """A condition on a shape, an assignment to an index, an argument that may be left out."""

    def __init__(self, out: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, out)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        if x.dim() > 2:
            x = x.flatten(1)
        h = self.a(x)
        h[:, 0] = 0
        return self.b(h if scale is None else h * scale)


class Optional(nn.Module):
    """Traced without an example, the condition would be taken for false."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            x = x + 1
        return self.o(x)


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("make", [Shapes, Optional])
def test_property_what_needs_an_example_to_be_traced(tmp_path, make, strategy):
    nets, x = pair(make), torch.randn(3, 4)
    expected = outputs(nets, x)
    for number, options in enumerate(({}, {"example_input": x})):
        ensemble = joined(nets, strategy=strategy, **options)
        assert torch.allclose(ensemble(x), expected, atol=1e-6)
        assert torch.allclose(ensemble.member(1)(x), expected[1], atol=1e-6)
        assert torch.allclose(ensemble.double()(x.double()), expected.double(), atol=1e-6)
        ensemble.float()
        again = load(save(ensemble, tmp_path / str(number), example_input=x))
        assert torch.allclose(again(x), expected, atol=1e-6)
    single = [load(save(net, tmp_path / f"net{n}", example_input=x)).eval() for n, net in enumerate(nets)]
    assert torch.allclose(joined(single, strategy=strategy)(x), expected, atol=1e-6)
    assert export_program(joined(nets, strategy=strategy), tmp_path / "model.pt2", example_input=x) < 1e-6


class Named(nn.Module):
    def __init__(self, names: tuple[str, ...], convolution: bool) -> None:
        super().__init__()
        self.names, self.o = names, nn.ModuleList([nn.Linear(4, 2) for _ in names])
        self.c = nn.Conv1d(1, 1, 1) if convolution else nn.Identity()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.c(x[:, None])[:, 0]
        return {name: layer(x) for name, layer in zip(self.names, self.o)}


@torch.no_grad()
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("names", [("logits",), ("hidden", "logits"), ("scores",)])
def test_property_outputs_by_name(tmp_path, names, strategy):
    nets, x = pair(lambda: Named(names, strategy == "folded")), torch.randn(9, 4)
    ensemble = joined(nets, strategy=strategy)
    again = load(save(ensemble, tmp_path / "model", example_input=x))
    chosen = "logits" if "logits" in names else names[0]
    mean = torch.softmax(torch.stack([net(x)[chosen] for net in nets]).double(), 2).mean(0)
    for made in (ensemble, again):
        found = made(x)
        assert list(found) == list(names)
        for name in names:
            assert torch.allclose(found[name], torch.stack([net(x)[name] for net in nets]), atol=1e-6)
        assert torch.allclose(made.predict(x).probabilities, mean, atol=1e-6)
    assert torch.allclose(ensemble.averaged()(x).double(), mean, atol=1e-6)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> object:
        found = self.o(x)
        return {"a": found, "b": found} if float(x.sum()) > 0 else types.SimpleNamespace(value=found)


@torch.no_grad()
def test_error_networks_of_another_kind():
    nets = pair(Odd)
    ensemble = joined(nets)
    with pytest.raises(
        ValueError, match=r"its output has the entries \['a', 'b'\]; give one of them the name 'logits'"
    ):
        ensemble.predict(torch.ones(2, 4))
    with pytest.raises(
        ValueError, match="its output holds a SimpleNamespace; return a tensor, or a tuple, list or dict"
    ):
        ensemble(-torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"Odd cannot be traced"):
        joined(nets, strategy="folded")
    with pytest.raises(ValueError, match=r"Odd cannot be traced .* give Ensemble an example_input"):
        ensemble.averaged()
    with pytest.raises(ValueError, match=r"members: member 1 is a Odd; give state dicts"):
        Ensemble(nets[0], [nets[0].state_dict(), nets[1]])
    nets[0].register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ValueError, match="has forward hooks"):
        joined(nets)


def test_property_batches_are_split_as_everywhere():
    members = [nn.Linear(4, 3) for _ in range(2)]
    ensemble, x, labels = (
        Ensemble(members[0], [each.state_dict() for each in members]),
        torch.randn(5, 4),
        torch.arange(5) % 3,
    )
    with pytest.raises(ValueError, match="a batch of 3 parts"):
        ensemble.predict([(x, torch.zeros(5), labels)])
    assert torch.equal(ensemble.predict([{"input": x, "label": labels}]).labels, labels)
