from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesprune.sparsity import FeedbackPruning, threshold_for_sparsity
from bayesprune.sparsity.feedback import Thin
from bayesprune.sparsity.pruner import Pruner
from sparsity.plain import feedback_pruning

EXAMPLE = torch.zeros(2, 2, 6, 6)


def _weights(pruner):
    return {name: param.detach().clone() for name, param in pruner.groups.weights().items()}


def _batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


# -- Algorithm 3's form ----------------------------------------------------------------------------------------------


def test_property_masked_form_zeroes_at_mask_time_and_lets_move_after(residual, make_optimizer, train):
    model = residual()
    optimizer = make_optimizer(model.parameters())
    pruner = feedback_pruning(model, optimizer, groups="weight", sparsity=0.5, every=3)
    train(model, optimizer, 3)
    masks = pruner.weight_masks()
    for name, weight in _weights(pruner).items():
        assert (weight[~masks[name]] == 0).all()
    train(model, optimizer, range(3, 4))
    moved = sum(int((weight[~masks[name]] != 0).sum()) for name, weight in _weights(pruner).items())
    assert moved > 0
    pruner.finish_()
    zeros = sum(int((weight == 0).sum()) for weight in _weights(pruner).values())
    assert zeros == round(0.5 * pruner.groups.total)


def test_property_masked_form_lets_groups_return(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = feedback_pruning(model, optimizer, groups="weight", sparsity=0.5, every=4)
    train(model, optimizer, 4)
    before = {name: mask.clone() for name, mask in pruner.keep_masks.items()}
    train(model, optimizer, range(4, 12))
    returned = sum(int((mask & ~before[name]).sum()) for name, mask in pruner.keep_masks.items())
    assert returned > 0


def test_error_masked_form_keeps_no_dense_weights(residual, cv_adam):
    model = residual()
    pruner = feedback_pruning(model, cv_adam(model.parameters()), sparsity=0.5)
    with pytest.raises(RuntimeError, match="form='dense_copy'"), pruner.dense():
        pass
    with pytest.raises(RuntimeError, match="form='dense_copy'"):
        pruner.restore_dense_()
    with pytest.raises(ValueError, match="form='both' is unknown"):
        feedback_pruning(model, cv_adam(model.parameters()), form="both")


# -- equation 8's form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closure", [False, True])
def test_equation_8_by_hand(closure, residual):
    # w ← w − lr·∇ℓ(m ⊙ w), m from the global magnitude of w every 3 steps; the model holds m ⊙ w.
    model, reference = residual().double(), residual().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = feedback_pruning(
        model, optimizer, form="dense_copy", groups="weight", sparsity=0.6, every=3, soft_threshold=0.0
    )
    names = list(pruner.keep_masks)
    dense = {name: param.detach().clone() for name, param in reference.named_parameters()}
    masks = {name: torch.ones_like(dense[name], dtype=torch.bool) for name in names}
    for step in range(1, 9):
        inputs, labels = _batch(step)
        inputs = inputs.double()

        def loss(net, opt=None, inputs=inputs, labels=labels):
            net.zero_grad()
            value = F.cross_entropy(net(inputs), labels)
            value.backward()
            return value

        if closure:
            optimizer.step(lambda loss=loss: loss(model))
        else:
            loss(model)
            optimizer.step()

        with torch.no_grad():
            for name, param in reference.named_parameters():
                param.copy_(dense[name] * masks[name] if name in masks else dense[name])
        loss(reference)
        for name, param in reference.named_parameters():
            dense[name] -= 0.1 * param.grad
        if step % 3 == 0:
            cut = threshold_for_sparsity([dense[n].square() for n in names], [1] * len(names), 0.6, min_groups=1)
            masks = dict(zip(names, cut.keep))
        for name, param in model.named_parameters():
            expected = dense[name] * masks[name] if name in masks else dense[name]
            torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=1e-14)
    with pruner.dense():
        for name, param in model.named_parameters():
            torch.testing.assert_close(param.detach(), dense[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["weight", "kernel", "input", "channel"])
def test_roundtrip_dense_copy_is_restored_bit_for_bit(kind, residual, make_optimizer, train):
    model = residual()
    optimizer = make_optimizer(model.parameters())
    pruner = feedback_pruning(
        model, optimizer, form="dense_copy", groups=kind, sparsity=0.4, every=2,
        example_input=EXAMPLE if kind == "channel" else None,
    )  # fmt: skip
    after_step: dict[str, torch.Tensor] = {}
    # Runs after the optimizer's step and before the pruner masks: what the dense weights truly are.
    spy = pruner._after_step_
    pruner._after_step_ = lambda: (
        after_step.update({n: p.detach().clone() for n, p in model.named_parameters()}),
        spy(),
    )
    train(model, optimizer, 7)
    sparse = {name: param.detach().clone() for name, param in model.named_parameters()}
    assert any((sparse[name] != after_step[name]).any() for name in sparse)
    with pruner.dense():
        for name, param in model.named_parameters():
            assert torch.equal(param, after_step[name]), name
    for name, param in model.named_parameters():
        assert torch.equal(param, sparse[name]), name
    masks = pruner.weight_masks()
    for name, mask in masks.items():
        assert (sparse[name][~mask.expand(sparse[name].shape)] == 0).all()
        kept = mask.expand(sparse[name].shape)
        assert torch.equal(sparse[name][kept], after_step[name][kept])
    pruner.restore_dense_()
    for name, param in model.named_parameters():
        assert torch.equal(param, after_step[name]), name
    assert pruner.hard_sparsity == 0


def test_property_dense_context_restores_after_an_exception_and_keeps_steps_inside(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = feedback_pruning(model, optimizer, form="dense_copy", groups="weight", sparsity=0.5, every=2)
    train(model, optimizer, 2)
    sparse = _weights(pruner)
    with pytest.raises(KeyError), pruner.dense():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(sparse.values(), _weights(pruner).values()))
    with pruner.dense():
        train(model, optimizer, range(2, 3))
        inside = _weights(pruner)
        assert sum(int((weight == 0).sum()) for weight in inside.values()) == 0
    with pruner.dense():
        assert all(torch.equal(a, b) for a, b in zip(inside.values(), _weights(pruner).values()))
    assert sum(int((weight == 0).sum()) for weight in _weights(pruner).values()) == round(0.5 * pruner.groups.total)


def test_property_dense_copy_hits_the_target_and_lets_groups_return(residual, cv_adam, train):
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = feedback_pruning(
        model,
        optimizer,
        form="dense_copy",
        groups="weight",
        sparsity=0.7,
        every=4,
        warmup_steps=2,
        ramp_end_step=9,
    )
    train(model, optimizer, 9)
    assert round(pruner.hard_sparsity * pruner.groups.total) == round(0.7 * pruner.groups.total)
    before = {name: mask.clone() for name, mask in pruner.keep_masks.items()}
    train(model, optimizer, range(9, 20))
    assert sum(int((mask & ~before[name]).sum()) for name, mask in pruner.keep_masks.items()) > 0
    pruner.finish_()
    zeros = sum(int((weight == 0).sum()) for weight in _weights(pruner).values())
    assert zeros == round(0.7 * pruner.groups.total)


def test_property_dense_copies_are_held_only_where_something_is_pruned(residual, cv_adam, train):
    model = residual()
    with torch.no_grad():
        model.head.weight.mul_(1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = feedback_pruning(model, optimizer, form="dense_copy", groups="weight", sparsity=0.01, every=1)
    train(model, optimizer, 2)
    assert list(pruner.state_dict()["dense"]) == ["head.weight"]


def test_property_finish_ranks_the_dense_weights(residual, train):
    model = residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    pruner = feedback_pruning(model, optimizer, form="dense_copy", groups="weight", sparsity=0.5, every=3)
    train(model, optimizer, 5)
    old = list(pruner.keep_masks.values())
    with pruner.dense():
        statistics = [weight.square() for weight in _weights(pruner).values()]
    expected = threshold_for_sparsity(statistics, [1] * len(statistics), 0.5, min_groups=1).keep
    pruner.finish_()
    assert all(torch.equal(mask, want) for mask, want in zip(pruner.keep_masks.values(), expected))
    assert any((mask & ~before).any() for mask, before in zip(pruner.keep_masks.values(), old))


def grown(form: str, steps: int = 60) -> float:
    """How many times as long as at first the longest dense filter is, after kernels under BatchNorm were pruned to 88 %."""
    torch.manual_seed(0)
    layers = []
    for channels in ((3, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(*channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels[1]), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5, weight_decay=5e-4)
    pruner = FeedbackPruning(
        model,
        optimizer,
        form=form,
        groups="kernel",
        sparsity=0.88,
        scope="global",
        warmup_steps=0,
        ramp_end_step=20,
        every=4,
    )
    images, labels = torch.randn(32, 3, 6, 6), torch.arange(32) % 4
    convolutions = [layer.weight for layer in model if isinstance(layer, nn.Conv2d)]
    before = max(float(weight.flatten(1).norm(dim=1).max()) for weight in convolutions)
    longest = before
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        with pruner.dense() if form == "dense_copy" else contextlib.nullcontext():
            longest = max(longest, *(float(weight.detach().flatten(1).norm(dim=1).max()) for weight in convolutions))
    return longest / before


@pytest.mark.parametrize("form", ["dense_copy", "masked"])
def test_property_filters_pruned_whole_do_not_outgrow_the_others(form, monkeypatch):
    """BatchNorm hands a filter of zeros some 300 times its neighbours' gradient."""
    bounded = grown(form)
    monkeypatch.setattr(FeedbackPruning, "_with_gradient_", Pruner._with_gradient_)
    unbounded = grown(form)
    assert bounded < 5 < unbounded


def test_equation_gradient_of_thin_filters():
    """Four filters: long, a tenth as long, pruned whole, long; the first weight of each is kept but in the third."""
    layer = nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 1.0], [0.3, 0.1], [0.2, 0.1], [4.0, 1.0]]))
    drop = torch.tensor([[False, True], [False, True], [True, True], [False, True]])
    thin = Thin(layer.weight, drop)
    layer.weight.grad = torch.tensor([[1.0, 2.0], [1.0, 6.0], [30.0, 40.0], [2.0, 1.0]])
    mean = (9 + 0.09 + 16) / 3
    share = 2 * 0.3 / mean**0.5
    living = (1 + 4 + 1 + (6 * share) ** 2 + 4 + 1) / 3
    thin.bound_()
    wanted = torch.tensor([[1.0, 2.0], [1.0, 6 * share], [0.6 * living**0.5, 0.8 * living**0.5], [2.0, 1.0]])
    assert torch.allclose(layer.weight.grad, wanted)
