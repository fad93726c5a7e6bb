"""Counter-based standard normal noise: number i of any step's stream can be drawn again from (seed, stream, step) alone.

The paper's dual step needs the noise of the previous step once more. A counter-based generator (Salmon et al., 2011)
draws it twice instead of storing it, so that the state stays at two values per weight, and a shard draws its part.

The law, which native.c and triton.py repeat in their languages: numbers 2j and 2j+1 of key (k₀, k₁, k₂, k₃) are the
cosine and the sine of one Box–Muller pair. In 32-bit arithmetic, >> logical and ⋙ with the sign,

    x = M₀j + k₀,  x ^= x >> 17,  x = M₁x + k₁,  x ^= x >> 11,  x = M₂x + k₂,  z = x ^ (x ⋙ 14),  y = M₃z + k₃,

the radius is √(−2 ln u) with u = (1 + ⌊z / 2⁷⌋) / 2²⁴ and the angle 2π·y / 2³²: z is uniform on [0, 2³¹), and (z, y) walks
a lattice of good spectral quality.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Key = tuple[int, int, int, int]

_MASK64 = (1 << 64) - 1
FACTORS = (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB, 0xADB4A92D)
"""M₀, M₁ and M₂, which mix (the constants of "triple32", Wellons 2018), and M₃ (Steele & Vigna, 2022)."""


def _splitmix64(state: int) -> int:
    """Return the finaliser of SplitMix64 (Steele, Lea & Flood, 2014) of a 64-bit integer."""
    z = (state + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


@functools.lru_cache(maxsize=512)
def _stream_state(seed: int, stream: int) -> int:
    """Return what a stream's keys have in common at all steps."""
    return _splitmix64(_splitmix64(seed & _MASK64) ^ (stream & _MASK64))


def stream_key(seed: int, stream: int, step: int) -> Key:
    """Return the four unsigned 32-bit key words of one tensor's noise at one step.

    Args:
        seed: The optimizer's seed, any integer.
        stream: The parameter's ordinal within the optimizer.
        step: The step's number, 1 for the first.

    Returns:
        Four unsigned 32-bit integers.

    Example:
        >>> stream_key(0, 0, 1) != stream_key(0, 1, 1)
        True
    """
    first = _splitmix64(_stream_state(seed, stream) ^ (step & _MASK64))
    second = _splitmix64(first)
    return first & 0xFFFFFFFF, first >> 32, second & 0xFFFFFFFF, second >> 32


def signed(word: int) -> int:
    """Return a 32-bit word as the signed integer of the same bits (torch has no full uint32 arithmetic)."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def counters(start: int, count: int, device: torch.device | str | None = None) -> Tensor:
    """Return the 32-bit counters start..start+count-1, wrapped into int32."""
    return torch.arange(start, start + count, dtype=torch.int64, device=device).to(torch.int32)


@functools.lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number as a tensor without dimensions, which gives integers beside it its type."""
    return torch.full((), value, dtype=dtype, device=device)


def _mixed(counter: Tensor, words: Sequence[Tensor]) -> Tensor:
    """Return the counters' image x under the keyed hash (three words)."""
    x = torch.add(words[0], counter, alpha=signed(FACTORS[0]))
    x ^= (x >> 17) & 0x7FFF
    x = torch.add(words[1], x, alpha=signed(FACTORS[1]))
    x ^= (x >> 11) & 0x1FFFFF
    return torch.add(words[2], x, alpha=signed(FACTORS[2]))


def normal_pairs(counter: Tensor, words: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the numbers of the pairs `counter` (int32, flat), two a pair, in nineteen calls of torch."""
    z = _mixed(counter, words)
    z ^= z >> 14
    y = torch.add(words[3], z, alpha=signed(FACTORS[3]))
    uniform = torch.add(_constant(2.0**-24, dtype, z.device), z >> 7, alpha=2.0**-24)
    radius = torch.special.xlogy(-2, uniform).sqrt_()
    angle = y * _constant(2 * math.pi * 2.0**-32, dtype, z.device)
    return torch.polar(radius, angle).view(dtype)


def key_words(keys: Sequence[Key], device: torch.device | str | None) -> Tensor:
    """Return key words as an int32 tensor of shape (keys, 4)."""
    return torch.from_numpy(np.array(keys, dtype=np.uint32).view(np.int32)).to(device)


def check_span(start: int, numel: int) -> None:
    """Refuse numbers beyond the 2³³ that a key has."""
    if start < 0 or start + numel > 1 << 33:
        raise ValueError(
            f"start={start}, numel={numel}: a stream has the numbers 0 to 2**33 - 1; split it over streams."
        )


def counter_normal(
    numel: int,
    key: Key,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return numbers start..start+numel-1 of a stream of independent standard normal numbers.

    Number i depends on the key and on i alone, so that any piece of a stream can be drawn by itself.

    Args:
        numel: How many numbers.
        key: Four 32-bit words from `stream_key`; a key has 2³³ numbers.
        start: Number of the first one, any integer from 0.
        dtype: float32 or float64 (the same uniforms, more digits in the logarithm and the cosine).
        device: Where to draw them.

    Returns:
        A tensor of shape (numel,).

    Raises:
        ValueError: The numbers asked for end beyond 2³³.

    Example:
        >>> key = stream_key(0, 0, 1)
        >>> bool(torch.equal(counter_normal(5, key)[2:], counter_normal(3, key, start=2)))
        True

    Reference:
        Box & Muller (1958); Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    check_span(start, numel)
    first, last = start // 2, (start + numel + 1) // 2
    words = key_words([key], device)[0].unbind()
    return normal_pairs(counters(first, last - first, device), words, dtype)[start % 2 :][:numel]


def counter_bits(
    numel: int, key: Key, *, start: int = 0, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Return two independent 16-bit integers (int32) a number of a stream, for stochastic rounding."""
    x = _mixed(counters(start, numel, device), key_words([key], device)[0, 1:].unbind())
    high = (x >> 16) & 0xFFFF
    return (x ^ high) & 0xFFFF, high


def round_bfloat16(value: Tensor, bits: Tensor) -> Tensor:
    """Round float32 to bfloat16 stochastically: up with the probability of the distance, `bits` uniform in [0, 2¹⁶)."""
    rounded = ((value.view(torch.int32) + bits) & signed(0xFFFF0000)).view(torch.float32)
    return torch.where(value.isfinite(), rounded, value).to(torch.bfloat16)
