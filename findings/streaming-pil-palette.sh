#!/usr/bin/env bash
# mosaicml-streaming 0.13.0 (torch 2.13.0, CPU): a picture with a palette that is written with the encoding `pil` comes back in the
# mode P with the right indices and without its colours: converted to RGB it is black.
#
# Guess before it was run: a picture that goes in as a PIL image comes out as that image, as with the encoding `png`.
# Seen on 2026-11-30, of a picture of two pixels in the colours (10, 20, 30) and (40, 50, 60):
#
#     png   mode P, indices [0, 1]   as RGB [[10, 20, 30], [40, 50, 60]]
#     pil   mode P, indices [0, 1]   as RGB [[0, 0, 0], [0, 0, 0]]
#
# The mode, the size and the pixels are stored; the palette is none of them. Masks survive this, GIFs and many PNGs do not.
#
# Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 mosaicml-streaming==0.13.0 pillow==12.3.0
cat > "$folder/try.py" <<'PYTHON'
import importlib.machinery
import sys
import types

# streaming imports torchvision for classes that are not used here; its build would have to match that of torch.
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
sys.modules["torchvision.transforms.functional"].to_tensor = None

import numpy as np
from PIL import Image
from streaming import MDSWriter, StreamingDataset

picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
picture.putpalette([10, 20, 30, 40, 50, 60])
picture.putdata([0, 1])
found = {}
for encoding in ("png", "pil"):
    folder = f"{sys.argv[1]}/{encoding}"
    with MDSWriter(out=folder, columns={"picture": encoding}) as writer:
        writer.write({"picture": picture})
    back = StreamingDataset(local=folder, shuffle=False, batch_size=1)[0]["picture"]
    found[encoding] = np.asarray(back.convert("RGB"))[0].tolist()
    print(encoding, "mode", back.mode, "indices", np.asarray(back)[0].tolist(), "as RGB", found[encoding], flush=True)
if found["png"] != [[10, 20, 30], [40, 50, 60]] or any(map(any, found["pil"])):
    sys.exit("it is not so any more")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
