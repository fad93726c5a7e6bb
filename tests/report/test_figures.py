from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bayesprune.report import (
    NothingToDraw,
    accuracy_curves,
    layer_sparsity,
    learning_rate,
    load_run,
    member_accuracies,
    reliability_diagram,
    sample_paths,
    save_png,
    sparsity_curves,
)
from bayesprune.report.findings import comparison, size_accuracy, wilson
from bayesprune.report.style import INK, SERIES, THEME, figure_to_svg, literal, new_figure


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_property_accuracy_is_that_of_the_history(make_run):
    run = load_run(make_run(traced=False))
    axes = accuracy_curves([run]).axes[0]
    curves = [line.get_ydata() for line in axes.lines]
    assert any(np.allclose(curve, 100 * run.column("accuracy")) for curve in curves if len(curve) == 18)
    assert any(np.allclose(curve, [97.0]) for curve in curves if len(curve) == 1)
    assert axes.lines[0].get_xdata().tolist() == list(range(1, 19))
    assert axes.get_ylabel() == "test accuracy (%)"


def test_property_one_colour_and_label_a_run(make_run):
    runs = [load_run(make_run(f"run{i}", traced=False, finished=i % 2 == 0)) for i in range(10)]
    figure = accuracy_curves(runs)
    assert texts(figure) == [f"run{i}" for i in range(10)]
    looks = {(line.get_color(), str(line.get_linestyle())) for line in figure.legends[0].get_lines()}
    assert len(looks) == 10
    assert "run1 is unfinished" in figure.get_label() and "run0 ends at 97.00% averaged" in figure.get_label()


def test_property_sparsity_panels(make_run):
    dense = load_run(make_run("dense", pruned=False, traced=False))
    run = load_run(make_run("sparse", traced=False))
    figure = sparsity_curves([dense, run])
    soft, hard = figure.axes
    assert texts(figure) == ["sparse"]
    assert np.allclose(soft.lines[0].get_ydata(), 100 * run.column("soft_sparsity"))
    assert any(np.allclose(line.get_ydata(), 100 * run.column("hard_sparsity")) for line in hard.lines)
    assert any(np.allclose(line.get_ydata(), 100 * run.column("target_sparsity")) for line in hard.lines)
    with pytest.raises(NothingToDraw, match="nothing was pruned"):
        sparsity_curves([dense])


def test_limit_only_hard_sparsity(make_run):
    run = load_run(make_run(traced=False))
    rows = [{**row, "soft_sparsity": None, "target_sparsity": None} for row in run.history]
    figure = sparsity_curves([type(run)(run.path, run.config, history=rows)])
    assert [len(axes.lines) for axes in figure.axes] == [0, 1]


def test_property_equal_schedules_share_a_line(make_run):
    runs = [load_run(make_run(name)) for name in ("a", "b", "c")]
    runs[1].result["members"] = [{"step": 11}]  # samples may differ
    short = load_run(make_run("short", epochs=6))
    figure = learning_rate([*runs, short])
    assert sorted(figure.axes[0].lines[1].get_xdata()).index(11) == 0 and len(figure.axes[0].lines[1].get_xdata()) == 25
    assert texts(figure) == ["a, b and 1 more", "short"]
    assert len(figure.axes[0].lines[0].get_xdata()) == 180  # by step, from the traces
    by_epoch = learning_rate([load_run(make_run("d", traced=False))])
    assert len(by_epoch.axes[0].lines[0].get_xdata()) == 18


def test_property_paths_one_panel_a_channel_above_the_rate(make_run):
    run = load_run(make_run(weights=300))
    traces = run.traces()
    figure = sample_paths(run, max_weights=50, max_steps=60)
    assert len(figure.axes) == 4 + 2
    panel = figure.axes[0]
    assert panel.get_title(loc="left") == "input 0" and panel.get_title(loc="right") == "50 of 300 weights"
    (bundle,) = panel.collections
    segments = bundle.get_segments()
    path = traces.channels["input", "stage1.block0.conv1.weight", 0]
    assert len(segments) == 50 and len(segments[0]) == 60
    assert np.allclose(segments[0][[0, -1], 1], path[[0, -1], 0])
    assert np.allclose(segments[-1][[0, -1], 1], path[[0, -1], -1])
    low, high = panel.get_ylim()
    assert low < min(s[:, 1].min() for s in segments) and high > max(s[:, 1].max() for s in segments)
    rate = figure.axes[4].lines[0]
    assert rate.get_xdata()[-1] == traces.steps[-1] and rate.get_ydata()[0] == pytest.approx(1.0)
    assert len(sample_paths(run, max_channels=2).axes) == 2 + 2
    assert len(sample_paths(run, max_channels=1).axes) == 1 + 1


def test_equation_reliability_points_carry_their_intervals(make_run):
    run = load_run(make_run(traced=False))
    figure = reliability_diagram(run)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["single model", "average of 12"]
    assert [axes.get_title(loc="right") for axes in figure.axes[:2]] == ["ECE 0.0345", "ECE 0.0123"]
    rows = [row for row in run.result["reliability_single"] if row["count"]]
    points = figure.axes[0].lines[0]
    assert points.get_xdata() == pytest.approx([row["confidence"] for row in rows])
    assert points.get_ydata() == pytest.approx([row["accuracy"] for row in rows])
    for row, segment in zip(rows, figure.axes[0].collections[0].get_segments(), strict=True):
        assert tuple(segment[:, 1]) == pytest.approx(wilson(row["accuracy"], row["count"]))
    shares = [bar.get_height() for bar in figure.axes[2].containers[0]]
    assert sum(shares) == pytest.approx(100)


def test_limit_reliability_without_samples_is_drawn_once(make_run):
    figure = reliability_diagram(load_run(make_run(traced=False, extra={"num_samples": 0})))
    assert len(figure.axes) == 2 and figure.axes[0].get_title(loc="left") == "single model"


def test_equation_layer_bars(make_run):
    run = load_run(make_run(traced=False))
    figure = layer_sparsity(run)
    widths = [bar.get_width() for bar in figure.axes[0].containers[0]]
    layers = run.result["sparsity"]["per_layer"]
    assert widths == pytest.approx([100 * row["zeros"] / row["total"] for row in layers])
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said[0] == "29.9% of 144" and said[-1] == "0.0% of 320 *"
    assert figure.axes[0].yaxis.get_inverted()  # the first layer is on top


def test_property_members(make_run):
    run = load_run(make_run(traced=False))
    figure = member_accuracies(run)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([100 * m["accuracy"] for m in run.result["members"]])
    assert figure.axes[0].lines[1].get_ydata() == pytest.approx([97, 97])
    assert "12 samples in 3 cycle(s)" in figure.get_label()


@pytest.mark.parametrize("draw", [sample_paths, reliability_diagram, layer_sparsity, member_accuracies])
def test_error_an_unfinished_run_has_nothing_to_draw(make_run, draw):
    with pytest.raises(NothingToDraw, match=r"unfinished|no weight paths"):
        draw(load_run(make_run(finished=False, traced=False)))


@pytest.mark.parametrize("draw", [accuracy_curves, sparsity_curves, learning_rate])
def test_error_no_history(make_run, draw):
    folder = make_run(finished=False, traced=False)
    (folder / "history.json").write_text("[]")
    with pytest.raises(NothingToDraw, match="history"):
        draw([load_run(folder)])


def test_roundtrip_png(make_run, tmp_path: Path):
    from PIL import Image

    figure = member_accuracies(load_run(make_run(traced=False)))
    path = save_png(figure, tmp_path / "new" / "members.png", dpi=50)
    with Image.open(path) as image:
        assert image.size == (220, 130)
        assert image.text["Description"] == figure.get_label()
    assert [entry.name for entry in path.parent.iterdir()] == ["members.png"]


def test_property_svg_follows_the_theme(make_run):
    figure = accuracy_curves([load_run(make_run('a "b" <c> $d$ e', traced=False))])
    svg = figure_to_svg(figure, "f7-")
    assert svg == figure_to_svg(figure, "f7-")
    for name in ("ink", "muted", "line", "series-1"):
        light = THEME[name][0]
        assert f"var(--{name}, {light})" in svg
        assert svg.count(light) == svg.count(f"var(--{name}, {light})")
    assert "a &quot;b&quot; &lt;c&gt; $d$ e ends at" in svg and "$d$ e</text>" in svg
    assert "<metadata" not in svg and "<style" not in svg and "<script" not in svg
    names = set(re.findall(r'\bid="([^"]*)"', svg))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]*)', svg))
    assert names and all(name.startswith("f7-") for name in names) and used <= names


def test_property_theme_colours_cannot_be_confused():
    lights = [light for light, _ in THEME.values() if light != "#ffffff"]
    assert len(set(lights)) == len(lights) and INK in lights and len(SERIES) == 8


@pytest.mark.parametrize("name", ["$x$", "$", "a$b", "_hidden", "x" * 200, "tab\there", "日本"])
def test_property_any_name_can_be_drawn(make_run, name):
    run = load_run(make_run(traced=False))
    renamed = type(run)(run.path.parent / name, run.config, history=run.history, result=run.result)
    figure = accuracy_curves([renamed])
    svg = figure_to_svg(figure, "x")
    assert len(texts(figure)) == 1 and "<svg" in svg
    assert len(literal(name, 44).replace("\\", "")) <= 44


def test_error_without_matplotlib_names_the_extra(monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "bayesprune\[train\]"'):
        new_figure(1, 1)


def test_property_tables_need_no_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\nfrom bayesprune.report import Run, results_table\n"
        "print(results_table([Run(Path('a'), {'recipe': 'r', 'method': 'm', 'seed': 0})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "Accuracy" in done.stdout, done.stderr


def test_property_the_accuracy_axis_shows_the_end_and_not_the_start(make_run):
    """Runs that differ by a point at 97 % are not drawn on an axis from 40 %."""
    runs = [load_run(make_run(name, traced=False, level=level)) for name, level in (("a", 0.97), ("b", 0.96))]
    low, high = accuracy_curves(runs).axes[0].get_ylim()
    assert low > 80 and high > 97


def test_property_the_target_is_seen_under_the_curve_that_meets_it(make_run):
    hard = sparsity_curves([load_run(make_run(traced=False))]).axes[1]
    target, curve = hard.lines
    assert target.get_linewidth() > curve.get_linewidth() and target.get_color() != curve.get_color()
    assert hard.get_title(loc="right") == "dotted, grey: target"


def test_property_the_comparison_spans_its_intervals(make_run):
    runs = [load_run(make_run(name, traced=False, level=level)) for name, level in (("a", 0.97), ("b", 0.95))]
    axes = comparison(runs).axes[0]
    low, high = axes.get_xlim()
    assert 90 < low < 95 and 97 < high < 100
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a single", "a averaged", "b single", "b averaged"]


def test_property_size_stands_over_megabytes_and_the_compact_average_is_a_point_of_its_own(make_run):
    folder = make_run("a", traced=False, level=0.97)
    (folder / "profile.json").write_text(json.dumps({"compact": {"bytes": 70_000}, "latency": {}}))
    runs = [load_run(folder), load_run(make_run("b", traced=False, level=0.95))]
    axes = size_accuracy(runs).axes[0]
    points = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert set(points) == {"a single", "a averaged", "a compact", "b single", "b averaged"}
    assert points["a compact"] == pytest.approx((0.07, 97.0)) and axes.get_xscale() == "log"
    assert points["a averaged"][0] == pytest.approx(runs[0].result["num_samples"] * points["a single"][0])


def test_limit_runs_of_one_size_have_no_figure_of_sizes(make_run):
    run = load_run(make_run("a", traced=False))
    run.result["num_samples"] = 0
    with pytest.raises(NothingToDraw, match="all runs have one size"):
        size_accuracy([run])
