from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from bayesprune.report.selection import write_selection_report
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
from bayesprune.report.selection_table import selection_table
from bayesprune.report.style import NothingToDraw, save_png
from html_page import Page


def selection(inputs=40, selected=3, classes=(), seed=0):
    """The result.json of a selection, its numbers made up by formula."""
    generator = np.random.default_rng(seed)
    chosen = np.arange(inputs) < selected
    probability = np.where(chosen, 0.99 - 0.01 * np.arange(inputs), 0.02)
    evidence = np.where(chosen, 8.0 - np.arange(inputs) / 10, np.where(np.arange(inputs) < inputs - 10, -1.5, 0.0))
    names = [f"x{i + 1}" for i in range(inputs)]
    outputs = list(classes) if len(classes) > 2 else [classes[1]] if classes else ["y"]
    observed = generator.normal(size=80)
    predicted = observed + 0.5 * generator.normal(size=80)
    rows = {"observed": observed, "predicted": predicted, "lower": predicted - 0.8, "upper": predicted + 0.8}
    epoch = list(range(1, 41))
    return {
        "kind": "bayesprune selection",
        "data": {
            "source": "houses.csv",
            "rows": 400,
            "rows_without_target": 0,
            "rows_train": 320,
            "rows_held_out": 80,
            "columns_in_file": inputs + 1,
            "inputs": inputs,
            "columns": inputs,
        },
        "target": {
            "name": "y",
            "task": "classification" if classes else "regression",
            "why": "as asked",
            "classes": list(classes),
        },
        "rule": "at a false-discovery rate of 0.05",
        "selected": [entry(names[i], i, float(probability[i])) for i in range(selected)],
        "expected_false": 0.05,
        "fallback": None if selected else {"kind": "constant", "sentence": "No input is selected at all."},
        "held_out": class_scores(outputs, len(classes)) if classes else number_scores(),
        "predictions": {} if classes else {key: value.tolist() for key, value in rows.items()},
        "inputs": {
            "name": names,
            "kind": ["number"] * inputs,
            "evidence": evidence.tolist(),
            "probability": probability.tolist(),
            "q_value": (1 - probability).tolist(),
            "selected": chosen.tolist(),
            "chains": [np.clip(probability + shift, 0, 1).tolist() for shift in (-0.02, 0, 0.02)],
        },
        "curves": [curve(names[i], i, outputs) for i in range(selected)],
        "history": {
            "epoch": epoch,
            "threshold": [None] * 10 + [0.5] * 30,
            "paths": [
                {"input": name, "selected": bool(chosen[i]), "path": np.linspace(0.5, probability[i], 40).tolist()}
                for i, name in enumerate(names[:12])
            ],
            "loss": [[2 / e for e in epoch], [3 / e for e in epoch]],
        },
        "model": {"members": 10, "needed": names[:selected]},
        "prior": {"expected_inputs": 3.0, "inclusion_probability": 0.075},
        "notes": ["12 rows without a value of 'y' left out."],
        "dropped": [["site", "constant"]],
        "settings": {"fdr": 0.05, "estimator": {"n_chains": 4}},
        "environment": {"command": "bayesprune select <houses.csv> & more"},
    }


def entry(name, i, probability):
    return {
        "input": name,
        "kind": "number",
        "probability": probability,
        "evidence": 8.0 - i / 10,
        "chain_min": 0.9,
        "chain_max": 1.0,
        "q_value": 0.01 * (i + 1),
        "effect": 1.0 + i,
        "effect_alone": 0.5 + i,
        "direction": "increasing",
    }


def curve(name, i, outputs):
    text = i == 1
    grid = np.linspace(-2, 2, 3 if text else 21)
    mean = np.stack([np.sin(grid + i) / (1 + k) for k in range(len(outputs))])
    return {
        "input": name,
        "kind": "text" if text else "number",
        "outputs": outputs,
        "grid": ["Bergen", "Narvik", "Oslo"] if text else grid.tolist(),
        "mean": mean.tolist(),
        "lower": (mean - 0.1).tolist(),
        "upper": (mean + 0.1).tolist(),
        "members": 10,
        "deciles": [] if text else np.linspace(-1, 1, 9).tolist(),
    }


def number_scores():
    levels = [{"nominal": level, "coverage": level - 0.02} for level in (0.1, 0.5, 0.9, 0.95)]
    scores = {"rmse": 0.51, "mae": 0.4, "r2": 0.75, "rmse_constant": 1.02, "coverage": 0.875, "coverage_error": 0.034}
    return {**scores, "width": 1.7, "calibration": levels}


def class_scores(outputs, classes):
    bins = []
    for i in range(15):
        told = {"confidence": (i + 1) / 15 - 0.03, "accuracy": (i + 1) / 15 - 0.05} if i else {}
        empty = {"confidence": None, "accuracy": None}
        bins.append({"lower": i / 15, "upper": (i + 1) / 15, "count": float(i), **empty, **told})
    scores = {"accuracy": 0.9, "nll": 0.3, "brier": 0.1, "ece": 0.04, "accuracy_constant": 0.5, "nll_constant": 0.7}
    roc = [{"name": str(name), "auroc": 0.9, "false": [0, 0.1, 1], "true": [0, 0.8, 1]} for name in outputs]
    return {**scores, "auroc": 0.9 if classes == 2 else None, "reliability": bins, "roc": roc}


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.fixture(scope="module")
def result():
    return selection()


@pytest.fixture(scope="module")
def text(result, tmp_path_factory):
    path = write_selection_report(result, tmp_path_factory.mktemp("page") / "report.html")
    return path.read_text(encoding="utf-8")


def test_property_the_page_is_well_formed_and_complete(text):
    page = Page(text)
    headings = re.findall(r">([^<]+)</h2>", text)
    assert headings == ["Selected inputs", "Evidence and probabilities", "Effects", "Held-out rows", "Details"]
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    # bars, scatter, paths; partial dependence; predicted, calibration; loss
    assert len(page.all("figure")) == 7
    words = ["3 of 40", "0.51", "75.0%", "87.5%", "x1", "increasing", "12 rows without", "constant", "expected_inputs"]
    for word in [*words, "bayesprune select <houses.csv> & more", "estimator.n_chains", "0.900–1.000"]:
        assert word in page.text, word


def test_property_the_page_is_self_contained_and_accessible(text):
    page = Page(text)
    assert len(page.all("script")) == 1 and not page.all("link") and not page.all("iframe")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,"))
            assert not name.startswith("on")
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = [attributes["href"][1:] for attributes in page.all("a")]
    targets += [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert targets and set(targets) <= set(names)
    drawings = page.all("svg")
    assert drawings and all(d["role"] == "img" and len(d["aria-label"]) > 20 for d in drawings)
    assert all(attributes.get("scope") for attributes in page.all("th"))


def test_property_the_same_result_gives_the_same_bytes(result, tmp_path):
    small = copy.deepcopy(result) | {"curves": [], "history": {}}
    pages = [write_selection_report(small, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1] and sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_property_everything_is_escaped(result, tmp_path):
    evil = "<img src=x onerror=alert(1)>'\"&$</style></svg>"
    bad = copy.deepcopy(result)
    bad["target"]["name"] = bad["data"]["source"] = bad["target"]["why"] = evil
    bad["notes"], bad["dropped"], bad["prior"], bad["settings"] = [evil], [[evil, evil]], {evil: evil}, {evil: [evil]}
    bad["environment"] = {evil: evil}
    bad["inputs"]["name"][0] = bad["selected"][0]["input"] = bad["curves"][0]["input"] = evil
    bad["selected"][0]["direction"] = bad["curves"][1]["grid"][0] = bad["history"]["paths"][0]["input"] = evil
    page = Page(write_selection_report(bad, tmp_path / "a.html").read_text())
    assert not page.all("img") and "onerror" in page.text


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_property_a_page_of_classes(tmp_path, classes):
    page = Page(write_selection_report(selection(classes=classes), tmp_path / "a.html").read_text())
    assert len(page.all("figure")) == 7
    labels = " ".join(d["aria-label"] for d in page.all("svg"))
    assert "ROC curves" in labels and "Reliability" in labels
    assert "90.0%" in page.text and "Calibration error" in page.text


def test_limit_nothing_selected(tmp_path):
    page = Page(write_selection_report(selection(selected=0), tmp_path / "a.html").read_text())
    assert "No input is selected at all." in page.text and "0 of 40" in page.text
    assert "Partial dependence: no input is selected." in page.text
    assert len(page.all("figure")) == 6


def test_limit_an_estimator_without_history_and_members(tmp_path):
    bare = selection()
    bare["history"], bare["prior"], bare["notes"], bare["dropped"] = {}, {}, [], []
    for curve in bare["curves"]:
        curve["lower"] = curve["upper"] = None
    page = Page(write_selection_report(bare, tmp_path / "a.html").read_text())
    assert "Paths over training: the estimator kept no paths." in page.text and "no members, so no band" in page.text


def test_error_not_a_selection(tmp_path):
    with pytest.raises(ValueError, match=r"expected the result\.json of `bayesprune select`"):
        write_selection_report({"recipe": "digits"}, tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_property_bars_show_every_selected_input_and_the_chains(result):
    figure = inclusion_bars(result)
    axes = figure.axes[0]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[:3] == ["x1", "x2", "x3"] and len(labels) == 12
    widths = sorted((patch.get_width() for patch in axes.patches), reverse=True)
    assert np.allclose(widths[:3], [0.99, 0.98, 0.97]) and len(axes.lines) == 3
    assert texts(figure) == ["selected", "not selected", "single chains"]
    assert len(inclusion_bars(selection(selected=30)).axes[0].get_yticklabels()) == 25
    assert np.allclose(sorted(axes.lines[0].get_xdata())[-3:], [0.95, 0.96, 0.97])
    with pytest.raises(NothingToDraw):
        inclusion_bars({})


def test_property_scatter_holds_every_input(result):
    lines = inclusion_scatter(result).axes[0].lines
    assert sorted(len(line.get_xdata()) for line in lines) == [3, 27]  # ten have no evidence
    assert inclusion_scatter(result).axes[0].get_title(loc="right") == "10 without evidence"
    assert "the highest of the others is 0.02" in inclusion_scatter(result).get_label()


def test_property_paths_and_threshold(result):
    figure = inclusion_paths(result)
    names = texts(figure)
    assert names == ["not selected", "x1", "x2", "x3", "threshold"]
    threshold = figure.axes[0].lines[-1].get_ydata()
    assert np.isnan(threshold[:10]).all() and (threshold[10:] == 0.5).all()
    assert len(figure.axes[0].lines) == 13
    assert len(training_loss(result).axes[0].lines) == 2 and training_loss(result).axes[0].get_yscale() == "log"


def test_property_a_selection_for_prediction_shows_how_many_inputs(result, tmp_path, text):
    chosen = copy.deepcopy(result)
    chosen["history"]["numbers"] = {"inputs": [0, 1, 2, 4], "loss": [1.0, 0.6, 0.3, 0.31], "taken": 2}
    axes = loss_by_number(chosen).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [1.0, 0.6, 0.3, 0.31]
    assert set(axes.lines[1].get_xdata()) == {2}
    assert "How many inputs" in write_selection_report(chosen, tmp_path / "page.html").read_text()
    assert "How many inputs" not in text


def test_property_partial_dependence_one_scale_and_bands(result):
    figure = partial_dependence(result)
    panels = figure.axes
    assert [panel.get_title(loc="left") for panel in panels] == ["x1", "x2", "x3"]
    assert len({panel.get_ylim() for panel in panels}) == 1
    assert np.allclose(panels[0].lines[0].get_ydata(), result["curves"][0]["mean"][0])
    band = panels[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(-1.1, abs=0.01)
    assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["Bergen", "Narvik", "Oslo"]
    assert texts(partial_dependence(selection(classes=("a", "b", "c")))) == ["a", "b", "c"]
    assert len(partial_dependence(selection(selected=20), most=4).axes) == 6  # two of them empty


def test_property_points_outside_their_interval_are_marked(result):
    rows = copy.deepcopy(result)
    rows["predictions"]["observed"][:3] = [9.0, 9.0, 9.0]
    figure = predicted_against_observed(rows)
    inside, outside = figure.axes[0].lines[:2]
    observed = np.array(rows["predictions"]["observed"])
    wrong = np.abs(observed - rows["predictions"]["predicted"]) > 0.8
    assert len(outside.get_xdata()) == wrong.sum() >= 3 and len(inside.get_xdata()) == 80 - wrong.sum()
    assert texts(figure)[:2] == ["inside its interval", "outside"]
    assert len(predicted_against_observed(rows, most=20).axes[0].lines[0].get_xdata()) < 21


def test_property_calibration_and_roc(result):
    line = interval_calibration(result).axes[0].lines[0]
    assert line.get_xdata().tolist() == [0.1, 0.5, 0.9, 0.95] and np.allclose(
        line.get_ydata(), [0.08, 0.48, 0.88, 0.93]
    )
    assert texts(roc_curves(selection(classes=("a", "b", "c")))) == [f"{name}: area 0.900" for name in "abc"]
    for draw, one in ((interval_calibration, selection(classes=("n", "y"))), (roc_curves, result)):
        with pytest.raises(NothingToDraw):
            draw(one)


def test_property_figures_can_be_saved(result, tmp_path):
    assert save_png(partial_dependence(result), tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_property_interactions_and_clusters_are_told_if_there_are_any(result, tmp_path):
    def page(told):
        return write_selection_report(told, tmp_path / "page.html").read_text()

    assert 'id="interactions"' not in page(result) and "Interchangeable" not in page(result)
    pair = {"inputs": ["x1", "x<2>"], "strength": 0.75, "share": 0.5}
    assert "x1 × x&lt;2&gt;" in page({**result, "interactions": [pair]})
    clusters = [
        {"inputs": ["x1", "x2"], "shares": [0.75, 0.25], "p_value": 1e-9, "q_value": 0.001},
        {"inputs": ["x3"], "shares": [1.0], "p_value": 0.001, "q_value": 0.01},
    ]
    told = page({**result, "clusters": clusters})
    assert "x1 (75.0%), x2 (25.0%)" in told and "x3 (100" not in told
    assert 'id="noise"' not in told
    wide = page({**result, "on_variance": [{"input": "x<4>", "p_value": 1e-5}]})
    assert 'id="noise"' in wide and "x&lt;4&gt;" in wide and "p-value 1e-05" in wide


def test_property_table_formats(result):
    rows = result["selected"]
    lines = selection_table(rows).splitlines()
    assert lines[0].split() == ["Input", "Evidence", "Chains", "Probability", "q-value", "Effect", "Alone", "Direction"]
    assert (
        lines[1].split() == ["x1", "8.0", "0.900–1.000", "0.990", "0.010", "1", "0.5", "increasing"] and len(lines) == 4
    )
    assert selection_table(rows, most=1).splitlines()[-1] == "… and 2 more"
    assert "and 2 more" in selection_table(rows, "html", most=1)
    assert selection_table(rows, "csv").splitlines()[1] == "x1,number,8.0,0.99,0.9,1.0,0.01,1.0,0.5,increasing"
    assert " –  increasing" in selection_table([{**rows[0], "effect_alone": None}])
    tiny = selection_table([{**rows[0], "q_value": 2e-7, "chain_min": None, "input": "a\nb"}])
    assert "2e-07" in tiny and "a b" in tiny and len(tiny.splitlines()) == 2
    with pytest.raises(ValueError, match="fmt='latex'"):
        selection_table(rows, "latex")


def test_property_inputs_that_no_chain_weighed_have_no_bar(result):
    """Their probability is the prior's: nothing was learnt of them, for or against."""
    few = selection(inputs=12, selected=1)
    few["inputs"]["probability"][-10:] = [0.21] * 10
    few["inputs"]["evidence"] = [8.0, -0.5, *[0.0] * 10]
    axes = inclusion_bars(few).axes[0]
    assert [text.get_text() for text in axes.texts] == ["no evidence"] * 10
    assert sorted(round(patch.get_width(), 2) for patch in axes.patches) == [0.02, 0.99]


def test_property_chains_that_disagree_come_before_the_expected_number(result, tmp_path):
    apart = copy.deepcopy(result)
    apart["selected"][0]["chain_min"] = 0.2
    text = Page(write_selection_report(apart, tmp_path / "a.html").read_text()).text
    assert "the chains disagree on 1 of them" in text and "expected false" not in text
    assert (
        "expected false ones among them: 0.05"
        in Page(write_selection_report(result, tmp_path / "b.html").read_text()).text
    )
