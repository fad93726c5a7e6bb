from __future__ import annotations

import pytest
import torch

import bayesprune as bp
from bayesprune.samplers import CVAdam
from bayesprune.vision import views, whitened94, whitened95, whitened96
from bayesprune.vision.views import mirror, shift


@pytest.mark.parametrize(
    ("make", "millions"), [(whitened94, 1.97), (whitened95, 4.61), (whitened96, 9.92)], ids=["94", "95", "96"]
)
def test_equation_weights_are_the_published_millions(make, millions):
    assert round(sum(p.numel() for p in make(num_classes=10).parameters()) / 1e6, 2) == millions


def test_equation_the_stem_whitens_patches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 3, 9, 9, generator=generator).cumsum(2).cumsum(3)  # neighbours alike, as in photographs
    model = whitened94(num_classes=3, width=8).whiten_(images, damping=0.0)
    with torch.no_grad():
        found = model.whiten(images).movedim(1, 0).flatten(1).double()
    assert torch.allclose(found[:12], -found[12:])
    assert torch.allclose(found[:12] @ found[:12].T / found.shape[1], torch.eye(12).double(), atol=1e-3)
    again = whitened94(num_classes=3, width=8).whiten_(images, damping=0.0)
    assert torch.equal(again.whiten.weight, model.whiten.weight)


def test_property_convolutions_begin_as_the_identity():
    layer = whitened94(num_classes=3, width=8).groups[1].first
    x = torch.randn(2, 8, 6, 6)
    assert torch.allclose(layer(x)[:, :8], x, atol=1e-6)


def test_property_groups_hold_what_is_learned_once_and_biases_are_fast():
    model = whitened96(num_classes=3, width=4)
    weights, biases = model.parameter_groups(0.64)
    learned = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in (*weights["params"], *biases["params"])} == {id(p) for p in learned}
    assert (biases["lr_scale"], biases["weight_decay"], weights["weight_decay"]) == (64.0, 0.01, 0.64)
    assert all(p.ndim == 1 for p in biases["params"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"whiten.weight"} | {
        n for n, _ in model.named_parameters() if ".norms." in n and n.endswith("weight")
    }


@pytest.mark.parametrize("make", [whitened94, whitened96])
def test_parity_pruned_channels_are_removed_exactly(make):
    torch.manual_seed(0)
    model = make(num_classes=3, width=8)
    images = torch.randn(4, 3, 32, 32)
    model.whiten_(images)
    optimizer = CVAdam(model.parameter_groups(0.0), lr=1e-3, num_data=4)
    pruner = bp.ForwardPruning(
        model, optimizer, groups="channel", sparsity=0.6, example_input=images, warmup_steps=0, ramp_end_step=2
    )
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    pruner.finish_()
    small = bp.compact(model.eval(), example_input=images).model
    with torch.no_grad():
        assert torch.allclose(small(images), model(images), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


def test_equation_views_of_an_image():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(shift(image, 1, -1)[0, 0, 1:, :3], image[0, 0, :2, 1:])
    found = [view(image) for view in views("crops")]
    moved = [shift(image, -1, -1), shift(image, 1, 1)]
    for one, other in zip(found, [image, mirror(image), *moved, *(mirror(each) for each in moved)]):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="kind='flip': use 'none', 'mirror' or 'crops'"):
        views("flip")


def test_equation_views_average_a_members_outputs():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = torch.randn(5, 1, 3, 4)
    samples = bp.MemorySamples()
    for _ in range(2):
        torch.nn.init.normal_(model[1].weight)
        samples.collect(model)
    wanted = torch.zeros(5, 3)
    for index in range(2):
        samples.load_(index, model)
        wanted += torch.softmax((model(images) + model(images.flip(-1))) / 2, 1) / 2
    found = bp.predict(model, samples, images, views=views("mirror")).probabilities
    assert torch.allclose(found.float(), wanted, atol=1e-6)


def test_property_members_differ_under_autocast():
    """Autocast keeps the cast weights; those of the member before must not be used."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    samples = bp.MemorySamples()
    for _ in range(3):
        torch.nn.init.normal_(model.weight)
        samples.collect(model)
    x = torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = bp.predict(model, samples, x, keep_members=True)
    wanted = bp.predict(model, samples, x, keep_members=True)
    assert torch.allclose(found.members, wanted.members, atol=0.05)
