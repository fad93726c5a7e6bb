from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from bayesprune.common.manifest import sealed
from bayesprune.deploy import Ensemble, load, save
from bayesprune.deploy.folding import fold
from bayesprune.deploy.threads import side_by_side
from bayesprune.posterior import MemorySamples, predict

STRATEGIES = ("vmap", "folded", "loop")
FAMILIES = ("resnet20-a", "wide", "vgg", "densenet", "mlp", "vit", "vit-linear")


def members(make, name, count=4):
    return [make(name, seed).eval() for seed in range(count)]


def states(nets):
    return [net.state_dict() for net in nets]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parity_with_a_loop_over_the_members(make, images, name, strategy):
    nets = members(make, name)
    ensemble = Ensemble(nets[0], states(nets), strategy=strategy)
    with torch.no_grad():
        found, expected = ensemble(images), torch.stack([net(images) for net in nets])
        assert (found - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max())
        # In double precision rounding is no excuse.
        exact = torch.stack([net.double()(images.double()) for net in nets])
        assert (ensemble.double()(images.double()) - exact).abs().max() <= 1e-13 * max(1.0, exact.abs().max())


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_parity_with_predict_over_the_samples(make, images, strategy):
    nets, samples = [net.double() for net in members(make, "resnet20")], MemorySamples()
    for net in nets:
        samples.collect(net)
    images, labels = images.double(), torch.tensor([1, 4])
    expected = predict(nets[0], samples, [(images, labels)], keep_members=True)
    ensemble = Ensemble(nets[0], samples, strategy=strategy)
    found = ensemble.predict([(images, labels)], keep_members=True)
    for name in ("probabilities", "total", "aleatoric", "epistemic", "disagreement", "members"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == torch.float64 and (one - other).abs().max() <= 1e-10, name
    assert torch.equal(found.labels, labels) and torch.equal(found.member_classes, expected.member_classes)
    assert torch.equal(found.probabilities, ensemble.predict(images).probabilities)


def test_equation_split_of_the_uncertainty(make, images):
    nets = members(make, "mlp", 3)
    found = Ensemble(nets[0], states(nets)).predict(images)
    with torch.no_grad():
        p = torch.stack([torch.softmax(net(images).double(), 1) for net in nets])
    total = -(p.mean(0) * p.mean(0).log()).sum(1)
    aleatoric = -(p * p.log()).sum(2).mean(0)
    assert (found.probabilities - p.mean(0)).abs().max() < 1e-7
    assert (found.total - total).abs().max() < 1e-6 and (found.aleatoric - aleatoric).abs().max() < 1e-6
    assert (found.epistemic - (total - aleatoric)).abs().max() < 1e-6


def test_parity_regression_with_and_without_own_variances():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.mean(x), torch.exp(self.spread(x))

    x, nets, samples = torch.randn(9, 3), [Two() for _ in range(3)], MemorySamples()
    for net in nets:
        samples.collect(net)
    for strategy in STRATEGIES:
        found = Ensemble(nets[0], samples, strategy=strategy).predict(x, task="regression", batch_size=4)
        expected = predict(nets[0], samples, x, task="regression")
        for name in ("mean", "variance", "aleatoric", "epistemic"):
            assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-6), name
    lines = [nn.Linear(3, 1) for _ in range(2)]
    found = Ensemble(lines[0], states(lines)).predict(x, task="regression", noise_variance=[0.5, 1.5])
    assert torch.allclose(found.aleatoric, torch.ones(9, 1, dtype=torch.float64))


def test_roundtrip_bit_for_bit(make, images, tmp_path):
    for name in ("resnet20", "vit", "mlp"):
        nets = members(make, name)
        ensemble = Ensemble(nets[0], states(nets))
        path = save(ensemble, tmp_path / name, example_input=images, metadata={"classes": list("abcde")})
        again = load(path)
        assert isinstance(again, Ensemble) and len(again) == 4 and again.strategy == "auto"
        with torch.no_grad():
            assert torch.equal(again(images), ensemble(images))
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in ensemble.state_dict().items()
        }
        with torch.no_grad():
            assert torch.equal(again.member(-1)(images), nets[-1](images))


def test_property_shared_tensors_are_held_once(make, images, tmp_path):
    nets = members(make, "mlp", 5)
    for net in nets[1:]:
        net[1].load_state_dict(nets[0][1].state_dict())  # a frozen first layer
    ensemble = Ensemble(nets[0], states(nets))
    assert set(dict(ensemble.shared.named_buffers())) == {"1/weight", "1/bias"}
    assert ensemble.stacked.get_buffer("3/weight").shape[0] == 5
    path = save(ensemble, tmp_path / "ensemble", example_input=images)
    size = (path / "weights.safetensors").stat().st_size
    parameters = {name: p.numel() for name, p in nets[0].named_parameters()}
    shared = parameters["1.weight"] + parameters["1.bias"]
    assert 0 <= size - 4 * (shared + 5 * (sum(parameters.values()) - shared)) < 2000
    with torch.no_grad():
        expected = torch.stack([net(images) for net in nets])
        assert (load(path)(images) - expected).abs().max() < 1e-6


def test_property_the_model_is_not_touched(make, images):
    nets = members(make, "resnet20", 2)
    nets[0].train()
    ensemble = Ensemble(nets[0], states(nets))
    ensemble.predict(images)
    assert nets[0].training and all(parameter.requires_grad for parameter in nets[0].parameters())
    with torch.no_grad():
        for parameter in nets[0].parameters():
            parameter.zero_()
    assert ensemble.member(0).get_parameter("head.weight").abs().sum() > 0


def test_limit_folded_graph_has_no_batchnorm_behind_convolutions(make):
    folded = fold(Ensemble(make("resnet20", 0), [make("resnet20", 0).state_dict()]).member(0))
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Identity)) for module in folded.modules())
    wide = fold(Ensemble(make("wide", 0), [make("wide", 0).state_dict()]).member(0))
    assert not any(isinstance(module, nn.Dropout) for module in wide.modules())
    # Pre-activation: a BatchNorm behind an addition or another's ReLU stays, one right behind a convolution goes.
    stayed = {name for name, module in wide.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert "stages.1.0.bn1" in stayed and "stages.1.0.bn2" not in stayed


def test_property_a_layer_called_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.bn(self.conv(x)))

    model = Twice().eval()
    model.bn.running_mean.fill_(0.5)
    ensemble = Ensemble(model, [model.state_dict()], strategy="folded")
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        assert torch.allclose(ensemble(x)[0], model(x), atol=1e-6)


def test_parity_threads_side_by_side(make, images):
    nets, images = members(make, "resnet20", 5), torch.cat([images, -images, 2 * images, 0.5 * images])
    ensemble = Ensemble(nets[0], states(nets), strategy="folded")
    before = torch.get_num_threads()
    try:
        found = {}
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found[threads] = ensemble(images)
            with torch.inference_mode():
                assert torch.allclose(ensemble(images), found[threads], atol=1e-6)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    plain = torch.stack([net(images) for net in nets]).detach()
    assert all((outputs - plain).abs().max() <= 1e-5 * plain.abs().max() for outputs in found.values())
    x = images.clone().requires_grad_()
    ensemble(x).sum().backward()
    y = images.clone().requires_grad_()
    torch.stack([net(y) for net in nets]).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, y.grad, rtol=1e-3, atol=1e-4)


def test_property_results_keep_their_order_and_errors_come_through():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert side_by_side([lambda i=i: i for i in range(7)]) == list(range(7))
        with pytest.raises(ZeroDivisionError):
            side_by_side([lambda: 1 // 0, lambda: 1])
        assert not any(side_by_side([torch.is_grad_enabled] * 3)) and torch.is_grad_enabled()
    finally:
        torch.set_num_threads(before)


def test_property_terms_of_unlike_shapes_are_added_as_they_are():
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.gate(y.mean((2, 3), keepdim=True)) + y

    model, x = Squeeze().eval(), torch.randn(2, 3, 5, 5)
    ensemble = Ensemble(model, [model.state_dict()], strategy="folded")
    with torch.no_grad():
        assert torch.allclose(ensemble(x)[0], model(x), atol=1e-6)


def test_error_members(make, images):
    net = make("mlp", 0)
    with pytest.raises(ValueError, match="no members"):
        Ensemble(net, [])
    with pytest.raises(ValueError, match=r"tensor '1.weight' of member 1 is missing"):
        Ensemble(net, [net.state_dict(), {}])
    state = net.state_dict() | {"1.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"member 0 is torch.float32\[2, 2\], the model has torch.float32\[24, 768\]"):
        Ensemble(net, [state])
    ensemble = Ensemble(net, [net.state_dict()])
    with pytest.raises(IndexError, match="index 1: there are 1 members"):
        ensemble.member(1)
    with pytest.raises(ValueError, match="strategy='fast': choose one of auto"):
        Ensemble(net, [net.state_dict()], strategy="fast")  # type: ignore[arg-type]


def test_error_predict(make, images):
    net = make("mlp", 0).eval()
    ensemble = Ensemble(net, [net.state_dict(), net.state_dict() | {"5.bias": torch.full((5,), torch.nan)}])
    with pytest.raises(ValueError, match="member 1 gives outputs that are not finite"):
        ensemble.predict(images)
    with pytest.raises(ValueError, match="no input to predict for"):
        ensemble.predict(images[:0])
    with pytest.raises(ValueError, match="task='ranking'"):
        ensemble.predict(images, task="ranking")
    with pytest.raises(ValueError, match="1 values for 2 members"):
        ensemble.predict(images, task="regression", noise_variance=[0.1])
    with pytest.raises(ValueError, match="a batch holds a str"):
        ensemble.predict(["x"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("members", 7, r"expected 7 members along its first axis"),
        ("members", "two", r"members='two': expected a positive number"),
        ("stacked", ["nobody"], r"tensor 'nobody': expected 2 members"),
        ("strategy", "fast", r"strategy='fast'"),
    ],
)
def test_error_forged_ensemble(make, images, tmp_path, key, value, message):
    nets = members(make, "mlp", 2)
    path = save(Ensemble(nets[0], states(nets)), tmp_path / "ensemble", example_input=images)
    content = json.loads((path / "architecture.json").read_text())
    content["architecture"][key] = value
    del content["sha256"]
    (path / "architecture.json").write_text(json.dumps(sealed(content)))
    with pytest.raises(ValueError, match=message):
        load(path)
