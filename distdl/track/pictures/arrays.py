"""Small arrays in a spool of JSON lines: {"type", "shape", "base64"}, little-endian, at most MOST_BYTES of them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MOST_SIDE = 64
"""Height and width of pictures beyond which only every n-th pixel is kept."""
MOST_BYTES = 1 << 18
"""Of an array; rows beyond that are left out."""
TYPES = ("<f4", "<f2", "|u1")


def thinned(values: np.ndarray) -> np.ndarray:
    """(N, C, H, W) or (N, H, W) with every n-th pixel of those that are too large."""
    step = math.ceil(max(values.shape[-2:]) / MOST_SIDE)
    return values[..., ::step, ::step]


def packed(values: np.ndarray, bits: int = 16) -> dict[str, Any]:
    """`bits` of a number: 32, 16, or 8 for those from 0 to 1."""
    told: dict[str, Any] = {}
    if bits == 8:
        values, told = np.round(np.clip(values, 0, 1) * 255).astype("|u1"), {"divide": 255}
    else:
        values = values.astype("<f4") if bits == 32 else np.clip(values, -65504, 65504).astype("<f2")
    if values.nbytes > MOST_BYTES:
        values = values[: max(1, len(values) * MOST_BYTES // values.nbytes)]
    text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
    return {"type": values.dtype.str, "shape": list(values.shape), "base64": text, **told}


def unpacked(told: Mapping[str, Any]) -> np.ndarray:
    """As float64. ValueError: it is none of ours."""
    if told["type"] not in TYPES:
        raise ValueError(f"no array of ours has the type {told['type']!r}")
    flat = np.frombuffer(base64.b64decode(told["base64"]), told["type"])
    return flat.reshape(told["shape"]).astype(float) / told.get("divide", 1)
