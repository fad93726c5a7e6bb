"""Counter-based standard normal noise: any step's noise can be drawn again from (seed, stream, step).

CVAdam needs the noise of the previous step once more (the dual step multiplies it with the gradient). A counter-based
generator (Salmon et al., 2011) draws it twice instead of storing it, so that the state stays at two values per weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 2048
"""Weights per block; within a block the first half takes the cosines and the second the sines of its pairs."""

Key = tuple[int, int, int, int]

_MASK64 = (1 << 64) - 1
_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))


def _splitmix64(state: int) -> int:
    """Return the finaliser of SplitMix64 (Steele, Lea & Flood, 2014) of a 64-bit integer."""
    z = (state + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def stream_key(seed: int, stream: int, step: int) -> Key:
    """Return the four 32-bit key words of one tensor's noise at one step.

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
    state = _splitmix64(_splitmix64(_splitmix64(seed & _MASK64) ^ (stream & _MASK64)) ^ (step & _MASK64))
    first, second = state, _splitmix64(state)
    return first & 0xFFFFFFFF, first >> 32, second & 0xFFFFFFFF, second >> 32


def _signed(word: int) -> int:
    """Return a 32-bit word as the signed integer of the same bits (torch has no full uint32 arithmetic)."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _hash_(x: Tensor, key: Key) -> Tensor:
    """Replace int32 counters by their image under a keyed permutation: three multiply-xorshift rounds, a key word
    before each.
    """
    for (shift, factor), word in zip(_ROUNDS, key):
        x = x.bitwise_xor_(_signed(word)) if shift == 17 else x.add_(_signed(word))
        x ^= (x >> shift) & ((1 << (32 - shift)) - 1)
        x *= _signed(factor)
    x ^= (x >> 14) & ((1 << 18) - 1)
    return x


def _counters(start: int, count: int, device: torch.device | str | None) -> Tensor:
    """Return the 32-bit counters start..start+count-1, wrapped into int32."""
    return torch.arange(start, start + count, dtype=torch.int64, device=device).to(torch.int32)


def _pairs(counter: Tensor, key: Key, dtype: torch.dtype) -> Tensor:
    """Box–Muller: return the cosines and sines of the pairs, shape (..., 2, h)."""
    bits = _hash_(counter, key)
    uniform = ((bits >> 8) & 0xFFFFFF).to(dtype).add_(0.5).mul_(2.0**-24)
    bits += _signed(key[3])  # one more round gives the angle
    bits ^= (bits >> 16) & 0xFFFF
    bits *= 0x7FEB352D
    bits ^= (bits >> 15) & 0x1FFFF
    turn = (bits >> 8).to(dtype).mul_(2.0**-24 * 2 * math.pi)
    radius = uniform.log_().mul_(-2).sqrt_()
    return torch.stack([radius * turn.cos(), radius * turn.sin()], dim=-2)


def counter_normal(
    numel: int,
    key: Key,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return `numel` independent standard normal numbers that depend on the key alone.

    Block b of m numbers holds h = ⌈m/2⌉ Box–Muller pairs. Pair j takes its radius from a keyed permutation of the
    counter 2048·b + j and its angle from one more round of it; number j is its cosine, number h + j its sine.

    Args:
        numel: How many numbers, at most 2³² a key.
        key: Four 32-bit words from `stream_key`.
        start: Number of the first one, a multiple of 2048: a long stream can be drawn in pieces.
        dtype: float32 or float64 (the same 24-bit uniforms, more digits in the logarithm and the cosine).
        device: Where to draw them.

    Returns:
        A tensor of shape (numel,).

    Raises:
        ValueError: `start` is not a multiple of 2048.

    Example:
        >>> a = counter_normal(5, stream_key(0, 0, 1))
        >>> bool(torch.equal(a, counter_normal(5, stream_key(0, 0, 1))))
        True

    Reference:
        Box & Muller (1958); Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    if start % BLOCK:
        raise ValueError(f"start={start} must be a multiple of {BLOCK}, the block of the stream.")
    full, tail = divmod(numel, BLOCK)
    parts = []
    if full:
        counters = _counters(start, full * BLOCK, device).view(full, 2, BLOCK // 2)[:, 0].clone()
        parts.append(_pairs(counters, key, dtype).reshape(-1))
    if tail:
        counters = _counters(start + full * BLOCK, (tail + 1) // 2, device)
        parts.append(_pairs(counters, key, dtype).reshape(-1)[:tail])
    return torch.cat(parts) if parts else torch.empty(0, dtype=dtype, device=device)
