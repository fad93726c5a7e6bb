from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesprune.sparsity import concentration, cubic_ramp, l2, mean_square, threshold_for_sparsity
from bayesprune.sparsity.ranking import even_drops

# Two outputs, two inputs, kernels of two.
WEIGHT = torch.tensor([[[1.0, -3.0], [0.5, 0.5]], [[2.0, -1.0], [-0.5, -0.25]]])


def test_equation_9_signed_reading_by_hand():
    assert concentration(WEIGHT, "input").flatten().tolist() == [2.0 - (-3.0), 0.5 - (-0.5)]
    assert concentration(WEIGHT, "output").flatten().tolist() == [1.0 - (-3.0), 2.0 - (-1.0)]


def test_equation_9_absolute_reading_by_hand():
    assert concentration(WEIGHT, "input", reading="absolute").flatten().tolist() == [3.0 - 1.0, 0.5 - 0.25]
    assert concentration(WEIGHT, "output", reading="absolute").flatten().tolist() == [3.0 - 0.5, 2.0 - 0.25]


@pytest.mark.parametrize("reading", ["signed", "absolute"])
@pytest.mark.parametrize("conv_groups", [1, 2])
def test_equation_9_grouped_convolution_equals_an_explicit_loop(reading, conv_groups):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2)
    values = weight.abs() if reading == "absolute" else weight
    per_block = 4 // conv_groups
    expected = []
    for channel in range(3 * conv_groups):
        block = channel // 3
        read = [values[o, channel % 3] for o in range(block * per_block, (block + 1) * per_block)]
        read = torch.stack(read)
        expected.append(float(read.max() - read.min()))
    got = concentration(weight, "input", reading=reading, groups=conv_groups)
    assert got.flatten().tolist() == expected


def test_equation_10_by_hand():
    weight = torch.tensor([[1.0, 2.0, 0.0], [3.0, -2.0, 0.0]])
    assert l2(weight).tolist() == [[(1 + 9) / 2, (4 + 4) / 2, 0.0]]
    assert torch.equal(l2(weight), mean_square(weight, "input"))


def test_equation_cubic_ramp_by_hand():
    assert cubic_ramp(10, 10, 30, 0.9) == 0.0
    assert cubic_ramp(20, 10, 30, 0.9, 0.1) == pytest.approx(0.9 - 0.8 * 0.125)
    assert cubic_ramp(30, 10, 30, 0.9) == 0.9
    assert cubic_ramp(99, 10, 30, 0.9) == 0.9
    assert cubic_ramp(5, 5, 5, 0.9) == 0.9  # no ramp


@given(start=st.integers(0, 50), length=st.integers(1, 50), final=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_property_cubic_ramp_never_falls(start, length, final):
    ramp = [cubic_ramp(t, start, start + length, final) for t in range(start + length + 5)]
    assert ramp[0] == 0.0
    assert ramp == sorted(ramp)
    assert ramp[-1] == final


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    target=st.floats(0, 1),
    levels=st.integers(1, 1000),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_property_single_weights_hit_the_target_exactly_ties_or_not(lengths, target, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    statistics = [torch.randint(levels, (n,), generator=generator).float() for n in lengths]
    cut = threshold_for_sparsity(statistics, [1] * len(lengths), target)
    pruned = sum(int((~mask).sum()) for mask in cut.keep)
    assert pruned == round(target * sum(lengths))
    values, keep = torch.cat(statistics), torch.cat(cut.keep)
    if pruned:
        assert float(values[~keep].max()) == cut.threshold
        # Ranked by value, then by position: what is pruned is the head of a stable sort.
        head = values.sort(stable=True).indices[:pruned]
        assert set(head.tolist()) == set((~keep).nonzero().flatten().tolist())


@given(
    shape=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 40)), min_size=1, max_size=5),
    target=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_property_groups_hit_the_target_to_within_half_a_group(shape, target, seed):
    generator = torch.Generator().manual_seed(seed)
    statistics = [torch.rand(n, generator=generator) for n, _ in shape]
    sizes = [size for _, size in shape]
    total = sum(n * size for n, size in shape)
    cut = threshold_for_sparsity(statistics, sizes, target)
    pruned = sum(int((~mask).sum()) * size for mask, size in zip(cut.keep, sizes))
    # The same by an explicit walk: the nearest that the ranked groups allow.
    ranked = sorted((float(v), t, i) for t, values in enumerate(statistics) for i, v in enumerate(values))
    sums = [0]
    for _, tensor, _ in ranked:
        sums.append(sums[-1] + sizes[tensor])
    assert abs(pruned - round(target * total)) == min(abs(s - round(target * total)) for s in sums)


@given(target=st.floats(0.3, 0.7), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_property_what_is_gone_stays_gone_and_every_tensor_keeps_its_best(target, seed):
    generator = torch.Generator().manual_seed(seed)
    statistics = [torch.rand(4, 5, generator=generator), torch.rand(10, generator=generator) * 1e-3]
    first = threshold_for_sparsity(statistics, [1, 1], 0.3, min_groups=1)
    again = [torch.rand(s.shape, generator=generator) for s in statistics]
    second = threshold_for_sparsity(again, [1, 1], target, kept=first.keep, min_groups=1)
    for before, after in zip(first.keep, second.keep):
        assert not (after & ~before).any()
        assert int(after.sum()) >= 1
    assert sum(int((~mask).sum()) for mask in second.keep) == max(9, round(target * 30))


def test_property_a_custom_count_of_zeros_is_met():
    statistics = [torch.tensor([5.0, 1.0, 3.0, 2.0])]
    cut = threshold_for_sparsity(statistics, [1], 0.5, zeros=lambda keep: 10 * int((~keep[0]).sum()), total=40)
    assert cut.keep[0].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: threshold_for_sparsity([torch.ones(2)], [1], 1.5), "sparsity=1.5"),
        (lambda: threshold_for_sparsity([torch.ones(2)], [1], 1.0, min_groups=1), "min_groups=1"),
        (lambda: concentration(WEIGHT, "input", reading="norm"), "reading='norm'"),
        (lambda: concentration(WEIGHT, "weight"), "no range"),
        (lambda: l2(WEIGHT), "equation 10 is for a linear layer"),
    ],
)
def test_error_names_the_argument_and_the_mend(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- selection without sorting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [0.0, 0.001, 0.3, 0.77, 0.999, 1.0])
def test_parity_groups_of_several_sizes_are_cut_as_by_sorting_them_all(dtype, target):
    generator = torch.Generator().manual_seed(0)
    sizes, lengths = [9, 1, 25], [500, 3000, 77]
    statistics = [torch.rand(length, generator=generator, dtype=dtype) ** 9 for length in lengths]
    statistics[1][::7] = statistics[1][3]  # ties
    statistics[0][::5] = 0.0
    statistics[2][5], statistics[2][6] = float("inf"), -0.0
    kept = [torch.rand(length, generator=generator) < 0.9 for length in lengths]
    cut = threshold_for_sparsity(statistics, sizes, target, kept=kept)
    flat, free = torch.cat(statistics), torch.cat(kept)
    size = torch.tensor(sizes).repeat_interleave(torch.tensor(lengths))
    left = round(target * int(size.sum())) - int(size[~free].sum())
    order = free.nonzero().view(-1)
    order = order[flat[order].sort(stable=True).indices]
    drop = ~free
    drop[order] = (size[order].cumsum(0) * 2 - size[order] <= 2 * left) & (left > 0)
    assert torch.equal(torch.cat(cut.keep), ~drop)


@pytest.mark.parametrize("wanted", [1, 60, 199, 333, 560])
def test_property_even_drops_meet_the_sum_to_within_half_a_group(wanted):
    counts, sizes = [3, 8, 40, 10, 2], [50, 18, 3, 27, 9]
    drops = even_drops(counts, sizes, wanted, least=[0, 1, 0, 0, 0], floor=1)
    assert all(count - drop >= 1 for count, drop in zip(counts, drops)) and drops[1] >= 1
    assert abs(sum(drop * size for drop, size in zip(drops, sizes)) - wanted) <= 25
