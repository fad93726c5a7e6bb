"""What a pruner does unasked, and what it says where it cannot."""

from __future__ import annotations

import inspect
import typing

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


@pytest.mark.parametrize("groups", ["weight", "input", "kernel"])
def test_property_frozen_layers_stay_as_they_are_and_are_named(groups):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    model[2].requires_grad_(False)
    before = model[2].weight.clone()
    pruner = ForwardPruning(
        model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5, warmup_steps=0, ramp_end_step=1, groups=groups,
        keep_ends=False,
    )  # fmt: skip
    pruner.finish_()
    assert torch.equal(model[2].weight, before) and pruner.hard_sparsity == pytest.approx(0.5, abs=0.05)
    assert "2.weight (frozen (requires_grad=False))" in repr(pruner)


def test_roundtrip_a_state_that_holds_masks_of_what_is_frozen_now_is_read():
    def made(frozen):
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        model[0].requires_grad_(not frozen)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"sparsity": 0.5, "warmup_steps": 0, "ramp_end_step": 1, "groups": "weight", "keep_ends": False}
        return model, optimizer, ForwardPruning(model, optimizer, **settings)

    _, optimizer, pruner = made(frozen=False)
    pruner.finish_()
    _, again, other = made(frozen=True)
    other.load_state_dict(pruner.state_dict())
    assert torch.equal(other.keep_masks["2.weight"], pruner.keep_masks["2.weight"])
    again.load_state_dict(optimizer.state_dict())
    assert set(other.keep_masks) == {"2.weight", "4.weight"}


def test_error_masks_that_a_layer_frozen_since_takes_along_are_named():
    def made(frozen):
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        model[0].requires_grad_(not frozen)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return optimizer, ForwardPruning(model, optimizer, sparsity=0.5, warmup_steps=0, ramp_end_step=1)

    optimizer, pruner = made(frozen=False)
    pruner.finish_()
    again, other = made(frozen=True)
    with pytest.warns(UserWarning, match=r"masks of 0\.weight are left out.*freeze them after the pruner is made"):
        again.load_state_dict(optimizer.state_dict())
    assert "0.weight (partly frozen (requires_grad=False))" in repr(other)


def test_error_weights_that_are_computed_from_others_are_named():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="computed from others"):
        ForwardPruning(
            model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.5, groups="weight", warmup_steps=0
        )
