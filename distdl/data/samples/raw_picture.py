"""Pictures stored as Pillow's raw pixels: width, height, the mode's length (uint32 each), the mode, the pixels."""

from __future__ import annotations

import io
import struct

from distdl.data.pictures import need_pillow
from distdl.data.samples.fields import Picture

HEADERS = {"L": b"P5 %d %d 255\n", "RGB": b"P6 %d %d 255\n"}
"""Of a file whose pixels are the same bytes."""


def raw_picture(content: bytes) -> Picture:
    """The same as a file. ValueError: the bytes do not fit, or the colours are not among them."""
    width, height, mode_bytes = struct.unpack_from("<3I", content)
    mode = content[12 : 12 + mode_bytes].decode("ascii")
    pixels = content[12 + mode_bytes :]
    if mode in HEADERS:
        if len(pixels) != width * height * (3 if mode == "RGB" else 1):
            raise ValueError(f"{len(pixels):,} bytes for {width} x {height} pixels of the mode {mode}")
        return Picture(HEADERS[mode] % (width, height) + pixels)
    if mode in ("P", "PA"):
        raise ValueError("a picture with a palette was stored without it, so its colours are lost")
    need_pillow("mds")
    from PIL import Image

    with io.BytesIO() as file:
        Image.frombytes(mode, (width, height), pixels).save(file, "TIFF")
        return Picture(file.getvalue())
