"""Small damages of a file, and what a forger makes of it, for `benchmarks.fuzz_readers`."""

from __future__ import annotations

import json
import random
from hashlib import sha256
from typing import Any

NUMBERS = (
    b"0", b"-1", b"1", b"7", b"255", b"2147483648", b"9223372036854775807", b"1e308", b"1" + b"0" * 20, b"NaN", b"null",
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 3, 2**31, 2**63, 1e308, float("nan"), "", "x", "..", "../outside/file", "/etc/passwd", "\0", "F32", [], {},
    [1], [0, 2**40], [-1, -4], {"a": 1}, "I" * 5000,
)  # fmt: skip


def mutate(content: bytes, rng: random.Random, others: list[bytes]) -> bytes | None:
    """One small damage; None: the file is gone."""
    size = len(content)
    at, length = rng.randrange(size + 1), min(size, 1 << rng.randrange(10))
    end = min(size, at + length)
    kind = rng.randrange(14)
    if kind <= 2 and size:
        at = rng.randrange(size)
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 3:
        return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    if kind == 4:
        return content[:at] + rng.randbytes(length) + content[at:]
    if kind == 5:
        return content[:at] + content[end:]
    if kind == 6:
        return content[:at]
    if kind == 7:
        return content[:end] + content[at:end] + content[end:]
    if kind == 8:
        other = rng.randrange(size + 1)
        return content[:at] + content[other : other + end - at] + content[end:]
    if kind == 9:
        return content[:at] + rng.choice([bytes(end - at), b"\xff" * (end - at)]) + content[end:]
    if kind in (10, 11):
        return _number(content, rng)
    if kind == 12:
        name = rng.choice([b"../outside/file", b"/etc/passwd", b'"', b"[" * 2000, b"\xff\xfe", b"{}"])
        return content[:at] + name + content[end:]
    return rng.choice([None, b"", *others])


def _number(content: bytes, rng: random.Random) -> bytes:
    """Another number in the place of one that is written in digits."""
    start = rng.randrange(len(content) + 1)
    begin = next((i for i in range(start, len(content)) if 48 <= content[i] < 58), None)
    if begin is None:
        return content[:start]
    end = begin
    while end < len(content) and 48 <= content[end] < 58:
        end += 1
    return content[:begin] + rng.choice(NUMBERS) + content[end:]


def forge(content: bytes, rng: random.Random) -> bytes | None:
    """A change of JSON or of a safetensors header with its seal written anew; of other files, a damage like any."""
    try:
        if content[:1] in b"{[":
            told = json.loads(content)
            _edit(told, rng)
            if isinstance(told, dict) and "sha256" in told:
                told.pop("sha256")
                text = json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)
                told["sha256"] = sha256(text.encode()).hexdigest()
            return json.dumps(told).encode()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        meta = header.get("__metadata__", {})
        key = next((key for key in ("tree", "estimator", "shards") if key in meta), None)
        if key and rng.random() < 0.7:
            told = json.loads(meta[key])
            _edit(told, rng)
            meta[key] = json.dumps(told)
        else:
            _edit(header, rng)
        return resealed(header, content[8 + length :])
    except (ValueError, TypeError, AttributeError, OverflowError):
        return mutate(content, rng, [])


def resealed(header: Any, data: bytes) -> bytes:
    """A safetensors file of a header, with the seal that belongs to it."""
    blank = "0" * 64
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict) and "sha256" in header["__metadata__"]:
        header["__metadata__"]["sha256"] = blank
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    mark = b'"sha256":"'
    text = text.replace(mark + blank.encode(), mark + sha256(text).hexdigest().encode(), 1)
    return len(text).to_bytes(8, "little") + text + data


def _edit(told: Any, rng: random.Random) -> None:
    """Change one place of nested JSON."""
    places: list[tuple[Any, Any]] = []
    waiting = [told]
    while waiting:
        node = waiting.pop()
        keys: Any = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            waiting.append(node[key])
    if not places:
        return
    node, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.append(node[key])
    elif kind == 2:
        node[key] = rng.choice(JUNK)
    elif isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
        node[key] = node[key] + rng.choice([1, -1, 2**20])
    else:
        node[key] = rng.choice(JUNK)
