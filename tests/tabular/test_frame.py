"""From the columns of a data frame to numbers: parity with scikit-learn on the training rows, names, dates, messages."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest

pandas = pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from bayesprune.tabular.frame import FrameEncoder, learn_encoder  # noqa: E402
from bayesprune.tabular.target import read_target  # noqa: E402


def frame(**columns):
    return pandas.DataFrame(columns)


def test_property_text_becomes_a_group_of_levels():
    data = frame(a=np.arange(30.0), c=list("rgb" * 10), s=list("mf" * 15))
    encoder = learn_encoder(data)
    assert [one.columns for one in encoder.inputs] == [("a",), ("c = b", "c = g", "c = r"), ("s = m",)]
    assert encoder.members == {"a": [0], "c": [1, 2, 3], "s": [4]}
    assert encoder.encode(data)[:3].tolist() == [[0, 0, 0, 1, 1], [1, 0, 1, 0, 0], [2, 1, 0, 0, 1]]


def test_parity_scikit_learn_fitted_on_the_rows_themselves():
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder

    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(500, 3))
    numbers[generator.random((500, 3)) < [0.2, 0.1, 0.3]] = np.nan
    words = generator.choice(list("aaabbbccdefgh"), size=(500, 2)).astype(object)
    words[:3, 0] = ["x", "y", "z"]  # rare
    data = pandas.DataFrame(numbers, columns=list("uvw")).assign(p=words[:, 0], q=words[:, 1])
    imputer = SimpleImputer(strategy="median", add_indicator=True).fit(numbers)
    one_hot = OneHotEncoder(min_frequency=5, handle_unknown="infrequent_if_exist", sparse_output=False).fit(words)
    encoder = FrameEncoder.from_dict(json.loads(json.dumps(learn_encoder(data).to_dict())))
    new_numbers, new_words = np.where(numbers > 1, np.nan, 2 * numbers), words[::-1].copy()
    new_words[:2, 0] = ["new", "newer"]
    for left, right in ((numbers, words), (new_numbers, new_words)):
        both = pandas.DataFrame(left, columns=list("uvw")).assign(p=right[:, 0], q=right[:, 1])
        assert np.array_equal(encoder.encode(both), np.hstack([imputer.transform(left), one_hot.transform(right)]))


def test_property_dates_become_their_parts_where_they_vary():
    days = pandas.date_range("2020-02-28", periods=60, freq="36h")
    told = {
        one.name: one for one in learn_encoder(frame(t=days, iso=days.strftime("%Y-%m-%d"), a=range(0, 120, 2))).inputs
    }
    assert told["t"].kind == told["iso"].kind == "date"
    assert told["t"].parts == ("month", "day", "weekday", "hour") and told["iso"].parts == ("month", "day", "weekday")
    encoder = learn_encoder(frame(t=days))
    assert encoder.encode(frame(t=["2020-03-01 12:00", None])).tolist() == [
        [3, 1, 6, 12],
        list(encoder.inputs[0].fills),
    ]
    assert encoder.inputs[0].columns == ("t: month", "t: day", "t: weekday", "t: hour")


def test_property_missing_numbers_become_the_median_of_the_training_rows():
    few, many = np.arange(100.0), np.arange(100.0)[::-1] / 2
    few[:4], many[:5] = np.nan, np.nan
    encoder = learn_encoder(frame(few=few, many=many))
    assert [one.columns for one in encoder.inputs] == [("few",), ("many", "many is missing")]
    wanted = [[np.nanmedian(few), np.nanmedian(many), 1], [7, 8, 0]]
    assert encoder.encode(frame(few=[np.nan, 7], many=[np.nan, 8])).tolist() == wanted
    nullable = frame(
        n=pandas.array([1, None, 3] * 10, dtype="Int64"), b=pandas.array([True, None, False] * 10, dtype="boolean")
    )
    assert np.isfinite(learn_encoder(nullable).encode(nullable)).all()


def test_property_missing_and_rare_and_new_levels():
    cells = ["a"] * 300 + ["b"] * 100 + [None] * 20 + ["c"] * 4 + ["d"] * 3
    encoder = learn_encoder(frame(x=cells))
    assert encoder.inputs[0].columns == ("x = (missing)", "x = a", "x = b", "x = (other)")
    matrix = encoder.encode(frame(x=["b", None, "c", "new"]))
    assert matrix.argmax(axis=1).tolist() == [2, 0, 3, 3] and (matrix.sum(axis=1) == 1).all()


def test_property_a_level_unseen_in_training_is_warned_of_by_name():
    encoder = learn_encoder(frame(x=list("abc") * 10, s=list("mf") * 15))
    with pytest.warns(UserWarning) as told:
        assert encoder.encode(frame(x=list("aq"), s=list("fd"))).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert [str(warning.message) for warning in told] == [
        "1 rows have a 'x' unseen in training ('q'): counted as none of the levels",
        "1 rows have a 's' unseen in training ('d'): counted as the base level 'f'",
    ]


def test_property_an_unseen_level_is_warned_of_where_there_are_rare_ones():
    encoder = learn_encoder(frame(x=["a"] * 20 + ["b"] * 20 + ["rare"]))
    with pytest.warns(UserWarning) as told:
        assert encoder.encode(frame(x=["a", "q", "rare"])).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert [str(one.message) for one in told] == [
        "1 rows have a 'x' unseen in training ('q'): counted as the level '(other)'"
    ]


def test_property_codes_are_the_same_levels_as_whole_numbers_floats_and_text():
    """A missing cell turns whole numbers into floats; files spell them either way."""
    codes = np.tile([1, 2, 3], 10)
    wanted = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    spellings = ([1, 2, 3], [1.0, 2.0, 3.0], ["1", "2", "3"], ["1.0", "2.0", "3.0"])
    for own in ("int64", "float64", "str"):
        data = frame(x=codes.astype(own)).astype("category")
        encoder = learn_encoder(data)
        assert encoder.inputs[0].levels == ("1", "2", "3")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for cells in spellings:
                assert encoder.encode(frame(x=cells)).tolist() == wanted
    older = FrameEncoder.from_dict(
        {"inputs": [{**asdict(encoder.inputs[0]), "levels": ["1.0", "2.0", "3.0"]}], "dropped": {}}
    )
    assert older.encode(frame(x=[1, 2, 3])).tolist() == wanted  # a file of before
    with pytest.warns(UserWarning, match="'4', 'x'"):
        assert encoder.encode(frame(x=[4.0, 1.0, "x"])).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_property_columns_that_say_nothing_are_left_out_with_the_reason():
    n = 60
    data = frame(
        one=np.ones(n), word=["x"] * n, none=np.full(n, np.nan), void=[None] * n, id=[f"p{i}" for i in range(n)],
        rare=[f"l{i // 4}" for i in range(n)], a=np.arange(n) / 7, again=np.arange(n) / 7, c=list("rg" * (n // 2)),
        renamed=list("RG" * (n // 2)), gap=np.where(np.arange(n) < 30, np.nan, 1.0),
    )  # fmt: skip
    encoder = learn_encoder(data)
    assert encoder.dropped == {
        "one": "constant",
        "word": "constant",
        "none": "no row has a value",
        "void": "no row has a value",
        "id": "looks like an identifier: 60 levels in 60 rows",
        "rare": "no two levels have 5 rows each",
        "again": "equals 'a' in every row",
        "renamed": "equals 'c' in every row",
    }
    assert [name for one in encoder.inputs for name in one.columns] == ["a", "c = r", "gap", "gap is missing"]


@pytest.mark.parametrize(
    ("name", "values", "dropped"),
    [
        ("row", np.random.default_rng(0).permutation(200), True),  # numbers the rows
        ("row", np.delete(np.arange(250), np.arange(0, 250, 5)), True),  # some rows are gone
        ("customer_id", np.random.default_rng(0).choice(10**9, 200, replace=False), True),
        ("PassengerId", np.arange(200) * 1000, True),
        ("income", np.random.default_rng(0).choice(10**6, 200, replace=False), False),
        ("row", np.arange(200.0), False),  # floats are measurements
        ("row", np.arange(200) // 2, False),  # repeats
        ("grid", np.arange(200) * 10, False),  # gaps
    ],
)
def test_property_identifiers_among_whole_numbers(name, values, dropped):
    assert (name in learn_encoder(frame(**{name: values, "a": np.sin(np.arange(200))})).dropped) == dropped


def test_property_only_the_most_frequent_levels_have_a_column():
    cells = [f"l{i % 120:03d}" for i in range(120 * 200)] + ["l000"]
    columns = learn_encoder(frame(x=cells)).inputs[0].columns
    assert len(columns) == 101 and columns[-1] == "x = (other)" and "x = l000" in columns
    cells = ["a"] * 5000 + ["b"] * 4000 + [f"l{i // 19}" for i in range(950)]  # 0.2 % are 20 rows
    assert learn_encoder(frame(x=cells)).inputs[0].columns == ("x = a", "x = b", "x = (other)")


def test_roundtrip_json_and_some_of_the_inputs():
    data = frame(a=np.r_[np.nan, np.arange(59.0)], x=["ø", "b", None] * 20, k=np.ones(60), s=list("mf") * 30)
    encoder = learn_encoder(data)
    back = FrameEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert back == encoder and np.array_equal(back.encode(data), encoder.encode(data))
    places = sorted(encoder.members["x"] + encoder.members["a"])
    some = encoder.only(["x", "a"])
    assert np.array_equal(some.encode(data[["x", "a"]]), encoder.encode(data)[:, places])
    with pytest.raises(ValueError, match=r"no column 'a' and 1 more of the model's inputs; did you mean 'A'"):
        some.encode(data[["s"]].assign(A=1))


def test_error_numbers_with_slips():
    cells = [str(i) for i in range(100)]
    with pytest.raises(ValueError, match=r"holds numbers but for 2 cells \('12\.5\.1' in data row 4, .*--text a"):
        learn_encoder(frame(a=[*cells[:3], "12.5.1", *cells[4:], "n.a."]))
    with pytest.raises(ValueError, match=r"numbers with a comma \('0,5'\)"):
        learn_encoder(frame(a=[f"{i},5" for i in range(100)]))
    codes = ["10", "20", "30", "40", "50", "60", "70", "80", "90", "X"] * 10
    with pytest.raises(ValueError, match=r"X\['a'\]\.astype\('category'\)"):
        learn_encoder(frame(a=codes))
    assert len(learn_encoder(frame(a=pandas.Categorical(codes))).inputs[0].columns) == 10


def test_error_every_message_names_the_column_and_the_mend():
    encoder = learn_encoder(frame(a=np.arange(30.0), c=list("xyz") * 10, d=pandas.date_range("2020", periods=30)))
    there = {"a": [1.0, 2.0], "c": ["x", "y"], "d": ["2020-01-01", "2020-01-02"]}
    with pytest.raises(ValueError, match=r"column 'a' of X holds inf in data row 2 .*leave the cell empty"):
        encoder.encode(frame(**there | {"a": [1.0, np.inf]}))
    with pytest.raises(
        ValueError, match="column 'a' of X holds 'old' in data row 2, where the training rows hold numbers: mend it"
    ):
        encoder.encode(frame(**there | {"a": ["1", "old"]}))
    with pytest.raises(
        ValueError, match="column 'd' of X holds 'soon' in data row 2, where the training rows hold dates: mend it"
    ):
        encoder.encode(frame(**there | {"d": ["2020-01-01", "soon"]}))
    with pytest.raises(ValueError, match=r"no usable input \('k': constant\)"):
        learn_encoder(frame(k=[1.0] * 30))
    with pytest.raises(ValueError, match=r"column 'k' of X holds a list .*leave the column out"):
        learn_encoder(frame(k=[[1], [2]] * 10))
    with pytest.raises(ValueError, match="column 'k' of X holds complex128 values"):
        learn_encoder(frame(k=np.arange(5) * 1j))
    with pytest.raises(ValueError, match="2 columns named 'a': rename all but one"):
        learn_encoder(pandas.DataFrame(np.eye(2), columns=["a", "a"]))


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (list("ab" * 30), "classification"),
        (np.arange(60) % 2 + 3.5, "classification"),
        (np.arange(60) % 10, "classification"),
        (np.arange(60) % 11, "regression"),
        (np.arange(60) % 3 / 2, "regression"),
        (np.r_[np.arange(58) % 3, 7, 7], "regression"),
    ],
)
def test_property_task_of_a_target(values, task):
    assert read_target(frame(y=values), "y").task == task
    if not isinstance(values, list):
        assert read_target(frame(y=values), "y", "regression").values.tolist() == values.tolist()


def test_property_classes_and_rows_without_a_target():
    target = read_target(frame(y=["b", "a", None] * 30), "y")
    assert target.classes == ("a", "b") and target.values[:3].tolist() == [1, 0, 1]
    assert target.rows[:3].tolist() == [0, 1, 3] and target.column(np.array([0, 1])).tolist() == ["b", "a"]
    assert read_target(frame(y=np.arange(60) % 2 * 2), "y").classes == (0, 2)


def test_property_no_warning_where_nothing_is_new():
    data = frame(x=list("abc") * 10, s=list("mf") * 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn_encoder(data).encode(data)


@pytest.mark.parametrize(
    ("values", "name", "task", "message"),
    [
        (np.arange(60.0), "z", "auto", "target: t.csv has no column 'z'"),
        (np.arange(60.0), "y", "guess", "task='guess'"),
        (np.r_[np.arange(59.0), np.inf], "y", "auto", "holds inf in data row 60"),
        (np.r_[np.arange(30.0), [np.nan] * 30], "y", "auto", r"30 rows with a value of 'y' \(and 30 without it\)"),
        (np.ones(60), "y", "auto", "constant"),
        (list("ab" * 30), "y", "regression", r"holds text \('a' in data row 1\)"),
        (list("ab" * 30 + "c"), "y", "auto", r"3 classes, of which 1 have fewer than 5 rows \(c: 1\)"),
        (np.arange(60.0), "y", "classification", r"fewer than 5 rows .* task=\"regression\""),
    ],
)
def test_error_target(values, name, task, message):
    with pytest.raises(ValueError, match=message):
        read_target(frame(y=values), name, task, "t.csv")
