"""Argument checks whose messages name the argument, the value and the mend."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any


def check_number(name: str, value: Any, *, minimum: float, strict: bool = False, below: float | None = None) -> float:
    """Return `value` as a float if it is finite and in range, else raise ValueError."""
    try:
        number = float("" if isinstance(value, str) else value)  # texts would be refused later, without a name
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} is not a number; give a float.") from None
    low = number > minimum if strict else number >= minimum
    if not (math.isfinite(number) and low and (below is None or number < below)):
        bound = f"{'above' if strict else 'at least'} {minimum:g}" + (
            f" and below {below:g}" if below is not None else ""
        )
        raise ValueError(f"{name}={value!r} is out of range; it must be finite, {bound}.")
    return number


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError, naming the nearest valid choice, unless `value` is one of `choices`."""
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")
