"""Small data sets, and the folder of real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distdl.data.manifest import Column, Manifest
from distdl.data.write import DatasetWriter

COLUMNS = {"image": Column("uint8", (1, 3, 3)), "label": Column("int64")}


def rows(count: int, start: int = 0) -> dict[str, np.ndarray]:
    """`count` rows whose label is their number and whose pixels follow from it."""
    label = np.arange(start, start + count, dtype=np.int64)
    pixels = (label[:, None] * 7 + np.arange(9)) % 251
    return {"image": pixels.astype(np.uint8).reshape(-1, 1, 3, 3), "label": label}


def write_dataset(target: Path | str, count: int, chunk: int = 37, **options: object) -> Manifest:
    """A data set of `count` training rows and 5 test rows in record batches of 16 and several shards."""
    settings: dict = {"rows_per_batch": 16, "shard_bytes": 2000, **options}
    with DatasetWriter(target, COLUMNS, "test", {}, **settings) as writer:
        for start in range(0, count, chunk):
            writer.write("train", rows(min(chunk, count - start), start))
        writer.write("test", rows(5))
    assert writer.manifest is not None
    return writer.manifest


@pytest.fixture
def dataset_path(tmp_path: Path) -> Path:
    """203 training rows in several shards."""
    write_dataset(tmp_path / "set", 203)
    return tmp_path / "set"
