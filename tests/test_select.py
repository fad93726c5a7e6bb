from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import quick_fits
from bayesprune.cli import main
from bayesprune.predict_rows import run_predict
from bayesprune.select import run_select
from bayesprune.select_output import is_selection
from bayesprune.tabular.prediction_sets import PredictionSets
from bayesprune.tabular.store import read_estimator

FILES = ["model", "report.html", "result.json", "selected.csv"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Spares these tests the training."""
    quick_fits.use(monkeypatch)


@pytest.fixture
def no_page(monkeypatch):
    """Spares the tests that do not look at the page its drawing."""
    monkeypatch.setattr("bayesprune.select_output.write_selection_report", lambda result, path: path.write_text("page"))


def table(rows=600, inputs=30, seed=0):
    generator = np.random.default_rng(seed)
    data = {f"v{i}": generator.normal(size=rows).round(6).tolist() for i in range(1, inputs + 1)}
    data["city"] = generator.choice(["Oslo", "Bergen", "Narvik"], rows).tolist()
    data["site"] = ["A"] * rows
    signal = 2 * np.array(data["v3"]) - 1.5 * np.array(data["v7"]) + 2 * (np.array(data["city"]) == "Oslo")
    data["y"] = (signal + generator.normal(size=rows)).round(6).tolist()
    data["kind"] = np.array(["low", "high"])[(signal > 0.7).astype(int)].tolist()
    data["grade"] = [f"g{i}" for i in np.digitize(signal, [-0.5, 2])]
    return data


def write(path, data):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(data)
        writer.writerows(zip(*data.values()))
    return path


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def inputs_of(data, target):
    return {key: value for key, value in data.items() if key not in {"y", "kind", "grade"} - {target}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished selection for a regression: folder, result and data."""
    root = tmp_path_factory.mktemp("select")
    data = inputs_of(table(), "y")
    path = write(root / "houses.csv", data)
    with pytest.MonkeyPatch.context() as monkeypatch:
        quick_fits.use(monkeypatch)
        return root, run_select(path, "y", root / "out", quiet=True), data


def test_property_doubts_about_the_data_are_notes(tmp_path, no_page):
    data = inputs_of(table(), "y")
    data["v3"] = np.sort(data["v3"]).tolist()
    data["y"] = (2 * np.array(data["v3"]) + np.array(data["v7"])).tolist()
    data["y"][5] = 1e6
    result = run_select(write(tmp_path / "t.csv", data), "y", tmp_path / "out", held_out=0.1, quiet=True)
    assert any(note.startswith("1 of 540 responses hold 100% of the variance of y") for note in result["notes"])
    data["y"][5] = 0.0
    result = run_select(write(tmp_path / "t.csv", data), "y", tmp_path / "out", held_out=0.1, quiet=True, force=True)
    assert any("Rows next to each other are alike in y" in note and "'v3'" in note for note in result["notes"])


def test_property_the_inputs_are_found_and_everything_is_written(made):
    root, result, _ = made
    assert sorted(path.name for path in (root / "out").iterdir()) == FILES
    assert sorted(path.name for path in root.iterdir()) == ["houses.csv", "out"]  # nothing half-written beside it
    assert [row["input"] for row in result["selected"]] == ["v3", "v7", "city"]
    told = {row["input"]: row for row in result["selected"]}
    assert told["v3"]["direction"] == "increasing" and told["v7"]["direction"] == "decreasing"
    assert told["city"]["direction"] == "highest for Oslo"
    assert told["v3"]["effect"] == pytest.approx(2, abs=0.25) and told["v7"]["effect"] == pytest.approx(1.5, abs=0.25)
    assert result["data"] == {
        "source": "houses.csv", "rows": 600, "rows_without_target": 0, "rows_train": 480, "rows_held_out": 120,
        "columns_in_file": 33, "inputs": 31, "columns": 33,
    }  # fmt: skip
    assert result["dropped"] == [["site", "constant"]]
    assert result["held_out"]["rmse"] < 1.3 < 2 < result["held_out"]["rmse_constant"]
    assert 0.75 < result["held_out"]["coverage"] <= 1
    assert json.loads((root / "out" / "result.json").read_text()) == result


def test_property_the_table_of_selected_inputs(made):
    root, result, _ = made
    rows = read(root / "out" / "selected.csv")
    keys = [
        "input", "kind", "evidence", "probability", "chain_min", "chain_max", "q_value", "effect", "effect_alone", "direction",
    ]  # fmt: skip
    assert list(rows[0]) == keys and len(rows) == 3
    for row, told in zip(rows, result["selected"]):
        assert {key: type(told[key])(row[key]) for key in keys} == told


def test_property_the_model_is_free_of_pickle(made):
    folder = made[0] / "out" / "model"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}
    told, arrays = read_estimator(folder)
    assert told["target_name"] == "y" and told["encoder"]["dropped"] == {"site": "constant"} and len(arrays)


def test_roundtrip_predict_gives_the_held_out_predictions(made, tmp_path, capsys):
    root, result, _ = made
    run_predict(root / "out", root / "houses.csv", tmp_path / "p.csv")
    rows = read(tmp_path / "p.csv")
    assert list(rows[0]) == ["prediction", "std", "lower90", "upper90"] and len(rows) == 600
    told = {(row["prediction"], row["lower90"], row["upper90"]) for row in rows}
    shown = result["predictions"]
    wanted = {tuple(map(str, row)) for row in zip(shown["predicted"], shown["lower"], shown["upper"])}
    assert len(wanted) == 120 and wanted <= told
    assert "RMSE" in capsys.readouterr().err
    run_predict(root / "out" / "model", root / "houses.csv")
    assert capsys.readouterr().out == (tmp_path / "p.csv").read_text()


def test_property_predict_needs_the_selected_columns_only(made, tmp_path, capsys):
    root, _, data = made
    few = write(tmp_path / "few.csv", {"city": data["city"], "v7": data["v7"], "v3": data["v3"], "name": data["city"]})
    run_predict(root / "out", few, tmp_path / "a.csv")
    assert capsys.readouterr().err == ""
    run_predict(root / "out", root / "houses.csv", tmp_path / "b.csv")
    one, two = ([float(row["prediction"]) for row in read(tmp_path / name)] for name in ("a.csv", "b.csv"))
    assert np.allclose(one, two, rtol=1e-12)
    with pytest.raises(ValueError, match=r"the prediction needs \['v7'\]"):
        run_predict(root / "out", write(tmp_path / "less.csv", {"v3": data["v3"], "city": data["city"]}))


def test_property_predict_says_what_is_new_and_fills_what_is_missing(made, tmp_path, capsys):
    root, _, _ = made
    new = {"v3": ["", 0.5], "v7": [0.1, 0.2], "city": ["Oslo", "Bodø"]}
    told = run_predict(root / "out", write(tmp_path / "new.csv", new), tmp_path / "p.csv")
    assert np.isfinite(told["prediction"]).all()
    assert "1 rows have a 'city' unseen in training ('Bodø')" in capsys.readouterr().err
    for cell, message in (
        ("inf", "holds inf in data row 1"),
        ("tall", "column 'v3' of X holds 'tall' in data row 1, where the training rows hold numbers"),
    ):
        bad = write(tmp_path / "bad.csv", {"v3": [cell], "v7": [0.1], "city": ["Oslo"]})
        with pytest.raises(ValueError, match=message):
            run_predict(root / "out", bad)


def test_error_predict_without_a_model(tmp_path, made):
    with pytest.raises(ValueError, match="name the folder that `bayesprune select` wrote"):
        run_predict(tmp_path, made[0] / "houses.csv")


@pytest.mark.parametrize(("target", "classes"), [("kind", ["high", "low"]), ("grade", ["g0", "g1", "g2"])])
def test_property_classes(tmp_path, capsys, target, classes):
    data = inputs_of(table(), target)
    data[target] = ["" if i % 50 == 0 else value for i, value in enumerate(data[target])]
    path = write(tmp_path / "t.csv", data)
    result = run_select(path, target, tmp_path / "out")
    assert {"v3", "v7", "city"} <= {row["input"] for row in result["selected"]}
    assert result["target"]["classes"] == classes and result["data"]["rows_without_target"] == 12
    assert result["notes"][0] == f"12 rows without a value of {target!r} left out."
    scores = result["held_out"]
    assert scores["accuracy"] > scores["accuracy_constant"] + 0.1 and 0 <= scores["ece"] < 0.3
    assert [curve["name"] for curve in scores["roc"]] == (["low"] if len(classes) == 2 else classes)
    assert result["curves"][0]["outputs"] == (["low"] if len(classes) == 2 else classes)
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "v3" in printed and "report.html" in printed
    columns = run_predict(tmp_path / "out", path, tmp_path / "p.csv")
    assert list(columns) == ["prediction", *(f"probability {name}" for name in classes)]
    assert set(columns["prediction"]) == set(classes)
    assert np.allclose(sum(columns[f"probability {name}"] for name in classes), 1)
    right = np.mean([a == b for a, b in zip(columns["prediction"], data[target]) if b])
    assert f"accuracy {100 * right:.1f} % on the 588 rows" in capsys.readouterr().err


def test_property_nothing_selected_is_said_and_is_no_failure(tmp_path, capsys, no_page):
    data = inputs_of(table(), "y")
    data["y"] = np.random.default_rng(8).normal(size=600).tolist()
    path = write(tmp_path / "t.csv", data)
    result = run_select(path, "y", tmp_path / "out")
    assert result["selected"] == [] and result["fallback"]["kind"] == "constant"
    printed = capsys.readouterr().out
    assert "No input is selected at a false-discovery rate of 0.05: the likeliest, '" in printed
    assert "a constant that uses no input" in printed
    assert read(tmp_path / "out" / "selected.csv") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert np.ptp(run_predict(tmp_path / "out", path, tmp_path / "p.csv")["prediction"]) < 1e-12


def test_property_nothing_selected_names_the_inputs_that_are_averaged_over(tmp_path, capsys, no_page, monkeypatch):
    """The model without a finding reads columns all the same, and the page and the command say which."""

    def none_found(*given, **rest):
        found = quick_fits.find_quickly(*given, **rest)
        sets = PredictionSets([np.array(own) for own in ([2, 6], [2], [2, 6])], np.arange(3), np.zeros(3))
        return [replace(one, leading=[], clusters=[], sets=sets) for one in found]

    monkeypatch.setattr("bayesprune.tabular.estimator_base.find_inputs", none_found)
    path = write(tmp_path / "t.csv", inputs_of(table(), "y"))
    result = run_select(path, "y", tmp_path / "out")
    assert result["selected"] == [] and result["fallback"]["kind"] == "average"
    assert result["model"]["needed"] == ["v3", "v7"]
    printed = capsys.readouterr().out
    assert "averages over networks on 2 inputs that predict best together ('v3', 'v7')" in printed
    assert "constant" not in result["fallback"]["sentence"]
    assert np.ptp(run_predict(tmp_path / "out", path, tmp_path / "p.csv")["prediction"]) > 1


def test_property_a_note_names_what_predictions_read_beside_the_findings(tmp_path, no_page, monkeypatch):
    """A column that stands for v3 is read, not selected; v5 is read for the prediction alone."""

    def more_read(*given, **rest):
        (found,) = quick_fits.find_quickly(*given, **rest)
        clusters = [
            replace(one, members=(0, 2), shares=(0.1, 0.9)) if one.members == (2,) else one for one in found.clusters
        ]
        known = sorted({member for cluster in clusters for member in cluster.members})
        sets = PredictionSets([np.array([*known, 4])] * 3, np.arange(3), np.zeros(3))
        return [replace(found, clusters=clusters, sets=sets)]

    monkeypatch.setattr("bayesprune.tabular.estimator_base.find_inputs", more_read)
    data = inputs_of(table(inputs=7), "y")
    path = write(tmp_path / "t.csv", {name: data[name] for name in data if name[0] in "vy"})
    result = run_select(path, "y", tmp_path / "out", quiet=True)
    assert (
        {row["input"] for row in result["selected"]} == {curve["input"] for curve in result["curves"]} == {"v3", "v7"}
    )
    assert set(result["model"]["needed"]) == {"v1", "v3", "v5", "v7"}
    (note,) = (note for note in result["notes"] if "read" in note)
    assert note.startswith("Predictions read 1 input beside the findings") and "('v5')" in note
    assert len(run_predict(tmp_path / "out", path, tmp_path / "p.csv")["prediction"]) == 600


def test_property_the_same_seed_gives_the_same_result(made, tmp_path, no_page):
    root, result, _ = made
    again = run_select(root / "houses.csv", "y", tmp_path / "out", quiet=True)
    other = run_select(root / "houses.csv", "y", tmp_path / "two", quiet=True, seed=1)
    assert {**again, "environment": None} == {**result, "environment": None}
    assert other["predictions"] != result["predictions"]


def test_property_what_was_done_to_the_data_is_said(tmp_path, no_page):
    data = inputs_of(table(rows=240), "y")
    data["v1"][::10] = [""] * 24
    data["v2"][5] = ""
    data["city"][:3] = ["", "", ""]
    data["copy"] = data["v4"]
    for name in data:
        data[name][230:] = data[name][:10] if name != "y" else data[name][230:]
    notes = run_select(write(tmp_path / "t.csv", data), "y", tmp_path / "out", quiet=True)["notes"]
    assert "10 rows with the same inputs as an earlier one: copies were kept on one side of the split." in notes
    assert "2 columns not used: 'site' (constant), 'copy' (equals 'v4' in every row)." in notes
    assert any(note.startswith("Only 19") for note in notes)
    missing = next(note for note in notes if note.startswith("Missing numbers in 2 columns"))
    assert missing.endswith("('v1', 'v2'); where they were missing is an input too for 1 column.")
    assert any(note.startswith("Missing texts in 1 column") for note in notes)


def test_property_an_earlier_selection_is_replaced_and_nothing_else(made, tmp_path, no_page):
    root, _, _ = made
    out = tmp_path / "out"
    out.mkdir()
    run_select(root / "houses.csv", "y", out, quiet=True)
    with pytest.raises(FileExistsError, match="replace it with --force"):
        run_select(root / "houses.csv", "y", out, quiet=True, fdr=0.1)
    run_select(root / "houses.csv", "y", out, quiet=True, fdr=0.1, force=True)
    assert json.loads((out / "result.json").read_text())["settings"]["fdr"] == 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds no selection"):
        run_select(root / "houses.csv", "y", out, quiet=True)
    assert (out / "thesis.txt").exists() and not is_selection(out)


def test_property_a_failure_leaves_the_earlier_selection(made, tmp_path, monkeypatch):
    root, _, _ = made
    run_select(root / "houses.csv", "y", tmp_path / "out", quiet=True)
    before = (tmp_path / "out" / "result.json").read_text()

    def broken(result, path):
        raise ImportError("Matplotlib")

    monkeypatch.setattr("bayesprune.select_output.write_selection_report", broken)
    with pytest.raises(ImportError):
        run_select(root / "houses.csv", "y", tmp_path / "out", quiet=True, fdr=0.1, force=True)
    assert (tmp_path / "out" / "result.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_parity_npz_and_csv_select_the_same(tmp_path, no_page):
    data = table()
    X = np.column_stack([data[f"v{i}"] for i in range(1, 31)])
    np.savez(tmp_path / "t.npz", X=X, y=np.array(data["y"]), names=np.array([f"v{i}" for i in range(1, 31)]))
    write(tmp_path / "t.csv", {f"v{i}": data[f"v{i}"] for i in range(1, 31)} | {"y": data["y"]})
    results = [
        run_select(tmp_path / name, "y", tmp_path / "out", quiet=True, force=True) for name in ("t.npz", "t.csv")
    ]
    assert results[0]["selected"] == results[1]["selected"] and results[0]["held_out"] == results[1]["held_out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "Y"}, "target: houses.csv has no column 'Y'; did you mean 'y'"),
        ({"task": "classification"}, "fewer than 5 rows"),
        ({"target": "city", "task": "regression"}, "holds text"),
        ({"target": "site"}, "constant"),
        ({"fdr": 0.0}, r"fdr=0\.0"),
        ({"held_out": 1.0}, r"held_out=1\.0"),
        ({"drop": ["v33"]}, "no column 'v33'; did you mean 'v3'"),
        ({"settings": ["probabilty=0.3"]}, "did you mean 'probability'"),
        ({"settings": ["fdr=0.3"]}, "fdr is set by --fdr"),
        ({"settings": ["select"]}, "expected KEY=VALUE"),
    ],
)
def test_error_select(made, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_select(made[0] / "houses.csv", options.pop("target", "y"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rows", "message"), [(30, "at least 40 are needed"), (1, "at least 40 are needed")])
def test_error_too_few_rows(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        run_select(write(tmp_path / "t.csv", inputs_of(table(rows), "y")), "y", tmp_path / "out")


def test_property_settings_reach_the_estimator(made, tmp_path, no_page):
    root, _, _ = made
    result = run_select(
        root / "houses.csv",
        "y",
        tmp_path / "out",
        quiet=True,
        settings=["select=number", "n_inputs=2"],
        drop=["city"],
    )
    assert len(result["selected"]) == 2 and result["rule"] == "as the 2 likeliest"
    assert result["settings"]["estimator"]["n_inputs"] == 2 and "city" not in result["inputs"]["name"]


def test_property_the_command_line(made, tmp_path, capsys, monkeypatch, no_page):
    root, _, _ = made
    out = str(tmp_path / "out")
    arguments = [
        "select",
        str(root / "houses.csv"),
        "--target",
        "y",
        "--out",
        out,
        "--fdr",
        "0.05",
        "--drop",
        "v1",
        "v2",
    ]
    assert main(arguments) == 0
    assert "3 of 29 inputs selected" in capsys.readouterr().out
    assert main(arguments) == 1  # what is there is replaced when that is said
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    capsys.readouterr()
    assert main(["predict", out, str(root / "houses.csv")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 601
