"""`fit` on a data frame: the command's selection, names everywhere, only the selected columns to predict, messages."""

from __future__ import annotations

import numpy as np
import pytest

import quick_fits

pandas = pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from bayesprune.predict_rows import run_predict  # noqa: E402
from bayesprune.select import run_select  # noqa: E402
from bayesprune.tabular import SparseBNNClassifier, SparseBNNRegressor, fit_many, load  # noqa: E402
from bayesprune.tabular.heldout import row_copies, split_rows  # noqa: E402

QUICK = {"search_steps": 200, "evidence_steps": 60, "fit_steps": 80, "n_chains": 3, "n_starts": 2}


@pytest.fixture
def quick(monkeypatch):
    quick_fits.use(monkeypatch)


def mixed(rows=400, seed=0):
    """Numbers, text, a category, dates, booleans, missing values, an identifier and a constant; and a response."""
    generator = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "id": np.arange(rows) + 1000,
            "size": generator.normal(size=rows),
            "age": np.where(generator.random(rows) < 0.2, np.nan, generator.normal(size=rows)),
            "city": generator.choice(["Oslo", "Bergen", "Narvik"], rows),
            "grade": pandas.Categorical(generator.choice(["low", "high"], rows)),
            "sold": pandas.Timestamp("2019-01-01") + pandas.to_timedelta(generator.integers(0, 900, rows), unit="D"),
            "new": generator.random(rows) < 0.4,
            "floor": pandas.array(
                np.where(generator.random(rows) < 0.1, None, generator.integers(0, 9, rows)), dtype="Int64"
            ),
            "note": np.where(generator.random(rows) < 0.3, None, generator.choice(["a", "b"], rows)),
            "country": "NO",
            **{f"z{i}": generator.normal(size=rows) for i in range(6)},
        }
    )
    signal = (
        2 * frame["size"] + 2.5 * (frame["city"] == "Oslo") + 1.5 * frame["age"].isna() + frame["sold"].dt.year - 2019
    )
    return frame, (signal + 0.4 * generator.normal(size=rows)).rename("price")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_parity_the_command_selects_and_predicts_what_fit_does(tmp_path, quick, ending, task):
    frame, y = mixed()
    kind = SparseBNNRegressor
    if task == "classification":
        kind, y = SparseBNNClassifier, pandas.Series(np.where(y > y.median(), "dear", "cheap"), name="price")
    whole, path = frame.assign(price=y), tmp_path / f"t.{ending}"
    whole.to_csv(path, index=False) if ending == "csv" else whole.to_parquet(path)
    result = run_select(path, "price", tmp_path / "out", quiet=True)
    labels = np.unique(y, return_inverse=True)[1] if task == "classification" else None
    train, _ = split_rows(row_copies(frame), labels, 0.2, 0)
    with pytest.warns(
        UserWarning, match=r"2 of X's columns not used: 'id' \(looks like an identifier.*'country' \(constant\)"
    ):
        model = kind(random_state=0).fit(frame.iloc[train], y.iloc[train])
    assert {row["input"] for row in result["selected"]} == set(model.get_feature_names_out())
    assert {"size", "city"} <= set(model.get_feature_names_out())
    at = [list(frame.columns).index(name) for name in result["inputs"]["name"]]
    assert result["inputs"]["probability"] == pytest.approx(model.inclusion_probability_[at], rel=1e-5)
    told = run_predict(tmp_path / "out", path, tmp_path / "p.csv")["prediction"]
    assert np.array_equal(told, model.predict(frame)) if labels is not None else np.allclose(told, model.predict(frame))
    assert dict(map(tuple, result["dropped"])) == model.encoder_.dropped


def test_target_text_dates_and_missing_values_are_found():
    """The real search: what is missing, a text and a date act on the response beside a number."""
    frame, y = mixed(600, seed=1)
    with pytest.warns(UserWarning, match="not used"):
        model = SparseBNNRegressor(random_state=np.random.default_rng(3), groups=[["z0", "z1"]], **QUICK).fit(frame, y)
    assert {"size", "city", "age", "sold"} <= set(model.get_feature_names_out())
    assert len(model.support_) == model.n_features_in_ == frame.shape[1] and not model.support_[[0, 9]].any()
    z = [list(frame.columns).index(name) for name in ("z0", "z1")]
    assert len(set(model.inclusion_probability_[z])) == 1
    assert np.corrcoef(model.predict(frame), y)[0, 1] > 0.9


def test_property_predict_and_transform_need_the_selected_columns_only(quick, tmp_path):
    frame, y = mixed()
    model = SparseBNNRegressor(random_state=0).fit(frame.drop(columns=["id", "country"]), y)
    names = list(model.get_feature_names_out())
    few = frame[names[::-1]].assign(unlike="x")
    assert np.array_equal(model.predict(few), model.predict(frame.drop(columns=["id", "country"])))
    assert list(model.transform(few).columns) == names
    model.save(tmp_path)
    back = load(tmp_path)
    assert np.array_equal(back.predict(few), model.predict(few)) and back.target_name_ == "price"
    assert back.encoder_ == model.encoder_ and list(back.get_feature_names_out()) == names
    with pytest.raises(ValueError, match=rf"feature names should match[\s\S]*the prediction needs \['{names[-1]}'\]"):
        model.predict(frame[names[:-1]])
    assert model.predict(frame.drop(columns=["id", "country"]).to_numpy(dtype=object)).shape == (400,)


def test_limit_a_frame_of_numbers_equals_its_array(quick):
    X, y = np.random.default_rng(0).normal(size=(200, 5)), np.arange(200.0) % 7
    one = SparseBNNRegressor(random_state=0, select="number", n_inputs=2).fit(X, y)
    two = SparseBNNRegressor(random_state=0, select="number", n_inputs=2).fit(pandas.DataFrame(X), y)
    assert np.array_equal(one.predict(X), two.predict(pandas.DataFrame(X)))
    assert np.array_equal(one.inclusion_probability_, two.inclusion_probability_)


def test_property_given_inputs_by_name(quick):
    frame, y = mixed()
    frame = frame.drop(columns=["id", "country"])
    two, one = fit_many(SparseBNNRegressor(random_state=0), [(frame, y)] * 2, inputs=[["city", "age"], ["size"]])
    assert list(two.get_feature_names_out()) == ["age", "city"] and list(one.get_feature_names_out()) == ["size"]
    assert np.isfinite(two.predict(frame[["age", "city"]])).all()


def test_error_frames_of_other_columns_are_not_fitted_together(quick):
    frame, y = mixed()
    pairs = [(frame[["size", "z0"]], y), (frame[["size", "z1"]], y)]
    with pytest.raises(ValueError, match="datasets differ in their columns or in the levels of text"):
        fit_many(SparseBNNRegressor(random_state=0), pairs)


@pytest.mark.parametrize("state", [0, np.random.RandomState(0), np.random.default_rng(0), None])
def test_property_random_state_of_any_kind(quick, state, tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    model = SparseBNNRegressor(random_state=state).fit(X, X[:, 1])
    model.save(tmp_path)
    assert load(tmp_path).get_params()["random_state"] == (0 if state == 0 else None)


def test_property_a_fit_uses_one_thread_and_gives_back_the_others(monkeypatch):
    import torch

    seen = []

    def spy(*arguments, **keywords):
        seen.append(torch.get_num_threads())
        return quick_fits.find_quickly(*arguments, **keywords)

    quick_fits.use(monkeypatch)
    monkeypatch.setattr("bayesprune.tabular.estimator_base.find_inputs", spy)
    before, X = torch.get_num_threads(), np.random.default_rng(0).normal(size=(60, 3))
    torch.set_num_threads(2)
    try:
        SparseBNNRegressor().fit(X, X[:, 1])
        SparseBNNRegressor(n_jobs=2).fit(X, X[:, 1])
        assert seen == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "columns", "message"),
    [
        (
            {"groups": [["sise"]]},
            ["size", "z0"],
            "groups name column 'sise', which X does not have; did you mean 'size'",
        ),
        ({"groups": ["z0"]}, ["size", "z0"], r"groups=\['z0'\] must be lists of columns"),
        ({"groups": [["z0"], ["z0", "size"]]}, ["size", "z0"], "name a column twice"),
        ({"n_jobs": 0}, ["size"], "n_jobs=0 must be None"),
        ({}, ["country"], r"X has no usable input \('country': constant\): give columns that vary"),
    ],
)
def test_error_messages_name_column_and_mend(quick, settings, columns, message):
    frame, y = mixed()
    with pytest.raises(ValueError, match=message):
        SparseBNNRegressor(**settings).fit(frame[columns], y)


def test_error_names_of_groups_need_a_data_frame(quick):
    with pytest.raises(
        ValueError, match="groups name column 'a', which X does not have; give numbers, or X as a data frame"
    ):
        SparseBNNRegressor(groups=[["a"]]).fit(np.eye(10), np.arange(10.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame, y: (frame[["city"]].to_numpy(), y), "Column 0 of X holds cells that are no numbers: give X as a pandas"),
        (lambda frame, y: (np.where(np.eye(len(y), 3), np.nan, 1.0), y), "Column 0 of X holds 1 cells that are missing or inf"),
        (lambda frame, y: (frame, np.where(np.arange(len(y)) == 7, np.nan, y)), "y is missing or infinite in 1 rows, first in row 7"),
        (lambda frame, y: (frame, frame["city"]), r"y holds text \('.*'\): give numbers, or use SparseBNNClassifier"),
        (lambda frame, y: (frame[["size", "size"]], y), "X has 2 columns named 'size': rename all but one"),
    ],
)  # fmt: skip
def test_error_cells_are_named_with_column_row_and_mend(quick, change, message):
    frame, y = mixed()
    X, y = change(frame, y)
    with pytest.raises(ValueError, match=message):
        SparseBNNRegressor().fit(X, y)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", None] * 10, "Input y contains NaN or None: it is missing in 10 rows, first in row 2"),
        (["a", "b", pandas.NA] * 10, "it is missing in 10 rows, first in row 2: leave those rows out"),
        (["a", 1, "b"] * 10, r"y holds text \('a'\) and numbers \(1\): give labels of one kind"),
        (pandas.date_range("2020-01-01", periods=2).repeat(15), r"y holds labels of type datetime64\[.*\]: turn them into text"),
        ([pandas.Timestamp("2020-01-01", tz="UTC"), pandas.Timestamp("2021-01-01", tz="UTC")] * 15, "y holds a label of type Time"),
    ],
)  # fmt: skip
def test_error_labels_that_cannot_be_classes(quick, labels, message):
    values = labels if isinstance(labels, pandas.Index) else np.array(labels, dtype=object)
    with pytest.raises(ValueError, match=message):
        SparseBNNClassifier().fit(np.random.default_rng(0).normal(size=(30, 2)), values)


def test_error_responses_of_another_shape_have_no_density(quick):
    X = np.random.default_rng(0).normal(size=(60, 2))
    model = SparseBNNRegressor(random_state=0).fit(X, X[:, 1])
    rows = len(model.predict_members(X[:1]))  # as many rows as members: nothing else would tell
    assert model.log_density(X[:rows], X[:rows, 1]).shape == (rows,)
    with pytest.raises(ValueError, match=rf"y has shape \({rows}, 1\): expected \({rows},\), one response a row of X"):
        model.log_density(X[:rows], X[:rows, 1:])


@pytest.mark.parametrize("names", [[0, 1, 2], pandas.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])])
def test_property_columns_without_names_of_text_are_named_as_they_print(quick, names, tmp_path):
    X = np.random.default_rng(0).normal(size=(100, 3))
    frame = pandas.DataFrame(X, columns=names)
    model = SparseBNNRegressor(random_state=0).fit(frame, X[:, 1])
    model.save(tmp_path)
    for one in (model, load(tmp_path)):
        assert (
            one.get_feature_names_out().tolist()
            == [list(map(str, frame.columns))[1]]
            == list(one.transform(frame).columns)
        )


def test_property_groups_may_be_an_array(quick, tmp_path):
    X = np.random.default_rng(0).normal(size=(100, 3))
    model = SparseBNNRegressor(random_state=0, groups=np.array([[0, 1]])).fit(X, X[:, 1])
    assert model.support_.tolist() == [True, True, False]
    model.save(tmp_path)
    assert load(tmp_path).groups == [[0, 1]]


def test_property_columns_with_missing_values_go_back_among_zeros(quick):
    frame, _ = mixed()
    model = SparseBNNRegressor(random_state=0).fit(frame[["age", "size"]], frame["age"].fillna(0))
    assert model.support_.tolist() == [True, False]
    back = model.inverse_transform(model.transform(frame[["age", "size"]]))
    np.testing.assert_array_equal(back, np.column_stack([frame["age"], np.zeros(len(frame))]))
    with pytest.raises(ValueError, match="X has 2 columns: expected the 1 that are selected"):
        model.inverse_transform(frame[["age", "size"]])


def test_target_a_factor_and_its_number_are_found_together():
    """A degree and its years tell the same: neither says of y what the other does not."""
    rng = np.random.default_rng(0)
    years = rng.integers(0, 5, 400)
    frame = pandas.DataFrame({"degree": np.array(list("abcde"))[years], "years": years * 2.0})
    frame = frame.assign(**{f"z{i}": rng.standard_normal(400) for i in range(6)})
    model = SparseBNNRegressor(refit=False, random_state=0, search_steps=80, evidence_steps=80, n_chains=3)
    model.fit(frame, frame["years"] / 3 + rng.standard_normal(400))
    assert [cluster.members for cluster in model.clusters_] == [(0, 1)]
