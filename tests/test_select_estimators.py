from __future__ import annotations

import csv

import numpy as np
import pytest

from bayesprune.predict_rows import run_predict
from bayesprune.select import run_select

pytestmark = pytest.mark.slow  # trains networks


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A file with two numbers and a text that matter among 21 columns."""
    generator = np.random.default_rng(0)
    rows = 600
    data = {f"v{i}": generator.normal(size=rows) for i in range(1, 21)}
    data["city"] = generator.choice(["Oslo", "Bergen", "Narvik"], rows)
    signal = 2 * data["v3"] - 1.5 * data["v7"] + 2.5 * (data["city"] == "Oslo")
    data["y"] = signal + generator.normal(size=rows)
    data["kind"] = np.array(["low", "high"])[(signal > 0.8).astype(int)]
    path = tmp_path_factory.mktemp("houses") / "houses.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(data)
        writer.writerows(zip(*(column.tolist() for column in data.values())))
    return path


@pytest.mark.parametrize(("target", "other"), [("y", "kind"), ("kind", "y")])
def test_property_the_estimators_of_the_package_select_and_predict(houses, tmp_path, target, other):
    result = run_select(houses, target, tmp_path / "out", drop=[other], quiet=True)
    assert {"v3", "v7", "city"} <= {row["input"] for row in result["selected"]}
    assert len(result["selected"]) <= 5
    assert all(curve["lower"] is not None for curve in result["curves"])  # they offer posterior members
    history = result["history"]
    values = [value for path in history["paths"] for value in path["path"]] + history["threshold"]
    assert all(value is None or 0 <= value <= 1 for value in values)  # one axis holds both
    scores = result["held_out"]
    if target == "y":
        assert scores["rmse"] < 1.3 and 0.75 < scores["coverage"] < 1
    else:
        assert scores["accuracy"] > 0.85
    columns = run_predict(tmp_path / "out", houses, tmp_path / "p.csv")
    assert len(columns["prediction"]) == 600
    if target == "y":
        assert set(result["predictions"]["predicted"]) <= set(np.asarray(columns["prediction"], dtype=float).tolist())
