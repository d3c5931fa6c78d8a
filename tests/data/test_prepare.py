"""Every raw format: its rows come back, and bad input names the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distdl.data.manifest import read_manifest
from distdl.data.prepare import parse_options, prepare_dataset, source_module, source_names
from distdl.data.read import Dataset
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError


def whole(path: Path, split: str = "train") -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def test_the_folder_is_the_registry() -> None:
    known = [
        "chat",
        "csv",
        "digit_strings",
        "digits",
        "idx",
        "images",
        "jsonl",
        "npz",
        "parquet",
        "segmentation",
        "series",
    ]
    known += ["pde", "pixels", "rays", "sentence_pairs", "stdlib", "synthetic", "text", "translation"]
    known += ["arrow", "assays", "customers", "huggingface", "scenes", "sinusoids", "sound", "speech", "trees", "words"]
    known += ["cifar", "hdf5", "mat", "pde_file", "svmlight"]
    known += ["arff", "litdata", "mds", "ts", "tsf", "webdataset"]
    assert source_names() == sorted(known)
    for name in source_names():
        module = source_module(name)
        assert module.__doc__ and module.Options.__doc__ and callable(module.prepare)


def test_options_from_text_and_their_errors(tmp_path: Path) -> None:
    options = parse_options("images", {"path": "p", "size": "4x6", "channels": "1"})
    assert options.size == (4, 6) and options.channels == 1
    assert parse_options("csv", {"path": Path("p"), "features": "a,b"}).features == ("a", "b")
    with pytest.raises(InputError, match="did you mean 'digits'"):
        prepare_dataset("digit", tmp_path / "d", {})
    with pytest.raises(InputError) as error:
        parse_options("images", {"sise": "4", "channels": "one", "size": "4"})
    assert [str(p).splitlines()[0] for p in error.value.problems] == [
        "the source images has no option 'sise'",
        "option channels='one' of the source images",
        "option size='4' of the source images",
        "the source images needs the option path=...",
    ]


def test_digits(tmp_path: Path) -> None:
    manifest = prepare_dataset("digits", tmp_path / "d", {})
    assert {name: split.rows for name, split in manifest.splits.items()} == {"test": 359, "train": 1438}
    assert prepare_dataset("digits", tmp_path / "e", {"test_fraction": "0.2"}).fingerprint == manifest.fingerprint
    from sklearn.datasets import load_digits

    raw = load_digits()
    both = [whole(tmp_path / "d", split) for split in ("train", "test")]
    images = np.concatenate([part["image"] for part in both])
    assert images.dtype == np.uint8 and images.shape == (1797, 1, 8, 8) and images.max() == 255
    labels = np.concatenate([part["label"] for part in both])
    assert (np.bincount(labels) == np.bincount(raw.target)).all()
    key = lambda pixels: sorted(map(bytes, np.rint(pixels * 16 / 255).astype(np.uint8).reshape(1797, 64)))  # noqa: E731
    assert key(images.astype(float)) == key(raw.images * (255 / 16))


def test_stdlib_holds_out_whole_files(tmp_path: Path) -> None:
    manifest = prepare_dataset("stdlib", tmp_path / "d", {"context": "64", "max_bytes": "300000"})
    tokens = whole(tmp_path / "d")["tokens"]
    assert tokens.dtype == np.uint8 and tokens.shape[1] == 65 and (tokens[:-1, -1] == tokens[1:, 0]).all()
    assert 290_000 < 64 * sum(split.rows for split in manifest.splits.values()) <= 300_000
    assert b"import" in tokens.tobytes() and set(manifest.splits) == {"train", "test"}
    assert (
        prepare_dataset("stdlib", tmp_path / "e", {"context": 64, "max_bytes": 300_000}).fingerprint
        == manifest.fingerprint
    )


def test_text_packs_every_byte_once(tmp_path: Path) -> None:
    text = bytes(np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8))
    (tmp_path / "a.txt").write_bytes(text[:3000])
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write(text[3000:])
    paths = f"{tmp_path}/a.txt,{tmp_path}/b.txt.gz"
    manifest = prepare_dataset("text", tmp_path / "d", {"path": paths, "context": 32, "test_path": f"{tmp_path}/a.txt"})
    assert read_manifest(tmp_path / "d") == manifest
    tokens = whole(tmp_path / "d")["tokens"]
    assert tokens.shape == (9999 // 32, 33) and tokens[:, :-1].tobytes() == text[: len(tokens) * 32]
    assert (tokens[:, -1] == np.frombuffer(text, np.uint8)[32 : len(tokens) * 32 + 1 : 32]).all()
    assert Dataset(tmp_path / "d", "test").rows == 2999 // 32
    with pytest.raises(InputError, match="there is no file"):
        prepare_dataset("text", tmp_path / "e", {"path": f"{tmp_path}/none.txt"})


def test_packing_in_small_blocks_equals_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from distdl.data import raw

    text = bytes(range(256)) * 5
    expected = np.concatenate([rows["tokens"] for rows in raw.pack_bytes([text], 10)])
    monkeypatch.setattr(raw, "READ_BYTES", 100)
    found = [rows["tokens"] for rows in raw.pack_bytes((text[i : i + 7] for i in range(0, len(text), 7)), 10)]
    assert len(found) > 3 and (np.concatenate(found) == expected).all()


CSV = "size, weight,kind\n" + "".join(f"{i},{i / 2},{'even' if i % 2 == 0 else 'odd'}\n" for i in range(200))


def test_csv_with_a_label_or_a_target(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    options = {"path": f"{tmp_path}/t.csv", "label": "kind", "scale": "none"}
    manifest = prepare_dataset("csv", tmp_path / "d", options)
    assert manifest.info["classes"] == ["even", "odd"] and manifest.info["features"] == ["size", "weight"]
    train, test = whole(tmp_path / "d"), whole(tmp_path / "d", "test")
    assert sorted([*train["x"][:, 0], *test["x"][:, 0]]) == list(range(200)) and 8 < len(test["x"]) < 35
    assert train["x"].dtype == np.float32 and (train["x"][:, 1] * 2 == train["x"][:, 0]).all()
    assert (train["label"] == train["x"][:, 0] % 2).all()
    options = {"path": f"{tmp_path}/t.csv", "target": "weight", "features": "size", "test_fraction": 0}
    prepare_dataset("csv", tmp_path / "e", {**options, "scale": "none", "target_scale": "none"})
    found = whole(tmp_path / "e")
    assert found["y"].shape == (200,) and (found["y"] * 2 == found["x"][:, 0]).all()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CSV + "x7,1,odd\n", {"label": "kind", "kinds": "size:number"}, r"t\.csv:202: the column 'size' .* 'x7'"),
        (
            CSV + "x7,1,odd\n",
            {"label": "kind", "missing": "refuse"},
            r"t\.csv:202: the column 'size' has the value 'x7'",
        ),
        (CSV + "7,,odd\n", {"label": "kind", "missing": "refuse"}, r"t\.csv:202: the column 'weight' has the value ''"),
        (CSV + "7,1e99,odd\n", {"label": "kind"}, r"t\.csv:202: .*1e99"),
        (CSV + "7,1,\n", {"label": "kind", "unlabelled": "refuse"}, r"t\.csv:202: the column 'kind' has the value ''"),
        (CSV + "7,1\n", {"label": "kind"}, r"t\.csv:202: the row has 2 values where the table has 3 columns"),
        (CSV, {"label": "kin"}, "did you mean 'kind'"),
        (CSV, {}, "neither label="),
        (CSV, {"label": "kind", "target": "size"}, "both label="),
        (CSV, {"target": "kind"}, r"t\.csv:2: the column 'kind' has the value 'even'"),
        ("a,a\n1,2\n", {"label": "a"}, "two columns of the same name"),
        ("", {"label": "a"}, "not a CSV file"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, options: dict, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        prepare_dataset("csv", tmp_path / "d", {"path": f"{tmp_path}/t.csv", **options})
    assert not (tmp_path / "d").exists()


def test_csv_test_file_must_have_the_classes_of_training(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,no\n2,yes\n")
    (tmp_path / "u.csv").write_text("3,no\n4,maybe\n")
    options = {"path": f"{tmp_path}/t.csv", "names": "x,kind", "label": "kind", "test_path": f"{tmp_path}/u.csv"}
    with pytest.raises(InputError, match=r"u\.csv:2: .*'maybe'"):
        prepare_dataset("csv", tmp_path / "d", options)
    (tmp_path / "u.csv").write_text("3,no\n4,yes\n")
    prepare_dataset("csv", tmp_path / "d", options)
    assert whole(tmp_path / "d", "test")["label"].tolist() == [0, 1] and len(whole(tmp_path / "d")["x"]) == 2


def test_parquet_as_it_is_and_as_a_table(tmp_path: Path) -> None:
    vectors = np.arange(300, dtype=np.float32).reshape(100, 3)
    table = pa.table(
        {
            "v": pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), 3),
            "n": np.arange(100),
            "l": pa.array([[[i, 1], [2, 3]] for i in range(100)]),
            "s": [f"row {i}" for i in range(100)],
            "ok": [i % 2 == 0 for i in range(100)],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=30)
    path = str(tmp_path / "t.parquet")
    manifest = prepare_dataset("parquet", tmp_path / "d", {"path": path, "test_fraction": 0})
    assert {k: (c.dtype, c.shape) for k, c in manifest.columns.items()} == {
        "v": ("float32", (3,)),
        "n": ("int64", ()),
        "l": ("int64", (2, 2)),
        "s": ("bytes", ()),
        "ok": ("uint8", ()),
    }
    found = whole(tmp_path / "d")
    assert (found["v"] == vectors).all() and found["s"][7] == b"row 7" and found["l"][9].tolist() == [[9, 1], [2, 3]]
    assert (found["ok"] == (np.arange(100) % 2 == 0)).all()
    options = {"path": path, "features": "n", "label": "ok", "test_fraction": 0, "scale": "none"}
    prepare_dataset("parquet", tmp_path / "e", options)
    table_rows = whole(tmp_path / "e")
    assert (table_rows["x"][:, 0] == np.arange(100)).all() and (table_rows["label"] == found["ok"]).all()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1, 2], [3]], "row 1: the column 'c' has a list of 1 values"),
        ([1, None], "row 1: the column 'c' has an empty value"),
        ([[{"a": 1}], [{"a": 2}]], "has the type struct"),
    ],
)
def test_parquet_errors(tmp_path: Path, column: list, message: str) -> None:
    pq.write_table(pa.table({"c": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        prepare_dataset("parquet", tmp_path / "d", {"path": f"{tmp_path}/t.parquet"})
    (tmp_path / "t.parquet").write_text("nonsense")
    with pytest.raises(InputError, match="not a Parquet file"):
        prepare_dataset("parquet", tmp_path / "d", {"path": f"{tmp_path}/t.parquet"})


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes()
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 1]) + np.array(labels.shape, ">u4").tobytes() + labels.tobytes())


def test_idx_and_its_damage(tmp_path: Path) -> None:
    images, labels = np.arange(5 * 12, dtype=np.uint8).reshape(5, 3, 4), np.arange(5, dtype=np.uint8)
    write_idx(tmp_path, "train", images, labels)
    prepare_dataset("idx", tmp_path / "d", {"path": tmp_path})
    found = whole(tmp_path / "d")
    assert (found["image"] == images[:, None]).all() and (found["label"] == labels).all()
    file = tmp_path / "train-images-idx3-ubyte"
    for content, message in (
        (file.read_bytes()[:-1], "ends early: .* 1 bytes more"),
        (file.read_bytes() + b"x", "holds more bytes"),
        (b"\x89PNG" + file.read_bytes()[4:], "begins with the bytes 89 50 4e 47"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            prepare_dataset("idx", tmp_path / "e", {"path": tmp_path})
        write_idx(tmp_path, "train", images, labels)
    write_idx(tmp_path, "train", images[:4], labels)
    with pytest.raises(InputError, match=r"4 images, .* 5 labels"):
        prepare_dataset("idx", tmp_path / "e", {"path": tmp_path})
    with pytest.raises(InputError, match="holds no train-images"):
        prepare_dataset("idx", tmp_path / "e", {"path": tmp_path / "d"})


def test_the_real_mnist(tmp_path: Path, data_folder: Path) -> None:
    if not (data_folder / "mnist").is_dir():
        pytest.skip("no mnist in DISTDL_DATA")
    manifest = prepare_dataset("idx", tmp_path / "d", {"path": data_folder / "mnist"})
    assert {name: split.rows for name, split in manifest.splits.items()} == {"test": 10_000, "train": 60_000}
    labels = whole(tmp_path / "d", "test")["label"]
    assert labels[:5].tolist() == [7, 2, 1, 0, 4] and np.bincount(labels).tolist()[:3] == [980, 1135, 1032]


def test_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        folder = tmp_path / "raw" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    path = str(tmp_path / "raw")
    manifest = prepare_dataset("images", tmp_path / "d", {"path": path, "test_fraction": 0})
    found = whole(tmp_path / "d")
    assert manifest.info["classes"] == ["cat", "dog"] and found["label"].tolist() == [0] * 6 + [1] * 6
    assert (found["image"] == np.concatenate([pixels[::2], pixels[1::2]]).transpose(0, 3, 1, 2)).all()
    grey = prepare_dataset("images", tmp_path / "e", {"path": path, "size": "4x5", "channels": 1})
    assert grey.columns["image"].shape == (1, 4, 5)
    Image.fromarray(pixels[0, :3]).save(tmp_path / "raw" / "dog" / "small.png")
    with pytest.raises(InputError, match=r"small\.png has 3 x 8 pixels.*\n.*size=6x8"):
        prepare_dataset("images", tmp_path / "f", {"path": path})
    (tmp_path / "raw" / "dog" / "small.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"small\.png is not a picture"):
        prepare_dataset("images", tmp_path / "f", {"path": path, "size": "4x4"})


def test_jsonl_numbers_and_text(tmp_path: Path) -> None:
    lines = [{"x": [i, 2 * i], "y": i if i % 2 else i + 0.5, "t": f"line {i}"} for i in range(50)]
    (tmp_path / "n.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "t"}) + "\n" for row in lines)
    )
    manifest = prepare_dataset("jsonl", tmp_path / "d", {"path": f"{tmp_path}/n.jsonl", "test_fraction": 0})
    assert {k: (c.dtype, c.shape) for k, c in manifest.columns.items()} == {"x": ("int64", (2,)), "y": ("float32", ())}
    assert whole(tmp_path / "d")["x"].tolist() == [row["x"] for row in lines]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare_dataset(
        "jsonl", tmp_path / "e", {"path": f"{tmp_path}/t.jsonl", "text": "t", "context": 16, "test_fraction": 0}
    )
    assert whole(tmp_path / "e")["tokens"][0].tobytes() == b"line 0\nline 1\nlin"


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("{", {}, r"t\.jsonl:2: not valid JSON"),
        ("[1]", {}, r"t\.jsonl:2: a line holds"),
        ('{"x": [1]}', {}, r"t\.jsonl:2: the field 'x' has the shape \(1,\)"),
        ('{"x": "one"}', {}, r"t\.jsonl:2: the field 'x' holds 'one'"),
        ('{"x": [1, NaN]}', {}, r"t\.jsonl:2: the field 'x' holds"),
        ('{"z": [1, 2]}', {}, r"t\.jsonl:2: the fields are z"),
        ('{"x": 1}', {"text": "x"}, r"t\.jsonl:1: the field 'x' holds \[1, 2\], not text"),
    ],
)
def test_jsonl_errors(tmp_path: Path, line: str, options: dict, message: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"x": [1, 2]}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        prepare_dataset("jsonl", tmp_path / "d", {"path": f"{tmp_path}/t.jsonl", **options})
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("fraction", ["1", "-0.1"])
def test_a_test_fraction_that_leaves_nothing(tmp_path: Path, fraction: str) -> None:
    with pytest.raises(InputError, match="test_fraction"):
        prepare_dataset("digits", tmp_path / "d", {"test_fraction": fraction})


@pytest.mark.parametrize(("rows", "fraction"), [(2, 0.1), (5, 0.1), (2, 0.999), (40, 0.01)])
def test_either_split_gets_a_row_of_few(rows: int, fraction: float) -> None:
    """Chance may send all of a handful of rows to one split; an evaluation needs one, and so does training."""
    parts: dict[str, list[int]] = {"train": [], "test": []}
    splitter = Splitter(SplitOptions(test_fraction=fraction))
    for split, part in splitter.share({"x": np.arange(i, min(i + 3, rows))} for i in range(0, rows, 3)):
        parts[split] += part["x"].tolist()
    assert parts["train"] and parts["test"] and sorted(parts["train"] + parts["test"]) == list(range(rows))


@pytest.mark.parametrize(
    ("rows", "fraction", "purpose"), [(1, 0.1, "test"), (1, 0.999, "train"), (200_000, 1e-9, "test")]
)
def test_a_split_that_would_be_empty_is_refused(rows: int, fraction: float, purpose: str) -> None:
    with pytest.raises(InputError, match=f"of {rows:,} rows leaves nothing to {purpose} on"):
        list(Splitter(SplitOptions(test_fraction=fraction)).share([{"x": np.arange(rows)}]))
