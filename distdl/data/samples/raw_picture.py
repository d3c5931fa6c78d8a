"""Pictures stored as Pillow's raw pixels: width, height, the mode's length (uint32 each), the mode, the pixels."""

from __future__ import annotations

import io
import struct

from distdl.data.pictures import need_pillow
from distdl.data.samples.fields import Picture

PIXEL_BYTES = {
    "L": 1,
    "RGB": 3,
    "LA": 2,
    "RGBA": 4,
    "CMYK": 4,
    "YCbCr": 3,
    "HSV": 3,
    "LAB": 3,
    "I": 4,
    "F": 4,
    "I;16": 2,
}
"""Of a pixel."""
HEADERS = {"L": b"P5 %d %d 255\n", "RGB": b"P6 %d %d 255\n"}
"""Of a file whose pixels are the same bytes."""


def raw_picture(content: bytes) -> Picture:
    """The same as a file. ValueError: the bytes do not fit, or the colours are not among them."""
    width, height, mode_bytes = struct.unpack_from("<3I", content)
    mode = content[12 : 12 + mode_bytes].decode("ascii")
    pixels = content[12 + mode_bytes :]
    if mode in ("P", "PA"):
        raise ValueError("a picture with a palette was stored without it, so its colours are lost")
    needed = -(-width // 8) * height if mode == "1" else width * height * PIXEL_BYTES.get(mode, 0)
    if not needed or len(pixels) != needed:
        raise ValueError(f"{len(pixels):,} bytes for {width} x {height} pixels of the mode {mode}")
    if mode in HEADERS:
        return Picture(HEADERS[mode] % (width, height) + pixels)
    need_pillow("mds")
    from PIL import Image

    with io.BytesIO() as file:
        Image.frombytes(mode, (width, height), pixels).save(file, "TIFF")
        return Picture(file.getvalue())
