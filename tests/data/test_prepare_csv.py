"""Tables in text as people write them: what is recognised is read right and said, what is not is refused by its line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distdl.data.prepare import prepare_dataset
from distdl.data.table.csv_table import CsvTable
from distdl.data.table.dialect import Told, sniff
from distdl.errors import InputError
from tests.conftest import Result


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def rows(table: CsvTable) -> list[list[str]]:
    found = [row for batch in table.batches(table.names) for row in batch.to_pylist()]
    return [list(row.values()) for row in found]


FLOWERS = [("5.1", "3.5", "red"), ("4.9", "3.0", "red"), ("6.0", "2.2", "blue"), ("5.0", "2.3", "blue")] * 3


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_any_delimiter_is_recognised_and_said(tmp_path: Path, delimiter: str) -> None:
    lines = [delimiter.join(row) for row in [("a", "b", "y"), *FLOWERS]]
    table = CsvTable(write(tmp_path / "t.csv", "\n".join(lines)))
    assert table.names == ["a", "b", "y"] and rows(table) == [list(row) for row in FLOWERS]
    assert ["divided by" in note for note in table.notes] == ([] if delimiter == "," else [True])
    other = "," if delimiter != "," else ";"
    assert CsvTable(table.path, Told(delimiter=other)).names == [delimiter.join("aby")]


def test_columns_lined_up_by_blanks(tmp_path: Path) -> None:
    text = "".join(f" {float(a):6.1f}   {float(b):4.2f} {c} \r\n" for a, b, c in FLOWERS)
    table = CsvTable(write(tmp_path / "housing.data", text), Told(header=False))
    assert table.dialect.delimiter == "blanks" and table.names == ["c0", "c1", "c2"]
    assert rows(table) == [[a, f"{float(b):.2f}", c] for a, b, c in FLOWERS]
    assert table.place(3) == f"{table.path}:4"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"])
def test_encodings_are_recognised(tmp_path: Path, encoding: str) -> None:
    text = "größe,y\n" + "3,süß\n4,säuerlich\n" * 40
    table = CsvTable(write(tmp_path / "t.csv", text, encoding))
    assert (
        table.names == ["größe", "y"]
        and rows(table)[:2] == [["3", "süß"], ["4", "säuerlich"]]
        and len(rows(table)) == 80
    )
    assert len(table.notes) == (encoding != "utf-8-sig")
    told = CsvTable(table.path, Told(encoding=encoding))
    assert rows(told) == rows(table) and told.names == table.names and told.notes == []


def test_a_latin_1_header_is_no_traceback(tmp_path: Path, command: Callable[..., Result]) -> None:
    path = write(tmp_path / "t.csv", "größe,y\n" + "1,a\n2,b\n" * 9, "latin-1")
    done = command("data", "prepare", "csv", tmp_path / "d", f"path={path}", "label=y")
    assert done.code == 0 and "note: " in done.stdout and "read as cp1252: 'größe,y' in line 1" in done.stdout


def test_letters_that_do_not_fit_are_named_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distdl.data.table.dialect.SAMPLE_BYTES", 64)
    path = write(tmp_path / "t.csv", b"a,y\n" + b"1,x\n" * 50 + b"2,gr\xfcn\n")
    with pytest.raises(InputError, match=r"t\.csv:52: a line is not utf-8") as error:
        rows(CsvTable(path))
    assert "encoding=" in str(error.value)
    assert rows(CsvTable(path, Told(encoding="cp1252")))[-1] == ["2", "grün"]
    with pytest.raises(InputError, match="encoding is 'klingon'"):
        CsvTable(path, Told(encoding="klingon"))


@pytest.mark.parametrize(
    ("line", "expected", "decimal", "thousands"),
    [
        ("1,5;-2,25;x", ["1.5", "-2.25", "x"], ",", ""),
        ("1.234,5;1.234.567;x, y", ["1234.5", "1234567", "x, y"], ",", "."),
        ("1,234,567\t-1,234.5\tx", ["1234567", "-1234.5", "x"], ".", ","),
        ('"1,234,567",2.5,x', ["1234567", "2.5", "x"], ".", ","),
    ],
)
def test_decimal_commas_and_thousands(
    tmp_path: Path, line: str, expected: list[str], decimal: str, thousands: str
) -> None:
    header = "a;b;y" if ";" in line else "a\tb\ty" if "\t" in line else "a,b,y"
    table = CsvTable(write(tmp_path / "t.csv", "\n".join([header, *[line] * 5])))
    assert (table.dialect.decimal, table.dialect.thousands) == (decimal, thousands)
    assert rows(table) == [expected] * 5 and any("decimal=" in n or "thousands=" in n for n in table.notes)


def test_signs_in_numbers_that_may_be_either_are_said_and_can_be_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a;y\n1,234;x\n5,678;z\n")
    table = CsvTable(path)
    assert rows(table)[0] == ["1,234", "x"] and "'1,234' may have a decimal comma" in table.notes[-1]
    assert rows(CsvTable(path, Told(decimal=",")))[0] == ["1.234", "x"]
    assert rows(CsvTable(path, Told(thousands=",")))[0] == ["1234", "x"]
    table = CsvTable(write(tmp_path / "u.csv", "a;y\n1 234,5;x, 1\n"), Told(decimal=",", thousands="space"))
    assert rows(table)[0] == ["1234.5", "x, 1"]
    with pytest.raises(InputError, match="decimal is ';'"):
        CsvTable(path, Told(decimal=";"))


NAMELESS = {
    "iris": "\n".join(",".join(row) for row in FLOWERS),
    "housing": "\n".join(f"{i * 0.37:.3f},{i + 3},{i % 7}" for i in range(9)),
    "mushrooms": "\n".join(["p,x,s", "e,x,y", "p,b,s", "e,b,y"] * 5),
    "one line": "1,2,3\n",
    "a missing value first": "?,2,red\n1,3,blue\n2,4,red\n5,7,blue\n",
}
NAMED = {
    "words above numbers": "a,b,y\n1,2,x\n",
    "pandas without names": "0,1,2,3\n.5,.25,.1,.7\n.2,.3,.3,.2\n",
    "years": "land,1990,1991,1992\n" + "".join(f"{c},{i * 7.5},3.25,{i}\n" for i, c in enumerate("abcdef")),
    "words above words": "size,y\n" + "big,yes\nsmall,no\n" * 5,
    "an index without a name": ",a,y\n0,1.5,x\n1,2.5,z\n",
    "nothing tells": "a,b\nc,d\ne,f\n",
    "a table of counts": ",142.24,144.78,147.32\n9.4,0,0,1\n9.5,2,1,0\n9.6,1,0,3\n",
}


@pytest.mark.parametrize("text", NAMELESS.values(), ids=NAMELESS)
def test_a_file_without_names_is_recognised(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "t.csv", text)
    found = sniff(path)
    assert not found.header and found.names == ("c0", "c1", "c2") and found.confidence >= 0.8 and found.why
    with pytest.raises(InputError, match="seems to have no line with the names") as error:
        CsvTable(path)
    assert "names=" in str(error.value) and "header=no" in str(error.value)
    table = CsvTable(path, Told(header=False))
    assert table.names == ["c0", "c1", "c2"] and ",".join(rows(table)[0]) == text.split("\n")[0] and not table.notes
    assert len(rows(table)) == len(text.strip().split("\n")) and table.place(0).endswith(":1")
    named = CsvTable(path, Told(names=("u", "v", "w")))
    assert named.names == ["u", "v", "w"] and not named.notes and rows(named) == rows(table)
    assert CsvTable(path, Told(header=True)).names[0] == text.split(",")[0]


@pytest.mark.parametrize("text", NAMED.values(), ids=NAMED)
def test_a_line_of_names_is_one(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "t.csv", text)
    found = sniff(path)
    assert found.header and list(found.names) == text.split("\n")[0].split(",")
    assert len(rows(CsvTable(path))) == text.count("\n") - 1
    assert (found.confidence >= 0.8) == (not any("header=" in why for why in found.why))


def test_no_record_becomes_the_names(tmp_path: Path) -> None:
    path = write(tmp_path / "iris.csv", NAMELESS["iris"])
    with pytest.raises(InputError, match="'red' is a value of its own column"):
        prepare_dataset("csv", tmp_path / "d", {"path": path, "label": "red"})
    options = {"path": path, "header": "no", "label": "c2", "test_fraction": "0"}
    assert prepare_dataset("csv", tmp_path / "d", options).splits["train"].rows == len(FLOWERS)
    # Where all else is undecided, the label tells.
    path = write(tmp_path / "t.csv", "u,k1\nv,k2\nw,k1\nx,k3\nz,k4\n")
    assert sniff(path).header
    with pytest.raises(InputError, match="'k1' is a value of its own column"):
        CsvTable(path, label="k1")


def test_a_class_may_be_called_as_its_column_where_names_are_plain(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ",week,y\n,1,y\n,2,n\n,3,y\n,4,n\n")
    assert len(rows(CsvTable(path, label="y"))) == 4
    assert len(rows(CsvTable(path))) == 4  # nor is a label that nobody named a value of the column without a name


def test_names_beside_a_line_of_names(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", NAMED["words above numbers"])
    with pytest.raises(InputError, match="seems to hold names: a, b, y") as error:
        CsvTable(path, Told(names=("u", "v", "w")))
    assert "header=yes" in str(error.value)
    assert rows(CsvTable(path, Told(names=("u", "v", "w"), header=True))) == [["1", "2", "x"]]
    assert len(rows(CsvTable(path, Told(names=("u", "v", "w"), header=False)))) == 2
    with pytest.raises(InputError, match=r"names= has 2 names, the first line of .* 3 values"):
        CsvTable(path, Told(names=("u", "v"), header=True))


def test_columns_without_a_name_are_left_out_and_said(tmp_path: Path) -> None:
    table = CsvTable(write(tmp_path / "t.csv", ",a,y,\n0,1.5,x,\n1,2.5,z,\n"))
    assert table.names == ["a", "y"] and rows(table) == [["1.5", "x"], ["2.5", "z"]]
    assert ["column 1 has no name and is left out (0, 1, …)" in table.notes[0], "column 4" in table.notes[1]] == [
        True
    ] * 2
    with pytest.raises(InputError, match=r"t\.csv:2: the row has 3 values where the table has 2") as error:
        rows(CsvTable(write(tmp_path / "t.csv", "a,y\n1,x,\n2,z,\n")))
    assert "at the end of the rows" in str(error.value)
    with pytest.raises(InputError, match="two columns of the same name: a"):
        CsvTable(write(tmp_path / "t.csv", "a,b,a\n1,2,x\n"))


def test_lines_are_counted_through_quotes_and_blank_lines(tmp_path: Path) -> None:
    text = '\n"a\nb",note,y\n1,"one\ntwo, three",x\n\n\n2,plain,"x"\n3,"say ""no""\n",z\n4,d,z\n'
    for end in ("\n", "\r\n", "\r"):
        table = CsvTable(write(tmp_path / "t.csv", text.replace("\n", end)), Told(header=True))
        assert table.names == [f"a{end}b".strip(), "note", "y"]
        assert [row[0] for row in rows(table)] == ["1", "2", "3", "4"]
        assert [table.place(row).rpartition(":")[2] for row in range(4)] == ["4", "8", "9", "11"]
    path = write(tmp_path / "t.csv", text + "5,e,z,z\n")
    with pytest.raises(InputError, match=r"t\.csv:12: the row has 4 values where the table has 3"):
        rows(CsvTable(path, Told(header=True)))


def test_line_feeds_in_quotes_may_stand_where_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distdl.data.table.csv_table.BLOCK_BYTES", 100)
    monkeypatch.setattr("distdl.data.table.csv_table.RECORDS_A_BLOCK", 0)
    text = "a,y\n" + "".join(f'{i},"one\ntwo, {i}"\n' for i in range(200))
    assert rows(CsvTable(write(tmp_path / "t.csv", text))) == [[str(i), f"one\ntwo, {i}"] for i in range(200)]


def test_remarks_before_the_first_row_are_left_out_and_said(tmp_path: Path) -> None:
    for text, first in (("a,y\n1,x\n2,#z\n", 4), ("1,x\n2,#z\n3,x\n4,x\n", 3)):
        table = CsvTable(write(tmp_path / "t.csv", "# of somebody\n#\n" + text), Told(header=text[0] == "a"))
        assert rows(table)[:2] == [["1", "x"], ["2", "#z"]]
        assert table.place(1).endswith(f":{first + 1}") and "2 lines of remarks" in table.notes[0]


def test_names_behind_a_remark_sign_are_names(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "t.csv", np.arange(6.0).reshape(3, 2), "%g", ",", header="made by a program\nu,v")
    table = CsvTable(str(tmp_path / "t.csv"))
    assert table.names == ["u", "v"] and rows(table) == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert table.place(0).endswith(":3")
    np.savetxt(tmp_path / "t.txt", np.arange(6.0).reshape(3, 2), header="u v")
    assert CsvTable(str(tmp_path / "t.txt")).names == ["u", "v"]


def test_a_row_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distdl.data.table.csv_table.BLOCK_BYTES", 1000)
    monkeypatch.setattr("distdl.data.table.csv_table.RECORDS_A_BLOCK", 0)
    text = "a,y\n" + "".join(f"{i},x\n" for i in range(500)) + "w" * 30_000 + ",z\n" + "1,x\n" * 500
    found = rows(CsvTable(write(tmp_path / "t.csv", text)))
    assert [row[0] for row in found[:500]] == [str(i) for i in range(500)]
    assert len(found) == 1001 and found[500] == ["w" * 30_000, "z"]


def test_many_columns_come_many_rows_at_a_time(tmp_path: Path) -> None:
    values = ",".join("1.25" for _ in range(20_000))
    header = ",".join(f"g{i}" for i in range(20_000))
    table = CsvTable(write(tmp_path / "genes.csv", "\n".join([header, *[values] * 40])))
    assert [batch.num_rows for batch in table.batches(table.names)] == [40]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    for i, name in enumerate(("a.csv", "b.csv", "deep/c.csv.gz")):
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        text = ("u,y\n" if i != 1 else "y,u\n") + "".join(f"{i},k\n" if i != 1 else f"k,{i}\n" for _ in range(3 + i))
        write(tmp_path / "t" / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    options = {"path": f"{tmp_path}/t", "label": "y", "test_fraction": "0"}
    manifest = prepare_dataset("csv", tmp_path / "d", options)
    assert manifest.splits["train"].rows == 12
    write(tmp_path / "t" / "b.csv", "y,u\n" + "k,1\n" * 3 + "l,1,2\n")
    with pytest.raises(InputError, match=r"t/b\.csv:5: the row has 3 values"):
        prepare_dataset("csv", tmp_path / "e", options)
    write(tmp_path / "t" / "b.csv", "y,v\nk,1\n")
    with pytest.raises(InputError, match=r"b\.csv has the column v and lacks the column u, unlike .*a\.csv"):
        prepare_dataset("csv", tmp_path / "e", options)


def test_the_test_file_is_another_one(tmp_path: Path) -> None:
    path, copy = (write(tmp_path / name, "a,y\n1,x\n2,z\n") for name in ("t.csv", "u.csv"))
    for other in (path, copy):
        with pytest.raises(InputError, match=r"test_path=.* holds the same as path="):
            prepare_dataset("csv", tmp_path / "d", {"path": path, "label": "y", "test_path": other})


@pytest.mark.parametrize(("content", "source"), [(b"PAR1\0\0", "parquet"), (b"ARROW1\0\0", "arrow")])
def test_what_is_no_text_is_told_with_its_source(tmp_path: Path, content: bytes, source: str) -> None:
    with pytest.raises(InputError, match=f"use the source {source}"):
        CsvTable(write(tmp_path / "t.csv", content + bytes(200)))


def test_the_numbers_are_pyarrow_s(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5000, 3))
    text = "a,b,c\n" + "".join(",".join(map(repr, row.tolist())) + "\n" for row in values)
    table = CsvTable(write(tmp_path / "t.csv", text))
    found = pa.Table.from_batches(table.batches(["c", "a"])).cast(pa.schema([("c", "double"), ("a", "double")]))
    assert (np.stack([found["c"], found["a"]], 1) == values[:, [2, 0]]).all()


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("0,1,2,3,y", True),
        ("1,2,3,label,note", True),
        ("0,1,2,3,rose", False),  # which a row below has, too
        ("0,1,y", False),  # two numbers count up by chance
        ("0,2,4,y", False),
        ("5,6,7,y", False),
    ],
)
def test_numbers_that_count_up_beside_a_name_are_names(tmp_path: Path, first: str, names: bool) -> None:
    """As pandas writes a table whose features have no names."""
    width = first.count(",")
    words = 2 if first.endswith("note") else 1
    rows = []
    for i in range(20):
        numbers = [str((7 * i + j) % 11 / 4) for j in range(width + 1 - words)]
        rows.append(",".join([*numbers, *[("rose", "lily")[i % 2]] * words]))
    (tmp_path / "t.csv").write_text("\n".join([first, *rows]) + "\n")
    assert sniff(str(tmp_path / "t.csv")).header is names
