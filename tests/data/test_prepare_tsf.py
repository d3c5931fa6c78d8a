"""Forecasting series of the Monash archive: which values are trained on and tested, what is told and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data.manifest import from_json
from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset
from distdl.errors import InputError

HEAD = """# a comment
@relation toy
@attribute series_name string
@attribute start_timestamp date
@frequency daily
@horizon 4
@missing true
@equallength false
@data
"""


def made(folder: Path, data: str, head: str = HEAD, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The training and the test windows, without their last dimension."""
    (folder / "s.tsf").write_text(head + data)
    prepare_dataset("tsf", folder / "d", {"path": folder / "s.tsf", **options}, overwrite=True)
    splits = [Dataset(folder / "d", split) for split in ("train", "test")]
    train, test = (data.gather(np.arange(data.rows))["x"][..., 0] for data in splits)
    return train, test


def line(name: str, values: Any) -> str:
    return f"{name}:1979-01-01 00-00-00:{','.join(map(str, values))}\n"


def test_each_series_is_cut_in_two_by_itself(tmp_path: Path) -> None:
    train, test = made(tmp_path, line("T1", range(13)) + line("T2", range(100, 111)), steps=2)
    assert train.tolist() == [
        [0, 1, 2],
        [2, 3, 4],
        [4, 5, 6],
        [6, 7, 8],
        [100, 101, 102],
        [102, 103, 104],
        [104, 105, 106],
    ]
    assert test.tolist() == [[8, 9, 10], [10, 11, 12], [106, 107, 108], [108, 109, 110]]
    train, test = made(tmp_path, line("T1", range(13)), steps=2, test_values=2, stride=1)
    assert train.shape == (9, 3) and train.max() == 10 and test.tolist() == [[10, 11, 12]]
    train, test = made(tmp_path, line("T1", range(20)), HEAD.replace("@horizon 4\n", ""), steps=1)
    assert test.tolist() == [[17, 18], [18, 19]]


def test_short_series_and_missing_values_are_told(tmp_path: Path) -> None:
    data = line("T1", range(13)) + line("T2", range(5)) + line("T3", [1, "?", 3, 5, 5, 5, "?", "?", 8, 8])
    with pytest.raises(InputError, match=r"s.tsf:12: 3 of the series' 10 values are missing"):
        made(tmp_path, data, steps=2)
    train, test = made(tmp_path, data, steps=2, missing="interpolate")
    told = "\n".join(from_json((tmp_path / "d" / "manifest.json").read_text()).info["notes"])
    assert "1 of 3 series are too short for a window" in told and "3 missing values become: interpolate" in told
    assert train[-2:].tolist() == [[1, 2, 3], [3, 5, 5]]  # the test part is filled from itself alone
    assert test[-2:].tolist() == [[5, 8, 8], [8, 8, 8]]
    with pytest.raises(InputError, match=r"none of the 1 series of .* fills a window of 101 values"):
        made(tmp_path, line("T1", range(13)))


def test_a_series_is_normalised_by_its_training_part(tmp_path: Path) -> None:
    train, test = made(tmp_path, line("T1", [1, 3, 1, 3, 5, 5, 1, 1]), steps=1, normalise="series")
    assert train.tolist() == [[-1, 1], [1, -1], [-1, 1]]
    assert test.tolist() == [[1, 3], [3, 3], [3, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("head", "data", "told"),
    [
        (HEAD, "T1:1,2,3\n", "s.tsf:10: the line has 2 parts between colons"),
        (HEAD, "T1:yesterday:1,2,3\n", "s.tsf:10: the attribute start_timestamp is 'yesterday'"),
        (HEAD, line("T1", [1, "x"]), "s.tsf:10: value 2 is 'x'"),
        (
            HEAD,
            line("T1", [1] * 9 + ["1e39"]),
            "s.tsf:10: the series has a value that is not a finite number of 32 bits",
        ),
        (
            HEAD.replace("equallength false", "equallength true"),
            line("a", range(9)) + line("b", range(8)),
            "s.tsf:11: the",
        ),
        (HEAD.replace("@horizon 4", "@horizon soon"), "", "s.tsf:6: @horizon is 'soon'"),
        (HEAD.replace("@frequency", "@frequenzy"), "", "s.tsf:5: there is no header line @frequenzy"),
        (HEAD.replace("string", "words"), "", "s.tsf:3: the attribute is 'series_name words'"),
        (HEAD.replace("@data\n", ""), "", "has no line @data"),
        (HEAD, "", "none of the 0 series"),
    ],
)
def test_what_is_refused(tmp_path: Path, head: str, data: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        made(tmp_path, data, head, steps=1)
    assert told in str(caught.value)
