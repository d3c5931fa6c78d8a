"""Manifest, writer and reader: round trips, refusals, damage."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distdl.data.manifest import Column, from_json, read_manifest, to_json
from distdl.data.read import Dataset, MappedShard
from distdl.data.verify import verify_dataset
from distdl.data.write import DatasetWriter
from distdl.errors import DataCorrupt, DistdlError, InputError

from .conftest import COLUMNS, rows, write_dataset


def test_rows_come_back_in_any_order(dataset_path: Path) -> None:
    data = Dataset(dataset_path, "train")
    assert data.rows == len(data) == 203 and data.columns == COLUMNS
    assert len(data.manifest.split("train").shards) > 3
    wanted = np.random.default_rng(0).integers(0, 203, 500)
    found, expected = data.gather(wanted), rows(203)
    assert (found["image"] == expected["image"][wanted]).all() and (found["label"] == wanted).all()
    assert found["image"].flags.writeable and found["image"].dtype == np.uint8
    assert data.gather([])["image"].shape == (0, 1, 3, 3)
    for outside in ([203], [-1]):
        with pytest.raises(IndexError):
            data.gather(outside)


def test_maps_too_far_apart_for_one_view(dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distdl.data.read.MAX_VIEW_BYTES", 0)
    wanted = np.random.default_rng(0).integers(0, 203, 300)
    found = Dataset(dataset_path, "train").gather(wanted)
    assert (found["image"] == rows(203)["image"][wanted]).all() and (found["label"] == wanted).all()


def test_every_dtype_and_variable_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    dtypes = ["int8", "uint16", "int32", "uint64", "float16", "float32", "float64"]
    columns = {name: Column(name, (3,) if i % 2 else ()) for i, name in enumerate(dtypes)} | {"blob": Column("bytes")}
    values: dict = {name: rng.integers(0, 100, (70, *columns[name].shape)).astype(name) for name in dtypes}
    values["blob"] = [bytes(rng.integers(0, 255, i % 5, dtype=np.uint8)) for i in range(70)]
    with DatasetWriter(tmp_path / "d", columns, "test", {}, rows_per_batch=8) as writer:
        writer.write("train", values)
    wanted = rng.permutation(70)
    found = Dataset(tmp_path / "d", "train", verify="open").gather(wanted)
    for name in dtypes:
        assert found[name].dtype == name and (found[name] == values[name][wanted]).all()
    assert found["blob"] == [values["blob"][i] for i in wanted]
    assert verify_dataset(tmp_path / "d") == []


def test_how_values_were_prepared_travels_with_them(tmp_path: Path) -> None:
    preparation = {"label": {"kind": "class", "version": 1, "classes": ["cat", "dog"]}}
    written = write_dataset(tmp_path / "a", 20, about={"preparation": preparation})
    assert read_manifest(tmp_path / "a").preparation == written.preparation == preparation
    plain = write_dataset(tmp_path / "b", 20)
    assert plain.fingerprint == written.fingerprint and "preparation" not in (tmp_path / "b/manifest.json").read_text()


def test_fingerprint_depends_on_the_samples_only(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "a", 100, chunk=100)
    assert write_dataset(tmp_path / "b", 100, chunk=7).fingerprint == first.fingerprint
    assert write_dataset(tmp_path / "c", 100, shard_bytes=1 << 20).fingerprint == first.fingerprint
    assert write_dataset(tmp_path / "d", 101).fingerprint != first.fingerprint


def test_manifest_round_trip_needs_neither_pyarrow_nor_torch(dataset_path: Path) -> None:
    manifest = read_manifest(dataset_path)
    assert from_json(to_json(manifest)) == manifest
    code = (
        "import sys; from distdl.data.manifest import read_manifest; read_manifest(sys.argv[1]); "
        "print(sorted({'pyarrow', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(dataset_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "not the manifest"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"rows_per_batch": 12}, "power of two"),
        ({"rows_per_batch": "16"}, "not a count"),
        ({"info": {}, "source": 3}, "not a str"),
        ({"preparation": {"label": ["a", "b"]}}, "the preparation of 'label' is"),
        ({"preparation": {"label": {"version": 1}}}, "the kind of the preparation of 'label' is None"),
        ({"preparation": {"label": {"kind": "class", "version": "one"}}}, "the version of the preparation of 'label'"),
        ({"fingerprint": "0"}, "edited by hand"),
    ],
)
def test_manifest_refusals(dataset_path: Path, change: dict, message: str) -> None:
    raw = json.loads((dataset_path / "manifest.json").read_text()) | change
    (dataset_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as error:
        read_manifest(dataset_path)
    assert "manifest.json" in str(error.value)


@pytest.mark.parametrize("file", ["../x.arrow", "/etc/x.arrow", "a/b.arrow", "..", "x.txt"])
def test_a_shard_cannot_leave_the_folder(dataset_path: Path, file: str) -> None:
    raw = json.loads((dataset_path / "manifest.json").read_text())
    raw["splits"]["train"]["shards"][0]["file"] = file
    (dataset_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="plain file name"):
        Dataset(dataset_path, "train")


def test_missing_things_say_what_to_do(dataset_path: Path) -> None:
    with pytest.raises(InputError, match="distdl data prepare"):
        read_manifest(dataset_path / "nothing")
    with pytest.raises(InputError, match="did you mean 'train'") as error:
        Dataset(dataset_path, "trian")
    assert "test, train" in str(error.value)
    (dataset_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_manifest(dataset_path)


def flip_byte(path: Path, needle: bytes) -> None:
    """Flip one bit of the first place that holds `needle`."""
    content = bytearray(path.read_bytes())
    content[content.index(needle)] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_found_on_first_touch_and_named(dataset_path: Path) -> None:
    label = (40).to_bytes(8, "little") + (41).to_bytes(8, "little")  # record batch 2 of the split
    shards = read_manifest(dataset_path).split("train").shards
    damaged = next(s for s in shards if label in (dataset_path / s.file).read_bytes())
    flip_byte(dataset_path / damaged.file, label)
    batch = 2 - sum(len(s.batches) for s in shards[: shards.index(damaged)])
    data = Dataset(dataset_path, "train")
    assert (data.gather(np.arange(16))["label"] == np.arange(16)).all()  # the other batches are fine
    for _ in range(2):
        with pytest.raises(DataCorrupt, match=f"{damaged.file}.*record batch {batch} .*rows") as error:
            data.gather([5, 33])
        assert "distdl data verify" in str(error.value)
    with pytest.raises(DataCorrupt):
        Dataset(dataset_path, "train", verify="open")
    assert 41 ^ 0 in Dataset(dataset_path, "train", verify="off").gather([41])["label"]
    problems = verify_dataset(dataset_path)
    assert len(problems) == 2 and all(damaged.file in problem for problem in problems)
    assert f"record batch {batch}" in problems[1]


def test_any_flipped_byte_of_a_shard_is_an_error_or_harmless(dataset_path: Path) -> None:
    """Damage of Arrow's own structures must not crash, nor give other values."""
    shard = dataset_path / read_manifest(dataset_path).split("test").shards[0].file
    original, expected = shard.read_bytes(), rows(5)
    caught = 0
    for place in range(0, len(original), 3):
        shard.write_bytes(original[:place] + bytes([original[place] ^ 0xFF]) + original[place + 1 :])
        try:
            found = Dataset(dataset_path, "test").gather(np.arange(5))
            assert all((found[name] == expected[name]).all() for name in expected)
        except DataCorrupt:
            caught += 1
    assert caught > 40


def test_truncated_and_missing_shards(dataset_path: Path) -> None:
    shard = dataset_path / "train-00001.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(
        DataCorrupt, match=rf"train-00001\.arrow is truncated.*{len(content) - 100:,}.*{len(content):,}"
    ):
        Dataset(dataset_path, "train")
    shard.unlink()
    with pytest.raises(DataCorrupt, match=r"train-00001\.arrow is missing"):
        Dataset(dataset_path, "train")
    assert verify_dataset(dataset_path) == ["train-00001.arrow: the file is missing"]


def test_two_threads_read_and_verify_at_once(dataset_path: Path) -> None:
    data, errors = Dataset(dataset_path, "train"), []

    def read(seed: int) -> None:
        for wanted in np.random.default_rng(seed).integers(0, 203, (50, 20)):
            if not (data.gather(wanted)["label"] == wanted).all():
                errors.append(wanted)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_uri_is_read_through_a_checked_cache(dataset_path: Path, tmp_path: Path) -> None:
    uri, cache = dataset_path.as_uri(), tmp_path / "cache"
    found = Dataset(uri, "train", cache_dir=cache).gather(np.arange(203))
    assert (found["label"] == np.arange(203)).all()
    copies = sorted((cache / "shards").glob("*.arrow"))
    assert len(copies) == len(read_manifest(uri).split("train").shards)
    assert not list((cache / "shards").glob("download-*"))
    assert verify_dataset(uri) == []
    flip_byte(dataset_path / "train-00000.arrow", (3).to_bytes(8, "little"))
    assert len(Dataset(uri, "train", cache_dir=cache).gather([3])["label"]) == 1  # the good copy is still there
    with pytest.raises(DataCorrupt, match=r"train-00000\.arrow.*arrived"):
        Dataset(uri, "train", cache_dir=tmp_path / "other")
    with pytest.raises(InputError, match="holds no data set"):
        Dataset((tmp_path / "none").as_uri(), "train")
    with pytest.raises(InputError, match="not a location"):
        read_manifest("gopher://x/y")


def test_writing_to_a_uri(tmp_path: Path) -> None:
    uri = (tmp_path / "far").as_uri()
    manifest = write_dataset(uri, 50)
    assert read_manifest(tmp_path / "far") == manifest and verify_dataset(tmp_path / "far") == []
    with pytest.raises(InputError, match="already holds"):
        write_dataset(uri, 51)
    assert write_dataset(uri, 51, overwrite=True).split("train").rows == 51


def test_a_failure_leaves_nothing_and_an_older_set_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), DatasetWriter(tmp_path / "new", COLUMNS, "test", {}) as writer:
        writer.write("train", rows(10))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    old = write_dataset(tmp_path / "set", 30)
    with pytest.raises(InputError, match="already exists"):
        write_dataset(tmp_path / "set", 31)
    with pytest.raises(InputError), DatasetWriter(tmp_path / "set", COLUMNS, "test", {}, overwrite=True) as writer:
        writer.write("train", {"image": np.zeros((3, 2)), "label": np.zeros(3, np.int64)})
    assert read_manifest(tmp_path / "set") == old and verify_dataset(tmp_path / "set") == []
    new = write_dataset(tmp_path / "set", 31, overwrite=True)
    assert read_manifest(tmp_path / "set") == new and [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_an_operational_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DistdlError, match="No space left") as error:
        write_dataset(tmp_path / "set", 100)
    assert error.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_overwrite_never_removes_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        write_dataset(tmp_path / "home", 5, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image": np.zeros((2, 1, 3, 3), np.float32), "label": np.zeros(2, np.int64)}, "float32"),
        ({"image": np.zeros((2, 1, 3, 3), np.uint8)}, "do not fit"),
        ({"image": np.zeros((2, 1, 3, 3), np.uint8), "label": np.zeros(3, np.int64)}, "unequal length"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, bad: dict, message: str) -> None:
    with pytest.raises(InputError, match=message), DatasetWriter(tmp_path / "d", COLUMNS, "test", {}) as writer:
        writer.write("train", bad)


@pytest.mark.parametrize(
    "columns", [{}, {"id": Column("int64")}, {"x": Column("complex64")}, {"x": Column("int8", (0,))}]
)
def test_columns_that_cannot_be_stored(tmp_path: Path, columns: dict) -> None:
    with pytest.raises(InputError):
        DatasetWriter(tmp_path / "d", columns, "test", {})


def test_a_bit_that_flips_after_the_first_touch_is_found_within_a_pass(dataset_path: Path) -> None:
    """Only where rows are compared again; without it the wrong rows are handed out without a word."""
    rows = np.arange(203)
    watched = Dataset(dataset_path, "train", verify_again_bytes_per_s=1e12)
    blind = Dataset(dataset_path, "train")
    before = blind.gather(rows)["label"]
    assert (watched.gather(rows)["label"] == before).all() and (watched.gather(rows)["label"] == before).all()
    flip_byte(dataset_path / "train-00000.arrow", (3).to_bytes(8, "little"))
    assert (blind.gather(rows)["label"] != before).sum() == 1
    with pytest.raises(
        DataCorrupt, match=r"(?s)train-00000.arrow.*record batch 0 .*was right until .* at least"
    ) as caught:
        watched.gather(rows)
    assert "remove the checkpoints that were written later" in str(caught.value)


def test_no_more_is_compared_again_than_is_handed_out_or_than_time_allows(
    dataset_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    compare = MappedShard.verify
    monkeypatch.setattr(MappedShard, "verify", lambda shard, i: (seen.append(i), compare(shard, i))[1])
    data = Dataset(dataset_path, "train", verify="open", verify_again_bytes_per_s=1e12)
    batches = len(seen)
    seen.clear()
    for _ in range(4):
        data.gather(np.arange(203))  # a whole pass each: every record batch once
    assert 4 * batches - 2 <= len(seen) <= 4 * batches
    slow = Dataset(dataset_path, "train", verify_again_bytes_per_s=1e-3)
    slow.gather(np.arange(203))
    seen.clear()
    slow.gather(np.arange(203))
    assert seen == []


# -- a stranger's data set ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.json", "train-00001.arrow"])
def test_a_link_out_of_a_data_set_is_not_followed(dataset_path: Path, tmp_path: Path, name: str) -> None:
    (dataset_path / name).rename(tmp_path / "private")
    (dataset_path / name).symlink_to("../private")
    for location in (dataset_path, dataset_path.as_uri()):
        with pytest.raises(DataCorrupt, match=rf"{name} is a link to .*private, outside the data set"):
            Dataset(location, "train", cache_dir=tmp_path / "cache")
    if name != "manifest.json":
        assert "is a link to" in verify_dataset(dataset_path)[0]


def test_a_link_within_a_data_set_and_to_a_whole_one_are_fine(dataset_path: Path, tmp_path: Path) -> None:
    (dataset_path / "train-00001.arrow").rename(dataset_path / "elsewhere.arrow")
    (dataset_path / "train-00001.arrow").symlink_to("elsewhere.arrow")
    (tmp_path / "link").symlink_to(dataset_path)
    assert (Dataset(tmp_path / "link", "train").gather(range(203))["label"] == np.arange(203)).all()
    assert verify_dataset(tmp_path / "link") == []


def test_a_compressed_shard_is_refused_before_it_is_unpacked(dataset_path: Path) -> None:
    shard = dataset_path / "test-00000.arrow"
    with pa.ipc.open_file(shard) as reader:
        schema = reader.schema
    large = {"image": [np.zeros((1, 3, 3), np.uint8)] * 5, "label": [0] * 5}
    arrays = [
        pa.ExtensionArray.from_storage(
            schema[0].type, pa.array([v.reshape(-1) for v in large["image"]], schema[0].type.storage_type)
        ),
        pa.array(large["label"]),
    ]
    with pa.ipc.new_file(shard, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    raw = json.loads((dataset_path / "manifest.json").read_text())
    raw["splits"]["test"]["shards"][0]["bytes"] = shard.stat().st_size
    (dataset_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataCorrupt, match=r"record batch 0 .*it is compressed, which no shard is, and is not unpacked"):
        Dataset(dataset_path, "test")


def test_a_data_set_that_came_to_be_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distdl.config.load import config_from_dict
    from distdl.data import write
    from distdl.driver import prepare_if_missing
    from tests.small import small_config

    publish = write.put_in_place

    def others_first(folder: Path, target: Path, overwrite: bool) -> None:
        target.mkdir()
        (target / "manifest.json").write_text("{}")
        publish(folder, target, overwrite)

    monkeypatch.setattr(write, "check_target", lambda *_: None)
    with pytest.raises(InputError, match="set already exists"), DatasetWriter(tmp_path / "set", COLUMNS, "t", {}) as it:
        it.write("train", rows(10))
        write_dataset(tmp_path / "set", 30)
    assert read_manifest(tmp_path / "set").split("train").rows == 30 and len(list(tmp_path.iterdir())) == 1
    values = small_config("mlp", str(tmp_path / "digits"), "")
    values["data"]["prepare"] = {"source": "digits", "options": {}}
    monkeypatch.setattr(write, "put_in_place", others_first)
    prepare_if_missing(config_from_dict(values))
    assert "another process has prepared" in capsys.readouterr().out
