"""The demo's table and what it says in words, from metrics.json."""

from __future__ import annotations

from typing import Any

NAMES = {"dense": "SGD, dense", "network": "pruned, compact", "ensemble": "pruned, compact, {members} members"}
HEAD = ("", "accuracy %", "NLL", "letters: AUROC", "MB", "ms, batch 1", "ms, batch 64")


def cells(metrics: dict[str, Any]) -> list[list[str]]:
    """The table's rows, the first of them its head."""
    rows = [list(HEAD)]
    for name, row in metrics["models"].items():
        rows.append(
            [
                NAMES[name].format(members=row["members"]), _with_interval(row["accuracy"], 2, 100),
                _with_interval(row["nll"], 3), _with_interval(row["auroc"], 3), f"{row['bytes'] / 1e6:.3f}",
                *(f"{row['latency'][batch]['ms']:.2f}" for batch in ("1", "64")),
            ]
        )  # fmt: skip
    return rows


def words(metrics: dict[str, Any]) -> list[str]:
    """What the figures amount to, each model beside the one dense network."""
    models, lines = metrics["models"], []
    for name in ("ensemble", "network"):
        row = models[name]
        who = f"All {row['members']} members together" if name == "ensemble" else "The last pruned network alone"
        points, low, high = (100 * value for value in row["difference"])
        speed = {batch: row["latency"][batch]["speed"] for batch in ("64", "1")}
        lines.append(
            f"{who}: {points:+.2f} points of accuracy ({low:+.2f} to {high:+.2f}), {row['bytes'] / models['dense']['bytes']:.1%} "
            f"of the bytes, {_times(speed['64'])} the speed at batch 64, {_times(speed['1'])} at batch 1, beside one dense network."
        )
    return lines


def note(metrics: dict[str, Any]) -> str:
    """How it was measured."""
    environment, temperature = metrics["environment"], metrics["temperature"]
    dense, compact = (metrics["models"][name]["parameters"] for name in ("dense", "network"))
    return (
        f"{metrics['test_images']:,} digits, each tested once in {metrics['folds']} folds, and {metrics['letters']} drawn "
        f"letters; 95 % bootstrap intervals. {metrics['epochs']} epochs each; temperature {temperature['set']:g} set, "
        f"{temperature['measured']:.2g} measured; {dense:,} parameters dense, {compact:,} compact. Milliseconds: the best of "
        "many, in turns, one thread, BatchNorm folded in all; of their ratios, least and greatest of ten blocks. "
        f"{environment['cpu']}, {environment['cores']} cores, torch {environment['torch']}; {metrics['processor_seconds']:.0f} "
        f"processor seconds in all, {metrics['seconds']:.0f} by the clock."
    )


def text(metrics: dict[str, Any]) -> str:
    """The table for a terminal, and what it says."""
    rows = cells(metrics)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]
    return "\n".join(
        [lines[0], "  ".join("-" * width for width in widths), *lines[1:], "", *words(metrics), "", note(metrics)]
    )


def markdown(metrics: dict[str, Any]) -> str:
    """The same for a page."""
    rows = ["| " + " | ".join(row) + " |" for row in cells(metrics)]
    return "\n".join(
        [rows[0], "|" + "---|" * len(HEAD), *rows[1:], "", *(f"- {line}" for line in words(metrics)), "", note(metrics)]
    )


def _with_interval(value: list[float], digits: int, factor: float = 1.0) -> str:
    middle, low, high = (f"{factor * each:.{digits}f}" for each in value)
    return f"{middle} ({low} to {high})"


def _times(speed: list[float]) -> str:
    return f"{speed[0]:.1f} × ({speed[1]:.1f} to {speed[2]:.1f})"
