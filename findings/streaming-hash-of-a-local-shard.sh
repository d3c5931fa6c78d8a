#!/usr/bin/env bash
# mosaicml-streaming 0.13.0 (torch 2.13.0, CPU): `StreamingDataset(local=FOLDER, validate_hash="sha1")` hashes nothing: a shard that
# lies in the folder is read whatever index.json says of it. The same folder given as remote= is refused.
#
# Guess before it was run: a hash that was asked for is compared before a shard is read, wherever it lies.
# Seen on 2026-11-30, one letter of every text changed in the shard after it was written with hashes=["sha1"]:
#
#     local=FOLDER, validate_hash="sha1"                  the changed text, without a word
#     remote=FOLDER, local=OTHER, validate_hash="sha1"    ValueError
#     the same, where OTHER holds the changed shard       the changed text, without a word
#
# So it looks at what is downloaded, at that moment: not at a copy that a node kept from an earlier run.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 mosaicml-streaming==0.13.0
cat > "$folder/try.py" <<'PYTHON'
import importlib.machinery
import shutil
import sys
import types

# streaming imports torchvision for classes that are not used here; its build would have to match that of torch.
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
sys.modules["torchvision.transforms.functional"].to_tensor = None

from streaming import MDSWriter, StreamingDataset

shards, copied = f"{sys.argv[1]}/shards", f"{sys.argv[1]}/copied"
with MDSWriter(out=shards, columns={"text": "str"}, hashes=["sha1"]) as writer:
    for _ in range(5):
        writer.write({"text": "label"})
with open(f"{shards}/shard.00000.mds", "r+b") as file:
    changed = file.read().replace(b"label", b"lAbel")
    file.seek(0)
    file.write(changed)
shutil.copytree(shards, copied)


def first(**where):
    try:
        return StreamingDataset(**where, validate_hash="sha1", shuffle=False, batch_size=1, download_retry=1)[0]["text"]
    except ValueError as error:
        return f"refused: {str(error).splitlines()[0]}".replace(sys.argv[1], "...")[:100]


found = [first(local=shards), first(remote=shards, local=f"{sys.argv[1]}/other"), first(remote=shards, local=copied)]
for name, what in zip(("local", "remote", "remote, held already"), found):
    print(f"{name:22}{what}", flush=True)
if found[0] != "lAbel" or not found[1].startswith("refused") or found[2] != "lAbel":
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
