#!/usr/bin/env bash
# litdata 0.2.76 (torch 2.13.0, CPU): an item whose array has another type than the first item's is written as it is and read as the
# first one's type; an item with another key gets the first one's keys.
#
# Guess before it was run: the writer refuses an item that does not fit what index.json says of all of them, or keeps its own type.
# Seen on 2026-11-30, of the second item, without a word from the writer or the reader:
#
#     [0, 0] in float32, then [1, 1] in float64    [0, 1.875, 0, 1.875] in float32: the bytes, taken for twice as many numbers
#     {"a": 1, "b": 2}, then {"a": 1, "c": 3}      {"a": 1, "b": 0}: c and its 3 are gone
#
# An int after a float is refused, so it is a matter of arrays and keys. One stray float64 in a pipeline is found where a batch needs
# equal shapes, and is not where samples are of any length.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 litdata==0.2.76 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import struct
import sys

import numpy as np
from litdata import StreamingDataset
from litdata.streaming import Cache


def second(name, *items):
    folder = f"{sys.argv[1]}/{name}"
    cache = Cache(folder, chunk_size=10)
    for index, item in enumerate(items):
        cache[index] = item
    cache.done()
    cache.merge()
    return StreamingDataset(folder)[1]


array = second("arrays", np.zeros(2, np.float32), np.ones(2, np.float64))
keys = second("keys", {"a": 1, "b": 2}, {"a": 1, "c": 3})
try:
    number = second("numbers", {"x": 1.5}, {"x": 7})
except struct.error as error:
    number = f"refused: {error}"
print("ones in float64 after float32:", array.tolist(), array.dtype)
print("{'a': 1, 'c': 3} after a, b:  ", keys)
print("7 after 1.5:                  ", number)
if array.tolist() != [0, 1.875, 0, 1.875] or set(keys) != {"a", "b"} or keys["b"] == 3 or "refused" not in str(number):
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
