"""What a pruner will do, in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plan(pruner: Any) -> str:
    """A pruner's groups, target, ramp, period, prior and exclusions, as its ``repr`` prints them.

    Args:
        pruner: A :class:`~bayesprune.sparsity.Pruner`.

    Returns:
        A few lines of text.
    """
    groups, rule = pruner.groups, pruner._rule
    count = sum(each.count for each in groups)
    lines = [
        f"groups: {count:,} of kind {groups.kind!r} in {len(groups)} sets, over {groups.total:,} prunable weights",
        f"target: {_target(pruner)}",
        f"update: every {pruner.every} steps; step {pruner.step_count} now, sparsity {pruner.hard_sparsity:.4f}",
        f"ranked: {_ranking(pruner, rule)}",
    ]
    if pruner.prior is None:
        lines.append("prior: none")
    else:
        spikes, slabs = {each.spike_decay for each in pruner.priors}, {each.slab_decay for each in pruner.priors}
        lines.append(f"prior: spike and slab, weight decay {_range(spikes)} and {_range(slabs)}")
    lines.append(f"left dense: {_dense(groups.excluded)}")
    form = f"form={pruner.form!r}" if hasattr(pruner, "form") else ""
    return f"{type(pruner).__name__}({form}\n  " + "\n  ".join(lines) + "\n)"


def _target(pruner: Any) -> str:
    if pruner.target_sparsity is not None:
        return f"sparsity {pruner.target_sparsity:.4g} {pruner.ramp}"
    if pruner.hard_threshold is not None:
        return f"what is below hard_threshold={pruner.hard_threshold:g}, from step {pruner.ramp.begin} on"
    return f"none: EM alone, from step {pruner.ramp.begin} on"


def _ranking(pruner: Any, rule: Any) -> str:
    name = getattr(pruner.criterion, "__name__", type(pruner.criterion).__name__)
    text = f"by {name if callable(pruner.criterion) else pruner.criterion}"
    if pruner.target_sparsity is None:
        return text
    if hasattr(pruner, "distribution"):
        return f"{text}, {pruner.distribution} over layers"
    text += {
        "global": ", all together",
        "layer": ", the same share of every set",
        "chain": ", in every chain alone",
    }[rule.scope]
    if rule.scope == "layer" and pruner.groups.kind == "channel":
        text += {None: ", multiples of 8 where widths allow", 1: ""}.get(
            rule.round_to, f", multiples of {rule.round_to}"
        )
    return text


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _dense(excluded: Sequence[Any], shown: int = 8) -> str:
    named = [f"{each.name} ({each.reason})" for each in excluded]
    rest = [f"and {len(named) - shown} more, see describe()"] if len(named) > shown else []
    return "; ".join([*named[:shown], *rest]) or "nothing"
