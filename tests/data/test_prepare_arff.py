"""Weka's ARFF: quotes, sparse rows, dates and missing values as a table; the series of the archives; what is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distdl.data.formats.arff import ArffTable
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

WEATHER = r"""% a comment
@RELATION 'the weather'
@attribute outlook {sunny, 'partly cloudy', 'it\'s, raining'}
@attribute 'temp °C' REAL
@attribute	seen date "dd.MM.yyyy HH:mm"
@attribute note string
@attribute play {yes,no}

@DATA
'partly cloudy', 20.5, "01.05.2024 10:30", 'a "quoted", one\n', yes
% between
sunny,?,?,?,no
'it\'s, raining',-3,"02.05.2024 00:00",'?',yes
"""


def table(folder: Path, text: str) -> ArffTable:
    (folder / "t.arff").write_text(text)
    return ArffTable(str(folder / "t.arff"))


def test_a_table_with_every_type(tmp_path: Path) -> None:
    weather = table(tmp_path, WEATHER)
    assert weather.names == ["outlook", "temp °C", "seen", "note", "play"]
    assert [str(t) for t in weather.schema.types] == ["string", "double", "timestamp[ms]", "string", "string"]
    (batch,) = weather.batches(weather.names)
    assert batch.to_pydict() == {
        "outlook": ["partly cloudy", "sunny", "it's, raining"],
        "temp °C": [20.5, None, -3.0],
        "seen": [datetime(2024, 5, 1, 10, 30), None, datetime(2024, 5, 2)],
        "note": ['a "quoted", one\n', None, "?"],  # quoted, it is a text
        "play": ["yes", "no", "yes"],
    }
    (some,) = weather.batches(["play", "temp °C"])
    assert some.schema.names == ["play", "temp °C"] and some.column(0).to_pylist() == ["yes", "no", "yes"]
    assert weather.place(2) == f"{weather.path}:13"


def test_sparse_rows_are_filled_up(tmp_path: Path) -> None:
    head = "@relation s\n@attribute a numeric\n@attribute b {x, 'y z'}\n@attribute c numeric\n@data\n"
    text = head + "{}\n{1 'y z', 2 -1.5}\n{0 ?}\n"
    (batch,) = table(tmp_path, text).batches(["a", "b", "c"])
    assert batch.to_pydict() == {"a": [0, 0, None], "b": ["x", "y z", "x"], "c": [0, -1.5, 0]}


def test_it_is_prepared_as_other_tables(tmp_path: Path) -> None:
    head = "@relation t\n@attribute a numeric\n@attribute b integer\n@attribute class {yes, no}\n@data\n"
    (tmp_path / "T_TRAIN.arff").write_text(head + "1,2,yes\n3,4,no\n")
    (tmp_path / "T_TEST.arff").write_text(head + "1,4,no\n")
    options = {"path": tmp_path / "T_TRAIN.arff", "label": "class", "scale": "none"}
    manifest = prepare_dataset("arff", tmp_path / "d", options)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 2, "test": 1}
    assert manifest.info["classes"] == ["no", "yes"]
    rows = Dataset(tmp_path / "d", "train").gather(np.arange(2))
    assert rows["x"].tolist() == [[1, 2], [3, 4]] and rows["label"].tolist() == [1, 0]


BAG = """@relation toy
@attribute bag relational
@attribute t0 numeric
@attribute t1 numeric
@attribute t2 numeric
@end bag
@attribute class {up, down}
@data
"1,2,3\\n-4,5e-1,6",up
'7,8,?\\n9,10,?',down
"""


def series(folder: Path, text: str, **options: Any) -> dict[str, Any]:
    (folder / "s.arff").write_text(text)
    options = {"path": folder / "s.arff", "test_fraction": 0, **options}
    prepare_dataset("ts", folder / "d", options, overwrite=True)
    data = Dataset(folder / "d", "train")
    return data.gather(np.arange(data.rows))


def test_series_of_several_dimensions_and_of_one(tmp_path: Path) -> None:
    rows = series(tmp_path, BAG)
    assert rows["x"].tolist() == [[[1, -4], [2, 0.5], [3, 6]], [[7, 9], [8, 10], [0, 0]]]
    assert rows["frames"].tolist() == [3, 2] and rows["label"].tolist() == [1, 0]
    flat = "@relation t\n@attribute a numeric\n@attribute b numeric\n@attribute y numeric\n@data\n1,2,0.5\n3,?,-1\n"
    rows = series(tmp_path, flat, target_scale="none")
    assert rows["x"][..., 0].tolist() == [[1, 2], [3, 0]] and rows["frames"].tolist() == [2, 1]
    assert rows["y"].tolist() == [0.5, -1]
    with pytest.raises(InputError, match=r"s.arff:9: dimension 2 has 2 values, there are 3 attributes"):
        series(tmp_path, BAG.replace("-4,5e-1,6", "-4,6"))
    with pytest.raises(InputError, match=r"does not hold series"):
        series(tmp_path, WEATHER)
    with pytest.raises(InputError, match=r"the attribute bag of .* holds tables"):
        table(tmp_path, BAG)


HEAD = "@relation t\n@attribute a numeric\n@attribute b {x, y}\n@attribute d date yyyy-MM-dd\n@data\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "1,z,?\n", "t.arff:6: the nominal attribute b is 'z'"),
        (HEAD + "1,X,?\n", "t.arff:6: the nominal attribute b is 'X'"),
        (HEAD + "1e999,x,?\n", "t.arff:6: the numeric attribute a is '1e999'"),
        (HEAD + "nan,x,?\n", "t.arff:6: the numeric attribute a is 'nan'"),
        (HEAD + "1,x,31.12.2024\n", "t.arff:6: the date attribute d is '31.12.2024'"),
        (HEAD + "\n%\n1,x\n", "t.arff:8: the row has 2 values, there are 3 attributes"),
        (HEAD + "1,x,?,{5}\n", "t.arff:6: the row has a weight"),
        (HEAD + "1,x,?,5\n", "t.arff:6: the row has 4 values, there are 3 attributes"),
        (HEAD + "1,'x,?\n", 't.arff:6: the row cannot be read from "\'x,?"'),
        (HEAD + "{0 1, 0 2}\n", "t.arff:6: the sparse row has the item '0 2'"),
        (HEAD + "{0 1, 3 2}\n", "t.arff:6: the sparse row has the item '3 2'"),
        (HEAD + "{0 1\n", "t.arff:6: the sparse row does not end"),
        (HEAD + "{0 1}\n", "t.arff:6: the sparse row has no d, and a date has no 0"),
        (HEAD.replace("numeric", "number"), "t.arff:2: the attribute a has the type 'number'"),
        (HEAD.replace("x, y", "x, x"), "t.arff:3: the attribute b has the value 'x' twice"),
        (HEAD.replace("yyyy-MM-dd", "yyyy-KK"), "t.arff:4: the date d is written as 'yyyy-KK'"),
        (HEAD.replace("@attribute b", "@attribute a"), "two attributes of the same name: a"),
        (HEAD.replace("@data", "@dato"), "t.arff:5: the header has the line '@dato'"),
        (HEAD.replace("@data\n", ""), "t.arff has no line @data"),
        ("@relation t\n@attribute b relational\n@attribute a numeric\n@data\n", "t.arff has no @end b"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        found = table(tmp_path, text)
        list(found.batches(found.names))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ("", True),
        (" +5 , 1.50e-3 , red ,  two words \n?,.5,?,?\n1,?, ? ,a%b", True),
        ("-0,1,blue,?x", True),
        ("1,2,'red',quoted", False),
        ("{0 3, 2 red, 3 x}", False),
        ("1,nan,red,x", False),
        ("1,1e400,red,x", False),
        ("1,0x10,red,x", False),
        ("1,1_0,red,x", False),
        ("1,2,green,x", False),
        ("1,2,red", False),
        ("1,,red,x", False),
        ("1,2,red,x,5", False),
        ("1\t2\tred\tx", False),
    ],
)
def test_plain_rows_are_read_at_once_as_the_careful_way_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, plain: bool
) -> None:
    head = (
        "@relation r\n@attribute a numeric\n@attribute b real\n@attribute c {red, blue}\n@attribute d string\n@data\n"
    )
    draw = np.random.default_rng(0).integers(0, 1 << 63, 400, np.uint64).view(np.float64)
    rows = [f"{v!r},{v:.20g},{'red' if v < 0 else 'blue'},word" for v in draw[np.isfinite(draw)].tolist()]
    (tmp_path / "t.arff").write_text(head + "\n".join([*rows[:100], *odd.splitlines(), "% a remark", "", *rows[100:]]))

    def read() -> str:
        try:
            table = ArffTable(str(tmp_path / "t.arff"))
            whole = pa.Table.from_batches(list(table.batches(["b", "a", "c", "d"])))
        except InputError as error:
            return str(error)
        return repr([whole[name].to_pylist() for name in whole.column_names])

    careful: list[int] = []
    real = ArffTable._careful
    monkeypatch.setattr(ArffTable, "_careful", lambda *given: careful.append(1) or real(*given))
    at_once = read()
    assert (not careful) == plain
    monkeypatch.setattr(ArffTable, "_plain", lambda *given: None)
    assert at_once == read()
