"""JSON lines as tables and as they are: nested fields, nulls, fields that come late, and the line of what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from distdl.data.prepare import prepare_dataset
from distdl.data.table import json_table, reader
from distdl.data.table.json_table import JsonTable, Unforeseen
from distdl.errors import InputError


def write(path: Path, *lines: object) -> str:
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def rows(table: JsonTable, *names: str) -> list[dict]:
    return [row for batch in table.batches(list(names or table.names)) for row in batch.to_pylist()]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_table, "BLOCK_BYTES", 100)


def test_fields_are_columns_by_dotted_path(tmp_path: Path) -> None:
    lines = [
        {"a": i, "in": {"x": i if i < 70 else i + 0.5, "deep": {"w": f"wort {i} ü"}}, "v": [1, i], "t": "2026-01-02"}
        for i in range(100)
    ]
    lines[80]["t"], lines[90]["late"] = "no time", True
    del lines[5]["a"], lines[6]["in"]
    lines[7] |= {"v": None, "in": {"x": None, "deep": None}}
    for name in ("t.jsonl", "t.jsonl.gz"):
        table = JsonTable(write(tmp_path / name, *lines))
        types = {"a": pa.int64(), "in.x": pa.float64(), "in.deep.w": pa.string(), "v": pa.list_(pa.int64())}
        assert dict(zip(table.schema.names, table.schema.types)) == {**types, "t": pa.string(), "late": pa.bool_()}
        found = rows(table)
        assert [row["a"] for row in found] == [None if i == 5 else i for i in range(100)]
        wanted = [None if i in (6, 7) else i if i < 70 else i + 0.5 for i in range(100)]
        assert [row["in.x"] for row in found] == wanted
        assert [row["in.deep.w"] for row in found] == [None if i in (6, 7) else f"wort {i} ü" for i in range(100)]
        assert found[7]["v"] is None and found[8]["v"] == [1, 8] and found[80]["t"] == "no time"
        assert [row["late"] for row in found] == [True if i == 90 else None for i in range(100)]
        assert rows(table, "late", "a")[90] == {"late": True, "a": 90}


def test_lines_are_counted_with_the_blank_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "t", {"a": 1}, "", "  ", {"a": 2}, *[{"a": i} for i in range(50)], "", {"a": 3})
    table = JsonTable(path)
    assert [table.place(row) for row in (0, 1, 2, 52)] == [f"{path}:{line}" for line in (1, 4, 5, 56)]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"a": "x", "in": {"y": 1}}, r"t:43: the field 'a' holds 'x'; above it holds a number"),
        ({"a": 1, "in": {"y": "x"}}, r"t:43: the field 'in.y' holds 'x'; above it holds a number"),
        ({"a": True}, r"t:43: the field 'a' holds True; above it holds a number"),
        ({"a": [1]}, r"t:43: the field 'a' holds \[1\]; above it holds a number"),
        ({"v": [1, "x"]}, r"t:43: the field 'v\[\]' holds 'x'; above it holds a number"),
        ("{'a': 1}", r"t:43: not valid JSON"),
        ('{"a": 1, "a": 2}', r"t:43: .*'a' stands there twice"),
        ("[1, 2]", r"t:43: a line holds \[1, 2\], not an object"),
        ("{", r"t:43: not valid JSON"),
    ],
)
def test_what_is_wrong_is_told_by_its_line(tmp_path: Path, bad: object, match: str) -> None:
    good = [{"a": i, "in": {"y": i}, "v": [i]} for i in range(40)]
    path = write(tmp_path / "t", *good, "", "", bad, {"a": 1})
    with pytest.raises(InputError, match=match):
        JsonTable(path)


def test_what_is_no_json_lines_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", "[", '{"a": 1},', '{"a": 2}', "]")
    with pytest.raises(InputError, match="holds one JSON array, not one object a line"):
        JsonTable(path)
    (tmp_path / "u").write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(InputError, match="is not written in UTF-8"):
        JsonTable(str(tmp_path / "u"))
    (tmp_path / "u").write_bytes(b'{"a": "x"}\n' * 30 + b'{"a": "\xfc"}\n')
    with pytest.raises(InputError, match=r"u:31: not valid JSON.*"):
        JsonTable(str(tmp_path / "u"))
    with pytest.raises(InputError, match="holds no objects"):
        JsonTable(write(tmp_path / "u", "", ""))


def test_a_table_with_words_as_label(tmp_path: Path) -> None:
    lines = [{"id": f"k{i}", "f": {"a": i, "b": i / 2}, "y": "odd" if i % 2 else "even"} for i in range(60)]
    path = write(tmp_path / "t.jsonl", *lines)
    options = {"path": path, "label": "y", "features": "f.a,f.b", "test_fraction": "0"}
    manifest = prepare_dataset("jsonl", tmp_path / "d", options)
    assert manifest.info["classes"] == ["even", "odd"] and manifest.splits["train"].rows == 60
    with pytest.raises(InputError, match="holds the same as path="):
        prepare_dataset("jsonl", tmp_path / "e", {**options, "test_path": path})


def test_as_they_are_fields_are_renamed_and_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", *[{"id": i, "a": i / 2, "note": "x"} for i in range(30)])
    options = {"path": path, "rename": "id:key", "drop": "note", "test_fraction": "0"}
    manifest = prepare_dataset("jsonl", tmp_path / "d", options)
    assert list(manifest.columns) == ["key", "a"] and manifest.splits["train"].rows == 30
    with pytest.raises(InputError, match="did you mean 'note'"):
        prepare_dataset("jsonl", tmp_path / "e", {**options, "drop": "notes"})


def test_a_field_that_stands_twice_is_refused_where_fields_are_taken_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", *[{"a": i} for i in range(30)], '{"a": 1, "a": 2}')
    with pytest.raises(InputError, match=r"t\.jsonl:31: not valid JSON: the field 'a' stands there twice"):
        prepare_dataset("jsonl", tmp_path / "d", {"path": path})


def lines_of_a_table(rows: int = 300) -> list[dict]:
    return [
        {"a": i % 7, "in": {"x": i / 4, "t": "2026-01-02"}, "word": "uvw"[i % 3], "gap": None, "y": "pq"[i % 2]}
        for i in range(rows)
    ]


@pytest.fixture
def short_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_table, "BEGIN_BYTES", 1000)


@pytest.mark.parametrize("sections", [True, False])
def test_fields_that_the_beginning_shows_save_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: bool
) -> None:
    """The data set is that of a file whose fields were looked for in all lines."""
    monkeypatch.setattr(reader, "SECTION_BYTES", 5_000 if sections else 1 << 24)
    path = write(tmp_path / "t.jsonl", *lines_of_a_table(), "", "")
    parsed: list[int] = []
    real = json_table._read
    monkeypatch.setattr(json_table, "_read", lambda *given, **more: parsed.append(1) or real(*given, **more))
    made = {}
    for begin in (1 << 24, 1000):
        monkeypatch.setattr(json_table, "BEGIN_BYTES", begin)
        parsed.clear()
        made[begin] = prepare_dataset("jsonl", tmp_path / str(begin), {"path": path, "label": "y"}), len(parsed)
    (whole, of_whole), (begun, of_begun) = made.values()
    assert begun.fingerprint == whole.fingerprint and begun.preparation == whole.preparation
    assert of_begun < 0.8 * of_whole


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ({"late": 3}, ""),
        ({"a": 1.5}, ""),
        ({"in": {"x": 1, "deep": True}}, ""),
        ({"gap": 4}, ""),
        ({"a": "many"}, r"t\.jsonl:251: the field 'a' holds 'many'; above it holds a number"),
        ('{"a": ', r"t\.jsonl:251: not valid JSON"),
    ],
)
def test_what_the_beginning_does_not_show_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_begin: None, line: object, refusal: str
) -> None:
    lines: list = lines_of_a_table()
    lines.insert(250, {**lines[0], **line} if isinstance(line, dict) else line)
    options = {"path": write(tmp_path / "t.jsonl", *lines), "label": "y"}
    if refusal:
        with pytest.raises(InputError, match=refusal):
            prepare_dataset("jsonl", tmp_path / "d", options)
        return
    with pytest.raises(Unforeseen):
        rows(JsonTable(options["path"], trusting=True))
    found = prepare_dataset("jsonl", tmp_path / "d", options)
    monkeypatch.setattr(json_table, "BEGIN_BYTES", 1 << 24)
    assert found.fingerprint == prepare_dataset("jsonl", tmp_path / "e", options).fingerprint


def test_a_column_that_the_beginning_lacks_can_be_the_label(tmp_path: Path, short_begin: None) -> None:
    lines = lines_of_a_table()
    for i, line in enumerate(lines[200:]):
        line["late"] = "no" if i % 2 else "yes"
    options = {"path": write(tmp_path / "t.jsonl", *lines), "label": "late"}
    assert prepare_dataset("jsonl", tmp_path / "d", options).info["classes"] == ["no", "yes"]
