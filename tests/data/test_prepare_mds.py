"""MDS: values of every encoding, shards packed and plain, and damage, which the hashes find on the local disk, too."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from PIL import Image

from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

PACK = {
    "": lambda raw: raw,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zstd": lambda raw: pa.compress(raw, "zstd", asbytes=True),
    "br": lambda raw: pa.compress(raw, "brotli", asbytes=True),
    "snappy": lambda raw: pa.compress(raw, "snappy", asbytes=True),
}


def write(
    folder: Path, columns: dict[str, tuple[str, int | None]], shards: list[list[dict[str, bytes]]], pack: str = ""
) -> None:
    """A folder in the documented layout. `columns`: name -> encoding, and the size of a value where it is fixed."""
    folder.mkdir(exist_ok=True)
    names = sorted(columns)
    config = {
        "version": 2,
        "format": "mds",
        "compression": pack or None,
        "hashes": ["sha1", "xxh64"],
        "size_limit": 1 << 26,
        "column_names": names,
        "column_encodings": [columns[name][0] for name in names],
        "column_sizes": [columns[name][1] for name in names],
    }
    told = json.dumps(config, sort_keys=True).encode()
    records = []
    for number, samples in enumerate(shards):
        bodies = []
        for sample in samples:
            sizes = [len(sample[name]) for name in names if columns[name][1] is None]
            bodies.append(struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(sample[name] for name in names))
        places = np.cumsum([4 * (len(bodies) + 2) + len(told), *map(len, bodies)]).astype("<u4")
        raw = struct.pack("<I", len(bodies)) + places.tobytes() + told + b"".join(bodies)
        records.append({**config, "samples": len(samples), "raw_data": described(raw, f"shard.{number:05}.mds")})
        packed = PACK[pack](raw)
        name = f"shard.{number:05}.mds" + (f".{pack}" if pack else "")
        records[-1]["zip_data"] = described(packed, name) if pack else None
        (folder / name).write_bytes(packed)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": records}))


def described(content: bytes, name: str) -> dict[str, Any]:
    hashes = {"sha1": hashlib.sha1(content).hexdigest(), "xxh64": xxhash.xxh64(content).hexdigest()}
    return {"basename": name, "bytes": len(content), "hashes": hashes}


def png(value: int) -> bytes:
    with io.BytesIO() as out:
        Image.new("L", (3, 2), value).save(out, "PNG")
        return out.getvalue()


COLUMNS: dict[str, tuple[str, int | None]] = {
    "label": ("str", None),
    "n": ("int", 8),
    "f": ("float32", 4),
    "image": ("png", None),
    "raw": ("pil", None),
    "a": ("ndarray", None),
    "fixed": ("ndarray:int16:2,2", 8),
    "meta": ("json", None),
    "number": ("str_float", None),
    "blob": ("bytes", None),
}


def sample(i: int, label: str = "cat") -> dict[str, bytes]:
    return {
        "label": label.encode(),
        "n": struct.pack("<q", -i),
        "f": struct.pack("<f", i / 4),
        "image": png(i),
        "raw": struct.pack("<3I", 3, 2, 3) + b"RGB" + bytes([i]) * 18,
        "a": bytes([34, 2 << 2 | 0, 1, 3]) + np.arange(3, dtype="<f4").tobytes(),
        "fixed": np.full((2, 2), i, "<i2").tobytes(),
        "meta": json.dumps({"size": i}).encode(),
        "number": str(i / 2).encode(),
        "blob": bytes(i),
    }


def made(folder: Path, **options: Any) -> tuple[dict[str, Any], Manifest]:
    options = {"path": folder / "m", "test_fraction": 0, "channels": 1, **options}
    manifest = prepare_dataset("mds", folder / "d", options, overwrite=True)
    data = Dataset(folder / "d", "train")
    return data.gather(np.arange(data.rows)), manifest


FIELDS = "label,n,f,image,raw,a,fixed,meta.size,number,blob"


@pytest.mark.parametrize("pack", PACK)
def test_values_of_every_encoding(tmp_path: Path, pack: str) -> None:
    write(tmp_path / "m", COLUMNS, [[sample(1), sample(2, "dog")], [sample(3)]], pack)
    rows, manifest = made(tmp_path, fields=FIELDS)
    assert {name: (c.dtype, c.shape) for name, c in manifest.columns.items()} == {
        "label": ("int64", ()),
        "n": ("int64", ()),
        "f": ("float32", ()),
        "image": ("uint8", (1, 2, 3)),
        "raw": ("uint8", (1, 2, 3)),
        "a": ("float32", (1, 3)),
        "fixed": ("int16", (2, 2)),
        "meta_size": ("int64", ()),
        "number": ("float32", ()),
        "blob": ("bytes", ()),
    }
    assert rows["label"].tolist() == [0, 1, 0] and manifest.info["classes"] == ["cat", "dog"]
    assert rows["n"].tolist() == [-1, -2, -3] and rows["f"].tolist() == [0.25, 0.5, 0.75]
    assert rows["image"][:, 0, 0, 0].tolist() == [1, 2, 3] and rows["raw"][:, 0, 1, 2].tolist() == [1, 2, 3]
    assert rows["a"][2].tolist() == [[0, 1, 2]] and rows["fixed"][1].tolist() == [[2, 2], [2, 2]]
    assert rows["meta_size"].tolist() == [1, 2, 3] and rows["number"].tolist() == [0.5, 1, 1.5]
    assert rows["blob"] == [b"\0", b"\0\0", b"\0\0\0"]


@pytest.mark.parametrize("pack", ["", "zstd"])
def test_a_flipped_bit_and_a_cut_shard(tmp_path: Path, pack: str) -> None:
    write(tmp_path / "m", COLUMNS, [[sample(1)], [sample(2)]], pack)
    shard = next((tmp_path / "m").glob("shard.00001.mds*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(InputError, match=r"shard.00001.mds(.zstd)? is damaged: its sha1 is not that of index.json"):
        made(tmp_path, fields="n,label")
    shard.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"shard.00001.mds(.zstd)? has .* bytes, index.json says"):
        made(tmp_path, fields="n,label")
    shard.unlink()
    with pytest.raises(InputError, match=r"there is no file .*shard.00001.mds"):
        made(tmp_path, fields="n,label")


def test_shards_without_hashes_are_told(tmp_path: Path) -> None:
    write(tmp_path / "m", COLUMNS, [[sample(1)]])
    edit(tmp_path / "m", lambda shard: shard["raw_data"].update(hashes={}))
    _, manifest = made(tmp_path, fields="n,label")
    assert "has no hashes of 1 of 1 shards: only their sizes are compared" in "\n".join(manifest.info["notes"])


def edit(folder: Path, change: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index["shards"][0])
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s["raw_data"].update(basename="../m/shard.00000.mds"), "is not the plain name of a file"),
        (lambda s: s["raw_data"]["hashes"].update(sha99=""), "the hash 'sha99' is not known"),
        (lambda s: s.update(samples=1 << 60), "does not hold the"),
        (lambda s: s.update(samples=-3), "does not hold the -3 samples"),
        (lambda s: s.update(samples=2), "does not hold the 2 samples"),
        (lambda s: s.update(format="json"), "a shard of the format 'json'"),
        (lambda s: s["column_encodings"].__setitem__(8, "pkl"), "the column number is pickled"),
        (
            lambda s: s["column_encodings"].__setitem__(8, "list[jpeg]"),
            r"the column number has the encoding 'list\[jpeg\]'",
        ),
        (lambda s: s["column_encodings"].__setitem__(8, "str_int"), "says other columns of itself than index.json"),
        (lambda s: s["column_names"].pop(), "the columns of a shard are damaged"),
        (lambda s: s.pop("raw_data"), "'raw_data' is None, not a dict"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, change: Any, told: str) -> None:
    write(tmp_path / "m", COLUMNS, [[sample(1)]])
    edit(tmp_path / "m", change)
    with pytest.raises(InputError, match=told):
        made(tmp_path, fields="number,label")


def test_what_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m", {"x": ("str_float", None)}, [[{"x": b"1"}, {"x": b"one"}]])
    with pytest.raises(InputError, match=r"shard.00000.mds, sample 1, x: the value cannot be read as str_float"):
        made(tmp_path)
    write(tmp_path / "m", {"x": ("float64", 8)}, [[{"x": struct.pack("<d", np.inf)}]])
    with pytest.raises(InputError, match=r"shard.00000.mds, sample 0, x: the field holds the value inf"):
        made(tmp_path)
    write(tmp_path / "m", {"x": ("pil", None)}, [[{"x": struct.pack("<3I", 1, 1, 1) + b"P\0"}]])
    with pytest.raises(InputError, match=r"a picture with a palette was stored without it"):
        made(tmp_path)
    write(tmp_path / "m", {"x": ("pil", None)}, [[{"x": struct.pack("<3I", 1 << 31, 1 << 31, 4) + b"RGBA1234"}]])
    with pytest.raises(InputError, match=r"4 bytes for 2147483648 x 2147483648 pixels of the mode RGBA"):
        made(tmp_path)
    (tmp_path / "m" / "index.json").unlink()
    with pytest.raises(InputError, match=r"is not an MDS folder: it has no index.json"):
        made(tmp_path)
    write(tmp_path / "m" / "val", {"x": ("int", 8)}, [[{"x": bytes(8)}]])
    with pytest.raises(InputError, match=r"path=.*m/val"):
        made(tmp_path)
    assert made(tmp_path, path=tmp_path / "m" / "val")[0]["x"].tolist() == [0]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library's own, without its data sets of pictures: those want torchvision."""
    for part in ("multimodal", "text", "vision"):
        monkeypatch.setitem(sys.modules, f"streaming.{part}", types.ModuleType(part))
    return pytest.importorskip("streaming", reason="mosaicml-streaming is not installed").MDSWriter


@pytest.mark.parametrize("pack", ["", "zstd:3", "gz", "br", "bz2", "snappy"])
def test_shards_that_the_library_wrote(tmp_path: Path, writer: Any, pack: str) -> None:
    columns = {
        "label": "str",
        "n": "int",
        "f": "float64",
        "image": "jpeg",
        "raw": "pil",
        "a": "ndarray",
        "meta": "json",
    }
    columns |= {"fixed": "ndarray:uint8:2,3", "half": "float16", "blob": "bytes", "dynamic": "ndarray:int32"}
    kept = {"compression": pack or None, "hashes": ["sha256", "xxh3_64"], "size_limit": 1500}
    with writer(out=str(tmp_path / "m"), columns=columns, **kept) as out:
        for i in range(5):
            array = np.arange(6).reshape(2, 3) + i
            arrays = {"a": array.astype(np.float32), "fixed": array.astype(np.uint8), "dynamic": array.astype(np.int32)}
            pictures = {"image": Image.new("RGB", (8, 8), (9 * i, 9 * i, 9 * i)), "raw": Image.new("L", (3, 2), i)}
            numbers = {"n": i, "f": i / 3, "half": i / 2, "label": "ab"[i % 2], "meta": {"x": [i, 1]}, "blob": bytes(i)}
            out.write({**arrays, **pictures, **numbers})
    fields = "label,n,f,image,raw,a,fixed,dynamic,half,blob,meta.x"
    rows, manifest = made(tmp_path, fields=fields)
    assert len(json.loads((tmp_path / "m" / "index.json").read_text())["shards"]) > 1
    assert rows["label"].tolist() == [0, 1, 0, 1, 0] and rows["n"].tolist() == [0, 1, 2, 3, 4]
    assert rows["f"].tolist() == [i / 3 for i in range(5)] and rows["half"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert rows["image"][:, 0, 4, 4].tolist() == [0, 9, 18, 27, 36] and rows["raw"][:, 0, 1, 2].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    for name in ("a", "fixed", "dynamic"):
        assert rows[name][4].tolist() == [[4, 5, 6], [7, 8, 9]] and manifest.columns[name].shape == (2, 3)
    assert rows["meta_x"].tolist() == [[i, 1] for i in range(5)] and rows["blob"][3] == bytes(3)
