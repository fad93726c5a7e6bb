from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from baselines.sparse_reference import METHODS, OPTIMIZERS
from bayesprune.baselines.dpf import dynamic_pruning_with_feedback
from bayesprune.baselines.presets import PRESETS, layers_of, published
from bayesprune.sparsity import cubic_ramp, partition
from bayesprune.vision import build

NETWORKS = {
    "resnet18": (("stem.0",), 3, ("head",)),
    "resnet34": (("stem.0",), 3, ("head",)),
    "resnet20": (("stem.0",), 2, ("head",)),
    "resnet50": (("stem.0",), 4, ("head",)),
    "wrn28_10": (("stem",), 3, ("head",)),
    "digits_resnet": (("stem.0",), 1, ("head",)),
    "small_cnn": (("features.0",), 0, ("head",)),
}


def meta(name):
    with torch.device("meta"):
        return build(name, num_classes=10)


@pytest.mark.parametrize("name", NETWORKS)
def test_property_roles_are_found_in_every_network(name):
    stem, shortcuts, head = NETWORKS[name]
    model = meta(name)
    assert tuple(layers_of(model, "stem")) == stem and tuple(layers_of(model, "head")) == head
    found = layers_of(model, "shortcuts")
    assert len(found) == shortcuts
    assert all(max(model.get_submodule(each).kernel_size) == 1 for each in found)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", sorted({method for method, _ in PRESETS}))
def test_property_every_preset_is_an_exclusion_list_of_every_network(name, method):
    preset = published(method, name)
    model = meta(name)
    dense = preset.exclude(model)
    cut = partition(model, "weight", exclude=dense)
    assert {each.name for each in cut.excluded} == {f"{each}.weight" for each in dense}
    assert (preset.method, preset.data) == (method, "imagenet" if name == "resnet50" else "cifar")
    assert preset.source and 0 < preset.until <= 1


def test_parity_dsr_on_wrn28_2_is_the_authors_count_of_sparse_weights():
    with torch.device("meta"):
        model = build("wide_resnet", num_classes=10, depth=28, widen_factor=2)
    cut = partition(model, "weight", exclude=published("dsr", "wide_resnet").exclude(model))
    assert (len(cut), cut.total) == (24, 1_451_520)


def test_equation_published_choices():
    assert published("sparse_momentum").dense == () and published("dpf").dense == ()
    assert published("dsr", "wrn28_10").dense == ("stem", "shortcuts", "head")
    assert published("sparse_momentum", "resnet50").dense == published("dsr", "imagenet").dense == ("stem", "shortcuts")
    assert {published(method).dense for method in ("rigl", "set", "gmp")} == {("stem",)}


def test_property_every_method_of_the_package_has_a_preset_and_takes_it():
    for name, (method, settings) in METHODS.items():
        torch.manual_seed(0)
        model = build("digits_resnet", num_classes=3, width=4)
        dense = published(name).exclude(model)
        masks = method(model, OPTIMIZERS["sgd"](model.parameters()), target_sparsity=0.5, exclude=dense, **settings)
        assert not {f"{each}.weight" for each in dense} & set(masks.keep_masks)


def test_equation_dpf_has_no_spike_and_ramps_by_the_cube():
    torch.manual_seed(0)
    model = build("digits_resnet", num_classes=3, width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    pruner = dynamic_pruning_with_feedback(
        model, optimizer, target_sparsity=0.8, start_step=2, end_step=10, every=4, exclude=["stem"]
    )
    for step in range(1, 15):
        images, labels = torch.randn(4, 1, 8, 8), torch.randint(3, (4,))
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step in (6, 10, 14):
            wanted = round(cubic_ramp(step, 2, 10, 0.8) * pruner.groups.total)
            assert round(pruner.hard_sparsity * pruner.groups.total) == wanted
            assert sum(int((p == 0).sum()) for p in pruner.groups.weights().values()) == wanted
    assert pruner.soft_sparsity == 0.0 and pruner.form == "dense_copy"
    assert not pruner._decay._extra  # every weight has the optimizer's own decay
    with pruner.dense():
        assert sum(int((p == 0).sum()) for p in pruner.groups.weights().values()) == 0


def test_error_unknown_names():
    with pytest.raises(ValueError, match="method='snip' has no preset; choose one of 'dpf', 'dsr', 'gmp'"):
        published("snip")
    with pytest.raises(ValueError, match="role='neck' is unknown; choose one of 'stem', 'shortcuts', 'head'"):
        layers_of(meta("small_cnn"), "neck")
