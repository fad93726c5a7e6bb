"""What a pruner does unasked, and what it says where it cannot."""

from __future__ import annotations

import copy
import inspect
import io
import typing
import warnings

import pytest
import torch
from torch import nn

import bayesprune as bp
from bayesprune.baselines import SET
from bayesprune.sparsity import FeedbackPruning, ForwardPruning
from bayesprune.vision import mlp, resnet20, small_cnn

CLOCK = bp.CycleClock(total_steps=40)
EXAMPLE = torch.zeros(2, 2, 6, 6)


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, **settings)


# -- when --------------------------------------------------------------------------------------------------------------


def test_property_the_clock_says_when_by_fractions_and_steps_come_before_it(residual):
    model = residual()
    pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK)
    assert (pruner.warmup_steps, pruner.ramp_end_step, pruner.every) == (4, 20, 16)
    pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, prune_from=0.25, prune_until=0.75)
    assert (pruner.warmup_steps, pruner.ramp_end_step) == (10, 30)
    pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, warmup_steps=7, ramp_end_step=9)
    assert (pruner.warmup_steps, pruner.ramp_end_step) == (7, 9)


def test_property_updates_come_every_16_steps_and_at_the_ramps_end(residual, train):
    model = residual()
    optimizer = sgd(model)
    pruner = ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=2, ramp_end_step=36)
    seen, update = [], pruner._update_
    pruner._update_ = lambda: (seen.append(pruner.step_count), update())
    train(model, optimizer, 40)
    assert seen == [18, 34, 36]
    assert pruner.hard_sparsity == pytest.approx(0.5, abs=0.1)


def test_error_a_target_without_a_time_to_reach_it(residual):
    model = residual()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=r"give clock=CycleClock\(total_steps=...\)"):
        ForwardPruning(model, optimizer, sparsity=0.9)
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(ValueError, match=r"prune_from=0\.6 and prune_until=0\.5"):
        ForwardPruning(model, optimizer, sparsity=0.9, clock=CLOCK, prune_from=0.6)


def test_error_nothing_to_prune_is_refused_unless_it_is_meant(residual, train):
    model = residual()
    optimizer = sgd(model)
    with pytest.raises(ValueError, match=r"nothing would be pruned: give sparsity=0.9 .*em_only=True"):
        ForwardPruning(model, optimizer, clock=CLOCK)
    with pytest.raises(ValueError, match="em_only=True prunes nothing"):
        ForwardPruning(model, optimizer, sparsity=0.5, clock=CLOCK, em_only=True)
    pruner = ForwardPruning(model, optimizer, em_only=True, every=1, soft_threshold=0.02)
    train(model, optimizer, 2)
    assert pruner.soft_sparsity > 0 == pruner.hard_sparsity


def test_property_old_names_work_with_a_warning_that_says_the_new(residual):
    model = residual()
    with pytest.warns(DeprecationWarning, match="target_sparsity is now called sparsity") as said:
        assert ForwardPruning(model, sgd(model), target_sparsity=0.5, clock=CLOCK).target_sparsity == 0.5
    assert said[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="rule is now called criterion"):
        assert ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, rule="magnitude").criterion == "magnitude"
    with pytest.warns(DeprecationWarning, match="'l2' is 'magnitude'"):
        assert FeedbackPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, criterion="l2").criterion == "magnitude"
    with pytest.raises(ValueError, match="give sparsity alone"):
        ForwardPruning(model, sgd(model), sparsity=0.5, target_sparsity=0.5, clock=CLOCK)


# -- the prior ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "spike"), [(0.0, 1e-3), (5e-4, 1e-3), (0.01, 0.02), (0.3, 0.6)])
def test_property_the_spike_is_twice_the_optimizers_own_decay(own, spike, residual):
    model = residual()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=own)
    pruner = ForwardPruning(model, optimizer, sparsity=0.5, clock=CLOCK)
    assert {(prior.spike_decay, prior.slab_decay) for prior in pruner.priors} == {(spike, own)}
    with pytest.raises(ValueError, match="must be larger than slab_decay"):
        ForwardPruning(model, optimizer, sparsity=0.5, clock=CLOCK, spike_decay=own / 2)


def test_property_adamw_of_the_shelf_sets_the_spike_that_it_says(residual, train):
    model = residual()
    optimizer = torch.optim.AdamW(model.parameters())
    pruner = ForwardPruning(model, optimizer, sparsity=0.5, clock=CLOCK, soft_threshold=1e9, every=1)
    train(model, optimizer, 6)
    assert pruner.soft_sparsity == 1.0
    assert {round(float(extra), 6) for extra in pruner._decay._extra.values()} == {0.01}  # 0.02 instead of 0.01


def test_limit_without_a_prior_it_is_gradual_pruning(residual, train):
    nets = [residual(), residual()]
    optimizers = [sgd(net) for net in nets]
    common = {"sparsity": 0.6, "clock": CLOCK, "every": 2}
    ForwardPruning(nets[0], optimizers[0], prior=None, **common)
    ForwardPruning(nets[1], optimizers[1], soft_threshold=0.0, **common)
    for net, optimizer in zip(nets, optimizers):
        train(net, optimizer, 24)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))
    with pytest.raises(ValueError, match="prior=None has no spike and no slab; leave out spike_decay"):
        ForwardPruning(nets[0], optimizers[0], prior=None, spike_decay=0.1, **common)
    with pytest.raises(ValueError, match="prior=None has no spike"):
        ForwardPruning(nets[0], optimizers[0], prior=None, **common).inclusion_probabilities()


# -- what --------------------------------------------------------------------------------------------------------------


def test_property_unasked_whole_channels_go_even_over_layers_and_the_ends_stay():
    torch.manual_seed(0)
    model = resnet20(num_classes=10)
    pruner = ForwardPruning(model, sgd(model), sparsity=0.9, clock=CLOCK)
    pruner.finish_()
    assert pruner.groups.kind == "channel"
    assert (model.stem[0].weight != 0).all()
    assert (model.head.weight != 0).any(1).all() and (model.head.bias == model.head.bias).all()
    shares = {mask.numel(): int(mask.sum()) for mask in pruner.keep_masks.values()}
    assert all(int(mask.sum()) == shares[mask.numel()] for mask in pruner.keep_masks.values())
    assert shares[64] % 8 == 0 and shares[32] % 4 == 0 and shares[16] % 2 == 0
    assert pruner.hard_sparsity == pytest.approx(0.9, abs=0.01)
    everything = ForwardPruning(model, sgd(model), sparsity=0.9, clock=CLOCK, keep_ends=False)
    assert "stem.0.weight" in everything.groups.weights()


@pytest.mark.parametrize("kind", ["weight", "kernel", "output"])
@pytest.mark.parametrize("example", [None, torch.zeros(2, 3, 8, 8)])
def test_property_the_ends_stay_whatever_the_groups(kind, example):
    model = small_cnn(num_classes=3, width=8)
    pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, groups=kind, example_input=example)
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert list(pruner.groups.weights()) == [f"{name}.weight" for name in layers[1:-1]]
    assert {each.reason for each in pruner.groups.excluded} == {
        "the first convolution (keep_ends)", "writes the model's output (keep_ends)"
    }  # fmt: skip
    assert "keep_ends" in repr(pruner)


def test_property_every_head_of_a_model_with_several_is_kept():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.body, self.spread = nn.Linear(8, 2), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.body(x).relu()
            return {"mean": self.mean(x), "spread": self.spread(x)}

    model = Heads()
    settings = {"sparsity": 0.5, "clock": CLOCK, "groups": "weight"}
    pruner = ForwardPruning(model, sgd(model), example_input=torch.zeros(1, 4), **settings)
    assert list(pruner.groups.weights()) == ["body.weight"]


def test_property_a_model_of_one_layer_is_pruned_all_the_same():
    model = nn.Linear(10, 3)
    assert ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, groups="weight").groups.total == 30
    model = mlp([4, 16, 2])
    pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK)  # a vector is guessed
    assert pruner.groups.kind == "channel" and pruner.groups[0].count == 16


def test_property_where_no_channel_can_be_cut_it_says_what_it_does_and_why(residual):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = residual()

        def forward(self, x):
            return self.inner(x) if x.sum() >= 0 else self.inner(-x)

    model = Branching()
    with pytest.warns(
        UserWarning, match=r"single kernels are \(groups='kernel'\).*cannot be traced.*give example_input"
    ):
        pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK)
    assert pruner.groups.kind == "kernel"
    words = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match=r"single weights are \(groups='weight'\).*does not say what its input"):
        ForwardPruning(words, sgd(words), sparsity=0.5, clock=CLOCK)


@pytest.mark.parametrize("kind", ["weight", "kernel", "input", "output"])
@pytest.mark.parametrize("target", [0.5, 0.8, 0.9])
def test_property_layer_scope_meets_the_target_to_within_half_a_group(kind, target):
    torch.manual_seed(0)
    model = small_cnn(num_classes=3, width=16)
    pruner = ForwardPruning(model, sgd(model), sparsity=target, clock=CLOCK, groups=kind, keep_ends=False)
    pruner.finish_()
    wanted = round(target * pruner.groups.total)
    half = 0 if kind == "weight" else max(each.size for each in pruner.groups) / 2
    reach = pruner.groups.reachable(1)
    assert abs(round(pruner.hard_sparsity * pruner.groups.total) - min(wanted, reach)) <= half


# -- criteria ----------------------------------------------------------------------------------------------------------

TAYLOR = '''
"""A channel's first-order Taylor score: the loss that it would cost, |sum of w * dL/dw|."""

import bayesprune as bp


def taylor(groups, optimizer):
    return [each.sums(lambda w: w * w.grad if w.grad is not None else w * 0).abs() for each in groups]


def snr(groups, optimizer):
    def ratio(w):
        state = optimizer.state[w]
        return w.abs() * state["second_moment"].sqrt() if "second_moment" in state else w.abs()

    return [each.sums(ratio) for each in groups]


def attach(model, optimizer, clock, criterion=taylor):
    return bp.ForwardPruning(model, optimizer, sparsity=0.5, clock=clock, criterion=criterion)
'''


@pytest.mark.parametrize("name", ["taylor", "snr"])
def test_property_a_criterion_is_one_file_of_25_lines(name, residual, cv_adam, train, tmp_path):
    assert len(TAYLOR.strip().splitlines()) <= 25
    path = tmp_path / "taylor.py"
    path.write_text(TAYLOR)
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    model = residual()
    optimizer = cv_adam(model.parameters())
    pruner = scope["attach"](model, optimizer, CLOCK, scope[name])
    assert pruner.groups.kind == "channel" and f"by {name}" in repr(pruner)
    seen = []
    rank = pruner._rule._even_masks
    object.__setattr__(pruner._rule, "_even_masks", lambda *a: (seen.append(a[0]), rank(*a))[1])
    train(model, optimizer, 20)
    assert pruner.hard_sparsity == pytest.approx(0.5, abs=0.1)
    for statistic, each in zip(scope[name](pruner.groups, optimizer), pruner.groups):
        assert statistic.shape == each.shape
    assert seen and not torch.allclose(seen[0][0], pruner.groups[0].mean_square())


def test_error_a_criterion_of_another_shape(residual):
    model = residual()
    wrong = {
        "one each": lambda groups, optimizer: [],
        "it must have the mask's": lambda groups, optimizer: [torch.ones(3) for _ in groups],
        "no entry below 0 or NaN": lambda groups, optimizer: [-torch.ones(each.shape) for each in groups],
    }
    for message, criterion in wrong.items():
        pruner = ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, criterion=criterion)
        with pytest.raises(ValueError, match=message):
            pruner.finish_()
    with pytest.raises(ValueError, match="give a callable of"):
        ForwardPruning(model, sgd(model), sparsity=0.5, clock=CLOCK, criterion="taylor")


# -- what it says ------------------------------------------------------------------------------------------------------


def test_property_feedback_pruning_shows_all_its_arguments():
    forward, feedback = (inspect.signature(each.__init__).parameters for each in (ForwardPruning, FeedbackPruning))
    assert dict(feedback).keys() - dict(forward).keys() == {"form"}
    assert all(feedback[name] == forward[name] for name in forward)
    hints = typing.get_type_hints(FeedbackPruning.__init__)
    assert typing.get_args(hints["form"]) == ("masked", "dense_copy")
    assert set(typing.get_args(hints["scope"])) == {"layer", "global", "chain"}


def test_property_the_repr_says_what_will_happen(residual):
    model = residual()
    text = repr(FeedbackPruning(model, sgd(model), sparsity=0.75, clock=CLOCK))
    for part in (
        "FeedbackPruning(form='masked'", "of kind 'channel'", "sparsity 0.75 on a cubic ramp from step 4 to step 20",
        "every 16 steps", "by magnitude", "weight decay 0.001 and 0.0005", "stem.weight (the first convolution",
    ):  # fmt: skip
        assert part in text, text
    assert "below hard_threshold=0.1" in repr(ForwardPruning(model, sgd(model), hard_threshold=0.1))
    assert "prior: none" in repr(ForwardPruning(model, sgd(model), sparsity=0.1, clock=CLOCK, prior=None))
    assert "SET(" in repr(SET(model, sgd(model), target_sparsity=0.5, every=3))


# -- checkpoints -------------------------------------------------------------------------------------------------------


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
