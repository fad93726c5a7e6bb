"""When a pruner prunes and how much: fractions of the clock or steps, and the settings' checks."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from bayesprune.samplers import CycleClock
from bayesprune.sparsity.criteria import cubic_ramp

Scope = Literal["layer", "global", "chain"]
CRITERIA = ("magnitude", "concentration")


@dataclass(frozen=True)
class Ramp:
    """Steps t₀ = ``begin``, up to which nothing is pruned, and t₁ = ``end``, at which a cubic ramp reaches the target."""

    begin: int
    end: int | None

    def target(self, step: int, final: float) -> float:
        """The sparsity asked for at a step."""
        if self.end is None:
            return final if step > self.begin else 0.0
        return cubic_ramp(step, self.begin, self.end, final)

    def due(self, step: int, every: int) -> bool:
        """Whether the masks are renewed after so many steps: every ``every`` after ``begin``, and always at ``end``."""
        return step > self.begin and ((step - self.begin) % every == 0 or step == self.end)

    def __str__(self) -> str:
        if self.end is None:
            return f"at once after step {self.begin}"
        return f"on a cubic ramp from step {self.begin} to step {self.end}"


def ramp_of(
    sparsity: float | None,
    clock: CycleClock | None,
    prune_from: float,
    prune_until: float,
    warmup_steps: int | None,
    ramp_end_step: int | None,
) -> Ramp:
    """The ramp that a clock's fractions, or steps where they are given, ask for."""
    check(
        0 <= prune_from <= prune_until <= 1,
        f"prune_from={prune_from} and prune_until={prune_until} must lie in this order between 0 and 1",
    )
    if sparsity is None:
        check(ramp_end_step is None, f"ramp_end_step={ramp_end_step} needs a sparsity to ramp to")
    elif clock is None and warmup_steps is None and ramp_end_step is None:
        raise ValueError(
            f"sparsity={sparsity} without a time to reach it would set that share of the weights to zero at the first step; "
            "give clock=CycleClock(total_steps=...), of which prune_from and prune_until are fractions, or steps: "
            "warmup_steps=..., ramp_end_step=..."
        )
    begin = warmup_steps
    if begin is None:
        begin = 0 if clock is None else int(prune_from * clock.total_steps)
    check(begin >= 0, f"warmup_steps={begin} must not be negative")
    end = ramp_end_step
    if end is None and clock is not None and sparsity is not None:
        end = max(int(prune_until * clock.total_steps), begin + 1)
    check(end is None or end >= begin, f"ramp_end_step={end} is before warmup_steps={begin}")
    return Ramp(begin, end)


def renamed(old: str, new: str, value: Any, present: Any) -> Any:
    """The value of an argument that may still be given under its old name, with a warning that says the new one."""
    if value is None:
        return present
    check(present is None, f"{old} is the old name of {new}; give {new} alone")
    warnings.warn(f"{old} is now called {new}; the old name goes with the next version", DeprecationWarning, outside())
    return value


def criterion_of(criterion: Any, rule: str | None) -> Any:
    """The criterion: a callable or one of ``CRITERIA``, given as such or as the old ``rule``."""
    found = renamed("rule", "criterion", rule, criterion)
    if found == "l2":
        warnings.warn(
            "criterion='l2' is 'magnitude', the group's mean squared weight; the second name goes with the next version",
            DeprecationWarning, outside(),
        )  # fmt: skip
        found = "magnitude"
    found = "magnitude" if found is None else found
    check(
        callable(found) or found in CRITERIA,
        f"criterion={found!r} is unknown; choose one of {', '.join(map(repr, CRITERIA))}, or give a callable of "
        "(groups, optimizer) that returns one tensor of statistics per groups object",
    )
    return found


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse those of a pruner's arguments that are out of range or contradict each other, by name."""
    sparsity, hard = settings["sparsity"], settings["hard_threshold"]
    groups, scope, round_to = settings["groups"], settings["scope"], settings["round_to"]
    for name, choices in (
        ("expectation", ("current", "running")),
        ("reading", ("signed", "absolute")),
        ("scope", ("layer", "global", "chain")),
        ("prior", ("spike_slab", None)),
    ):
        check(settings[name] in choices, f"{name}={settings[name]!r} must be one of {', '.join(map(repr, choices))}")
    check(0 <= settings["momentum"] < 1, f"momentum={settings['momentum']} must lie in [0, 1)")
    check(scope != "chain" or groups == "input", f"scope='chain' ranks inputs, not groups={groups!r}; use 'input'")
    check(round_to is None or round_to >= 1, f"round_to={round_to} must be at least 1")
    check(
        round_to in (None, 1) or ((groups in (None, "channel") or callable(groups)) and scope == "layer"),
        f"round_to={round_to} needs groups='channel' and scope='layer', which keep whole multiples of channels",
    )
    check(settings["every"] >= 1, f"every={settings['every']} must be at least 1 (optimizer steps between updates)")
    check(settings["min_groups"] >= 0, f"min_groups={settings['min_groups']} must not be negative")
    check(sparsity is None or 0 <= sparsity < 1, f"sparsity={sparsity} must lie in [0, 1)")
    check(hard is None or hard >= 0, f"hard_threshold={hard} must not be negative")
    check(sparsity is None or hard is None, "hard_threshold and sparsity exclude each other; give one")
    aimed = sparsity is not None or hard is not None
    check(
        aimed or settings["em_only"],
        "nothing would be pruned: give sparsity=0.9 (a share of the weights to be zero) or hard_threshold=...; "
        "em_only=True is for the spike-and-slab prior alone, without zeros",
    )
    check(
        not (aimed and settings["em_only"]), "em_only=True prunes nothing: leave out sparsity and hard_threshold, or it"
    )
    own = ("spike_decay", "slab_decay", "soft_threshold", "inclusion_probability")
    prior = [name for name in own if settings[name] is not None]
    check(
        settings["prior"] is not None or not (prior or settings["em_only"]),
        f"prior=None has no spike and no slab; leave out {(prior or ['em_only'])[0]}, or take prior='spike_slab'",
    )
    check(
        settings["soft_threshold"] is None or settings["inclusion_probability"] is None,
        "soft_threshold and inclusion_probability are two names of one choice; give one",
    )
    if settings["criterion"] == "concentration":
        allowed = ("input", "output") if sparsity is not None else ("kernel", "input", "output")
        check(
            groups in allowed,
            f"criterion='concentration' with sparsity={sparsity} needs groups in {allowed}, not {groups!r}; use them, or "
            "criterion='magnitude'",
        )


def outside() -> int:
    """The stack level of the first caller outside the library: a warning names the user's own line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("bayesprune."):
        level, frame = level + 1, frame.f_back
    return level


def check(condition: bool, message: str) -> None:
    """Raise a ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
