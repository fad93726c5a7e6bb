from __future__ import annotations

import json

import numpy as np
import pytest

from bayesprune.tabular.encode import Encoding, fit_encoding
from bayesprune.tabular.files import Table
from bayesprune.tabular.target import read_target


def table(**columns):
    return Table(
        "t.csv", {k: np.array(v, dtype=object if isinstance(v[0], str) else float) for k, v in columns.items()}
    )


def words(text):
    return np.array([None if word == "-" else word for word in text], dtype=object)


def test_property_text_becomes_a_group_of_levels():
    data = Table("t.csv", {"a": np.arange(30.0), "c": words("rgb" * 10), "s": words("mf" * 15)})
    encoding = fit_encoding(data, ["a", "c", "s"])
    assert encoding.columns == ("a", "c = b", "c = g", "c = r", "s = m")
    assert encoding.groups == [[0], [1, 2, 3], [4]]
    matrix, notes = encoding.encode(data)
    assert notes == [] and matrix[:3].tolist() == [[0, 0, 0, 1, 1], [1, 0, 1, 0, 0], [2, 1, 0, 0, 1]]


def test_property_missing_numbers_become_the_median_of_the_training_rows():
    values = np.arange(100.0)
    few, many = values.copy(), values.copy()
    few[:4], many[:5] = np.nan, np.nan
    encoding = fit_encoding(Table("t.csv", {"few": few, "many": many}), ["few", "many"])
    assert encoding.columns == ("few", "many", "many is missing")
    new = Table("new.csv", {"few": np.array([np.nan, 7]), "many": np.array([np.nan, 8])})
    assert encoding.encode(new)[0].tolist() == [[51.5, 52, 1], [7, 8, 0]]


def test_property_missing_and_rare_and_new_levels():
    cells = ["a"] * 300 + ["b"] * 100 + [None] * 20 + ["c"] * 4 + ["d"] * 3
    data = Table("t.csv", {"x": np.array(cells, dtype=object)})
    encoding = fit_encoding(data, ["x"])
    assert encoding.columns == ("x = (missing)", "x = a", "x = b", "x = (other)")
    new = Table("new.csv", {"x": words(["b", "-", "c", "new"])})
    matrix, notes = encoding.encode(new)
    assert matrix.argmax(axis=1).tolist() == [2, 0, 3, 3] and (matrix.sum(axis=1) == 1).all() and notes == []


def test_property_a_level_unseen_in_training_is_said():
    encoding = fit_encoding(table(x=list("abc") * 10, s=list("mf") * 15), ["x", "s"])
    matrix, notes = encoding.encode(table(x=list("aq"), s=list("fd")))
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert notes == [
        "1 rows have a 'x' unseen in training ('q'): counted as none of the levels",
        "1 rows have a 's' unseen in training ('d'): counted as the base level 'f'",
    ]


def test_property_columns_that_say_nothing_are_left_out_with_the_reason():
    n = 60
    data = Table(
        "t.csv",
        {
            "one": np.ones(n),
            "word": words(["x"] * n),
            "none": np.full(n, np.nan),
            "void": words(["-"] * n),
            "id": words([f"p{i}" for i in range(n)]),
            "rare": words([f"l{i // 4}" for i in range(n)]),
            "a": np.arange(n, dtype=float),
            "again": np.arange(n, dtype=float),
            "c": words("rg" * (n // 2)),
            "renamed": words("RG" * (n // 2)),
            "gap": np.where(np.arange(n) < 30, np.nan, 1.0),
        },
    )
    encoding = fit_encoding(data, list(data.columns))
    assert dict(encoding.dropped) == {
        "one": "constant",
        "word": "constant",
        "none": "no row has a value",
        "void": "no row has a value",
        "id": "looks like an identifier: 60 levels in 60 rows",
        "rare": "no two levels have 5 rows each",
        "again": "equals 'a' in every row",
        "renamed": "equals 'c' in every row",
    }
    assert encoding.columns == ("a", "c = r", "gap", "gap is missing")


def test_property_only_the_most_frequent_levels_have_a_column():
    cells = [f"l{i % 120:03d}" for i in range(120 * 200)] + ["l000"]
    levels = fit_encoding(Table("t.csv", {"x": words(cells)}), ["x"]).inputs[0].levels
    assert len(levels) == 101 and levels[-1] == "(other)" and "l000" in levels
    cells = ["a"] * 5000 + ["b"] * 4000 + [f"l{i // 19}" for i in range(950)]  # 0.2 % are 20 rows
    assert fit_encoding(Table("t.csv", {"x": words(cells)}), ["x"]).inputs[0].levels == ("a", "b", "(other)")


def test_roundtrip_json():
    cells = ["ø", "b", None] * 20
    data = Table("t.csv", {"a": np.r_[np.nan, np.arange(59.0)], "x": np.array(cells, dtype=object), "k": np.ones(60)})
    encoding = fit_encoding(data, ["a", "x", "k"])
    back = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert back == encoding and back.columns == encoding.columns
    assert np.array_equal(back.encode(data)[0], encoding.encode(data)[0])
    with pytest.raises(ValueError, match="format='x'"):
        Encoding.from_dict({"format": "x"})


def test_property_absent_columns_take_their_fill_value_if_not_needed():
    encoding = fit_encoding(table(a=list(range(30)), b=list(range(30, 0, -1)), c=list("xyz") * 10), ["a", "b", "c"])
    assert encoding.encode(table(b=[5.0]), needed=["b"])[0].tolist() == [[14.5, 5, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"no column 'a'.*\(and 1 more of the model's inputs\)"):
        encoding.encode(table(b=[5.0]))
    with pytest.raises(ValueError, match="no column 'c'"):
        encoding.encode(table(b=[5.0]), needed=["b", "c"])


def test_error_numbers_with_slips():
    cells = [str(i) for i in range(100)]
    with pytest.raises(ValueError, match=r"holds numbers but for 2 cells \('12\.5\.1' in data row 4, .* --text a"):
        fit_encoding(table(a=[*cells[:3], "12.5.1", *cells[4:], "n.a."]), ["a"])
    with pytest.raises(ValueError, match=r"numbers with a comma \('0,5'\)"):
        fit_encoding(table(a=[f"{i},5" for i in range(100)]), ["a"])
    codes = ["10", "20", "30", "40", "50", "60", "70", "80", "90", "X"] * 10
    with pytest.raises(ValueError, match="--text a"):
        fit_encoding(table(a=codes), ["a"])
    assert len(fit_encoding(table(a=codes), ["a"], text=["a"]).columns) == 10


def test_error_infinite_and_of_another_kind():
    data = table(a=list(range(30)), c=list("xyz") * 10)
    encoding = fit_encoding(data, ["a", "c"])
    with pytest.raises(ValueError, match=r"column 'a' of t\.csv holds inf in data row 1"):
        encoding.encode(table(a=[np.inf], c=["x"]))
    with pytest.raises(ValueError, match=r"column 'a' of t\.csv holds inf in data row 1"):
        fit_encoding(table(a=[np.inf, 1.0]), ["a"])
    with pytest.raises(ValueError, match=r"holds text \('old' in data row 2\); the model was trained on numbers"):
        encoding.encode(table(a=["1", "old"], c=["x", "y"]))
    with pytest.raises(ValueError, match="holds numbers; the model was trained on text"):
        encoding.encode(table(a=[1.0], c=[2.0]))
    nothing_there = Table("t.csv", {"a": np.array([1.0]), "c": np.array([np.nan])})
    assert encoding.encode(nothing_there)[1] == [
        "1 rows have a 'c' unseen in training ('(missing)'): counted as none of the levels"
    ]
    with pytest.raises(ValueError, match=r"no usable input \('k': constant\)"):
        fit_encoding(table(k=[1.0] * 30), ["k"])
    with pytest.raises(ValueError, match="the target is the only column"):
        fit_encoding(table(k=[1.0] * 30), [])


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (words("ab" * 30), "classification"),
        (np.arange(60) % 2 + 3.5, "classification"),
        (np.arange(60.0) % 10, "classification"),
        (np.arange(60.0) % 11, "regression"),
        (np.arange(60) % 3 / 2, "regression"),
        (np.r_[np.arange(58.0) % 3, 7, 7], "regression"),
    ],
)
def test_property_task_of_a_target(values, task):
    data = Table("t.csv", {"y": values})
    assert read_target(data, "y").task == task
    if values.dtype != object:
        assert read_target(data, "y", "regression").values.tolist() == values.tolist()


def test_property_classes_and_rows_without_a_target():
    target = read_target(Table("t.csv", {"y": words("ba-" * 30)}), "y")
    assert target.classes == ("a", "b") and target.values[:3].tolist() == [1, 0, 1]
    assert len(target.rows) == 60 and 2 not in target.rows
    numbers = read_target(Table("t.csv", {"y": np.array([2.5, -1] * 20)}), "y")
    assert numbers.classes == (-1, 2.5) and isinstance(numbers.classes[0], int)


@pytest.mark.parametrize(
    ("values", "name", "task", "message"),
    [
        (np.arange(60.0), "Y", "auto", "target: t.csv has no column 'Y'; did you mean 'y'"),
        (np.arange(60.0), "y", "guess", "task='guess'"),
        (np.r_[np.arange(59.0), np.inf], "y", "auto", "holds inf in data row 60"),
        (np.r_[np.arange(30.0), [np.nan] * 30], "y", "auto", r"30 rows with a value of 'y' \(and 30 without it\)"),
        (np.ones(60), "y", "auto", "constant"),
        (words("ab" * 30), "y", "regression", r"holds text \('a' in data row 1\)"),
        (words("ab" * 30 + "c"), "y", "auto", r"3 classes, of which 1 have fewer than 5 rows \('c': 1\)"),
        (np.arange(60.0), "y", "classification", r"fewer than 5 rows .* task=\"regression\""),
    ],
)
def test_error_target(values, name, task, message):
    with pytest.raises(ValueError, match=message):
        read_target(Table("t.csv", {"y": values}), name, task)
