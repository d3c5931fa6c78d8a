"""Data sets of Hugging Face, written by `datasets` itself; the hub is a server beside the test."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError
from tests.conftest import python

datasets = pytest.importorskip("datasets", reason="datasets is not installed")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def whole(path: Path, split: str = "train") -> dict:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


def flowers(count: int, start: int = 0) -> datasets.Dataset:
    features = datasets.Features(
        {"size": datasets.Value("float32"), "kind": datasets.ClassLabel(names=["rose", "aster"])}
    )
    rows = {"size": [i / 2 for i in range(start, start + count)], "kind": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    flowers(40).save_to_disk(str(tmp_path / "one"), num_shards=3)
    options = {"path": f"{tmp_path}/one", "test_fraction": "0"}
    manifest = prepare_dataset("huggingface", tmp_path / "d", options)
    assert manifest.info["classes"] == ["rose", "aster"]  # as the data set numbers them
    found = whole(tmp_path / "d")
    assert found["size"].tolist() == [i / 2 for i in range(40)] and found["kind"].tolist() == [0, 1] * 20
    manifest = prepare_dataset("huggingface", tmp_path / "e", {**options, "label": "kind"})
    assert manifest.info["classes"] == ["rose", "aster"] and whole(tmp_path / "e")["label"].tolist() == [0, 1] * 20


def test_its_splits_are_ours(tmp_path: Path) -> None:
    parts = {"train": flowers(30), "valid": flowers(6), "test": flowers(8), "extra": flowers(5)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "all"))
    manifest = prepare_dataset("huggingface", tmp_path / "d", {"path": f"{tmp_path}/all"})
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 30, "validation": 6, "test": 8}
    assert "the split 'extra' is left out (5 rows)" in manifest.info["notes"][0]
    manifest = prepare_dataset("huggingface", tmp_path / "e", {"path": f"{tmp_path}/all", "split": "extra"})
    assert manifest.splits["train"].rows == 5
    with pytest.raises(InputError, match="did you mean 'extra'"):
        prepare_dataset("huggingface", tmp_path / "f", {"path": f"{tmp_path}/all", "split": "extr"})


def pictures(folder: Path) -> datasets.Dataset:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 5), 40 * i).save(folder / name / f"{i}.png")
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")


def test_pictures_come_from_save_to_disk_and_lost_ones_of_to_parquet_are_named(tmp_path: Path) -> None:
    found = pictures(tmp_path / "pics")
    found.save_to_disk(str(tmp_path / "disk"))
    prepare_dataset("huggingface", tmp_path / "d", {"path": f"{tmp_path}/disk", "test_fraction": "0"})
    stored = whole(tmp_path / "d")
    files = [tmp_path / "pics" / name / f"{i}.png" for name in ("cat", "dog") for i in range(3)]
    assert [bytes(value) for value in stored["image"]] == [file.read_bytes() for file in files]
    found.to_parquet(str(tmp_path / "t.parquet"))
    if pq.read_table(tmp_path / "t.parquet")["image"][0].as_py()["bytes"] is None:
        with pytest.raises(InputError, match=r"row 0: the column 'image' holds the path .*0\.png' and not the file"):
            prepare_dataset("parquet", tmp_path / "e", {"path": f"{tmp_path}/t.parquet"})


def test_a_folder_that_is_another_thing_or_damaged(tmp_path: Path) -> None:
    flowers(10).save_to_disk(str(tmp_path / "one"))
    shard = next((tmp_path / "one").glob("*.arrow"))
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="one cannot be read"):
        prepare_dataset("huggingface", tmp_path / "d", {"path": f"{tmp_path}/one"})
    shard.rename(tmp_path / "outside.arrow")
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../outside.arrow"}]
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="outside of it: it is not read"):
        prepare_dataset("huggingface", tmp_path / "d", {"path": f"{tmp_path}/one"})
    with pytest.raises(InputError, match="was not written by save_to_disk"):
        prepare_dataset("huggingface", tmp_path / "d", {"path": str(tmp_path)})
    with pytest.raises(InputError, match="nor is that a name on the hub"):
        prepare_dataset("huggingface", tmp_path / "d", {"path": "no/such/folder"})


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers of the one data set me/flowers, whose files are in `root`."""

    root: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_: object) -> None:
        pass

    def files(self, below: str = "", deep: bool = True) -> list[dict]:
        """What is in a folder, as the hub lists it."""
        found = []
        for file in sorted((self.root / below).rglob("*") if deep else (self.root / below).glob("*")):
            about: dict = {"type": "directory", "path": str(file.relative_to(self.root)), "size": 0, "oid": "0" * 40}
            if file.is_file():
                sums = {"oid": hashlib.sha1(file.read_bytes()).hexdigest(), "size": file.stat().st_size}
                about |= {"type": "file", **sums}
            found.append(about)
        return found

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, content: object) -> None:
        self.answer(json.dumps(content).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if "/paths-info/" in self.path:
            wanted = json.loads(asked)["paths"] if asked.startswith("{") else []
            self.answer(
                json.dumps([f for f in self.files() if f["path"] in wanted]).encode(), Content_Type="application/json"
            )
        else:
            self.answer(b"{}", 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/datasets/me/flowers/resolve/"):
            file = self.root / path.split("/", 6)[6]
            if file.is_file():
                content = file.read_bytes()
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(content, X_Repo_Commit=self.commit, ETag=tag, Accept_Ranges="bytes")
                return
        elif "/tree/" in path and path.startswith("/api/datasets/me/flowers"):
            folder = path.partition("/tree/")[2].partition("/")[2]
            self.answer_json(self.files(folder, "recursive=true" in self.path.lower()))
            return
        elif path.startswith("/api/datasets/me/flowers"):
            about = {
                "id": "me/flowers",
                "sha": self.commit,
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": [],
            }
            about["siblings"] = [{"rfilename": f["path"]} for f in self.files()]
            self.answer(json.dumps(about).encode(), Content_Type="application/json")
            return
        self.answer(b"{}", 404, X_Error_Code="EntryNotFound" if "me/flowers" in path else "RepoNotFound")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    handler = type("Hub", (Hub,), {"root": tmp_path / "hub"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_name_on_the_hub(tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    flowers(30).to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    flowers(8).to_parquet(str(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet"))
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    command = ("-m", "distdl", "data", "prepare", "huggingface")
    done = python(*command, "d", "path=me/flowers", "label=kind", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "test 8, train 30 rows" in done.stdout
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["info"]["classes"] == ["rose", "aster"]
    done = python(*command, "e", "path=me/nothing", "label=kind", cwd=tmp_path)
    assert (
        done.code == 2
        and "the hub does not give a data set of that name" in done.stderr
        and "Traceback" not in done.stderr
    )
    files = "path=hf://datasets/me/flowers/data/test-*.parquet"
    done = python("-m", "distdl", "data", "prepare", "parquet", "f", files, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert Dataset(tmp_path / "f", "train").rows + Dataset(tmp_path / "f", "test").rows == 8
