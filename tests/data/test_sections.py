"""Large tables in sections: the same rows as of the whole, and the same data set for any number of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from distdl.cli.main import main
from distdl.data import workers, write
from distdl.data.manifest import FILE_NAME, Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.table import reader
from distdl.data.table.arrow_table import open_arrow
from distdl.data.table.csv_table import CsvTable
from distdl.data.table.json_table import JsonTable
from distdl.data.table.parquet_table import open_parquet
from distdl.data.table.reader import Table, cut
from distdl.data.table.sections import Sections
from distdl.errors import DistdlError, InputError
from tests.conftest import variables

ROWS = 4_000


def table(rows: int = ROWS, gaps: bool = True) -> pa.Table:
    """Numbers, words with line feeds in them, dates, gaps, and labels that are missing now and then."""
    rng = np.random.default_rng(3)
    empty = rng.random(rows) < 0.02 if gaps else np.zeros(rows, bool)
    words = np.array(["Bonn", "Rome, Italy", 'the "Hague"', "two\nlines", ""])[rng.integers(0, 5, rows)]
    days = np.datetime64("2020-01-01") + rng.integers(0, 900, rows)
    columns = {
        "a": pa.array(rng.normal(5, 1e6, rows).round(3), mask=rng.random(rows) < 0.1),
        "n": pa.array(rng.integers(0, 9, rows)),
        "city": pa.array(words),
        "day": pa.array(days.astype(str)),
        "y": pa.array(np.array(["p", "q", "r"])[rng.integers(0, 3, rows)], mask=empty),
    }
    return pa.table(columns)


def write_csv(path: Path, rows: pa.Table) -> None:
    pyarrow.csv.write_csv(rows, path)


def write_jsonl(path: Path, rows: pa.Table) -> None:
    import json

    path.write_text("".join(json.dumps(row) + "\n" * (1 + i % 2) for i, row in enumerate(rows.to_pylist())))


def write_parquet(path: Path, rows: pa.Table) -> None:
    pq.write_table(rows, path, row_group_size=150)


def write_arrow(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        for batch in rows.combine_chunks().to_batches(max_chunksize=150):
            writer.write_batch(batch)


FORMATS: dict[str, tuple[Callable[[Path, pa.Table], None], Callable[[str], Table]]] = {
    "csv": (write_csv, CsvTable),
    "jsonl": (write_jsonl, JsonTable),
    "parquet": (write_parquet, open_parquet),
    "arrow": (write_arrow, open_arrow),
}


@pytest.fixture(params=FORMATS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(folder: Path, kind: str, rows: pa.Table | None = None) -> Path:
    FORMATS[kind][0](folder / f"table.{kind}", table() if rows is None else rows)
    return folder / f"table.{kind}"


def read(one: Table) -> pa.Table:
    return pa.Table.from_batches(list(one.batches(one.names)), one.schema)


def prepared(path: Path, target: str, **options: object) -> Manifest:
    count = options.pop("workers", 1)
    assert isinstance(count, int)
    options = {"path": path, "label": "y", **options}
    return prepare_dataset(path.suffix[1:], path.with_name(target), options, workers=count)


def told(manifest: Manifest) -> dict:
    """What it says but for numbers whose last digit may be another."""
    kinds = [{**row, "becomes": row["becomes"].partition(":")[0]} for row in manifest.info["kinds"]]
    return {**manifest.info, "kinds": kinds}


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def small_sections(monkeypatch: pytest.MonkeyPatch, size: int = 8_000) -> None:
    monkeypatch.setattr(reader, "SECTION_BYTES", size)


def test_sections_have_the_rows_of_the_whole(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, kind)
    whole = read(FORMATS[kind][1](str(path)))
    assert whole.num_rows == ROWS
    small_sections(monkeypatch)
    sections = cut(FORMATS[kind][1](str(path)))
    assert len(sections) > 8
    tables = [read(section) for section in sections]
    assert pa.concat_tables(tables).equals(whole)
    told = [getattr(section, "rows", None) for section in sections]
    assert told[1:] == [one.num_rows for one in tables[1:]] and told[0] in (None, tables[0].num_rows)


@pytest.mark.parametrize("split", [{}, {"stratify": True}, {"split_time": "day"}], ids=str)
def test_a_table_in_sections_is_the_same_data_set(
    tmp_path: Path, kind: str, split: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rows are held out, what is left out and what is fitted; numbers but for the last digits, which hang on the
    order in which they are added up."""
    path = made(tmp_path, kind)
    whole = prepared(path, "whole", **split)
    small_sections(monkeypatch)
    cut = prepared(path, "cut", **split)
    assert {name: part.rows for name, part in cut.splits.items()} == {name: p.rows for name, p in whole.splits.items()}
    assert told(cut) == told(whole)
    for name in whole.splits:
        first, second = (Dataset(tmp_path / each, name) for each in ("whole", "cut"))
        every = np.arange(first.rows)
        assert (first.gather(every)["label"] == second.gather(every)["label"]).all()
        np.testing.assert_allclose(first.gather(every)["x"], second.gather(every)["x"], rtol=1e-5, atol=1e-6)


def test_options_that_leave_rows_out_and_a_test_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, test = made(tmp_path, "csv"), tmp_path / "test.csv"
    write_csv(test, table(900))
    options = {"missing": "drop", "rename": "a:amount", "test_path": test}
    whole = prepared(path, "whole", **options)
    small_sections(monkeypatch)
    cut = prepared(path, "cut", **options)
    assert told(cut) == told(whole) and any("empty value" in note for note in cut.info["notes"])
    assert cut.splits["test"].rows == whole.splits["test"].rows


def test_numbers_of_a_large_table_are_added_up_in_the_order_of_its_sections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column whose first words come late, and rows of which most lack their label."""
    path = tmp_path / "table.csv"
    lines = [f"{i},{'no' if i > 2500 and i % 2 else i % 7},{'' if i % 3 else 'pq'[i % 2]}" for i in range(ROWS)]
    path.write_text("id,late,y\n" + "\n".join(lines) + "\n")
    whole = prepared(path, "whole")
    small_sections(monkeypatch, 3_000)
    cut = prepared(path, "cut")
    assert told(cut) == told(whole) and cut.preparation["label"] == whole.preparation["label"]
    kinds = {row["column"]: row["kind"] for row in cut.info["kinds"]}
    assert kinds["late"] == "category"


def random_csv(rng: np.random.Generator) -> str:
    """Values with quotes, delimiters and line ends in them, empty lines, both ends of lines, an end or none."""
    end = "\r\n" if rng.random() < 0.5 else "\n"
    words = ["1", "", "abc", '"a,b"', '"a""b"', f'"a{end}b"', '""', f'"{end}{end}"', '""""', '"x"']
    lines = ["a,b,c"]
    for _ in range(int(rng.integers(20, 60))):
        lines.append(",".join(rng.choice(words, 3)))
        lines += [""] * int(rng.random() < 0.1)
    return end.join(lines) + end * int(rng.integers(0, 3))


@pytest.mark.parametrize("seed", range(40))
def test_records_are_cut_where_they_end(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(random_csv(np.random.default_rng(seed)).encode())
    whole = read(CsvTable(str(path)))
    small_sections(monkeypatch, 64)
    sections = cut(CsvTable(str(path)))
    tables = [read(section) for section in sections]
    assert len(sections) > 3 and pa.concat_tables(tables).equals(whole)
    assert [one.num_rows for one in tables[1:]] == [getattr(section, "rows", None) for section in sections[1:]]


@pytest.mark.parametrize("odd", ['5" pipe', '"a"b', ' "a"', "x\ry"])
def test_a_file_whose_quotes_say_nothing_for_sure_is_not_cut(
    tmp_path: Path, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(("a,b\n" + "1,2\n" * 50 + f"{odd},2\n" + "1,2\n" * 50).encode())
    small_sections(monkeypatch, 64)
    assert len(cut(CsvTable(str(path)))) == 1


def test_what_is_wrong_is_told_by_its_place_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sections(monkeypatch)
    path = made(tmp_path, "csv")
    lines = path.read_text().splitlines()
    line = next(i for i in range(3000, len(lines)) if lines[i].startswith(("1", "-")))
    path.write_text("\n".join([*lines[:line], "a row", *lines[line:]]))
    with pytest.raises(InputError, match=rf"table.csv:{line + 1}"):
        prepared(path, "set")
    path = made(tmp_path, "jsonl")
    lines = path.read_text().splitlines()
    for wrong in ("{]", '{"a": "word"}'):
        path.write_text("\n".join([*lines[:3000], wrong, *lines[3000:]]))
        with pytest.raises(InputError, match=r"table.jsonl:3001"):
            prepared(path, "set")


# -- several processes -------------------------------------------------------------------------------------------------


def squares(number: int) -> Iterator[np.ndarray]:
    """One array after another; a number below 0 fails."""
    if number < 0:
        raise InputError(f"{number} is below 0")
    for i in range(3):
        yield np.full(1000, number**2 + i)


def ended(item: tuple[int, int]) -> Iterator[int]:
    number, parent = item
    if number == 4 and os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    yield number


@pytest.mark.slow
def test_workers_give_everything_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with workers.using(3):
        found = [int(values[0]) for values in workers.current().each(squares, range(50))]
        assert found == [number**2 + i for number in range(50) for i in range(3)]
        seen = []
        with pytest.raises(InputError, match="-2 is below 0"):
            for values in workers.current().each(squares, [3, 2, -2, 1, -1]):
                seen.append(int(values[0]))
        assert seen == [9, 10, 11, 4, 5, 6]
        assert len(list(workers.current().each(squares, range(9)))) == 27  # after a failure
        with pytest.raises(DistdlError, match="a worker that reads the raw data has ended by signal 9"):
            list(workers.current().each(ended, [(i, os.getpid()) for i in range(9)]))


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sections(monkeypatch)
    path = made(tmp_path, kind)
    for count in (1, 2, 3):
        prepared(path, f"set{count}", workers=count)
    assert content(tmp_path / "set1") == content(tmp_path / "set2") == content(tmp_path / "set3")
    assert FILE_NAME in content(tmp_path / "set1")


@pytest.mark.slow
def test_the_first_wrong_row_is_told_by_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_sections(monkeypatch)
    path = tmp_path / "table.csv"
    lines = [f"{i % 9},{i % 2}" for i in range(9000)]
    lines[7000], lines[8500] = "inf,1", "1e400,0"
    path.write_text("a,y\n" + "\n".join(lines))
    told = []
    for count in (1, 3):
        with pytest.raises(InputError) as error:
            prepared(path, "set", workers=count, kinds="a:number")
        told.append(str(error.value))
    assert told[0] == told[1] and "table.csv:7002" in told[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv"])
def test_workers_of_a_ray_cluster_give_the_same_bits(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_sections(monkeypatch, 16_000)
    path = made(tmp_path, kind)
    prepared(path, "one")
    capsys.readouterr()
    options = [kind, str(tmp_path / "ray"), f"path={path}", "label=y", "--quiet", "--workers", "2", "--ray", "local"]
    assert main(["data", "prepare", *options]) == 0
    assert "failed" not in capsys.readouterr().err
    assert content(tmp_path / "one") == content(tmp_path / "ray")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4000], "1,2", *lines[4000:]]) + "\n")
    messages = []
    for arguments in (["--quiet"], options[4:]):
        assert main(["data", "prepare", kind, str(tmp_path / "bad"), *options[2:4], *arguments]) == 2
        messages.append(capsys.readouterr().err)
    assert messages[0] == messages[1] and "table.csv:4001" in messages[0]


# -- killed, and begun again -------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from distdl.data import write
from distdl.data.prepare import prepare_dataset
from distdl.data.table import reader

reader.SECTION_BYTES, write.SHARD_BYTES, write.choose_rows_per_batch = 8000, 12000, lambda columns: 64
written, write_rows = 0, write.DatasetWriter.write

def count(self, split, rows):
    global written
    write_rows(self, split, rows)
    written += len(rows["label"])
    if written > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

write.DatasetWriter.write = count
prepare_dataset("csv", sys.argv[2], {"path": sys.argv[1], "label": "y"})
"""


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    small_sections(monkeypatch)
    monkeypatch.setattr(write, "SHARD_BYTES", 12_000)
    monkeypatch.setattr(write, "choose_rows_per_batch", lambda columns: 64)


def killed(path: Path, target: str, rows: int) -> None:
    """A preparation in a process of its own, which is killed when it has written so many rows."""
    command = [sys.executable, "-c", KILLED, str(path), str(path.with_name(target)), str(rows)]
    assert subprocess.run(command, env=variables()).returncode == -signal.SIGKILL


def drafts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.tmp-*"))


@pytest.mark.slow
def test_a_killed_preparation_goes_on_with_its_whole_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path, "csv")
    killed(path, "again", 3000)
    (left,) = drafts(tmp_path)
    shards = {name: file for name, file in content(left).items() if name.endswith(".arrow")}
    small_shards(monkeypatch)
    prepared(path, "whole")
    asked: list[int] = []
    each = Sections.each

    def seen(self: Sections, function: Any, names: list[str], begin: int = 0) -> Iterator[Any]:
        asked.append(begin)
        return each(self, function, names, begin)

    monkeypatch.setattr(Sections, "each", seen)
    capsys.readouterr()
    prepared(path, "again")
    said = capsys.readouterr().err
    new = content(tmp_path / "again")
    assert new == content(tmp_path / "whole")
    taken = said.partition("whole shards (")[2].partition(")")[0].removesuffix(", ...").split(", ")
    assert len(taken) >= 3 and all(new[name] == shards[name] for name in taken)
    assert "goes on where a preparation that was killed had stopped" in said and asked[-1] > 8
    assert f"{asked[-1]} of" in said
    assert drafts(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["shard", "batch", "journal"])
def test_what_is_damaged_is_prepared_again(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path, "csv")
    killed(path, "again", 3000)
    (left,) = drafts(tmp_path)
    files = sorted(left.glob("train-*.arrow"))
    file = {"shard": files[1], "batch": files[-1], "journal": left / "journal.jsonl"}[damage]
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    small_shards(monkeypatch)
    assert prepared(path, "again").fingerprint == prepared(path, "whole").fingerprint
    assert content(tmp_path / "again") == content(tmp_path / "whole") and drafts(tmp_path) == []


def test_other_data_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path, "csv")
    killed(path, "again", 3000)
    os.utime(path, ns=(1, 1))
    small_shards(monkeypatch)
    prepared(path, "again")
    said = capsys.readouterr().err
    assert "goes on" not in said and "which a preparation that was killed had left" in said
    assert drafts(tmp_path) == []
