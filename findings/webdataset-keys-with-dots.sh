#!/usr/bin/env bash
# webdataset 1.0.2: TarWriter takes keys with a dot in them, and the reader of the same package makes one sample of all the keys that
# are alike up to the first dot.
#
# Guess before it was run: what TarWriter takes as a key, WebDataset gives back as that key; or the writer refuses it.
# Seen on 2026-11-30: four samples `v1.0` ... `v1.3`, each with jpg and cls, are read as one, `v1`, with the eight fields `0.jpg`,
# `0.cls` ... `3.cls`; keys without dots come back as they were. Neither side says anything, and keys like `v1.0`, `12.5s` or
# `site.org/a` are easily made. A loop that asks each sample for `jpg` fails at least; one that takes what fields there are does not.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import sys

import webdataset

found = {}
for dot in ("-", "."):
    path = f"{sys.argv[1]}/shard.tar"
    with webdataset.TarWriter(path) as writer:
        for number in range(4):
            writer.write({"__key__": f"v1{dot}{number}", "jpg": b"a picture", "cls": number})
    found[dot] = [
        (sample["__key__"], [name for name in sample if not name.startswith("__")])
        for sample in webdataset.WebDataset(path, shardshuffle=False)
    ]
    print(f"written 4 keys like v1{dot}0, read {len(found[dot])}:", *found[dot], flush=True)
if len(found["-"]) != 4 or [(key, len(names)) for key, names in found["."]] != [("v1", 8)]:
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
