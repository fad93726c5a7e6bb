"""Values from text, with messages that name the nearest valid one."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterable
from typing import Any

Span = float | str
"""A stretch of a run: a number in the key's own unit, a share of the run ("10%"), or epochs ("6ep")."""


def in_epochs(value: Span, epochs: int) -> float:
    """Return a span whose own unit is the epoch, in epochs."""
    if not isinstance(value, str):
        return value
    return float(value[:-2]) if value.endswith("ep") else float(value[:-1]) * epochs / 100


def in_shares(value: Span, epochs: int) -> float:
    """Return a span whose own unit is the run, as a share of it."""
    return in_epochs(value, epochs) / epochs if isinstance(value, str) else value


def _span(name: str, value: Any) -> Span:
    """Return a span from text: "10%" and "6 ep" stay text, in one spelling."""
    text = str(value).strip().lower()
    for ending, unit in (("%", "%"), ("epochs", "ep"), ("epoch", "ep"), ("ep", "ep")):
        if text.endswith(ending):
            number = convert(name, text.removesuffix(ending).strip(), float)
            if number < 0 or (unit == "%" and number > 100):
                raise ValueError(
                    f"{name}={value!r} is out of range; write 0% to 100% of the run, or so many epochs (3ep)."
                )
            return f"{number:g}{unit}"
    return convert(name, value, float)


def nearest(value: str, choices: Iterable[str]) -> str:
    """Return what is known, and first the nearest to `value`."""
    choices = list(choices)
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(choices)}."


def convert(name: str, value: Any, kind: Any) -> Any:
    """Return a text or JSON value as the field's type; none or null is None where the type has it."""
    if type(None) in typing.get_args(kind):
        if value is None or str(value).lower() in ("none", "null"):
            return None
        kind = typing.Union[tuple(part for part in typing.get_args(kind) if part is not type(None))]  # noqa: UP007
    if kind == Span:
        return _span(name, value)
    if typing.get_origin(kind) is tuple:
        parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
        return tuple(str(part) for part in parts)
    if kind is str:
        return str(value)
    if kind is bool:
        if isinstance(value, bool):
            return value
        lowered = str(value).lower()
        if lowered in ("true", "1", "yes", "on"):
            return True
        if lowered in ("false", "0", "no", "off"):
            return False
        raise ValueError(f"{name}={value!r} is not a truth value; write true or false.")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={value!r} is not a number; write for example {name}={'3' if kind is int else '0.5'}."
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r} is not finite; write a finite value.")
    if kind is int and number != int(number):
        raise ValueError(f"{name}={value!r} is not a whole number; write for example {name}={round(number)}.")
    return kind(number)
