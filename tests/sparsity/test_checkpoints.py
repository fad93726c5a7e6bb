"""Masks travel with the optimizer's state, of every holder and through every wrapper."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune.baselines import SET
from bayesprune.sparsity import FeedbackPruning, ForwardPruning

CLOCK = bp.CycleClock(total_steps=40)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


class Wrapper:
    """An optimizer as accelerate and Fabric hand it out."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self, *args):
        return self.optimizer.step(*args)

    def zero_grad(self):
        self.optimizer.zero_grad()

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


def _forward(model, optimizer):
    return ForwardPruning(model, optimizer, sparsity=0.6, clock=CLOCK, every=3, soft_threshold=0.02)


def _copy(model, optimizer):
    return FeedbackPruning(model, optimizer, form="dense_copy", sparsity=0.6, clock=CLOCK, every=3, soft_threshold=0.02)


def _set(model, optimizer):
    return SET(model, optimizer, target_sparsity=0.6, every=3)


@pytest.mark.parametrize("attach", [_forward, _copy, _set])
@pytest.mark.parametrize("wrap", [False, True])
def test_roundtrip_a_trainer_that_saves_model_and_optimizer_alone_resumes_bit_for_bit(
    attach, wrap, residual, make_optimizer, train
):
    whole = residual()
    optimizer = make_optimizer(whole.parameters())
    attach(whole, optimizer)
    train(whole, optimizer, 24)

    half = residual()
    first = Wrapper(make_optimizer(half.parameters())) if wrap else make_optimizer(half.parameters())
    attach(half, first)
    train(half, first, 14)
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = residual(seed=1)
    second = Wrapper(make_optimizer(resumed.parameters())) if wrap else make_optimizer(resumed.parameters())
    pruner = attach(resumed, second)
    resumed.load_state_dict(saved["model"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(saved["optimizer"])
    assert pruner.step_count == 14
    assert all(mask.dtype is torch.bool for mask in pruner.keep_masks.values())
    assert any(not mask.all() for mask in pruner.keep_masks.values())
    train(resumed, second, range(14, 24))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("attach", [_forward, _copy])
def test_roundtrip_copied_together_model_optimizer_and_pruner_go_on_bit_for_bit(
    attach, how, residual, make_optimizer, train
):
    model = residual()
    optimizer = make_optimizer(model.parameters())
    pruner = attach(model, optimizer)
    train(model, optimizer, 14)
    ours = (model, optimizer, pruner)
    twin, own, copied = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    hooks = len(optimizer._optimizer_step_post_hooks)
    train(model, optimizer, range(14, 24))
    assert copied.step_count == 14 and pruner.step_count == 24
    train(twin, own, range(14, 24))
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.equal(a, b), name
    assert copied.hard_sparsity == pruner.hard_sparsity > 0
    assert len(optimizer._optimizer_step_post_hooks) == hooks

    pruner.detach()
    _, other, left = copy.deepcopy(ours)
    assert not other._optimizer_step_post_hooks and left.hard_sparsity == pruner.hard_sparsity


def test_property_a_state_without_masks_is_named(residual, train):
    model = residual()
    plain = sgd(model)
    train(model, plain, 1)
    state = plain.state_dict()
    optimizer = sgd(model)
    pruner = _forward(model, optimizer)
    with pytest.warns(UserWarning, match=r"carries no masks of the attached ForwardPruning.*pruner.load_state_dict"):
        optimizer.load_state_dict(state)
    carried = optimizer.state_dict()
    plain.load_state_dict(carried)  # an optimizer without a pruner takes it as it is
    net = residual()
    other = sgd(net)
    _copy(net, other)
    with pytest.warns(UserWarning, match="carries those of ForwardPruning"):
        other.load_state_dict(carried)
    net = residual()
    other = sgd(net)
    ForwardPruning(net, other, sparsity=0.5, clock=CLOCK, groups="weight")
    with pytest.raises(ValueError, match="groups 'channel', this pruner of version 1 and 'weight'"):
        other.load_state_dict(carried)
    pruner.detach()
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(copy.deepcopy(state))


def test_roundtrip_two_pruners_of_one_optimizer_find_their_own(residual, train):
    def build():
        model = residual()
        optimizer = sgd(model)
        pruners = [
            ForwardPruning(
                model, optimizer, groups="weight", sparsity=share, warmup_steps=0, ramp_end_step=4, exclude=exclude
            )
            for share, exclude in ((0.3, ["conv1"]), (0.8, ["conv2", "conv3", "short"]))
        ]
        return model, optimizer, pruners

    model, optimizer, pruners = build()
    train(model, optimizer, 6)
    _, again, others = build()
    again.load_state_dict(optimizer.state_dict())
    for old, new in zip(pruners, others):
        assert old.hard_sparsity == new.hard_sparsity > 0


def test_error_no_optimizer_inside(residual):
    with pytest.raises(TypeError, match=r"optimizer=Linear is no torch\.optim\.Optimizer"):
        ForwardPruning(residual(), nn.Linear(2, 2), sparsity=0.5, clock=CLOCK)


def test_property_fabrics_wrapped_optimizer_is_pruned(residual, train):
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    model = residual()
    wrapped, optimizer = fabric.setup(model, sgd(model))
    pruner = ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=0, ramp_end_step=4)
    train(wrapped, optimizer, 5)
    assert pruner.hard_sparsity > 0.3 and pruner.step_count == 5
