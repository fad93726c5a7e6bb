from __future__ import annotations

import math

import pytest
import torch

from bayesprune.samplers.kernels import native
from bayesprune.samplers.noise import BLOCK, counter_normal, stream_key


def test_target_moments_and_tails_of_the_normal_numbers():
    """Two million numbers; each tolerance is 4.5 standard errors."""
    n = 2_000_000
    x = counter_normal(n, stream_key(1, 2, 3), dtype=torch.float64)
    for power, (truth, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10170)}.items():
        assert abs(float(x.pow(power).mean()) - truth) < 4.5 * math.sqrt(variance / n), power
    for level in (0.5, 1.5, 3.0, 4.0):
        share = math.erfc(level / math.sqrt(2))
        assert abs(float((x.abs() > level).double().mean()) - share) < 4.5 * math.sqrt(share / n), level
    cdf = 0.5 * torch.erfc(-x.sort().values / math.sqrt(2))
    distance = float((cdf - torch.arange(1, n + 1) / n).abs().max())
    assert distance * math.sqrt(n) < 1.95  # Kolmogorov–Smirnov, level 0.001


@pytest.mark.parametrize("other", [(0, 0, 2), (0, 1, 1), (1, 0, 1), (0, 0, 3)])
def test_target_streams_are_uncorrelated(other):
    n = 500_000
    a, b = counter_normal(n, stream_key(0, 0, 1)), counter_normal(n, stream_key(*other))
    for lag in (0, 1, 2, BLOCK // 2, BLOCK):
        shifted = b.roll(lag)
        assert abs(float((a * shifted).mean())) < 4.5 / math.sqrt(n)
        assert abs(float(((a**2 - 1) * (shifted**2 - 1)).mean())) < 4.5 * 2 / math.sqrt(n)


@pytest.mark.parametrize("lag", [1, 2, 64, BLOCK // 2, BLOCK // 2 + 1, BLOCK])
def test_target_neighbours_are_uncorrelated(lag):
    n = 500_000
    x = counter_normal(n, stream_key(9, 0, 1))
    assert abs(float((x[:-lag] * x[lag:]).mean())) < 4.5 / math.sqrt(n)
    assert abs(float(((x[:-lag] ** 2 - 1) * (x[lag:] ** 2 - 1)).mean())) < 4.5 * 2 / math.sqrt(n)


def test_property_pieces_of_a_stream_are_the_stream():
    key = stream_key(5, 5, 5)
    whole = counter_normal(3 * BLOCK + 77, key)
    pieces = [counter_normal(BLOCK, key), counter_normal(2 * BLOCK + 77, key, start=BLOCK)]
    assert torch.equal(whole, torch.cat(pieces))
    with pytest.raises(ValueError, match="multiple of 2048"):
        counter_normal(10, key, start=7)


@pytest.mark.skipif(not native.available(), reason="no C compiler on this machine")
@pytest.mark.parametrize("numel", [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 50_001])
def test_parity_native_numbers_are_the_torch_numbers(numel):
    key = stream_key(-3, 1, 10**9)
    torch.testing.assert_close(
        native.normal_(torch.empty(numel), key), counter_normal(numel, key), rtol=2e-5, atol=3e-6
    )


def test_parity_double_and_single_share_their_uniforms():
    key = stream_key(1, 1, 1)
    double = counter_normal(5000, key, dtype=torch.float64)
    torch.testing.assert_close(double.float(), counter_normal(5000, key), rtol=2e-5, atol=3e-6)


def test_limit_no_numbers():
    assert counter_normal(0, stream_key(0, 0, 0)).shape == (0,)
