"""What the values of a split are where its manifest does not say: found by one pass over the shards, and kept in the user's
cache, under the data set's fingerprint."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.manifest import VARIABLE, Manifest, Values, values_from, values_record
from distdl.data.read import stored_rows
from distdl.data.store import default_cache
from distdl.data.tally import Tally
from distdl.errors import InputError
from distdl.files import replace_json

LONG_S = 2.0
"""A pass that takes longer is said."""


def values_of(location: str, manifest: Manifest, split: str, cache_dir: str | None = None) -> Mapping[str, Values]:
    """What the values of a split are: as the manifest says, as an earlier pass has found, or by a pass over the shards.

    DataCorrupt: a shard is missing or is not what was written.
    """
    if split in manifest.values:
        return manifest.values[split]
    place = Path(cache_dir or default_cache()) / "values" / f"{manifest.fingerprint}-{split}.json"
    with suppress(OSError, ValueError, InputError):
        return values_from(json.loads(place.read_text(encoding="utf-8")), str(place))
    tally = Tally(manifest.columns)
    for batch in _passed(location, manifest, split, cache_dir):
        tally.add(batch)
    found = tally.values()
    _keep(place, values_record({split: found})[split])
    return found


def class_rows(
    location: str, manifest: Manifest, split: str, column: str, classes: int, cache_dir: str | None = None
) -> list[int]:
    """How many rows of a split have each class, from 0 to classes - 1: as the manifest says, as an earlier pass has found,
    or by a pass over the shards. What is no class counts nowhere. DataCorrupt: a shard is missing or is not what was
    written."""
    told = manifest.statistics.get(split, {}).get(column)
    if told is not None and told.classes is not None:
        return [told.classes.get(number, 0) for number in range(classes)]
    place = Path(cache_dir or default_cache()) / "classes" / f"{manifest.fingerprint}-{split}-{column}-{classes}.json"
    with suppress(OSError, ValueError):
        kept = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(kept, list) and len(kept) == classes and all(type(rows) is int for rows in kept):
            return kept
    found = np.zeros(classes, np.int64)
    for batch in _passed(location, manifest, split, cache_dir):
        values = batch[column].astype(np.int64)
        found += np.bincount(values[(values >= 0) & (values < classes)], minlength=classes)
    _keep(place, found.tolist())
    return found.tolist()


def _keep(place: Path, record: Any) -> None:
    with suppress(OSError):  # a cache that cannot be written costs the pass once more
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=place.parent)
        os.close(handle)
        replace_json(place, record, Path(draft))


def _passed(location: str, manifest: Manifest, split: str, cache_dir: str | None) -> Iterator[dict[str, np.ndarray]]:
    """The record batches of a split, without what is of varying length; a pass that takes long is said."""
    begin, said = time.monotonic(), False
    fixed = [name for name, column in manifest.columns.items() if column.dtype != VARIABLE]
    for rows in stored_rows(location, manifest, split, cache_dir, fixed):
        yield rows
        if not said and time.monotonic() - begin > LONG_S:
            said = True
            count = manifest.split(split).rows
            print(f"looking at the values of {location}, split {split!r}: {count:,} rows, once", file=sys.stderr)
