"""The synthetic task `episodes`: seeds of environments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distdl.data.prepare import prepare_dataset
from distdl.data.read import Dataset


def seeds(path: Path, split: str) -> np.ndarray:
    data = Dataset(str(path), split)
    return data.gather(np.arange(data.rows))["seed"]


def test_no_episode_is_in_both_splits_and_the_seed_says_which_they_are(tmp_path: Path) -> None:
    options = {"task": "episodes", "rows": 500, "test_rows": 300}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        prepare_dataset("synthetic", tmp_path / name, options | {"seed": seed})
    train, test = seeds(tmp_path / "one", "train"), seeds(tmp_path / "one", "test")
    assert (len(train), len(test)) == (500, 300) and train.dtype == np.int64
    assert len(set(train) | set(test)) == 800 and train.min() >= 0
    assert np.array_equal(train, seeds(tmp_path / "again", "train"))
    assert not set(train) & set(seeds(tmp_path / "other", "train"))
