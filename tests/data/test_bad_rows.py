"""Bad rows of tables: refused with others of their kind, or set aside, listed, and never more than a share of all.

The data set is that of the good rows: each test compares it with one that was prepared from a file without the bad ones.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distdl.data import unpack
from distdl.data.bad_rows import FILE, told
from distdl.data.manifest import Manifest, read_manifest
from distdl.data.prepare import prepare_dataset, source_module
from distdl.data.read import Dataset
from distdl.data.table.reader import places_of
from distdl.data.verify import verify_dataset
from distdl.errors import InputError

ASIDE = {"bad_rows": "set_aside", "bad_rows_at_most": 0.1}
HEAD = "age,when,kind,answer"
GOOD = [f"{i}.5,2024-01-{1 + i % 28:02d},{'ab'[i % 2]},{'yes' if i % 3 else 'no'}" for i in range(100)]


def listed(folder: Path) -> list[dict[str, Any]]:
    """What stands in the list of bad rows."""
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def at(folder: Path, key: str = "line") -> dict[Any, str]:
    """Line (or row, or sample) -> the reason, in a few words."""
    return {record[key]: record["reason"] for record in listed(folder)}


def both(
    tmp_path: Path, source: str, write: Callable[[Path, bool], None], name: str, **options: Any
) -> tuple[Manifest, Path]:
    """Prepares a file with bad rows and one without: the data sets are the same. Manifest and folder of the first."""
    for bad in (True, False):
        write(tmp_path / f"{bad}-{name}", bad)
    paths = {bad: str(tmp_path / f"{bad}-{name}") for bad in (True, False)}
    found = prepare_dataset(source, tmp_path / "dirty", {**options, **ASIDE, "path": paths[True]})
    clean = prepare_dataset(source, tmp_path / "clean", {**options, "path": paths[False]})
    assert found.fingerprint == clean.fingerprint
    assert found.preparation == clean.preparation and found.info.get("split") == clean.info.get("split")
    assert not (tmp_path / "clean" / FILE).exists()
    return found, tmp_path / "dirty"


def table(path: Path, bad: dict[int, str], rows: list[str] = GOOD, head: str = HEAD) -> None:
    """A CSV file with these lines (from 1) put between others."""
    lines = [head, *rows]
    for line in sorted(bad):
        lines.insert(line - 1, bad[line])
    path.write_text("\n".join(lines) + "\n")


# -- CSV ---------------------------------------------------------------------------------------------------------------

CSV_ROWS = {
    "too few values": ("1,2024-01-01", "number of values", ""),
    "too many values": ("1,2024-01-01,a,yes,5", "number of values", ""),
    "no number": ("abc,2024-01-01,a,yes", "no finite number", "age"),
    "infinite": ("inf,2024-01-01,a,yes", "no finite number", "age"),
    "too large": ("1e300,2024-01-01,a,yes", "no finite number", "age"),
    "no date": ("1,2024-13-41,a,yes", "no date", "when"),
}


@pytest.mark.parametrize("case", CSV_ROWS)
def test_a_bad_row_of_a_csv_file_is_listed_and_the_rest_is_as_without_it(tmp_path, case):
    text, reason, column = CSV_ROWS[case]
    found, folder = both(
        tmp_path, "csv", lambda path, bad: table(path, {7: text, 50: text} if bad else {}), "t.csv", label="answer"
    )
    assert at(folder) == {7: reason, 50: reason}
    record = listed(folder)[0]
    assert record["file"].endswith("True-t.csv") and record.get("column", "") == column and record["what"]
    assert text.split(",")[0] in record["content"]
    assert sum(split.rows for split in found.splits.values()) == 100
    assert found.info["bad_rows"]["rows"] == 2 and found.info["bad_rows"]["of"] == 102
    assert found.info["bad_rows"]["reasons"] == {reason: 2}


def test_all_kinds_of_bad_rows_at_once_are_listed_in_the_order_of_the_file(tmp_path):
    bad = {3 + 10 * n: text for n, (text, _, _) in enumerate(CSV_ROWS.values())}
    _, folder = both(tmp_path, "csv", lambda path, dirty: table(path, bad if dirty else {}), "t.csv", label="answer")
    assert list(at(folder).items()) == [(3 + 10 * n, reason) for n, (_, reason, _) in enumerate(CSV_ROWS.values())]


def test_lines_are_counted_through_quoted_values_and_empty_lines(tmp_path):
    rows = ['1,2024-01-01,"two\nlines",yes', *GOOD]

    def write(path: Path, bad: bool) -> None:
        text = "\n".join([HEAD, rows[0], "", "", "9,9" if bad else "", *rows[1:], "x,2024-01-01,a,no" if bad else ""])
        path.write_text(text + "\n")

    _, folder = both(tmp_path, "csv", write, "t.csv", label="answer")
    assert at(folder) == {6: "number of values", 107: "no finite number"}


def test_a_line_that_is_no_text_is_set_aside(tmp_path):
    def write(path: Path, bad: bool) -> None:
        lines = [HEAD.encode(), *(row.encode() for row in GOOD)]
        if bad:
            lines.insert(4, b"1,2024-01-01,\xff\xfe,yes")
            lines.insert(20, b"1,2")
        path.write_bytes(b"\n".join(lines) + b"\n")

    _, folder = both(tmp_path, "csv", write, "t.csv", label="answer", encoding="utf-8")
    assert at(folder) == {5: "no text", 21: "number of values"}
    assert "\\xff\\xfe" in listed(folder)[0]["content"]


def test_a_quote_that_is_left_open_counts_as_all_the_lines_it_swallows(tmp_path):
    table(tmp_path / "t.csv", {50: '1,2024-01-01,"a,yes'})
    with pytest.raises(InputError, match=r"of 101 rows .* more than bad_rows_at_most=0.1"):
        prepare_dataset("csv", tmp_path / "out", {"path": str(tmp_path / "t.csv"), "label": "answer", **ASIDE})


def test_packed_and_several_files_are_told_by_their_own_lines(tmp_path):
    (tmp_path / "many").mkdir()
    for name, bad in (("a", {3: "x,2024-01-01,a,yes"}), ("b", {5: "1"}), ("c", {})):
        table(tmp_path / "t.csv", bad)
        (tmp_path / "many" / f"{name}.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    options = {"path": str(tmp_path / "many"), "label": "answer", **ASIDE}
    prepare_dataset("csv", tmp_path / "out", options)
    found = [(Path(record["file"]).name, record["line"]) for record in listed(tmp_path / "out")]
    assert found == [("a.csv.gz", 3), ("b.csv.gz", 5)]


def test_the_kinds_option_says_what_a_value_must_be(tmp_path):
    rows = [f"{row},{i}" for i, row in enumerate(GOOD)]
    bad = {4: "1,2024-01-01,c,yes,3", 9: "1,2024-01-01,a,yes,many"}

    def write(path: Path, dirty: bool) -> None:
        table(path, bad if dirty else {}, rows, HEAD + ",size")

    kinds = ("kind:boolean", "size:number", "when:date")
    _, folder = both(tmp_path, "csv", write, "t.csv", label="answer", kinds=kinds, date_format="%Y-%m-%d")
    assert at(folder) == {4: "no boolean", 9: "no finite number"}


def test_a_column_of_words_with_a_few_numbers_stays_one_of_words(tmp_path):
    rows = [f"{'7' if i < 3 else 'red'},{i}.5,{i % 2}" for i in range(100)]
    table(tmp_path / "t.csv", {}, rows, "colour,x,answer")
    found = prepare_dataset("csv", tmp_path / "out", {"path": str(tmp_path / "t.csv"), "label": "answer", **ASIDE})
    assert found.info["bad_rows"] == {"rows": 0, "of": 100, "reasons": {}}
    assert not (tmp_path / "out" / FILE).exists()
    assert told(found.info) == ["bad rows: none of 100"]


def test_a_target_that_is_no_number_makes_a_bad_row(tmp_path):
    rows = [f"{i},{i}.25" for i in range(100)]
    bad = {2: "1,high", 60: "2,1e99"}

    def write(path: Path, dirty: bool) -> None:
        table(path, bad if dirty else {}, rows, "x,y")

    _, folder = both(tmp_path, "csv", write, "t.csv", target="y")
    assert at(folder) == {2: "no finite number", 60: "no finite number"}


def test_rows_without_a_label_are_bad_where_they_are_to_be_refused_and_listed_where_they_are_dropped(tmp_path):
    bad = {8: "1,2024-01-01,a,", 30: "1,2024-01-01,a,?"}

    def write(path: Path, dirty: bool) -> None:
        table(path, bad if dirty else {})

    found, folder = both(tmp_path, "csv", write, "t.csv", label="answer", unlabelled="refuse")
    assert at(folder) == {8: "no label", 30: "no label"} and found.info["bad_rows"]["rows"] == 2
    options = {"path": str(tmp_path / "True-t.csv"), "label": "answer", **ASIDE, "bad_rows_at_most": 0.0}
    dropped = prepare_dataset("csv", tmp_path / "dropped", options)
    assert at(tmp_path / "dropped") == {8: "no label", 30: "no label"}
    assert dropped.info["bad_rows"]["rows"] == 0 and dropped.info["bad_rows"]["asked"] == {"no label": 2}
    assert "2 × no label" in "\n".join(told(dropped.info))
    assert dropped.fingerprint == found.fingerprint


def test_empty_values_that_are_to_be_refused_make_bad_rows(tmp_path):
    bad = {8: ",2024-01-01,a,yes", 30: "1,2024-01-01,?,no"}
    _, folder = both(
        tmp_path, "csv", lambda p, dirty: table(p, bad if dirty else {}), "t.csv", label="answer", missing="refuse"
    )
    assert at(folder) == {8: "empty value", 30: "empty value"}


def test_rows_that_cannot_be_shared_out_are_bad(tmp_path):
    bad = {8: "1,,a,yes", 20: "1,2024-02-30,a,yes", 30: "1,17,a,yes"}
    _, folder = both(
        tmp_path, "csv", lambda p, dirty: table(p, bad if dirty else {}), "t.csv", label="answer", split_time="when"
    )
    assert at(folder) == {8: "empty value", 20: "no time", 30: "no time"}


def test_the_test_file_is_looked_at_with_what_the_training_file_taught(tmp_path):
    test = {3: "x,2024-01-01,a,yes", 9: "1,2024-01-01,a,perhaps", 12: "1,soon,a,yes", 14: "1"}
    table(tmp_path / "train.csv", {5: "1"})
    for dirty in (True, False):
        table(tmp_path / f"{dirty}.csv", test if dirty else {}, [f"9{row}" for row in GOOD[:50]])
    options = {"path": str(tmp_path / "train.csv"), "label": "answer", **ASIDE}
    found = prepare_dataset("csv", tmp_path / "a", {**options, "test_path": str(tmp_path / "True.csv")})
    clean = prepare_dataset("csv", tmp_path / "b", {**options, "test_path": str(tmp_path / "False.csv")})
    assert found.fingerprint == clean.fingerprint and found.splits["test"].rows == 50
    lines = [(Path(r["file"]).name, r["line"]) for r in listed(tmp_path / "a")]
    assert lines == [("True.csv", 3), ("True.csv", 9), ("True.csv", 12), ("True.csv", 14), ("train.csv", 5)]
    assert found.info["bad_rows"]["of"] == 155


# -- how many may be bad, and what is said -------------------------------------------------------------------------------


def test_more_than_the_share_is_refused_with_the_rows_and_nothing_is_written(tmp_path):
    table(tmp_path / "t.csv", {3: "x,2024-01-01,a,yes", 8: "1"})
    options = {"path": str(tmp_path / "t.csv"), "label": "answer", "bad_rows": "set_aside"}
    with pytest.raises(InputError) as error:
        prepare_dataset("csv", tmp_path / "out", options)
    text = str(error.value)
    assert "t.csv:3: the column 'age' has the value 'x'" in text and "t.csv:8: the row has 1 values" in text
    assert "2 of 102 rows (1.96%) are bad (1 × number of values, 1 × no finite number)" in text
    assert "bad_rows_at_most=0.01" in text and "bad_rows_at_most=0.02 sets that many aside" in text
    assert not (tmp_path / "out").exists()
    prepare_dataset("csv", tmp_path / "out", {**options, "bad_rows_at_most": 0.02})


def test_a_refusal_names_other_bad_rows_their_number_and_the_way_on(tmp_path):
    table(tmp_path / "t.csv", {3: "1", 8: "1,2", 20: "1,2,3", 40: "x,2024-01-01,a,yes"})
    with pytest.raises(InputError) as error:
        prepare_dataset("csv", tmp_path / "out", {"path": str(tmp_path / "t.csv"), "label": "answer"})
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/t.csv:3: the row has 1 values where the table has 4 columns")
    assert "t.csv:8: " in text and "t.csv:20: " in text and "t.csv:40: the column 'age' has the value 'x'" in text
    assert "4 of 104 rows are bad (3 × number of values, 1 × no finite number)" in text
    assert "bad_rows=set_aside (with bad_rows_at_most=0.04)" in text


def test_a_refusal_that_is_not_about_rows_stays_as_it_is(tmp_path):
    table(tmp_path / "t.csv", {3: "x,2024-01-01,a,yes"})
    with pytest.raises(InputError) as error:
        prepare_dataset("csv", tmp_path / "out", {"path": str(tmp_path / "t.csv"), "label": "anwser"})
    assert "set_aside" not in str(error.value) and "did you mean 'answer'" in str(error.value)


def test_a_damaged_file_stays_refused(tmp_path):
    table(tmp_path / "t.csv", {})
    packed = gzip.compress((tmp_path / "t.csv").read_bytes())
    (tmp_path / "t.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match="damaged gzip file"):
        prepare_dataset("csv", tmp_path / "out", {"path": str(tmp_path / "t.csv.gz"), "label": "answer", **ASIDE})


def test_a_share_that_is_none_is_refused(tmp_path):
    table(tmp_path / "t.csv", {})
    options = {"path": str(tmp_path / "t.csv"), "label": "answer", "bad_rows_at_most": 2}
    with pytest.raises(InputError, match="from 0 to 1"):
        prepare_dataset("csv", tmp_path / "out", options)


def test_sources_whose_rows_cannot_be_told_apart_refuse_the_option(tmp_path):
    with pytest.raises(InputError, match="the source digits has no bad_rows=: none of its rows can be bad while"):
        prepare_dataset("digits", tmp_path / "out", {"bad_rows": "set_aside"})
    with pytest.raises(InputError, match="the source stdlib has no bad_rows="):
        prepare_dataset("stdlib", tmp_path / "out", {"max_bytes": 10000, "bad_rows": "set_aside"})
    assert not (tmp_path / "out").exists()


def test_the_list_is_part_of_the_data_set_and_bounded(tmp_path, monkeypatch):
    table(tmp_path / "t.csv", {3: "1" + "2" * 5000, 8: "1", 9: "2", 10: "3"})
    options = {"path": str(tmp_path / "t.csv"), "label": "answer", **ASIDE}
    prepare_dataset("csv", tmp_path / "out", options)
    assert len(listed(tmp_path / "out")[0]["content"]) < 600
    monkeypatch.setattr("distdl.data.bad_rows.LISTED_ROWS", 3)
    found = prepare_dataset("csv", tmp_path / "out", options, overwrite=True)
    *rows, last = listed(tmp_path / "out")
    assert len(rows) == 3 and last["rows"] == 1 and last["reason"] == "not listed"
    assert found.info["bad_rows"]["rows"] == 4 and found.info["bad_rows"]["not_listed"] == 1
    assert verify_dataset(tmp_path / "out") == []
    (tmp_path / "out" / FILE).write_text("{}\n")
    assert [problem.split(":")[0] for problem in verify_dataset(tmp_path / "out")] == [FILE]


def test_prepare_and_inspect_tell_what_was_set_aside(tmp_path, command):
    table(tmp_path / "t.csv", {3: "x,2024-01-01,a,yes"})
    arguments = [f"path={tmp_path}/t.csv", "label=answer", "bad_rows=set_aside", "bad_rows_at_most=0.1"]
    done = command("data", "prepare", "csv", tmp_path / "out", *arguments)
    assert "bad rows: 1 of 101 (0.99%) are set aside: 1 × no finite number" in done.stdout
    assert "t.csv:3: the column 'age' has the value 'x'" in done.stdout and FILE in done.stdout
    seen = command("data", "inspect", tmp_path / "out")
    assert "bad rows: 1 of 101" in seen.stdout and "t.csv:3" in seen.stdout
    facts = json.loads(command("data", "inspect", tmp_path / "out", "--json").stdout)
    assert facts["info"]["bad_rows"]["rows"] == 1
    assert read_manifest(tmp_path / "out").info["bad_rows"]["file"] == FILE
    command("data", "inspect", tmp_path / "out", "--html", tmp_path / "page.html")
    assert "<p>bad rows: 1 of 101" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "record", ["many", {"rows": 1}, {"rows": "1", "of": 2, "reasons": {}}, {"rows": 1, "of": 2, "reasons": []}]
)
def test_a_record_that_a_stranger_wrote_says_nothing(record):
    assert told({"bad_rows": record}) == []


def test_the_list_goes_to_a_store_and_leaves_it_with_its_data_set(tmp_path):
    table(tmp_path / "t.csv", {3: "x,2024-01-01,a,yes"})
    table(tmp_path / "clean.csv", {})
    options, target = {"label": "answer", **ASIDE}, f"file://{tmp_path}/store"
    prepare_dataset("csv", target, {"path": str(tmp_path / "t.csv"), **options})
    assert at(tmp_path / "store") == {3: "no finite number"}
    prepare_dataset("csv", target, {"path": str(tmp_path / "clean.csv"), **options}, overwrite=True)
    assert not (tmp_path / "store" / FILE).exists()


# -- JSON lines, and files with types ------------------------------------------------------------------------------------


def json_file(path: Path, bad: dict[int, str], rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in rows]
    for line in sorted(bad):
        lines.insert(line - 1, bad[line])
    path.write_text("\n".join(lines) + "\n")


def test_bad_json_lines_are_set_aside_and_the_others_are_a_table(tmp_path):
    rows = [{"x": i + 0.5, "size": {"h": i}, "answer": "ab"[i % 2]} for i in range(100)]
    bad = {
        1: '{"x": "one", "size": {"h": 1}, "answer": "a"}',
        4: '{"x": 1, "size"',
        9: "[1, 2]",
        20: '{"x": 1, "x": 2, "size": {"h": 3}, "answer": "a"}',
        50: '{"x": 2, "size": {"h": "tall"}, "answer": "b"}',
    }

    def write(path: Path, dirty: bool) -> None:
        json_file(path, bad if dirty else {}, rows)

    _, folder = both(tmp_path, "jsonl", write, "t.jsonl", label="answer")
    damaged, other = "damaged line", "another type"
    assert at(folder) == {1: other, 4: damaged, 9: damaged, 20: damaged, 50: other}
    assert [record.get("column") for record in listed(folder)] == ["x", None, None, None, "size.h"]


def test_a_field_of_another_type_is_found_in_a_later_block_too(tmp_path, monkeypatch):
    monkeypatch.setattr("distdl.data.table.json_table.BLOCK_BYTES", 1000)
    rows = [{"x": i, "answer": "ab"[i % 2]} for i in range(300)]
    bad = {200: '{"x": "late", "answer": "a"}', 250: "nothing", 280: '{"x": 1e300, "answer": "a"}'}
    _, folder = both(
        tmp_path, "jsonl", lambda p, dirty: json_file(p, bad if dirty else {}, rows), "t.jsonl", label="answer"
    )
    assert at(folder) == {200: "another type", 250: "damaged line", 280: "no finite number"}


def typed(path: Path, bad: list[dict[str, Any]], rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """A Parquet file, with some rows put in at 10, 20, ..."""
    rows = list(rows)
    for n, row in enumerate(bad, 1):
        rows.insert(10 * n, row)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


SCHEMA = pa.schema([("x", pa.float32()), ("v", pa.list_(pa.float32())), ("label", pa.int64())])


def test_rows_of_a_parquet_table_with_infinite_numbers_or_vectors_of_another_length_are_bad(tmp_path):
    rows = [{"x": float(i), "v": [i, i + 1.0], "label": i % 3} for i in range(100)]
    good = {"x": 1.0, "v": [1.0, 2.0], "label": 1}
    bad = [{**good, "x": np.inf}, {**good, "v": [1.0]}, {**good, "v": None}, {**good, "v": [1.0, np.nan]}]
    found, folder = both(
        tmp_path, "parquet", lambda p, d: typed(p, bad if d else [], rows, SCHEMA), "t.parquet", label="label"
    )
    vector = "no vector"
    assert at(folder, "row") == {10: "no finite number", 20: vector, 30: vector, 40: vector}
    assert found.columns["x"].shape == (3,)


def test_rows_taken_as_they_are_must_be_whole_and_finite(tmp_path):
    rows = [{"x": float(i), "v": [i, i + 1.0], "label": i % 3} for i in range(100)]
    good = {"x": 1.0, "v": [1.0, 2.0], "label": 1}
    bad = [{**good, "x": np.nan}, {**good, "v": [1.0]}, {**good, "label": None}, {**good, "v": [1.0, np.inf]}]
    _, folder = both(tmp_path, "parquet", lambda p, d: typed(p, bad if d else [], rows, SCHEMA), "t.parquet")
    assert list(at(folder, "row")) == [10, 20, 30, 40]
    what = [record["what"] for record in listed(folder)]
    assert "nan" in what[0] and "a list of 1 values" in what[1] and "empty value" in what[2] and "inf" in what[3]


def test_answers_that_are_missing_are_no_bad_rows(tmp_path):
    schema = pa.schema([("x", pa.float32()), ("tasks", pa.list_(pa.float32()))])
    rows = [{"x": float(i), "tasks": [1.0, np.nan if i % 2 else 0.0]} for i in range(100)]
    bad = [{"x": np.nan, "tasks": [1.0, 0.0]}]
    found, folder = both(tmp_path, "parquet", lambda p, d: typed(p, bad if d else [], rows, schema), "t.parquet")
    assert at(folder, "row") == {10: "does not fit"}
    kept = Dataset(folder, "train").gather(np.arange(found.splits["train"].rows))
    assert np.isnan(kept["tasks"]).any()


def test_arrow_and_hugging_face_tables_set_rows_aside_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"x": float(i), "label": i % 3} for i in range(100)]
    dirty = [*rows[:10], {"x": float("inf"), "label": 1}, *rows[10:], {"x": 1.0, "label": 7}]
    schema = pa.schema([("x", pa.float32()), ("label", pa.int64())])
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(dirty, schema))
    options = {"label": "label", **ASIDE}
    prepare_dataset("arrow", tmp_path / "a", {"path": str(tmp_path / "t.arrow"), **options})
    assert at(tmp_path / "a", "row") == {10: "no finite number"}
    names = datasets.Features({"x": datasets.Value("float32"), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    held = datasets.Dataset(pa.Table.from_pylist(dirty, names.arrow_schema))
    held.save_to_disk(str(tmp_path / "hf"))
    found = prepare_dataset("huggingface", tmp_path / "b", {"path": str(tmp_path / "hf"), **options})
    assert at(tmp_path / "b", "row") == {10: "no finite number", 101: "no class"}
    assert found.info["classes"] == ["a", "b", "c"]


def test_bad_rows_of_an_arff_file_are_set_aside(tmp_path):
    head = "@relation r\n@attribute x numeric\n@attribute c {red, blue}\n@attribute answer {yes, no}\n@data\n"
    rows = [f"{i},{'red' if i % 2 else 'blue'},{'yes' if i % 3 else 'no'}" for i in range(100)]

    def write(path: Path, dirty: bool) -> None:
        lines = list(rows)
        for n, line in {3: "1,red", 9: "many,red,yes", 20: "1,green,yes", 40: "'1,red,yes"}.items() if dirty else ():
            lines.insert(n, line)
        path.write_text(head + "\n".join(lines) + "\n")

    _, folder = both(tmp_path, "arff", write, "t.arff", label="answer")
    assert at(folder) == {9: "damaged line", 15: "no numeric value", 26: "no nominal value", 46: "damaged line"}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "arff"])
def test_bad_rows_that_are_met_one_after_another_are_found_in_one_pass(tmp_path, monkeypatch, ending):
    """As by questions about a large table: each has some bad rows, and asks where these are before the next is read."""
    texts = {
        "csv": HEAD + "\n" + "\n\n".join(GOOD),
        "jsonl": "\n\n".join(json.dumps({"age": i}) for i in range(100)),
        "arff": "@relation r\n@attribute x numeric\n@data\n" + "\n\n".join(map(str, range(100))),
    }
    first = {"csv": 2, "jsonl": 1, "arff": 4}[ending]
    path = tmp_path / f"t.{ending}"
    path.write_text(texts[ending])
    module = source_module(ending)
    table = module.open_table(str(path), module.Options(path=str(path)))
    opened: list[str] = []
    real = unpack.open_bytes
    monkeypatch.setattr(unpack, "open_bytes", lambda where: opened.append(where) or real(where))
    for row in range(0, 99, 3):
        assert places_of(table, [row, row, row + 1]) == [f"{path}:{first + 2 * i}" for i in (row, row, row + 1)]
    assert len(opened) == 1
    assert table.place(50) == f"{path}:{first + 100}" and len(opened) == 2  # back: from the beginning
    assert table.place(1000) == f"{path}, row 1000"
    assert copy.deepcopy(table).place(7) == f"{path}:{first + 14}"  # an open file does not go along, as to a worker
