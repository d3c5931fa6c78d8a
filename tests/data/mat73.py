"""MATLAB's files of version 7.3, by hand as MATLAB lays them out: HDF5 behind 512 bytes, axes in reverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

CLASSES = {"float64": "double", "float32": "single", "bool": "logical"}


def write(path: Path, **variables: Any) -> Path:
    """Arrays, texts (a row of characters; a list of equal lengths: rows), tuples of texts (cells), dicts (structures)."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            _put(file, name, value)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 ."
    with path.open("r+b") as raw:
        raw.write(header.ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


def _put(group: Any, name: str, value: Any) -> Any:
    if isinstance(value, dict):
        below = group.create_group(name)
        below.attrs["MATLAB_class"] = np.bytes_("struct")
        for field, inner in value.items():
            _put(below, field, inner)
        return below
    if isinstance(value, tuple):
        cells = [_put(group.file.require_group("#refs#"), f"{name}{i}", text) for i, text in enumerate(value)]
        data: Any = np.array([cell.ref for cell in cells], h5py.ref_dtype)[:, None]  # (1, K) of MATLAB
        kind = "cell"
    elif isinstance(value, str | list):
        rows = [value] if isinstance(value, str) else value
        data, kind = np.array([[ord(letter) for letter in row] for row in rows], np.uint16).T, "char"
    else:
        array = np.atleast_2d(value)
        data, kind = array.astype(np.uint8 if array.dtype == bool else array.dtype).T, str(array.dtype)
    dataset = group.create_dataset(name, data=data)
    dataset.attrs["MATLAB_class"] = np.bytes_(CLASSES.get(kind, kind))
    if kind in ("char", "bool"):
        dataset.attrs["MATLAB_int_decode"] = np.int32(2 if kind == "char" else 1)
    return dataset
