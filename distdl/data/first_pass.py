"""What the values of a split are where its manifest does not say: found by one pass over the shards, and kept in the user's
cache, under the data set's fingerprint."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from distdl.data.manifest import VARIABLE, Manifest, Values, values_from, values_record
from distdl.data.read import MappedShard, shard_path
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
    found = _passed(location, manifest, split, cache_dir)
    with suppress(OSError):  # a cache that cannot be written costs the pass once more
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=place.parent)
        os.close(handle)
        replace_json(place, values_record({split: found})[split], Path(draft))
    return found


def _passed(location: str, manifest: Manifest, split: str, cache_dir: str | None) -> dict[str, Values]:
    tally, begin, said = Tally(manifest.columns), time.monotonic(), False
    part = manifest.split(split)
    for shard in part.shards:
        mapped = MappedShard(shard_path(location, shard, cache_dir), shard, manifest, location)
        for i, buffers in enumerate(mapped.buffers):
            mapped.verify(i)  # what is found is kept, and must be of the right bytes
            tally.add(
                {
                    name: np.frombuffer(buffers[name][0], column.dtype).reshape(-1, *column.shape)
                    for name, column in manifest.columns.items()
                    if column.dtype != VARIABLE
                }
            )
            if not said and time.monotonic() - begin > LONG_S:
                said = True
                print(
                    f"looking at the values of {location}, split {split!r}: {part.rows:,} rows, once", file=sys.stderr
                )
    return tally.values()
