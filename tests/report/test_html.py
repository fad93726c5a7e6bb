from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from bayesprune.report import load_run, write_report
from bayesprune.report.findings import found_table, wilson
from html_page import Page


@pytest.fixture(scope="module")
def runs(make_run_once):
    folders = [
        make_run_once(),
        make_run_once(
            "digits-sgd", recipe="digits-sgd", method="sgd", pruned=False, traced=False, extra={"health": None}
        ),
        make_run_once("digits-dpf", recipe="digits-dpf", finished=False, done=7, traced=False),
    ]
    return [load_run(folder) for folder in folders]


@pytest.fixture(scope="module")
def text(runs, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("out") / "new" / "report.html").read_text(encoding="utf-8")


def test_property_the_page_is_well_formed_and_complete(text):
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    headings = set(re.findall(r">([^<]+)</h2>", text))
    assert headings == {
        "What was found", "Where it doubts", "All results", "How it got there", "digits-dfp-seed0", "digits-sgd", "digits-dpf",
    }  # fmt: skip
    order = [
        text.index(f">{name}</h2>") for name in ("What was found", "Where it doubts", "All results", "How it got there")
    ]
    assert order == sorted(order)
    words = ["97.00", "7 of 18", "Posterior health", "3.1e-06", "schedule.epochs", "bayesprune train <digits> & more"]
    for word in words:
        assert word in page.text
    assert "an optimizer with snapshots" in page.text and "it has curves but no results" in page.text
    assert "Where the configurations differ" in page.text and "pruning.target_sparsity" in page.text
    assert "Not prunable: head (330 weights): the model's output." in page.text
    # comparison, size, risk; 3 curves; paths, reliability, members, layers of the first; reliability and members of the second
    assert len(page.all("figure")) == 3 + 3 + 4 + 2
    assert (
        "<table" not in page.text and len(page.all("table")) > 6
    )  # markup of one template in another, not escaped twice
    assert "Other data: no run was evaluated on inputs of another kind." in page.text
    assert "Layers: no weight is at zero." in page.text
    assert "Sample paths: the run recorded no weight paths" in page.text


def test_property_the_page_is_self_contained(text):
    page = Page(text)
    assert len(page.all("script")) == 1 and not page.all("link") and not page.all("iframe")
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,"))
            assert not name.startswith("on")
    assert not re.search(r"@import|url\((?!#)", text)
    policy = page.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy" and "default-src 'none'" in policy["content"]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy["content"]  # that script and no other


def test_property_identifiers_are_unique_and_links_arrive(text):
    page = Page(text)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = [attributes["href"][1:] for attributes in page.all("a")]
    targets += [attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes]
    assert targets and set(targets) <= set(names)


def test_property_accessible(text):
    page = Page(text)
    drawings = [attributes for attributes in page.all("svg")]
    assert drawings and all(d["role"] == "img" and len(d["aria-label"]) > 20 for d in drawings)
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert len(page.all("h1")) == 1
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text


def test_property_everything_is_escaped(make_run, tmp_path):
    evil = "<img src=x onerror=alert(1)>'\"&</style></svg>"
    folder = make_run("run", recipe=evil, method=evil, traced=False)
    run = load_run(folder)
    result = run.result
    result["health"]["warnings"] = [evil]
    result["health"]["rhat"] = {evil: 1.2}
    result["sparsity"]["per_layer"][0]["name"] = evil
    result["sparsity"]["excluded"] = [{"name": evil, "weights": 3, "reason": evil}, evil]
    run.config["data"][evil] = evil
    run.environment[evil] = [evil]
    run.environment["device"] = evil
    bad = type(run)(run.path.parent / evil.replace("/", "|"), run.config, run.environment, run.history, result)
    text = write_report([bad], tmp_path / "report.html", title=evil).read_text(encoding="utf-8")
    page = Page(text)
    assert "<img src=x" not in text and text.count("</style>") == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert page.text.count("onerror=alert(1)") > 8


def test_property_the_same_runs_give_the_same_bytes(runs, tmp_path):
    first = write_report(runs[2:], tmp_path / "a.html").read_bytes()
    assert write_report(runs[2:], tmp_path / "b.html").read_bytes() == first


def test_property_a_failed_report_leaves_the_old_one(runs, tmp_path, monkeypatch):
    path = write_report(runs[2:], tmp_path / "out" / "report.html")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("bayesprune.report.style.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(runs[2:], path, title="another")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_limit_one_run_has_tiles_and_no_differences(make_run, tmp_path):
    text = write_report([load_run(make_run(traced=False))], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "1.23 M of 4.81 M left" in page.text and "Averaged accuracy" in page.text
    assert "configurations differ" not in page.text
    assert "<h1>digits-dfp-seed0</h1>" in text


def test_limit_a_run_that_only_started(make_run, tmp_path):
    folder = make_run(finished=False, traced=False)
    (folder / "history.json").unlink()
    page = Page(write_report([load_run(folder)], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "0 of 18 epochs" in page.text and not page.all("figure")


def test_limit_equal_configurations(make_run, tmp_path):
    same = [load_run(make_run(name, traced=False, finished=False)) for name in "ab"]
    assert "All runs have the same configuration." in write_report(same, tmp_path / "r.html").read_text(
        encoding="utf-8"
    )


def test_error_no_runs(tmp_path):
    with pytest.raises(ValueError, match="runs is empty"):
        write_report([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def predictions(count=200, wrong=10, other=True):
    """The predictions that `bayesprune evaluate` keeps: the most doubtful ones are the wrong ones."""
    labels = np.arange(count) % 10
    classes = labels.copy()
    classes[:wrong] = (labels[:wrong] + 1) % 10
    total = np.linspace(2.0, 0.0, count)
    kept = {"labels": labels, "classes": classes, "total": total, "epistemic": total / 4}
    kept |= {"shown": np.arange(12), "images": np.full((12, 1, 8, 8), 128, dtype=np.uint8)}
    return kept | ({"other_total": np.linspace(1.0, 2.3, 50)} if other else {})


def test_property_doubt_is_shown_where_predictions_were_kept(make_run, tmp_path):
    folder = make_run(traced=False)
    save_file(predictions(), folder / "predictions.safetensors")
    text = write_report([load_run(folder)], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.all("img")) == 12 and "1, is 0" in page.text and "total 2.00, epistemic 0.50" in page.text
    risk = next(d["aria-label"] for d in page.all("svg") if d["aria-label"].startswith("Risk by coverage"))
    assert "5.00% errors of all, 0.00% among the surest half" in risk
    assert any("50 others" in d["aria-label"] for d in page.all("svg"))
    save_file({"total": np.zeros(3)}, folder / "predictions.safetensors")
    with pytest.raises(ValueError, match=r"predictions\.safetensors: its tensors do not belong together"):
        write_report([load_run(folder)], tmp_path / "r.html")


def test_equation_the_first_table_has_intervals_sizes_and_times(make_run, tmp_path):
    folder = make_run(traced=False)
    times = {"before": 2e-3, "after": 1e-3, "ratio": 2.0, "low": 1.9, "high": 2.1, "confidence": 0.95, "rounds": 50}
    profile = {"dense": {"bytes": 311_400}, "compact": {"bytes": 70_000}, "latency": {"1": times}}
    (folder / "profile.json").write_text(json.dumps(profile))
    run = load_run(folder)
    table = found_table([run])
    single, averaged, compact = table["rows"]
    count = sum(row["count"] for row in run.result["reliability"])
    low, high = wilson(0.97, count)
    assert averaged[2:4] == ["97.00", f"{100 * low:.2f} to {100 * high:.2f}"] and low < 0.97 < high
    assert single[7] == f"{4 * 77_850 / 1e6:.3f}" and averaged[7] == f"{12 * 4 * 77_850 / 1e6:.3f}"
    assert compact[7:] == ["0.070", "1.00 (2.0 ×: 1.9 to 2.1)"] and single[8] == "2.00"
    assert all(len(row) == len(table["heads"]) for row in table["rows"])


def test_limit_wilson_agrees_with_its_ends():
    assert wilson(0.0, 20)[0] == 0.0 and wilson(1.0, 20)[1] == 1.0
    assert wilson(1.0, 20)[0] == pytest.approx(1 / (1 + 1.959964**2 / 20))


def test_property_figures_carry_the_values_that_are_shown_on_hover(text):
    page = Page(text)
    points = [json.loads(d["data-points"]) for d in page.all("div") if "data-points" in d]
    told = [said for figure in points for *_, said in figure]
    assert any(said.startswith("digits-dfp-seed0: epoch") for said in told)
    assert any("accuracy (%) 97" in said for said in told)
    boxes = [[float(v) for v in d["viewbox"].split()] for d in page.all("svg")]
    for box, figure in zip(boxes, points):
        assert all(-1 <= x <= box[2] + 1 and -1 <= y <= box[3] + 1 for x, y, _ in figure)


def test_property_tables_can_be_sorted(text):
    page = Page(text)
    assert sum("sortable" in (table.get("class") or "") for table in page.all("table")) >= 2
