"""Time series: what lies where, that nothing of the test part is seen in training, and bad files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.manifest import Manifest
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError


def made(folder: Path, text: str, **options: Any) -> tuple[np.ndarray, np.ndarray, Manifest]:
    """The training and test rows, and the manifest."""
    (folder / "s.txt").write_text(text)
    manifest = prepare_dataset("series", folder / "d", {"path": folder / "s.txt", **options}, overwrite=True)
    splits = [Dataset(folder / "d", split) for split in ("train", "test")]
    train, test = (data.gather(np.arange(data.rows))["x"] for data in splits)
    return train, test, manifest


COUNT = "".join(f"{i}\n" for i in range(100))


def test_every_value_is_asked_for_once(tmp_path: Path) -> None:
    train, test, manifest = made(tmp_path, COUNT, steps=10, train_values=71, test_values=20)
    assert train.shape == (7, 11, 1) and train.dtype == np.float32 and manifest.columns["x"].shape == (11, 1)
    assert train[:, 1:, 0].reshape(-1).tolist() == list(range(1, 71)) and train[:, 0, 0].tolist() == [*range(0, 70, 10)]
    assert test[:, 1:, 0].reshape(-1).tolist() == list(range(71, 91)) and test[:, 0, 0].tolist() == [70, 80]


def test_a_test_window_looks_back_and_no_training_window_forward(tmp_path: Path) -> None:
    train, test, _ = made(tmp_path, COUNT, steps=10, lookback=8, train_values=60, stride=1)
    assert train.max() == 59 and len(train) == 50 and (np.diff(train[:, 0, 0]) == 1).all()
    assert test[0, :, 0].tolist() == list(range(52, 63)) and test[:, 8:].min() == 60 and test.max() == 99
    _, tiled, _ = made(tmp_path, COUNT, steps=10, lookback=8, train_values=60)
    assert tiled[:, 8:, 0].reshape(-1).tolist() == list(range(60, 99))  # a 40th value does not fill a window of three


def test_the_training_part_alone_says_what_is_standard(tmp_path: Path) -> None:
    train, test, manifest = made(tmp_path, COUNT, steps=10, train_values=80, standardise=True)
    mean, std = np.arange(80).mean(), np.arange(80).std()
    assert manifest.info == {"mean": [mean], "std": [std]}
    assert train[0, :3, 0] == pytest.approx((np.arange(3) - mean) / std)
    assert test[0, 1, 0] == pytest.approx((80 - mean) / std)
    _, _, plain = made(tmp_path, COUNT, steps=10)
    assert plain.info == {"mean": [0.0], "std": [1.0]}


def test_columns_averages_and_gzip(tmp_path: Path) -> None:
    months = "".join(f'"{1749 + i // 12}-{i % 12 + 1:02}",{i},{-i}\n' for i in range(125))
    text = '"Month","Sun", "Moon"\n' + months + "\n"
    train, test, _ = made(tmp_path, text, columns="Moon,Sun", average=12, steps=2, train_values=6)
    assert train.shape[2] == 2 and train[0, :, 1].tolist() == [5.5, 17.5, 29.5] and train[0, 1, 0] == -17.5
    assert test[-1, -1, 1] == 9 * 12 + 5.5  # the five months of an eleventh year are left out
    with gzip.open(tmp_path / "s.txt.gz", "wt") as file:
        file.write("1 10\n2 20\n3\t30\n4 40\n5  50\n")
    prepare_dataset("series", tmp_path / "e", {"path": tmp_path / "s.txt.gz", "steps": 1, "train_values": 3})
    assert Dataset(tmp_path / "e", "train").gather(np.arange(2))["x"].tolist() == [
        [[1, 10], [2, 20]],
        [[2, 20], [3, 30]],
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        (COUNT, {"steps": 99}, r"90 training values do not fill a window of 100"),
        (COUNT, {"train_values": 95, "steps": 10}, "5 test values, a window asks for 10"),
        (COUNT, {"train_values": 90, "test_values": 20, "steps": 5}, "which has 100"),
        (COUNT, {"steps": 5, "lookback": 6}, "a lookback from 1 to steps"),
        (COUNT, {"average": 0}, "average is 0"),
        ("a,b\n1,2\n3,\n", {}, r"s\.txt:3: '' is not a finite number"),
        ("date,b\n2020-01,2\n", {}, r"s\.txt:2: '2020-01' is not.*\n.*columns="),
        ("1\n2\nnan\n", {}, r"s\.txt:3: 'nan'"),
        ("1 2\n\n3\n", {}, r"s\.txt:3: 1 values, the first line has 2"),
        ("day,sun\n1,2\n", {"columns": "sum"}, "no column 'sum'.*\n.*sun"),
        ("1\n" * 100, {"steps": 5, "standardise": True}, "does not change"),
    ],
)
def test_bad_series(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(tmp_path, text, **options)


def test_the_real_series(tmp_path: Path, data_folder: Path) -> None:
    if not (data_folder / "mackey_glass").is_dir():
        pytest.skip("no mackey_glass in DISTDL_DATA")
    path = data_folder / "mackey_glass" / "MackeyGlass_t17.txt"
    options = {"path": path, "steps": 2000, "lookback": 1501, "train_values": 2001, "test_values": 500}
    manifest = prepare_dataset("series", tmp_path / "d", options)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"test": 1, "train": 1}
    values = np.loadtxt(path, dtype=np.float32)
    assert (Dataset(tmp_path / "d", "train").gather(np.arange(1))["x"][0, :, 0] == values[:2001]).all()
    assert (Dataset(tmp_path / "d", "test").gather(np.arange(1))["x"][0, 1501:, 0] == values[2001:2501]).all()
