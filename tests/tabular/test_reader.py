from __future__ import annotations

import gzip

import numpy as np
import pytest

from bayesprune import ArtefactError
from bayesprune.tabular.reader import read_frame

pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")


def write(path, text, **options):
    path.write_text(text, **options)
    return path


def columns(frame):
    return {name: column.where(column.notna(), None).tolist() for name, column in frame.astype(object).items()}


def test_property_types_and_missing_values_of_csv(tmp_path):
    text = 'a,b,"c, d",e,f\n1, x ,NA,,2020-01-02\n-2.5e3,NA,0.5,,2021-03-04\nnan,"y ""z""",?,NULL,\n\n 7 ,x,1,,2020-01-02\n'
    frame = read_frame(write(tmp_path / "t.csv", text))
    told = columns(frame)
    assert len(frame) == 4 and told["b"] == ["x", None, 'y "z"', "x"]
    assert told["a"] == [1, -2500, None, 7] and told["c, d"] == [None, 0.5, None, 1]
    assert frame["e"].isna().all() and frame["f"].dtype.kind == "M"


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_property_delimiter_is_found_in_the_header(tmp_path, mark):
    text = "\n".join(mark.join(row) for row in (["a", "b c", "d"], ["1", "x", "2"], ["3", "y", "4"]))
    assert columns(read_frame(write(tmp_path / "t.csv", text))) == {"a": [1, 3], "b c": ["x", "y"], "d": [2, 4]}


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
def test_property_delimiters_inside_quoted_names_do_not_count(tmp_path, mark):
    names = ["Height, cm", "Weight, kg", 'Say "a, b; c|d"']
    header = mark.join('"' + name.replace('"', '""') + '"' for name in names)
    frame = read_frame(write(tmp_path / "t.csv", f"{header}\n1{mark}2{mark}3\n4{mark}5{mark}6\n"))
    assert columns(frame) == dict(zip(names, ([1, 4], [2, 5], [3, 6])))


def test_property_rows_of_more_than_a_megabyte(tmp_path):
    count = 120_000
    header = ",".join(f"gene{i}" for i in range(count))
    path = write(tmp_path / "t.csv", "\n".join([header, *[",".join([f"{at + 0.25}"] * count) for at in range(3)]]))
    assert len(header) > 2**20
    frame = read_frame(path, only=["gene0", f"gene{count - 1}"])
    assert columns(frame) == {"gene0": [0.25, 1.25, 2.25], f"gene{count - 1}": [0.25, 1.25, 2.25]}
    wide = "x" * (2**20 + 5)  # a cell as wide, later in the file
    assert read_frame(write(tmp_path / "u.csv", f"a,b\n1,y\n2,{wide}\n"))["b"].tolist() == ["y", wide]


def test_property_windows_files_tsv_and_gz(tmp_path):
    text = "a,b\r\n1,x\r\n2,y\r\n"
    plain = read_frame(write(tmp_path / "t.csv", text, encoding="utf-8-sig", newline=""))
    assert columns(plain) == {"a": [1, 2], "b": ["x", "y"]}
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"a\tb,c\n1\tx\n2\ty\n"))
    assert columns(read_frame(tmp_path / "t.tsv.gz")) == {"a": [1, 2], "b,c": ["x", "y"]}


def test_property_text_and_drop_and_only_and_keep(tmp_path):
    path = write(tmp_path / "t.csv", "zip,a,b\n0150,1,2\n5003,3,4\n")
    frame = read_frame(path, text=["zip"], drop=["b"], keep=["a"])
    assert columns(frame) == {"zip": ["0150", "5003"], "a": [1, 3]}
    assert frame["zip"].dtype == "category" and frame["a"].dtype == "float64"
    assert columns(read_frame(path, only=["b", "q"])) == {"b": [2, 4]} and len(read_frame(path, only=["q"])) == 2


def test_property_row_numbers_that_pandas_wrote_are_left_out(tmp_path):
    pandas.DataFrame({"a": [3.0, 4.0], "b": ["x", None]}).to_csv(tmp_path / "t.csv")
    assert columns(read_frame(tmp_path / "t.csv")) == {"a": [3, 4], "b": ["x", None]}


def test_parity_pandas_reads_the_same_numbers(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 4)) * 10.0 ** np.arange(-150, 250, 100)
    frame = pandas.DataFrame(values, columns=list("abcd"))
    frame.iloc[::7, 2] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert np.array_equal(read_frame(tmp_path / "t.csv").to_numpy(), frame.to_numpy(), equal_nan=True)


def test_parity_csv_parquet_and_npz(tmp_path):
    X = np.random.default_rng(1).normal(size=(30, 3))
    X[4, 1] = np.nan
    y = np.array(["yes", "no", "no"] * 10)
    frame = pandas.DataFrame(X, columns=["x1", "x2", "x3"]).assign(y=y)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", X=X, y=y)
    tables = [columns(read_frame(tmp_path / f"t.{ending}")) for ending in ("csv", "parquet", "npz")]
    assert tables[0] == tables[1] == tables[2]


def test_property_types_of_parquet(tmp_path):
    import datetime
    from decimal import Decimal

    import pyarrow
    from pyarrow import parquet

    data = {
        "whole": pyarrow.array([1, None, 3]),
        "decimal": pyarrow.array([Decimal("1.50"), None, Decimal("2.25")]),
        "flag": pyarrow.array([True, False, True]),
        "level": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        "nothing": pyarrow.nulls(3),
        "time": pyarrow.array([datetime.time(0, 0, 1), None, datetime.time(0, 1)]),
        "day": pyarrow.array([datetime.date(2020, 1, 2)] * 3),
        "__index_level_0__": pyarrow.array([5, 6, 7]),
    }
    parquet.write_table(pyarrow.table(data), tmp_path / "t.parquet")
    frame = read_frame(tmp_path / "t.parquet")
    assert list(frame.columns) == ["whole", "decimal", "flag", "level", "nothing", "time", "day"]
    assert np.array_equal(frame["whole"], [1, np.nan, 3], equal_nan=True)
    assert np.array_equal(frame["decimal"], [1.5, np.nan, 2.25], equal_nan=True)
    assert frame["flag"].dtype == bool and frame["level"].dtype == "category" and frame["day"].dtype.kind == "M"
    assert frame["time"].dropna().tolist() == [1e6, 60e6] and frame["nothing"].isna().all()


def test_property_npz_names(tmp_path):
    np.savez(tmp_path / "t.npz", X=np.arange(6).reshape(3, 2), names=np.array(["a", "b"]))
    assert columns(read_frame(tmp_path / "t.npz")) == {"a": [0, 2, 4], "b": [1, 3, 5]}
    assert read_frame(tmp_path / "t.npz", text=["b"])["b"].dtype == "category"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "is empty; its first line must name the columns"),
        ("t.csv", "a,b\n", "a header and no rows"),
        ("t.csv", "1,2\n3,4\n", "the first line holds only numbers"),
        ("t.csv", "a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("t.csv", "a,b,a\n1,2,3\n", "the name 'a' stands for 2 columns"),
        ("t.csv", "a,,b\n1,2,3\n", "column 2 has no name"),
        ("t.csv", ",b\n4,2\n8,3\n", "column 1 has no name"),
        ("t.csv", 'a,b\n"1,2\n', "expected a table as CSV"),
        ("t.xlsx", "a,b\n1,2\n", "ends in one of .csv"),
        ("t.parquet", "a,b\n1,2\n", "expected a Parquet file"),
        ("t.npz", "a,b\n1,2\n", "expected a whole zip file"),
        ("t.csv.gz", "a,b\n1,2\n", "expected a whole gzip file"),
    ],
)
def test_error_damaged_files(tmp_path, name, text, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        read_frame(write(tmp_path / name, text))


def test_error_encoding_and_absent_file(tmp_path):
    (tmp_path / "t.csv").write_bytes("a,b\n1,Tromsø\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_frame(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match=r"none\.csv': no such file"):
        read_frame(tmp_path / "none.csv")


def test_error_names_that_are_not_there(tmp_path):
    path = write(tmp_path / "t.csv", "price,size\n1,2\n")
    with pytest.raises(ValueError, match="no column 'prize'; did you mean 'price'"):
        read_frame(path, drop=["prize"])
    with pytest.raises(ValueError, match="no column 'Size'; did you mean 'size'"):
        read_frame(path, text=["Size"])
    assert list(read_frame(path, drop=["prize"], strict=False)) == ["price", "size"]


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
        read_frame(tmp_path / "t.npz")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.npz", "t.parquet"])
def test_error_a_table_larger_than_allowed_once_unpacked(tmp_path, name):
    if name == "t.npz":
        np.savez_compressed(tmp_path / name, X=np.zeros((300, 2)), names=np.array(["a", "b"]))
    elif name == "t.parquet":  # 300 equal values take a few bytes in the file
        pandas.DataFrame({"a": np.zeros(300), "b": np.zeros(300)}).to_parquet(tmp_path / name)
    else:
        content = b"a,b\n" + b"1,2\n" * 300
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert len(read_frame(tmp_path / name)) == 300
    with pytest.raises(ArtefactError, match="unpacks to more than 1000 bytes; raise limit"):
        read_frame(tmp_path / name, limit=1000)


def test_error_a_parquet_table_whose_texts_are_not_utf8(tmp_path):
    import pyarrow
    from pyarrow import parquet

    buffers = [None, pyarrow.py_buffer(np.array([0, 2, 4], dtype=np.int32).tobytes()), pyarrow.py_buffer(b"ab\xff\xfe")]
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)
    parquet.write_table(pyarrow.table({"city": text, "y": [1.0, 2.0]}), tmp_path / "t.parquet")
    with pytest.raises(ArtefactError, match="UTF8"):
        read_frame(tmp_path / "t.parquet")
