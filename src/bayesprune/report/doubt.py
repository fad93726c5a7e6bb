"""Where runs doubt: risk and coverage, the most doubtful images, inputs of another kind."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesprune.report.load import Run, run_labels
from bayesprune.report.style import INK, SERIES, NothingToDraw, legend_below, look, one_panel, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def risk_of(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """Coverage and risk of a run: of every input where its predictions were kept, else at the edges of its reliability bins."""
    kept = run.predictions()
    if kept is not None:
        order = np.argsort(kept["total"], kind="stable")
        wrong = (kept["classes"] != kept["labels"])[order]
        count = np.arange(1, len(wrong) + 1)
        return count / len(wrong), np.cumsum(wrong) / count
    rows = [row for row in (run.result or {}).get("reliability") or [] if row.get("count")]
    if not rows:
        return None
    rows = rows[::-1]  # the surest bin first
    count = np.cumsum([row["count"] for row in rows])
    wrong = np.cumsum([row["count"] * (1 - row["accuracy"]) for row in rows])
    return count / count[-1], wrong / count


def risk_curves(runs: Sequence[Run]) -> Figure:
    """Share of errors among the surest inputs, by the share kept."""
    found = [(i, label, curve) for i, (run, label) in enumerate(zip(runs, run_labels(runs))) if (curve := risk_of(run))]
    if not found:
        raise NothingToDraw("no run has predictions" if any(run.finished for run in runs) else "no run is finished")
    figure, axes = one_panel(4.4, 3.0)
    handles: list[Any] = []
    words = []
    for index, label, (coverage, risk) in found:
        marker = "o" if len(coverage) <= 20 else None
        handles += axes.plot(100 * coverage, 100 * risk, **look(index), linewidth=1.6, marker=marker, markersize=3.5)
        half = risk[min(int(np.searchsorted(coverage, 0.5)), len(risk) - 1)]
        words.append(f"{label}: {100 * risk[-1]:.2f}% errors of all, {100 * half:.2f}% among the surest half")
    axes.set_xlim(0, 101)
    axes.set_ylim(bottom=0)
    style_axes(axes, x="inputs kept (%)", y="errors among them (%)", title="Risk and coverage")
    legend_below(figure, handles, [label for _, label, _ in found])
    figure.set_label("Risk by coverage. " + "; ".join(words) + ".")
    return figure


def other_data(runs: Sequence[Run]) -> Figure:
    """Histograms of the prediction's entropy on test inputs and on inputs of another kind."""
    for run, label in zip(runs, run_labels(runs)):
        kept = run.predictions()
        if kept is None or "other_total" not in kept:
            continue
        inside, outside = kept["total"], kept["other_total"]
        edges = np.linspace(0, max(float(inside.max()), float(outside.max()), 1e-9), 31)
        figure, axes = one_panel(4.4, 3.0)
        bars: list[Any] = []
        for values, color in ((inside, SERIES[0]), (outside, SERIES[1])):
            shares = np.histogram(values, edges)[0] / len(values) * 100
            bars.append(axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=color, alpha=0.6))
        style_axes(axes, x="entropy of the prediction (nats)", y="inputs (%)", title="Other data")
        ranks = np.searchsorted(np.sort(inside), outside, "left"), np.searchsorted(np.sort(inside), outside, "right")
        auroc = float((ranks[0] + ranks[1]).mean() / 2 / len(inside))
        axes.set_title(f"AUROC {auroc:.3f}", loc="right", color=INK, fontsize=8.5)
        legend_below(figure, bars, ["test inputs", "other inputs"])
        figure.set_label(
            f"Entropy on {len(inside):,} test inputs and {len(outside):,} others of {label}; AUROC {auroc:.3f}."
        )
        return figure
    raise NothingToDraw("no run was evaluated on inputs of another kind")


def doubtful_images(run: Run) -> list[dict[str, Any]]:
    """The images that a run doubts most, as the templates take them; nothing where they were not kept."""
    kept = run.predictions()
    if kept is None or "images" not in kept:
        return []
    names = [str(name) for name in (run.result or {}).get("classes") or []]

    def named(index: int) -> str:
        return names[index] if index < len(names) else str(index)

    found = []
    for place, number in enumerate(kept["shown"].tolist()):
        said, is_ = int(kept["classes"][number]), int(kept["labels"][number])
        found.append(
            {
                "number": number,
                "data": _png(kept["images"][place]),
                "wrong": said != is_,
                "said": named(said) + ("" if said == is_ else f", is {named(is_)}"),
                "note": f"total {kept['total'][number]:.2f}, epistemic {kept['epistemic'][number]:.2f}",
            }
        )
    return found


def _png(image: np.ndarray) -> str:
    """An image (channels, height, width) of uint8 as a data address."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    pixels = image.transpose(1, 2, 0)
    imsave(stream, pixels[..., 0] if pixels.shape[2] == 1 else pixels, format="png", cmap="gray", vmin=0, vmax=255)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
