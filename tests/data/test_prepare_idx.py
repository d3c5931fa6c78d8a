"""idx files under all the names that they are spread by, gzipped or not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 3, 4)).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(folder: Path, prefix: str = "", first: int = 0, dot: str = "-", suffix: str = "", test: str = "t10k") -> None:
    """Four files, of 6 and 3 pictures; the labels are numbers of rows from `first`."""
    for split, part in (("train", slice(0, 6)), (test, slice(6, 9))):
        for kind, array in (("images-idx3", IMAGES[part]), ("labels-idx1", np.arange(9, dtype=np.uint8)[part] + first)):
            content = idx(array)
            name = f"{prefix}{split}-{kind}-ubyte{suffix}".replace("-idx", f"{dot}idx")
            (folder / name).write_bytes(gzip.compress(content) if suffix else content)


def labels(folder: Path, split: str) -> list[int]:
    data = Dataset(folder, split)
    rows = data.gather(np.arange(data.rows))
    assert (np.asarray(rows["image"])[:, 0] == (IMAGES[:6] if split == "train" else IMAGES[6:])).all()
    return rows["label"].tolist()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_every_name(tmp_path: Path, suffix: str, dot: str, prefix: str, test: str) -> None:
    write(tmp_path, prefix, 0, dot, suffix, test)
    prepare_dataset("idx", tmp_path / "d", {"path": tmp_path})
    assert labels(tmp_path / "d", "train") == [*range(6)] and labels(tmp_path / "d", "test") == [6, 7, 8]


def test_several_sets_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "emnist-letters-", 1, suffix=".gz")
    write(tmp_path, "emnist-digits-", suffix=".gz")
    with pytest.raises(InputError, match=r"files of 2 sets\n.*name= emnist-digits or emnist-letters"):
        prepare_dataset("idx", tmp_path / "d", {"path": tmp_path})
    with pytest.raises(InputError, match=r"holds no emnist-leters-train-images.*\n.*did you mean 'emnist-letters'"):
        prepare_dataset("idx", tmp_path / "d", {"path": tmp_path, "name": "emnist-leters"})
    options = {"path": tmp_path, "name": "emnist-letters", "first_class": 1}
    prepare_dataset("idx", tmp_path / "d", options)
    assert labels(tmp_path / "d", "train") == [*range(6)] and labels(tmp_path / "d", "test") == [6, 7, 8]
    with pytest.raises(InputError, match=r"digits-train-labels-idx1-ubyte.gz: row 0 has the label 0\n.*1 or more"):
        prepare_dataset("idx", tmp_path / "e", options | {"name": "emnist-digits"})


def test_a_damaged_gz(tmp_path: Path) -> None:
    write(tmp_path, suffix=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[40] ^= 255
    for content in (whole[:60], flipped, idx(IMAGES)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path} (is a damaged gzip file|ends early|begins with)"):
            prepare_dataset("idx", tmp_path / "d", {"path": tmp_path})
    for place in range(10, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 255
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=str(tmp_path)):
            prepare_dataset("idx", tmp_path / "d", {"path": tmp_path})
