"""native.c, compiled at first use and kept; where that cannot be done, NumPy does the same work and gives the same bits.

The library lies in the cache folder ($DISTDL_CACHE, or ~/.cache/distdl) under a name that holds the hash of its source and
of the machine's kind. One that others could have written is not loaded. `DISTDL_NATIVE=0` goes without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from distdl.data.store import default_cache

SOURCE = Path(__file__).with_suffix(".c")
COMPILERS = ("cc", "gcc", "clang")
COMPILE_S = 60.0
HALF = 1 << 32
"""Left halves below this are held in 32 bits by `distdl_order`."""


class Native:
    """The functions of native.c. ctypes gives the interpreter free while they run."""

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        self._order, self._gather = library.distdl_order, library.distdl_gather
        self._order.argtypes = [pointer, long, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int, pointer, ctypes.c_int]
        self._gather.argtypes = [pointer, pointer, pointer, long, ctypes.c_int, long]
        self._order.restype = self._gather.restype = None

    def order(self, values: np.ndarray, rows: int, size: int, bits: int, keys: np.ndarray) -> None:
        """Turns positions of an epoch, int64 (n,), into row numbers in place: `Order._walk`. `size` is below 2^32."""
        self._order(values.ctypes.data, len(values), rows, size, bits, keys.ctypes.data, len(keys))

    def gather(self, out: np.ndarray, begins: np.ndarray, ids: np.ndarray, shift: int, row_bytes: int) -> None:
        """Copies rows `ids`, int64 (n,), of `row_bytes` each to `out`. `begins`: address of each record batch, uint64, of
        2^shift rows. Who calls has checked the ids."""
        self._gather(out.ctypes.data, begins.ctypes.data, ids.ctypes.data, len(ids), shift, row_bytes)


@functools.cache
def native() -> Native | None:
    """The library; None where there is no compiler, no folder to keep it in, or it is not wanted."""
    if os.environ.get("DISTDL_NATIVE") == "0" or os.name != "posix":
        return None
    with suppress(OSError, subprocess.SubprocessError):
        return Native(_compiled())
    return None


def _compiled() -> Path:
    """The library's file, which is made where it is not there yet. Raises OSError or SubprocessError."""
    source = SOURCE.read_bytes()
    name = hashlib.sha256(source + f"{platform.machine()} {platform.libc_ver()}".encode()).hexdigest()[:16]
    folder = default_cache() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.so"
    if not path.exists():
        compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
        if compiler is None:
            raise FileNotFoundError("no C compiler")
        with tempfile.TemporaryDirectory(dir=folder) as work:  # renamed whole: other processes may be at it, too
            made = Path(work) / path.name
            command = [compiler, "-O3", "-shared", "-fPIC", "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)
            made.chmod(0o500)
            made.replace(path)
    for place in (path, folder):
        found = place.stat()
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{place} is not this user's alone")
    return path
