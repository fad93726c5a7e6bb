"""One page about a selection of inputs: which, how sure, what they do, and how well they predict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bayesprune.common.files import write_bytes
from bayesprune.report.diagrams import reliability_diagram
from bayesprune.report.load import Run
from bayesprune.report.page import Drawn, Figures, flatten, render
from bayesprune.report.selection_figures import (
    inclusion_bars,
    inclusion_paths,
    inclusion_scatter,
    loss_by_number,
    training_loss,
)
from bayesprune.report.selection_scores import (
    interval_calibration,
    partial_dependence,
    predicted_against_observed,
    roc_curves,
)
from bayesprune.report.selection_table import ORDER, table_rows
from bayesprune.report.table import shown

PANELS = 12  # of partial dependence
APART = 0.5  # between chains: they disagree


def write_selection_report(result: dict[str, Any], path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write one self-contained HTML page about a selection of inputs.

    It holds the table of selected inputs, the inclusion probabilities of all, their paths over training with the
    threshold, the partial dependence of the prediction with credible bands, and the predictions of held-out rows with
    their calibration. The same result gives the same bytes.

    Args:
        result: the content of the result.json that `bayesprune select` writes.
        path: the file to write; it is replaced at once, never half.
        title: heading of the page; the default names the target.

    Returns:
        The path.

    Raises:
        ValueError: `result` is not of a selection.
        ImportError: Matplotlib is missing.

    Example:
        >>> write_selection_report({"recipe": "digits"}, "report.html")
        Traceback (most recent call last):
            ...
        ValueError: result: expected the result.json of `bayesprune select`, with "target", "data", "inputs", "held_out"
    """
    if any(key not in result for key in ("target", "data", "inputs", "held_out")):
        raise ValueError(
            'result: expected the result.json of `bayesprune select`, with "target", "data", "inputs", "held_out"'
        )
    return write_bytes(path, _page(result, title).encode("utf-8"))


def _page(result: dict[str, Any], title: str | None) -> str:
    figure, target, data = Figures(), result["target"], result["data"]
    selected = result.get("selected") or []
    subtitle = (
        f"{data['source']} · {target['task']} ({target['why']}) · {data['rows']:,} rows · {data['inputs']:,} inputs"
    )
    links = [("selected", "Selected inputs"), ("probabilities", "Evidence"), ("effects", "Effects")]
    links += [("held-out", "Held-out rows"), ("details", "Details")]
    curves = result.get("curves") or []
    more = f" The first {PANELS} of {len(selected)} selected inputs." if len(selected) > PANELS else ""
    band = "credible band: 90 % of the posterior members" if curves and curves[0]["lower"] else "no members, so no band"
    effects = figure(
        lambda: partial_dependence(result, PANELS),
        "Partial dependence",
        f"Mean prediction over the rows as one input varies ({band}); ticks: deciles of the input. A flat curve with a large "
        f"effect in the table means that the input acts through others.{more}",
        wide=True,
    )
    scores = [(name, shown(value)) for name, value in result["held_out"].items() if isinstance(value, (int, float))]
    dropped = [(str(name), str(reason)) for name, reason in result.get("dropped") or []]
    loss = figure(lambda: training_loss(result), "Training loss", "Every chain's loss on the training rows.")
    return render(
        "selection.html",
        title=title or f"Inputs that matter for {target['name']}",
        subtitle=subtitle,
        links=links,
        tiles=_tiles(result),
        faults=[("", note) for note in result.get("notes") or []],
        selected=_selected(result),
        clusters=_clusters(result),
        interactions=[
            (
                " × ".join(map(str, pair["inputs"])),
                f"{pair['strength']:.3g} ({_share(pair['share'])} of the prediction's spread)",
            )
            for pair in result.get("interactions") or []
        ],
        on_variance=[(one["input"], f"p-value {one['p_value']:.2g}") for one in result.get("on_variance") or []],
        probabilities=_probability_figures(result, figure),
        effects=[effects],
        scores=scores,
        held_out=_score_figures(result, figure),
        details=[loss],
        tables=[
            (f"Columns that are not used ({len(dropped)})", dropped, "dropped"),
            *(
                (name.capitalize(), flatten(result.get(name) or {}), name)
                for name in ("prior", "settings", "environment")
            ),
        ],
    )


def _tiles(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    data, scores = result["data"], result["held_out"]
    selected = result.get("selected") or []
    apart = sum((row.get("chain_max") or 0) - (row.get("chain_min") or 0) > APART for row in selected)
    expected = result.get("expected_false")
    if apart:
        note = f"the chains disagree on {apart} of them: read the chains before the probability"
    else:
        note = "" if expected is None else f"expected false ones among them: {expected:.2g}"
    tiles = [("Selected", f"{len(selected):,} of {data['inputs']:,}", note)]
    if result["target"]["task"] == "regression":
        error = f"± {_share(scores.get('coverage_error'))} (standard error)"
        constant = f"without inputs: {shown(scores.get('rmse_constant'))}"
        tiles += [
            ("Root mean squared error", shown(scores.get("rmse")), constant),
            ("Explained variance", _share(scores.get("r2")), "of held-out rows"),
            ("90 % intervals cover", _share(scores.get("coverage")), error),
        ]
    else:
        tiles += [
            ("Accuracy", _share(scores.get("accuracy")), f"without inputs: {_share(scores.get('accuracy_constant'))}"),
            ("Log loss", shown(scores.get("nll")), f"without inputs: {shown(scores.get('nll_constant'))}"),
            ("Calibration error", shown(scores.get("ece")), "ECE, 15 bins"),
        ]
    return [*tiles, ("Held-out rows", f"{data['rows_held_out']:,}", f"trained on {data['rows_train']:,}")]


def _selected(result: dict[str, Any]) -> dict[str, Any]:
    unit = "in units of the response" if result["target"]["task"] == "regression" else "as a probability"
    legend = (
        "Chains: the least and the greatest probability on a single chain's rows; where they lie apart, chains disagree. "
        "Evidence: how much likelier the input's test is if the target depends on it given all others than if it does not, as a "
        "logarithm (nats). Probability: that it does. q-value: false-discovery rate of the smallest selection that holds the "
        f"input. Effect: standard deviation of the prediction due to this input, {unit}; alone: the part that does not depend "
        "on other inputs."
    )
    said = (result.get("fallback") or {}).get("sentence") or "No input is selected."
    return {"heads": list(ORDER), "rows": table_rows(result.get("selected") or []), "legend": legend, "said": said}


def _clusters(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The findings about inputs that can stand for each other, with the members' shares."""
    return [
        (
            ", ".join(f"{name} ({_share(share)})" for name, share in zip(one["inputs"], one["shares"])),
            f"p-value {one['p_value']:.2g}, q-value {one['q_value']:.2g}",
        )
        for one in result.get("clusters") or []
        if len(one["inputs"]) > 1
    ]


def _probability_figures(result: dict[str, Any], figure: Figures) -> list[Drawn]:
    drawn = [
        figure(
            lambda: inclusion_bars(result),
            "Inclusion probabilities",
            "The likeliest inputs. Where the chains' dots lie apart, the chains disagree: do not trust the mean alone. No evidence: the "
            "input was no candidate; its probability is the prior's.",
        ),
        figure(
            lambda: inclusion_scatter(result), "All inputs", "Every input that was tested, in the order of the columns."
        ),
        figure(
            lambda: inclusion_paths(result),
            "Paths over training",
            "Mean inclusion probability over the chains, epoch by epoch, with the threshold in force.",
            wide=True,
        ),
    ]
    if (result.get("history") or {}).get("numbers"):
        drawn.append(
            figure(
                lambda: loss_by_number(result),
                "How many inputs",
                "Loss on rows that a chain has not seen, by the number of its strongest inputs; dashed: the number taken.",
            )
        )
    return drawn


def _score_figures(result: dict[str, Any], figure: Figures) -> list[Drawn]:
    if result["target"]["task"] == "regression":
        return [
            figure(
                lambda: predicted_against_observed(result),
                "Predicted against observed",
                "A point on the dashed line is predicted exactly; nine in ten should lie inside their interval.",
            ),
            figure(
                lambda: interval_calibration(result),
                "Calibration of intervals",
                "Share of held-out rows inside intervals of each nominal level. Above the line: too wide; below: too narrow.",
            ),
        ]
    scores = {**result["held_out"], "num_samples": (result.get("model") or {}).get("members")}
    run = Run(Path("selection"), {}, result=scores)
    return [
        figure(
            lambda: roc_curves(result), "ROC", "True against false positives as the threshold on the probability moves."
        ),
        figure(
            lambda: reliability_diagram(run),
            "Calibration",
            "Accuracy of rows in each bin of confidence, and its gap to their mean confidence; ECE is the mean gap.",
        ),
    ]


def _share(value: Any) -> str:
    return shown(value, ".1%")
