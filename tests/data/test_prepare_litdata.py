"""litdata: chunks packed in every way, values of every type that runs nothing, tokens, and damage."""

from __future__ import annotations

import json
import struct
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

LEAF = {"type": None, "context": None, "children_spec": []}


def spec(names: list[str]) -> str:
    children = [LEAF for _ in names]
    return json.dumps([1, {"type": "builtins.dict", "context": json.dumps(names), "children_spec": children}])


def plain(items: list[bytes]) -> bytes:
    """A chunk in the documented layout."""
    places = np.cumsum([4 * (len(items) + 2), *map(len, items)]).astype("<u4")
    return struct.pack("<I", len(items)) + places.tobytes() + b"".join(items)


def item(values: list[bytes]) -> bytes:
    return struct.pack(f"<{len(values)}I", *map(len, values)) + b"".join(values)


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def framed(items: list[bytes], rows: int = 2) -> bytes:
    places = np.cumsum([0, *map(len, items)]).astype("<u4").tobytes()
    frames = [items[i : i + rows] for i in range(0, len(items), rows)]
    packed = [zstd(b"".join(frame)) for frame in frames]
    at = 24 + len(places) + 24 * len(frames)
    table = b""
    for i, (frame, content) in enumerate(zip(frames, packed)):
        table += struct.pack("<IIQII", i * rows, len(frame), at, len(content), len(b"".join(frame)))
        at += len(content)
    head = struct.pack("<8sHHIII", b"LDFZ01\0\0", 1, 0, len(items), rows, len(frames))
    return head + places + table + b"".join(packed)


def rows_in_arrow(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    content = sink.getvalue().to_pybytes()
    return plain([b""] * len(rows)) + content + struct.pack("<I", len(content)) + b"LDARW01\0"


def write(folder: Path, formats: dict[str, str], chunks: list[tuple[str, bytes, int, int]], **config: Any) -> None:
    """`chunks`: name, content, items, and bytes before the whole is packed."""
    folder.mkdir(exist_ok=True)
    kept = {"data_format": list(formats.values()), "data_spec": spec(list(formats)), "item_loader": "PyTreeLoader"}
    records = []
    for name, content, items, size in chunks:
        (folder / name).write_bytes(content)
        records.append({"filename": name, "chunk_size": items, "chunk_bytes": size, "dim": None})
    (folder / "index.json").write_text(json.dumps({"chunks": records, "config": {**kept, **config}}))


FORMATS = {"label": "str", "n": "int", "f": "float", "ok": "bool", "a": "numpy", "v": "no_header_numpy:9"}
FORMATS |= {"t": "tensor", "w": "no_header_tensor:18", "raw": "pil", "blob": "bytes"}


def sample(i: int, label: str = "cat") -> bytes:
    return item(
        [
            label.encode(),
            struct.pack("<q", -i),
            struct.pack("<d", i / 3),
            bytes([i % 2]),
            struct.pack("<4I", 4, 2, 1, 2) + bytes([i, 9]),
            np.array([i, 0.5], "<f4").tobytes(),
            struct.pack(">4I", 1, 2, 2, 1) + np.array([i, 7], "<f4").tobytes(),
            np.array([i, i], "<i8").tobytes(),
            struct.pack("<3I", 3, 2, 1) + b"L" + bytes([i]) * 6,
            bytes(i),
        ]
    )


def made(folder: Path, **options: Any) -> tuple[dict[str, Any], Manifest]:
    options = {"path": folder / "l", "test_fraction": 0, "channels": 1, **options}
    manifest = prepare_dataset("litdata", folder / "d", options, overwrite=True)
    data = Dataset(folder / "d", "train")
    return data.gather(np.arange(data.rows)), manifest


SAMPLES = [sample(1), sample(2, "dog"), sample(3)]
PACKED = {
    "none": ({}, [("c0.bin", plain(SAMPLES[:2]), 2), ("c1.bin", plain(SAMPLES[2:]), 1)]),
    "chunk": ({"compression": "zstd"}, [("c0.zstd.bin", zstd(plain(SAMPLES)), 3)]),
    "sample": ({"compression": "zstd", "compression_level": "sample"}, [("c0.bin", plain([*map(zstd, SAMPLES)]), 3)]),
    "batch": ({"compression": "zstd:3", "compression_level": "batch"}, [("c0.bin", framed(SAMPLES), 3)]),
}


@pytest.mark.parametrize("pack", PACKED)
def test_values_of_every_type(tmp_path: Path, pack: str) -> None:
    config, chunks = PACKED[pack]
    sizes = [len(plain(SAMPLES)) if pack == "chunk" else len(content) for _, content, _ in chunks]
    write(tmp_path / "l", FORMATS, [(*chunk, size) for chunk, size in zip(chunks, sizes)], **config)
    rows, manifest = made(tmp_path)
    assert {name: (c.dtype, c.shape) for name, c in manifest.columns.items()} == {
        "label": ("int64", ()),
        "n": ("int64", ()),
        "f": ("float64", ()),
        "ok": ("int64", ()),
        "a": ("uint8", (1, 2)),
        "v": ("float32", (2,)),
        "t": ("float32", (2, 1)),
        "w": ("int64", (2,)),
        "image": ("uint8", (1, 2, 3)),
        "blob": ("bytes", ()),
    }
    assert rows["label"].tolist() == [0, 1, 0] and manifest.info["classes"] == ["cat", "dog"]
    assert rows["n"].tolist() == [-1, -2, -3] and rows["f"].tolist() == [1 / 3, 2 / 3, 1]
    assert rows["ok"].tolist() == [1, 0, 1] and rows["a"][2].tolist() == [[3, 9]]
    assert rows["v"][1].tolist() == [2, 0.5] and rows["t"][1].tolist() == [[2], [7]] and rows["w"][2].tolist() == [3, 3]
    assert rows["image"][:, 0, 1, 2].tolist() == [1, 2, 3] and rows["blob"] == [b"\0", b"\0\0", b"\0\0\0"]
    assert "litdata records no hashes" in "\n".join(manifest.info["notes"])


def test_rows_of_plain_values_in_arrow(tmp_path: Path) -> None:
    content = rows_in_arrow([{"label": f"c{i}", "d": {"x": i, "l": [i, 1.5]}} for i in range(3)])
    write(tmp_path / "l", {"label": "str", "d.x": "int", "d.l": "json"}, [("c.bin", content, 3, len(content))])
    rows, manifest = made(tmp_path, fields="label,d.x,d.l")
    assert rows["d_x"].tolist() == [0, 1, 2] and rows["d_l"][2].tolist() == [2, 1.5]
    assert manifest.info["classes"] == ["c0", "c1", "c2"]
    content = rows_in_arrow([{"label": "a"}, {"label": None}])
    write(tmp_path / "l", {"label": "str"}, [("c.bin", content, 2, len(content))])
    with pytest.raises(InputError, match=r"c.bin, sample 1, label: the field holds None"):
        made(tmp_path)


@pytest.mark.parametrize("pack", PACKED)
def test_a_chunk_that_was_cut_or_damaged(tmp_path: Path, pack: str) -> None:
    config, chunks = PACKED[pack]
    sizes = [len(plain(SAMPLES)) if pack == "chunk" else len(content) for _, content, _ in chunks]
    write(tmp_path / "l", FORMATS, [(*chunk, size) for chunk, size in zip(chunks, sizes)], **config)
    path = tmp_path / "l" / chunks[-1][0]
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:9], whole + b"\0", b"\7" + whole[1:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"c\d(\.zstd)?.bin is damaged"):
            made(tmp_path)
    path.write_bytes(whole)
    index = tmp_path / "l" / "index.json"
    index.write_text(index.read_text().replace(f'"chunk_size": {chunks[-1][2]}', '"chunk_size": 7'))
    with pytest.raises(InputError, match=r"bin is damaged: .*index.json"):
        made(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"there is no file .*bin, which index.json names"):
        made(tmp_path)


def test_tokens_are_packed_across_chunks(tmp_path: Path) -> None:
    tokens = [np.arange(i, j, dtype="<u2").tobytes() for i, j in ((0, 3), (3, 7), (7, 12))]
    chunks = [(f"c{i}.bin", plain([t]), 1, len(plain([t]))) for i, t in enumerate(tokens)]
    write(tmp_path / "l", {"x": "no_header_tensor:20"}, chunks, item_loader="TokensLoader")
    rows, manifest = made(tmp_path, context=3)
    assert rows["tokens"].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert manifest.columns["tokens"].dtype == "uint16"

    with pytest.raises(InputError, match=r"holds tokens alone"):
        made(tmp_path)


def test_what_else_is_refused(tmp_path: Path) -> None:
    content = plain([item([b"x"])])
    for form, told in (
        ("pickle", "is pickled"),
        ("video", "is stored as 'video'"),
        ("no_header_tensor:10", "stored as"),
    ):
        write(tmp_path / "l", {"x": form}, [("c.bin", content, 1, len(content))])
        with pytest.raises(InputError, match=told):
            made(tmp_path)
    write(tmp_path / "l", {"x": "int"}, [("c.bin", content, 1, len(content))])
    with pytest.raises(InputError, match=r"c.bin, sample 0, x: the value cannot be read as int"):
        made(tmp_path)
    write(tmp_path / "l", {"x": "str"}, [("c.bin", content, 1, len(content))], encryption={"algorithm": "fernet"})
    with pytest.raises(InputError, match=r"is encrypted"):
        made(tmp_path)
    write(tmp_path / "l", {"x": "str"}, [("c.bin", content, 1, len(content))], item_loader="ParquetLoader")
    with pytest.raises(InputError, match=r"the items are those of ParquetLoader"):
        made(tmp_path)
    write(tmp_path / "l", {"x": "str"}, [("c.bin", content, 1, len(content))])
    index = tmp_path / "l" / "index.json"
    index.write_text(index.read_text().replace('"c.bin"', '"../l/c.bin"'))
    with pytest.raises(InputError, match=r"is not the plain name of a file"):
        made(tmp_path)


@pytest.fixture
def library() -> Any:
    """litdata's own writer."""
    pytest.importorskip("zstd", reason="zstd, which litdata packs with, is not installed")
    pytest.importorskip("litdata.streaming.item_loader", reason="litdata is not installed")
    import litdata.streaming
    import torch

    return types.SimpleNamespace(Cache=litdata.streaming.Cache, item_loader=litdata.streaming.item_loader, torch=torch)


def finish(cache: Any) -> None:
    cache.done()
    cache.merge()


@pytest.mark.parametrize("config", [{}, {"compression": "zstd"}, {"compression": "zstd", "compression_level": "chunk"}])
def test_chunks_that_the_library_wrote(tmp_path: Path, library: Any, config: dict[str, str]) -> None:
    cache, torch = library.Cache(str(tmp_path / "l"), chunk_size=2, **config), library.torch
    for i in range(5):
        arrays = {"a": np.full((2, 2), i, np.int16), "v": np.arange(3.0) + i, "t": torch.full((1, 2), float(i))}
        pictures = {"raw": Image.new("L", (3, 2), i)}
        numbers = {"n": i, "f": i / 3, "ok": i > 2, "label": "ab"[i % 2], "blob": bytes(i)}
        cache[i] = {**arrays, **pictures, **numbers, "deep": {"w": torch.tensor([i])}}
    finish(cache)
    rows, _ = made(tmp_path)
    assert rows["n"].tolist() == [0, 1, 2, 3, 4] and rows["f"].tolist() == [i / 3 for i in range(5)]
    assert rows["label"].tolist() == [0, 1, 0, 1, 0] and rows["ok"].tolist() == [0, 0, 0, 1, 1]
    assert rows["a"][4].tolist() == [[4, 4], [4, 4]] and rows["v"][4].tolist() == [4, 5, 6]
    assert rows["t"][3].tolist() == [[3, 3]] and rows["deep_w"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert rows["image"][:, 0, 1, 2].tolist() == [0, 1, 2, 3, 4] and rows["blob"][3] == bytes(3)


@pytest.mark.parametrize("config", [{}, {"compression": "zstd"}])
def test_plain_rows_and_tokens_that_the_library_wrote(tmp_path: Path, library: Any, config: dict[str, str]) -> None:
    cache, torch = library.Cache(str(tmp_path / "l"), chunk_size=2, **config), library.torch
    for i in range(5):
        cache[i] = {"label": i % 3, "text": f"t{i}", "deep": {"x": i / 2}}
    finish(cache)
    rows, manifest = made(tmp_path, fields="label,text,deep.x")
    assert rows["label"].tolist() == [0, 1, 2, 0, 1] and manifest.info["classes"] == ["0", "1", "2"]
    assert rows["text"] == [f"t{i}".encode() for i in range(5)] and rows["deep_x"].tolist() == [0, 0.5, 1, 1.5, 2]
    if config:
        return
    loader = library.item_loader.TokensLoader(block_size=4)
    cache = library.Cache(str(tmp_path / "tokens"), chunk_size=2, item_loader=loader)
    for i in range(4):
        cache[i] = torch.arange(5 * i, 5 * i + 5, dtype=torch.int32)
    finish(cache)
    rows, _ = made(tmp_path, path=tmp_path / "tokens", context=4)
    assert rows["tokens"].tolist() == [list(range(i, i + 5)) for i in (0, 4, 8, 12)]
