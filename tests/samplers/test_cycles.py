from __future__ import annotations

import itertools
import math

import pytest
import torch

from bayesprune.samplers import CVAdam, CycleClock, CyclicalLR


@pytest.mark.parametrize("cycles", [1, 3, 4])
def test_parity_lr_is_cosine_annealing_warm_restarts(cycles):
    length = 25
    clock = CycleClock(total_steps=cycles * length, cycles=cycles)
    ours = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
    mine = CyclicalLR(ours, clock)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(theirs, T_0=length, eta_min=0.0)
    for _ in range(cycles * length):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-12)
        for optimizer, scheduler in ((ours, mine), (theirs, reference)):
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("total", [10, 97, 100])
@pytest.mark.parametrize("cycles", [1, 3, 7])
@pytest.mark.parametrize("warmup", [0, 2])
def test_property_cycles_cut_the_run_without_gap_or_overlap(total, cycles, warmup):
    clock = CycleClock(total, cycles, warmup_steps=warmup)
    bounds = [clock.start(c) for c in range(cycles + 1)]
    assert bounds[0] == warmup and bounds[-1] == total
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    assert max(lengths) - min(lengths) <= 1
    for cycle, (begin, end) in enumerate(itertools.pairwise(bounds)):
        for step in range(begin, end):
            assert clock.cycle(step) == cycle
        assert clock.fraction(begin) == 0.0
        assert clock.lr(begin, 2.0) == 2.0
        assert clock.lr(end - 1, 2.0) < clock.lr(begin, 2.0) or end - begin == 1


def test_property_samples_are_the_coldest_steps_of_each_cycle():
    clock = CycleClock(total_steps=403, cycles=4, samples_per_cycle=3, sample_every=10)
    taken = [t for t in range(403) if clock.collect(t)]
    assert len(taken) == clock.num_samples == 12
    for cycle in range(4):
        last = clock.start(cycle + 1) - 1
        assert [t for t in taken if clock.cycle(t) == cycle] == [last - 20, last - 10, last]


def test_limit_warmup_is_a_linear_ramp_without_samples():
    clock = CycleClock(total_steps=20, cycles=1, samples_per_cycle=1, warmup_steps=4)
    assert [round(clock.lr(t, 1.0), 6) for t in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [clock.cycle(t) for t in range(5)] == [-1, -1, -1, -1, 0]
    assert not any(clock.collect(t) for t in range(4))


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("first", [1, 11, 40])
def test_property_short_cycles_share_what_a_long_first_one_leaves(first, warmup):
    clock = CycleClock(60, 4, samples_per_cycle=1, warmup_steps=warmup, floor=0.1, first_steps=first, restart=0.4)
    bounds = [clock.start(c) for c in range(5)]
    assert bounds[:2] == [warmup, warmup + first] and bounds[-1] == 60
    lengths = [b - a for a, b in itertools.pairwise(bounds[1:])]
    assert max(lengths) - min(lengths) <= 1
    for cycle, (begin, end) in enumerate(itertools.pairwise(bounds)):
        peak = 2.0 if cycle == 0 else 0.8
        for step in range(begin, end):
            cosine = 0.5 * (1 + math.cos(math.pi * (step - begin) / (end - begin)))
            assert clock.cycle(step) == cycle
            assert clock.lr(step, 2.0) == pytest.approx(0.2 + (peak - 0.2) * cosine)
            assert clock.collect(step) == (step == end - 1)


def test_limit_equal_lengths_and_a_full_restart_are_the_plain_cycles():
    plain, told = CycleClock(90, 3, 2), CycleClock(90, 3, 2, first_steps=30, restart=1.0)
    assert plain.sample_every == told.sample_every
    for step in range(90):
        assert (plain.cycle(step), plain.lr(step), plain.collect(step)) == (
            told.cycle(step), told.lr(step), told.collect(step)
        )  # fmt: skip


def test_limit_floor_is_where_a_cycle_ends():
    clock = CycleClock(total_steps=1000, cycles=1, floor=0.1)
    assert clock.lr(999, 1.0) == pytest.approx(0.1, abs=1e-4)
    assert clock.lr(0, 1.0) == 1.0


def test_roundtrip_scheduler_state():
    clock = CycleClock(total_steps=10, cycles=2)
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2)]
    first = CyclicalLR(optimizers[0], clock)
    for _ in range(3):
        optimizers[0].step()
        first.step()
    second = CyclicalLR(optimizers[1], clock)
    second.load_state_dict(first.state_dict())
    for optimizer, scheduler in zip(optimizers, (first, second)):
        optimizer.step()
        scheduler.step()
    assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"] == clock.lr(4, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "total_steps=0"),
        ({"cycles": 11}, "no step for each of cycles=11"),
        ({"samples_per_cycle": 3, "sample_every": 5}, "do not fit in a cycle of 10"),
        ({"floor": 1.0}, "floor=1.0"),
        ({"cycles": 1.5}, "cycles=1.5"),
        ({"cycles": 2, "first_steps": 10}, "no step for each of cycles=2 after warmup_steps=0 and first_steps=10"),
        ({"cycles": 2, "first_steps": 0}, "first_steps=0"),
        ({"floor": 0.2, "restart": 0.2}, "restart=0.2 must lie above floor=0.2"),
        ({"cycles": 4, "first_steps": 4, "samples_per_cycle": 2, "sample_every": 2}, "do not fit in a cycle of 2"),
    ],
)
def test_error_names_what_does_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        CycleClock(**{"total_steps": 10, **settings})


def test_property_samples_spread_over_the_last_half_unless_told():
    clock = CycleClock(total_steps=200, cycles=2, samples_per_cycle=5)
    assert clock.sample_every == 10
    assert [t for t in range(200) if clock.collect(t)] == [59, 69, 79, 89, 99, 159, 169, 179, 189, 199]
    for total in range(12, 60):  # runs of any length
        short = CycleClock(total_steps=total, cycles=4, samples_per_cycle=3)
        assert sum(short.collect(t) for t in range(total)) == 12


def test_property_the_preconditioner_stands_still_before_and_through_the_samples():
    clock = CycleClock(total_steps=40, cycles=2, samples_per_cycle=3, sample_every=8, warmup_steps=4)
    assert all(clock.adapting(t) for t in range(4))
    for cycle in range(2):
        steps = range(clock.start(cycle), clock.start(cycle + 1))
        first = next(t for t in steps if clock.collect(t))
        frozen = [t for t in steps if not clock.adapting(t)]
        assert (
            frozen == list(range(frozen[0], steps.stop))
            and frozen[0] <= first
            and frozen[0] <= (steps.start + steps.stop) / 2
        )


def test_property_the_scheduler_switches_adapt_of_rms_and_leaves_the_paper_alone():
    weight = torch.nn.Parameter(torch.zeros(1))
    clock = CycleClock(total_steps=8, cycles=2)
    for preconditioner, wanted in (("rms", [True, True, False, False] * 2), ("paper", [True] * 8)):
        optimizer = CVAdam([weight], lr=1.0, num_data=10, preconditioner=preconditioner)
        scheduler, seen = CyclicalLR(optimizer, clock), []
        for _ in range(8):
            seen.append(optimizer.param_groups[0]["adapt"])
            optimizer.step()
            scheduler.step()
        assert seen == wanted
