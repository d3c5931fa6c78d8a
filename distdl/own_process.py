"""A process that is distdl's alone: the command's own, and each worker's. It neither looks for garbage while modules are
loaded, nor takes itself down piece by piece at its end.

    finish = begin()
    finish(work())
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

LOADING_THRESHOLD = 100_000
"""Objects between two collections while a run is set up: torch and DeepSpeed alone make some hundred thousand that stay,
and with Python's 700 the collector looks through them again and again, 0.1 s for each of the two."""

_usual: tuple[int, ...] = ()
"""The thresholds of a process that is still loading; they are put back by `loaded`."""


def begin() -> Callable[[int], None]:
    """Makes this process distdl's own. It returns what tells the exit code with which it may leave once all threads have
    ended and all functions of `atexit` have run that were registered after this call.

    It leaves by `os._exit`. Python would unload every module and C++ would destroy its globals one by one: 0.4 s for
    torch, and where a library's thread still runs then, C++ aborts a process whose work is done ("terminate called without
    an active exception")."""
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(LOADING_THRESHOLD, *_usual[1:])
    code: list[int] = []

    def leave() -> None:
        if not code:  # an exception is under way: Python tells it
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # the reader has gone, it is closed, or there is none
                stream.flush()
        os._exit(code[0])

    atexit.register(leave)
    return code.append


def loaded() -> bool:
    """Python looks for garbage as usual again. Whether nothing but distdl's own preparation has gone on in this process, so
    that there is none to speak of: true once, and never in a process that is the user's."""
    global _usual
    if not _usual:
        return False
    gc.set_threshold(*_usual)
    _usual = ()
    return True


TRIM, MAP_FROM, MAPS = -1, -3, -4
"""glibc's mallopt: bytes at the end that it keeps, bytes from which a block is mapped by itself, and how many may be so."""


def keep_memory(device: str) -> bool:
    """What is freed on a CPU stays with this process from now on; whether that could be arranged. glibc gives blocks of
    megabytes, such as gradients and activations, back to the system at once, and to have them anew costs a fault for every
    4 KiB: a third of a step of 10M parameters, and of the answers of a small network. What the user has set of the
    allocator stays."""
    libc = ctypes.CDLL(None)
    users = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if device != "cpu" or users or not hasattr(libc, "mallopt"):  # another C library, or another allocator
        return False
    libc.mallopt(MAPS, 0)
    libc.mallopt(TRIM, 2**31 - 1)
    return True


@contextmanager
def memory_kept(device: str) -> Iterator[None]:
    """`keep_memory` within it."""
    kept = keep_memory(device)
    try:
        yield
    finally:  # as it would have become by itself, after blocks of this size
        if kept:
            libc = ctypes.CDLL(None)
            libc.mallopt(MAPS, 2**16)
            libc.mallopt(MAP_FROM, 2**25)
            libc.mallopt(TRIM, 2**26)
            libc.malloc_trim(0)
