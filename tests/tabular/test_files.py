from __future__ import annotations

import gzip
import re

import numpy as np
import pytest

from bayesprune.tabular import csv_file
from bayesprune.tabular.files import Table, read_table


def write(path, text, **options):
    path.write_text(text, **options)
    return path


def columns(table):
    return {name: column.tolist() for name, column in table.columns.items()}


def same(a, b):
    assert list(a.columns) == list(b.columns)
    for name in a.columns:
        assert a.is_text(name) == b.is_text(name), name
        if a.is_text(name):
            assert a.columns[name].tolist() == b.columns[name].tolist()
        else:
            assert np.array_equal(a.columns[name], b.columns[name], equal_nan=True)


def test_property_types_and_missing_values_of_csv(tmp_path):
    text = 'a,b,"c, d",e\n1, x ,NA,\n-2.5e3,NA,0.5,\nnan,"y ""z""",?,NULL\n\n 7 ,x,1,\n'
    table = read_table(write(tmp_path / "t.csv", text))
    assert table.rows == 4
    told = columns(table)
    assert told["b"] == ["x", None, 'y "z"', "x"]
    assert np.array_equal(told["a"], [1, -2500, np.nan, 7], equal_nan=True)
    assert np.array_equal(told["c, d"], [np.nan, 0.5, np.nan, 1], equal_nan=True)
    assert np.isnan(told["e"]).all() and not table.is_text("e")
    assert table.missing("b").tolist() == [False, True, False, False]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_property_delimiter_is_found_in_the_header(tmp_path, mark):
    text = "\n".join(mark.join(row) for row in (["a", "b c", "d"], ["1", "x", "2"], ["3", "y", "4"]))
    assert columns(read_table(write(tmp_path / "t.csv", text))) == {"a": [1, 3], "b c": ["x", "y"], "d": [2, 4]}


def test_property_windows_files_tsv_and_gz(tmp_path):
    text = "a,b\r\n1,x\r\n2,y\r\n"
    plain = read_table(write(tmp_path / "t.csv", text, encoding="utf-8-sig", newline=""))
    assert columns(plain) == {"a": [1, 2], "b": ["x", "y"]}
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"a\tb,c\n1\tx\n2\ty\n"))
    assert columns(read_table(tmp_path / "t.tsv.gz")) == {"a": [1, 2], "b,c": ["x", "y"]}


def test_property_types_do_not_depend_on_the_reading_in_pieces(tmp_path, monkeypatch):
    rows = [f"{i},{'x' if i == 7 else i},{'' if i < 5 else i}" for i in range(10)]
    path = write(tmp_path / "t.csv", "\n".join(["a,b,c", *rows]))
    whole = read_table(path)
    monkeypatch.setattr(csv_file, "_CELLS", 6)  # two rows at a time
    same(whole, read_table(path))
    # The first rows of b were numbers, and their text is kept as it stood.
    assert whole.columns["b"].tolist() == ["0", "1", "2", "3", "4", "5", "6", "x", "8", "9"]


def test_property_text_and_drop_and_only(tmp_path):
    path = write(tmp_path / "t.csv", "zip,a,b\n0150,1,2\n5003,3,4\n")
    assert columns(read_table(path, text=["zip"], drop=["b"])) == {"zip": ["0150", "5003"], "a": [1, 3]}
    assert columns(read_table(path, only=["b", "q"])) == {"b": [2, 4]}


def test_property_row_numbers_that_pandas_wrote_are_left_out(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"a": [3.0, 4.0], "b": ["x", None]}).to_csv(tmp_path / "t.csv")
    assert columns(read_table(tmp_path / "t.csv")) == {"a": [3, 4], "b": ["x", None]}


def test_parity_pandas_reads_the_same_numbers(tmp_path):
    pandas = pytest.importorskip("pandas")
    values = np.random.default_rng(0).normal(size=(50, 4)) * 10.0 ** np.arange(-150, 250, 100)
    frame = pandas.DataFrame(values, columns=list("abcd"))
    frame.iloc[::7, 2] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = read_table(tmp_path / "t.csv")
    # As written: pandas writes the shortest text that is the number.
    assert np.array_equal(np.column_stack(list(table.columns.values())), frame.to_numpy(), equal_nan=True)
    read = pandas.read_csv(tmp_path / "t.csv")
    assert list(read.columns) == list(table.columns) and (read.isna().to_numpy() == frame.isna().to_numpy()).all()
    assert all(np.allclose(read[name], table.columns[name], rtol=1e-14, atol=0, equal_nan=True) for name in read)


def test_parity_csv_parquet_and_npz(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    X = np.random.default_rng(1).normal(size=(30, 3))
    X[4, 1] = np.nan
    y = np.array(["yes", "no", "no"] * 10)
    frame = pandas.DataFrame(X, columns=["x1", "x2", "x3"]).assign(y=y)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", X=X, y=y)
    tables = [read_table(tmp_path / f"t.{ending}") for ending in ("csv", "parquet", "npz")]
    same(tables[0], tables[1])
    same(tables[0], tables[2])


def test_property_types_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from decimal import Decimal

    from pyarrow import parquet

    data = {
        "whole": pyarrow.array([1, None, 3]),
        "decimal": pyarrow.array([Decimal("1.50"), None, Decimal("2.25")]),
        "flag": pyarrow.array([True, False, None]),
        "level": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        "nothing": pyarrow.nulls(3),
        "code": pyarrow.array([10, 20, None]),
        "__index_level_0__": pyarrow.array([5, 6, 7]),
    }
    parquet.write_table(pyarrow.table(data), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", text=["code"])
    assert list(table.columns) == ["whole", "decimal", "flag", "level", "nothing", "code"]
    assert np.array_equal(table.columns["whole"], [1, np.nan, 3], equal_nan=True)
    assert np.array_equal(table.columns["decimal"], [1.5, np.nan, 2.25], equal_nan=True)
    assert table.columns["flag"].tolist() == ["True", "False", None]
    assert table.columns["level"].tolist() == ["a", "b", "a"]
    assert table.columns["code"].tolist() == ["10", "20", None]
    assert np.isnan(table.columns["nothing"]).all()


def test_property_npz_names(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.arange(6).reshape(3, 2), names=np.array(["a", "b"]))
    assert columns(read_table(tmp_path / "t.npz")) == {"a": [0, 2, 4], "b": [1, 3, 5]}
    assert columns(read_table(tmp_path / "t.npz", text=["b"]))["b"] == ["1", "3", "5"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "is empty; its first line must name the columns"),
        ("t.csv", "a,b\n", "a header and no rows"),
        ("t.csv", "1,2\n3,4\n", "the first line holds only numbers"),
        ("t.csv", "a,b\n1,2\n3\n", "line 3 has 1 cells where the header names 2 columns"),
        ("t.csv", "a,b,a\n1,2,3\n", "the name 'a' stands for 2 columns"),
        ("t.csv", "a,,b\n1,2,3\n", "column 2 has no name"),
        ("t.csv", ",b\n4,2\n8,3\n", "column 1 has no name"),
        ("t.csv", 'a,b\n"1,2\n', "cannot be read (unexpected end of data); expected a table as CSV"),
        ("t.xlsx", "a,b\n1,2\n", "ends in one of .csv"),
        ("t.parquet", "a,b\n1,2\n", "expected a Parquet file"),
        ("t.npz", "a,b\n1,2\n", "expected a whole zip file"),
        ("t.csv.gz", "a,b\n1,2\n", "cannot be read (Not a gzipped file"),
    ],
)
def test_error_damaged_files(tmp_path, name, text, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_table(write(tmp_path / name, text))


def test_error_encoding_and_absent_file(tmp_path):
    (tmp_path / "t.csv").write_bytes("a,b\n1,Tromsø\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match=r"none\.csv': no such file"):
        read_table(tmp_path / "none.csv")


def test_error_names_that_are_not_there(tmp_path):
    path = write(tmp_path / "t.csv", "price,size\n1,2\n")
    with pytest.raises(ValueError, match="no column 'prize'; did you mean 'price'"):
        read_table(path, drop=["prize"])
    with pytest.raises(ValueError, match="no column 'Size'; did you mean 'size'"):
        read_table(path, text=["Size"])
    assert list(read_table(path, drop=["prize"], strict=False).columns) == ["price", "size"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "holds y; expected arrays X"),
        ({"X": np.zeros(3)}, r"X is float64 of shape \(3,\)"),
        ({"X": np.array([["a"]])}, "X is <U1"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(2)}, r"y is float64 of shape \(2,\)"),
        ({"X": np.zeros((3, 2)), "names": np.array(["a"])}, "1 names for the 2 columns"),
        ({"X": np.zeros((3, 1)), "y": np.zeros(3), "names": np.array(["y"])}, "the name 'y' stands for 2 columns"),
        ({"X": np.array([[None]], dtype=object)}, "without pickle"),
    ],
)
def test_error_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.npz")


def test_error_parquet_dates_unless_dropped(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"day": pandas.to_datetime(["2020-01-01", "2020-01-02"]), "a": [1, 2]})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'day' holds timestamp.*--drop day"):
        read_table(tmp_path / "t.parquet")
    assert columns(read_table(tmp_path / "t.parquet", drop=["day"])) == {"a": [1, 2]}


def test_error_infinite_names_the_row():
    table = Table("t.csv", {"a": np.array([0, np.inf, -np.inf])})
    with pytest.raises(ValueError, match=r"column 'a' of t\.csv holds inf in data row 2 \(2 in all\)"):
        table.check_finite("a")


def test_error_an_array_that_claims_more_than_it_has(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "t.npz", "w") as file:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 8), }".ljust(117) + b"\n"
        file.writestr("X.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"an array of float64\[1000000000000, 8\] in"):
        read_table(tmp_path / "t.npz")


def test_error_a_table_larger_than_allowed(tmp_path):
    import numpy as np

    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 10**5))
    np.savez_compressed(tmp_path / "t.npz", X=np.zeros((10**5, 2)))
    for name in ("t.csv.gz", "t.npz"):
        assert read_table(tmp_path / name).rows == 10**5
        with pytest.raises(ValueError, match="raise limit"):
            read_table(tmp_path / name, limit=1000)
