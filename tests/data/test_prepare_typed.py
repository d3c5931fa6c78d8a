"""Parquet, Arrow and Feather: every type comes back, what Hugging Face and pandas add is understood, damage is named."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.data.table.arrow_table import ArrowTable, open_arrow
from distdl.data.table.parquet_table import ParquetTable, open_parquet
from distdl.data.table.reader import Table
from distdl.errors import InputError

KINDS = ("parquet", "arrow file", "arrow stream", "feather")


def write(path: Path, table: pa.Table, kind: str, rows: int | None = None) -> str:
    """A table in a file of some kind, in batches or row groups of `rows`."""
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
    elif kind == "feather":
        feather.write_feather(table, path, chunksize=rows)
    else:
        make = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return str(path)


def open_table(path: str, kind: str) -> Table:
    return open_parquet(path) if kind == "parquet" else open_arrow(path)


def whole(path: Path, split: str = "train") -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_comes_with_its_nulls(tmp_path: Path, kind: str) -> None:
    day = datetime.date(2026, 11, 30)
    columns = {
        "whole": pa.array([1, None, 3] * 50, pa.int16()),
        "real": pa.array([0.5, 1.5, None] * 50, pa.float32()),
        "flag": pa.array([True, None, False] * 50),
        "text": pa.array(["a", None, "ü"] * 50),
        "large": pa.array(["a", None, "ü"] * 50, pa.large_string()),
        "money": pa.array([Decimal("1.10"), None, Decimal("-2.25")] * 50, pa.decimal128(10, 2)),
        "day": pa.array([day, None, day] * 50, pa.date32()),
        "time": pa.array([1, None, 3] * 50, pa.timestamp("us", "UTC")),
        "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]] * 50, pa.list_(pa.float32())),
        "category": pa.array(["x", None, "y"] * 50).dictionary_encode(),
        "nested": pa.array([{"a": 1, "b": {"c": "z"}}, None, {"a": None, "b": {"c": "w"}}] * 50),
    }
    table = open_table(write(tmp_path / "t", pa.table(columns), kind, 40), kind)
    assert table.names == [*list(columns)[:-1], "nested.a", "nested.b.c"] and table.schema.names == table.names
    names = table.names[::-1]
    found = pa.Table.from_batches(table.batches(names))
    assert found.schema == pa.schema([table.schema.field(name) for name in names])
    for name in list(columns)[:-2]:
        assert found[name].type == columns[name].type and found[name].to_pylist() == columns[name].to_pylist()
    assert found["category"].type == pa.string() and found["category"].to_pylist() == ["x", None, "y"] * 50
    assert found["nested.a"].to_pylist() == [1, None, None] * 50
    assert found["nested.b.c"].to_pylist() == ["z", None, "w"] * 50
    assert table.batches(names) is not table.batches(names)  # it can be read again
    assert pa.Table.from_batches(table.batches(["flag"])).num_rows == 150 and table.place(7).endswith("t, row 7")


@pytest.mark.parametrize("kind", ["arrow file", "arrow stream", "parquet"])
def test_views_are_strings(tmp_path: Path, kind: str) -> None:
    values = pa.table({"v": pa.array(["a", None], pa.string_view()), "b": pa.array([b"a", None], pa.binary_view())})
    table = open_table(write(tmp_path / "t", values, kind), kind)
    assert table.schema.types == [pa.string(), pa.binary()]
    assert pa.Table.from_batches(table.batches(["b", "v"])).to_pylist()[0] == {"b": b"a", "v": "a"}


def test_arrow_files_and_streams_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    values = pa.table({"a": np.arange(100), "y": ["u", "v"] * 50})
    made = []
    for kind in KINDS[1:]:
        options = {"path": write(tmp_path / "t.any", values, kind, 30), "label": "y"}
        made.append(prepare_dataset("arrow", tmp_path / kind, options))
    assert made[0].splits == made[1].splits == made[2].splits
    feather.write_feather(values, tmp_path / "v1", version=1)
    for name, match in (("v1", "a Feather file of version 1"), ("p", "use the source parquet"), ("x", "no Arrow file")):
        pq.write_table(values, tmp_path / "p")
        (tmp_path / "x").write_bytes(b"a,y\n1,2\n")
        with pytest.raises(InputError, match=match):
            ArrowTable(str(tmp_path / name))


def test_an_arrow_file_of_large_batches_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t", pa.table({"a": np.arange(100_000)}), "arrow file", 50_000)
    opened: list[str] = []
    real = pa.memory_map
    monkeypatch.setattr(pa, "memory_map", lambda *a: (opened.append(a[0]), real(*a))[1])
    for limit, maps in ((1 << 20, 0), (300_000, 1)):
        monkeypatch.setattr("distdl.data.table.arrow_table.LARGE_BATCH_BYTES", limit)
        found = pa.Table.from_batches(ArrowTable(path).batches(["a"]))
        assert (found["a"].to_numpy() == np.arange(100_000)).all() and len(opened) == maps


def test_damaged_arrow_is_named(tmp_path: Path) -> None:
    values = pa.table({"a": np.arange(3000), "s": [f"text {i}" for i in range(3000)]})
    for kind in ("arrow file", "arrow stream"):
        raw = Path(write(tmp_path / "t", values, kind, 500)).read_bytes()
        (tmp_path / "cut").write_bytes(raw[: len(raw) // 2])
        with pytest.raises(InputError, match=r"cut (is not a whole Arrow file|cannot be read behind row)"):
            list(ArrowTable(f"{tmp_path}/cut").batches(["a", "s"]))
        offsets = np.arange(1, 400, dtype=np.int32) * 6  # of the strings: one of them shall lead out of the buffer
        place = raw.index((offsets[:2] + 0).astype(np.int32).tobytes()) + 4
        (tmp_path / "bad").write_bytes(raw[:place] + b"\xff\xff\xff\x7f" + raw[place + 4 :])
        with pytest.raises(InputError, match=r"bad cannot be read behind row 0"):
            list(ArrowTable(f"{tmp_path}/bad").batches(["a", "s"]))


def test_a_stream_without_its_end_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "t", pa.table({"a": [1, 2]}), "arrow stream")
    assert ArrowTable(path).notes == []
    Path(path).write_bytes(Path(path).read_bytes()[:-8])
    assert "the stream has no end mark" in ArrowTable(path).notes[0]


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    values = pa.table({"a": np.random.default_rng(0).standard_normal(5000)})
    path = Path(write(tmp_path / "t", values, "parquet"))
    raw = bytearray(path.read_bytes())
    raw[20_000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="cannot be read behind row") as error:
        list(ParquetTable(str(path)).batches(["a"]))
    assert "download it again" in str(error.value)
    path.write_bytes(raw[:-30])
    with pytest.raises(InputError, match="is not a Parquet file"):
        ParquetTable(str(path))


def test_a_fixed_list_with_a_null_is_named(tmp_path: Path) -> None:
    values = pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2))
    path = write(tmp_path / "t", pa.table({"v": values}), "parquet")
    try:
        pq.read_table(path)
    except pa.ArrowInvalid:
        with pytest.raises(InputError, match=r"lists of one fixed size has an empty value"):
            list(ParquetTable(path).batches(["v"]))
    else:
        assert next(ParquetTable(path).batches(["v"])).column(0).to_pylist() == values.to_pylist()


def test_parquet_is_not_held_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's default holds all that is still to be read: memory as large as the file."""
    seen: list[dict] = []
    real = pq.ParquetFile
    monkeypatch.setattr(pa.parquet, "ParquetFile", lambda *a, **k: (seen.append(k), real(*a, **k))[1])
    table = ParquetTable(write(tmp_path / "t", pa.table({"a": np.arange(300_000.0)}), "parquet"))
    sizes = [batch.num_rows for batch in table.batches(["a"])]
    assert sum(sizes) == 300_000 and max(sizes) == 65_536
    assert all(k["pre_buffer"] is False and k["buffer_size"] for k in seen) and len(seen) == 2
    wide = pa.table({f"c{i}": np.zeros(5000) for i in range(500)})
    table = ParquetTable(write(tmp_path / "t", wide, "parquet"))
    assert max(batch.nbytes for batch in table.batches(table.names)) < 16 << 20


def test_folders_of_keys_are_columns(tmp_path: Path) -> None:
    for year in (2024, 2025):
        for land in ("de", "fr b"):
            folder = tmp_path / "t" / f"year={year}" / f"land={land.replace(' ', '%20')}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"a": [year + 0.5]}), folder / "part.parquet")
    (tmp_path / "t" / "_SUCCESS").write_text("")
    for path in (tmp_path / "t", f"{tmp_path}/t/**/*.parquet", f"file://{tmp_path}/t"):
        table = open_parquet(str(path))
        assert table.names == ["a", "year", "land"] and table.schema.field("land").type == pa.string()
        found = pa.Table.from_batches(table.batches(["land", "a", "year"])).to_pylist()
        assert [list(row.values()) for row in found] == [
            [c, y + 0.5, str(y)] for y in (2024, 2025) for c in ("de", "fr b")
        ]
    assert table.place(2).endswith("year=2025/land=de/part.parquet, row 0")
    pq.write_table(pa.table({"b": [1]}), tmp_path / "t" / "year=2025" / "land=de" / "part.parquet")
    with pytest.raises(InputError, match=r"has the column b and lacks the column a, unlike .*year=2024"):
        open_parquet(str(tmp_path / "t"))


def picture(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (3, 2), value).save(out, "png")
    return out.getvalue()


FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def with_features(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


@pytest.mark.parametrize("kind", ["parquet", "arrow stream"])
def test_hugging_face_pictures_and_class_names(tmp_path: Path, kind: str) -> None:
    pictures = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(6)]
    values = with_features(pa.table({"image": pictures, "label": [0, 1, 0, 1, 1, 0]}))
    table = open_table(write(tmp_path / "t", values, kind), kind)
    assert dict(table.classes) == {"label": ["cat", "dog"]} and table.schema.field("image").type == pa.binary()
    manifest = prepare_dataset(kind.split()[0], tmp_path / "d", {"path": str(tmp_path / "t"), "test_fraction": "0"})
    assert manifest.info["classes"] == ["cat", "dog"]
    assert manifest.preparation["label"] == {"kind": "class", "version": 1, "classes": ["cat", "dog"]}
    found = whole(tmp_path / "d")
    assert [bytes(value) for value in found["image"]] == [p["bytes"] for p in pictures]
    assert found["label"].tolist() == [0, 1, 0, 1, 1, 0]
    assert "size=HEIGHTxWIDTH makes pixels" in manifest.info["notes"][0]
    options = {"path": str(tmp_path / "t"), "test_fraction": "0", "size": "2x3", "channels": "1"}
    manifest = prepare_dataset(kind.split()[0], tmp_path / "p", options)
    assert manifest.preparation["image"]["kind"] == "picture" and "notes" not in manifest.info
    found = whole(tmp_path / "p")
    assert found["image"].shape == (6, 1, 2, 3) and found["image"][:, 0, 0, 0].tolist() == list(range(6))
    broken = [*pictures[:2], {"bytes": b"no picture", "path": "x"}, *pictures[3:]]
    write(tmp_path / "b", with_features(pa.table({"image": broken, "label": [0, 1, 0, 1, 1, 0]})), kind)
    with pytest.raises(InputError, match=r"the picture in .*b, row 2"):
        prepare_dataset(kind.split()[0], tmp_path / "q", {**options, "path": str(tmp_path / "b")})
    lost = [*pictures[:4], {"bytes": None, "path": "/home/me/pics/4.png"}, pictures[5]]
    write(tmp_path / "t", with_features(pa.table({"image": lost, "label": [0, 1, 0, 1, 1, 0]})), kind)
    with pytest.raises(InputError, match=r"t, row 4: the column 'image' holds the path '/home/me/pics/4.png' and not"):
        prepare_dataset(kind.split()[0], tmp_path / "e", {"path": str(tmp_path / "t"), "test_fraction": "0"})


def test_a_class_number_of_minus_one_is_no_label(tmp_path: Path) -> None:
    values = with_features(pa.table({"label": [0, -1, 1]}))
    table = ParquetTable(write(tmp_path / "t", values, "parquet"))
    assert next(table.batches(["label"])).column(0).to_pylist() == [0, None, 1]
    plain = ParquetTable(write(tmp_path / "t", values.replace_schema_metadata(None), "parquet"))
    assert next(plain.batches(["label"])).column(0).to_pylist() == [0, -1, 1]


def test_the_index_of_pandas_is_left_out_and_said(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame({"a": [1.0, 2.0]}, index=["x", "y"]).to_parquet(tmp_path / "t")
    table = ParquetTable(str(tmp_path / "t"))
    assert table.names == ["a"] and "__index_level_0__, is left out" in table.notes[0]


def test_rows_in_refusals_are_rows(tmp_path: Path) -> None:
    lists = [[[1.0, 2.0], [3.0, 4.0]] for _ in range(10)]
    for bad, match in (
        ([[1.0, 2.0], [3.0]], "row 7: the column 'v' has a list of 1 values, the first has 2"),
        ([[1.0, 2.0]], "row 7: the column 'v' has a list of 1 values, the first has 2"),
        ([[1.0, 2.0], None], "row 7: a list of the column 'v' has an empty value"),
        ([[1.0, None], [3.0, 4.0]], "row 7: a list of the column 'v' has an empty value"),
        (None, "row 7: the column 'v' has an empty value"),
    ):
        pq.write_table(pa.table({"v": [*lists[:7], bad, *lists[8:]]}), tmp_path / "t")
        with pytest.raises(InputError, match=match):
            prepare_dataset("parquet", tmp_path / "d", {"path": str(tmp_path / "t")})


def test_columns_as_they_are_can_be_renamed_and_dropped(tmp_path: Path) -> None:
    columns = {"id": np.arange(10), "note": ["x"] * 10, "a": [{"b": float(i)} for i in range(10)]}
    path = write(tmp_path / "t", pa.table(columns), "parquet")
    options = {"path": path, "rename": "id:key", "drop": "note", "test_fraction": "0"}
    manifest = prepare_dataset("parquet", tmp_path / "d", options)
    assert list(manifest.columns) == ["key", "a_b"]
    found = whole(tmp_path / "d")
    assert found["key"].tolist() == list(range(10)) and found["a_b"].tolist() == list(map(float, range(10)))
    for bad, match in (({"rename": "ib:key"}, "no column 'ib'"), ({"drop": "nothing"}, "no column 'nothing'")):
        with pytest.raises(InputError, match=match):
            prepare_dataset("parquet", tmp_path / "e", {**options, **bad})


def test_columns_as_they_are_are_shared_out_as_asked(tmp_path: Path) -> None:
    columns = {"a": np.arange(40), "who": [f"p{i // 4}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    path = write(tmp_path / "t", pa.table(columns), "parquet")
    manifest = prepare_dataset("parquet", tmp_path / "d", {"path": path, "split_group": "who", "test_fraction": "0.3"})
    assert list(manifest.columns) == ["a", "label"] and manifest.info["split"]["column"] == "who"
    groups = [{int(a) // 4 for a in whole(tmp_path / "d", split)["a"]} for split in ("train", "test")]
    assert groups[0] | groups[1] == set(range(10)) and not groups[0] & groups[1]
    manifest = prepare_dataset("parquet", tmp_path / "e", {"path": path, "stratify": "true", "drop": "who"})
    assert np.bincount(whole(tmp_path / "e", "test")["label"]).tolist() == [2, 2]
    with pytest.raises(InputError, match="there is no label"):
        prepare_dataset("parquet", tmp_path / "f", {"path": path, "stratify": "true", "drop": "who,label"})


def test_a_list_without_values_in_the_first_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t", pa.table({"a": [[], [1.0]]}), "parquet")
    with pytest.raises(InputError, match="row 0: the column 'a' has a list without values"):
        prepare_dataset("parquet", tmp_path / "d", {"path": path})


def test_paths_of_pictures_of_which_none_has_bytes_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "t", pa.table({"image": [{"bytes": None, "path": "/x/y.png"}] * 3}), "parquet")
    with pytest.raises(
        InputError, match=r"row 0: the column 'image' holds the path '/x/y\.png' and not the file itself"
    ):
        prepare_dataset("parquet", tmp_path / "d", {"path": path})
