"""NumPy archives: their rows come back in the asked shape and range, and bad input names the array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.manifest import Column, read_manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError


def whole(path: Path, split: str) -> dict[str, Any]:
    data = Dataset(path, split)
    return data.gather(np.arange(data.rows))


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.random((5000, 6), np.float32),  # more than one chunk
        "y_train": rng.integers(0, 10, 5000).astype(np.uint8),
        "x_test": rng.random((31, 6), np.float32),
        "y_test": rng.integers(0, 10, 31).astype(np.uint8),
    }


def archive(folder: Path, arrays: dict[str, Any]) -> str:
    np.savez_compressed(folder / "a.npz", **arrays)
    return str(folder / "a.npz")


def test_samples_are_shaped_and_scaled(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    options = {"path": archive(tmp_path, arrays), "test": "x_test,y_test", "shape": "1x2x3", "scale": "2"}
    manifest = prepare_dataset("npz", tmp_path / "d", options | {"offset": "-1"})
    assert manifest.columns == {"image": Column("float32", (1, 2, 3)), "label": Column("int64")}
    for split in ("train", "test"):
        rows = whole(tmp_path / "d", split)
        expected = 2 * arrays[f"x_{split}"] - 1
        assert rows["image"].reshape(-1, 6) == pytest.approx(expected, abs=1e-6)
        assert (rows["label"] == arrays[f"y_{split}"]).all()


def test_without_options_arrays_stay_as_they_are(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    pixels = (255 * arrays["x_train"]).astype(np.uint8)
    path = archive(tmp_path, {"a": pixels, "b": arrays["x_train"].astype(np.float64), "c": arrays["y_train"]})
    options = {"path": path, "columns": "x,y,label", "train": "a,b,c", "test_fraction": 0.1}
    prepare_dataset("npz", tmp_path / "d", options)
    columns = {"x": Column("uint8", (6,)), "y": Column("float32", (6,)), "label": Column("int64")}
    assert read_manifest(tmp_path / "d").columns == columns
    train, test = whole(tmp_path / "d", "train"), whole(tmp_path / "d", "test")
    assert 400 < len(test["x"]) < 600 and len(train["x"]) + len(test["x"]) == 5000
    both = {tuple(row) for part in (train, test) for row in part["x"].tolist()}
    assert both == {tuple(row) for row in pixels.tolist()}


def test_bad_archives_and_names_are_told(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = archive(tmp_path, arrays | {"scalar": np.float32(1), "text": np.array(["a", "b"])})

    def refused(words: str, **options: Any) -> None:
        with pytest.raises(InputError, match=words):
            prepare_dataset("npz", tmp_path / "d", {"path": path, **options})
        assert not (tmp_path / "d").exists()

    refused("there is no file", path=f"{tmp_path}/none.npz")
    refused("no array 'x_tran'", train="x_tran,y_train")
    refused("3 arrays .* for 2 columns", train="x_train,y_train,y_test")
    refused(r"a row of 'x_train' is \[6\], which does not fill shape=1x5x5", shape="1x5x5")
    refused("'x_train' 5,000, 'y_test' 31", train="x_train,y_test")
    refused(r"test rows of 'image' are float32 \[\]", test="y_test,y_test", scale=2, train="x_train,y_train")
    refused("'scalar' is one number", train="scalar,y_train")
    refused("'text' holds <U1", train="text,y_train")
    refused("test_fraction is 1.5", test_fraction=1.5)

    np.savez(tmp_path / "p.npz", x_train=np.array([{"an": "object"}], dtype=object), y_train=np.zeros(1))
    refused("not an .npz archive of plain arrays", path=str(tmp_path / "p.npz"))  # it could run code
    np.save(tmp_path / "one.npy", arrays["x_train"])
    refused("not an .npz archive of plain arrays", path=str(tmp_path / "one.npy"))
    (tmp_path / "damaged.npz").write_bytes(Path(path).read_bytes()[:1000])
    refused("not an .npz archive of plain arrays", path=str(tmp_path / "damaged.npz"))
