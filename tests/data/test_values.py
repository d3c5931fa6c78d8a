"""What is written is finite and survives its cast, whatever its source; what does not is named by row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdl.data.manifest import Column, read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.raw import Prepared
from distdl.data.read import Dataset
from distdl.data.values import in_range, numbered, to_float32
from distdl.errors import InputError

ROWS = 9000  # several pieces


def put(values: np.ndarray, row: int, value: Any) -> np.ndarray:
    values = values.copy()
    values[row] = value
    return values


X, LABEL = np.full((ROWS, 2), 0.25), np.zeros(ROWS, np.int64)

BAD: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {
    "nan": ({"x": put(X, 8000, [0, np.nan])}, ["'x', row 8000", "column 'image'", "nan", "fill it in"]),
    "inf": ({"x": put(X, 8001, np.inf)}, ["'x', row 8001", "column 'image'", "inf"]),
    "too large": ({"x": put(X, 5, 1e39)}, ["'x', row 5 ", "column 'image'", "1e+39", "too large for float32"]),
    "target": ({"y": put(X[:, 0] / 2, 6, -1e300)}, ["'y', row 6 ", "column 'label'", "-1e+300", "too large"]),
    "wraps": ({"y": put(LABEL.astype(np.uint64), 7, 2**63 + 5)}, ["'y', row 7 ", "9223372036854775813", "int64"]),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("fraction", [0, 0.2])
def test_a_value_that_does_not_survive_is_named(tmp_path: Path, name: str, fraction: float) -> None:
    """By its row of the file, also where the rows are shared out over two splits by chance."""
    arrays, words = BAD[name]
    np.savez(tmp_path / "a.npz", **({"x": X, "y": LABEL} | arrays))
    options = {"path": tmp_path / "a.npz", "train": "x,y", "test_fraction": fraction}
    with pytest.raises(InputError) as refused:
        prepare_dataset("npz", tmp_path / "d", options)
    assert all(word in str(refused.value) for word in [str(tmp_path / "a.npz"), *words]), refused.value
    assert not (tmp_path / "d").exists()


def test_parquet_as_it_is(tmp_path: Path) -> None:
    vectors = pa.array(put(X, 4100, [np.nan, 1]).tolist(), pa.list_(pa.float64()))
    for columns, word in (
        ({"v": vectors}, "nan"),
        ({"v": pa.array(put(X[:, 0] * 3, 4100, -np.inf))}, "-inf"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=rf"a.parquet, row 4100 \(split 'tr.*column 'v' has the value {word}"):
            prepare_dataset("parquet", tmp_path / "d", {"path": tmp_path / "a.parquet", "test_fraction": 0})


def test_answers_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN among nothing but 0 and 1 is an answer that nobody has; it is kept, and said."""
    answers = np.random.default_rng(0).integers(0, 2, (ROWS, 3)).astype(float)
    for row in (0, 17, 8500):
        answers[row, row % 3] = np.nan
    options = {"path": tmp_path / "a.npz", "columns": "x,y", "train": "x,y"}
    np.savez(tmp_path / "a.npz", x=X, y=answers)
    prepare_dataset("npz", tmp_path / "d", options)
    data = Dataset(tmp_path / "d", "train")
    assert np.array_equal(data.gather(np.arange(ROWS))["y"], answers.astype(np.float32), equal_nan=True)
    assert read_manifest(tmp_path / "d").values["train"]["y"].not_finite == (3, 0)
    said = capsys.readouterr().err
    assert "3 values of the column 'y' are NaN, all others 0 or 1" in said and "row 0" in said

    for row in (1, 3000, 8999):  # before, in the same piece, after
        first = np.delete(answers, 0, axis=0)
        np.savez(tmp_path / "a.npz", x=X[1:], y=put(first, row - 1, 0.5))
        with pytest.raises(InputError, match=r"'y', row 16 .*column 'y' has the value nan"):
            prepare_dataset("npz", tmp_path / "e", options)
    np.savez(tmp_path / "a.npz", x=X, y=X[:, 0] * np.nan)
    with pytest.raises(InputError, match=r"'y', row 0 .*column 'y' has the value nan"):
        prepare_dataset("npz", tmp_path / "e", options)


def test_a_source_that_does_not_number_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    chunks = iter([("train", {"x": X}), ("test", {"x": X}), ("train", {"x": put(X, 3, np.nan) + 4})])
    with pytest.raises(InputError, match="split 'train', row 9,003: the column 'x' has the value nan"):
        list(in_range(Prepared({"x": Column("float64", (2,))}, chunks)))


def test_whole_numbers_that_are_rounded(capsys: pytest.CaptureFixture[str]) -> None:
    """An id or a time is an integer: refused. Among real numbers it is said, once."""
    ids = np.arange(10**9, 10**9 + 20)
    place = "file.csv:{}".format
    with pytest.raises(InputError, match=r"file.csv:1: the column 'id' has the whole number 1000000001, .*1000000000"):
        to_float32(ids, "id", place)
    with pytest.raises(InputError, match=r"file.csv:2: the column 'v' has the value nan"):
        to_float32(np.array([[0, 1], [1, 2], [3, np.nan]]), "v", place)
    for exact in (np.array([2**24, -(2**24), 2**30, 0]), np.array([2.0**100, -0.5, 2.0**40])):
        assert (to_float32(exact, "v", place) == exact).all()
    assert to_float32(np.array([True, False]), "v", place).tolist() == [1, 0]

    money = np.array([1e3, 20_123_457.0, 0.1, 20_123_459.0])
    columns = {"x": Column("float32")}
    pieces = (("train", rows) for rows in numbered([{"x": money[:1]}, {"x": money[1:]}]))
    ((_, first), (_, second)) = in_range(Prepared(columns, pieces, place=lambda split, name, row: f"a.npz, row {row}"))
    assert first["x"].dtype == second["x"].dtype == np.float32 and second.keys() == {"x"}
    said = capsys.readouterr().err
    assert "2 whole numbers of the column 'x' are rounded" in said
    assert "a.npz, row 1 (split 'train'): 20123457 becomes 20123456" in said


def test_numbers_that_would_become_the_same() -> None:
    """Seconds since 1970 lie on steps of 128 in float32; what differs by more than that stays."""
    columns = {"x": Column("float32")}
    times = 1.7e9 + np.arange(0, 500, 25.5)
    pieces = numbered([{"x": times - 1.7e9}, {"x": times}])
    prepared = Prepared(
        columns, (("train", rows) for rows in pieces), place=lambda split, name, row: f"a.mat, row {row}"
    )
    with pytest.raises(
        InputError, match=r"a.mat, row 2. .*: in the column 'x' 19 different numbers.*become [3-6] as float32"
    ):
        list(in_range(prepared))
    apart = 1.7e9 + 1000 * np.arange(20)
    ((_, rows),) = in_range(Prepared(columns, iter([("train", {"x": apart})])))
    assert len(set(rows["x"].tolist())) == 20


def test_real_numbers_do_not_become_whole_ones() -> None:
    columns = {"label": Column("int64")}
    assert [
        rows["label"].tolist() for _, rows in in_range(Prepared(columns, iter([("t", {"label": 4 * X[:2, 0]})])))
    ] == [[1, 1]]
    for value in (0.5, np.nan, 1e300):
        with pytest.raises(InputError, match="row 1: the column 'label' has the value"):
            list(in_range(Prepared(columns, iter([("t", {"label": np.array([0.0, value])})]))))
