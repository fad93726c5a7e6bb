from __future__ import annotations

import math

import pytest
import torch

from bayesprune.samplers import native
from bayesprune.samplers.noise import counter_bits, counter_normal, round_bfloat16, stream_key

needs_native = pytest.mark.skipif(not native.available(), reason="no C compiler on this machine")
CLOSE = dict(rtol=2e-6, atol=2e-6)
"""A few units in the last place of the largest numbers."""


def deviation(cells: torch.Tensor, number: int) -> float:
    """The χ² statistic of equally likely cells, in its standard deviations from its mean."""
    counts = torch.bincount(cells, minlength=number).double()
    expected = cells.numel() / number
    return (float(((counts - expected) ** 2 / expected).sum()) - number + 1) / math.sqrt(2 * (number - 1))


def uniforms(numel: int, key: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The two uniform numbers of every pair, recovered from the normal ones."""
    x = counter_normal(numel, key, dtype=torch.float64).view(-1, 2)
    turn = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi)
    return torch.exp(-x.square().sum(1) / 2).clamp(0, 1 - 1e-12), (turn + 0.5).clamp(0, 1 - 1e-12)


def test_target_moments_and_tails_of_the_normal_numbers():
    """Two million numbers; each tolerance is 4.5 standard errors."""
    n = 2_000_000
    x = counter_normal(n, stream_key(1, 2, 3), dtype=torch.float64)
    for power, (truth, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10170)}.items():
        assert abs(float(x.pow(power).mean()) - truth) < 4.5 * math.sqrt(variance / n), power
    for level in (0.5, 1.5, 3.0, 4.0, 4.5):
        share = math.erfc(level / math.sqrt(2))
        assert abs(float((x.abs() > level).double().mean()) - share) < 4.5 * math.sqrt(share / n), level
    assert float(x.abs().max()) > 4.6  # all below: once in 4000
    cdf = 0.5 * torch.erfc(-x.sort().values / math.sqrt(2))
    distance = float((cdf - torch.arange(1, n + 1) / n).abs().max())
    assert distance * math.sqrt(n) < 1.95  # Kolmogorov–Smirnov, level 0.001


def test_limit_the_longest_radius():
    """The smallest uniform is 2⁻²⁴: numbers reach √(48 ln 2) = 5.77, which a normal passes eight times in 10⁹."""
    radius = max(
        float(counter_normal(1 << 22, stream_key(0, 0, step)).view(-1, 2).norm(dim=1).max()) for step in range(2)
    )
    assert 5.2 < radius <= math.sqrt(48 * math.log(2)) + 1e-5


@pytest.mark.parametrize("numel", [1 << 20, pytest.param(1 << 24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", [stream_key(7, 11, 13), (0, 0, 0, 0)])
def test_target_uniforms_are_independent_at_every_lag(key, numel):
    """Radius and angle of pairs at a distance fill a square evenly, and so do their differences (χ², 5 standard errors)."""
    radius, turn = uniforms(numel, key)
    for side in (radius, turn):
        assert abs(deviation((side * 4096).long(), 4096)) < 5
    for lag in (0, 1, 2, 8, 64, 4096):
        for first, second in ((radius, turn), (turn, radius), (radius, radius), (turn, turn)):
            if lag or first is not second:
                a, b = first[: len(first) - lag], second[lag:]
                assert abs(deviation((a * 64).long() * 64 + (b * 64).long(), 4096)) < 5, lag
                if first is second:
                    apart = torch.remainder(b - a, 1).clamp(0, 1 - 1e-12)
                    assert abs(deviation((apart * 4096).long(), 4096)) < 5, lag


@pytest.mark.parametrize("other", [(0, 0, 2), (0, 1, 1), (1, 0, 1), (0, 0, 3)])
def test_target_streams_are_uncorrelated(other):
    n = 500_000
    a, b = counter_normal(n, stream_key(0, 0, 1)), counter_normal(n, stream_key(*other))
    for lag in (0, 1, 2, 1024):
        shifted = b.roll(lag)
        assert abs(float((a * shifted).mean())) < 4.5 / math.sqrt(n)
        assert abs(float(((a**2 - 1) * (shifted**2 - 1)).mean())) < 4.5 * 2 / math.sqrt(n)


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 1024, 2048])
def test_target_neighbours_are_uncorrelated(lag):
    n = 500_000
    x = counter_normal(n, stream_key(9, 0, 1))
    assert abs(float((x[:-lag] * x[lag:]).mean())) < 4.5 / math.sqrt(n)
    assert abs(float(((x[:-lag] ** 2 - 1) * (x[lag:] ** 2 - 1)).mean())) < 4.5 * 2 / math.sqrt(n)


@pytest.mark.parametrize("start", [0, 1, 2, 7, 31, 4097])
@pytest.mark.parametrize("numel", [1, 2, 5, 33, 3000])
def test_property_a_number_depends_on_its_place_alone(numel, start):
    """Within the rounding of torch's vector and scalar code, which differ in the last digit."""
    whole = counter_normal(8000, stream_key(5, 5, 5), dtype=torch.float64)
    part = counter_normal(numel, stream_key(5, 5, 5), start=start, dtype=torch.float64)
    torch.testing.assert_close(part, whole[start : start + numel], rtol=1e-14, atol=1e-14)
    if native.available():
        whole = native.normal_(torch.empty(8000), stream_key(5, 5, 5))
        part = native.normal_(torch.empty(numel), stream_key(5, 5, 5), start)
        assert torch.equal(part, whole[start : start + numel])


def test_property_far_numbers_of_a_stream():
    key, far = stream_key(2, 0, 1), (1 << 33) - 10
    assert counter_normal(10, key, start=far).isfinite().all()
    assert not torch.equal(counter_normal(10, key, start=far), counter_normal(10, key, start=far - (1 << 32)))
    if native.available():
        torch.testing.assert_close(
            native.normal_(torch.empty(10), key, far), counter_normal(10, key, start=far), **CLOSE
        )


@needs_native
@pytest.mark.parametrize("start", [0, 5, 2048])
@pytest.mark.parametrize("numel", [1, 2, 3, 1023, 1024, 1025, 50_001])
def test_parity_native_numbers_are_the_torch_numbers(numel, start):
    key = stream_key(-3, 1, 10**9)
    torch.testing.assert_close(
        native.normal_(torch.empty(numel), key, start), counter_normal(numel, key, start=start), **CLOSE
    )


def test_parity_double_and_single_share_their_uniforms():
    key = stream_key(1, 1, 1)
    double = counter_normal(500_000, key, dtype=torch.float64)
    torch.testing.assert_close(double.float(), counter_normal(500_000, key), **CLOSE)


def test_target_rounding_bits_are_uniform_and_independent():
    n = 1 << 20
    key = stream_key(4, 0, 1)
    low, high = counter_bits(n, key)
    for bits in (low, high):
        assert abs(deviation((bits >> 6).long(), 1024)) < 5
    assert abs(deviation(((low >> 11) * 32 + (high >> 11)).long(), 1024)) < 5
    assert torch.equal(counter_bits(100, key, start=7)[0], low[7:107])
    x = counter_normal(n, key)
    assert abs(float((x * (low - 32767.5)).mean())) / (65536 / math.sqrt(12)) < 4.5 / math.sqrt(n)


def test_property_rounding_to_bfloat16_keeps_what_is_no_number():
    value = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.5])
    value = torch.cat([value, torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)])
    rounded = round_bfloat16(value, torch.full((6,), 65535, dtype=torch.int32)).float()
    torch.testing.assert_close(rounded[:5], value[:5], rtol=0, atol=0, equal_nan=True)
    assert rounded[5].isnan()


def test_limit_no_numbers():
    assert counter_normal(0, stream_key(0, 0, 0)).shape == (0,)


@pytest.mark.parametrize(("start", "numel"), [(-1, 1), ((1 << 33) - 3, 4)])
def test_error_numbers_beyond_the_stream(start, numel):
    with pytest.raises(ValueError, match="a stream has the numbers 0 to"):
        counter_normal(numel, stream_key(0, 0, 1), start=start)
