"""Memory that groups of batches are gathered into, used again once nobody holds what was handed out of it.

A fresh block of a megabyte costs a page fault for each 4 KiB of it, a third of what a gather of small records costs.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from math import prod

import numpy as np
import torch

KEPT = 8
"""Slabs of one size that are kept at most: as many as groups can be under way, and one that is being consumed."""


class Slabs:
    """Arrays for one consumer. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[mmap.mmap, weakref.ref[np.ndarray]]]] = {}
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
        """An array with any content. Its memory is given out again when neither it, nor a view of it, nor a tensor made of
        it is left: a view of an array over a buffer holds that array."""
        dtype = np.dtype(dtype)
        size_bytes = max(prod(shape) * dtype.itemsize, 1)
        with self._lock:
            kept = self._kept.setdefault(size_bytes, [])
            at = next((i for i, (_, held) in enumerate(kept) if held() is None), None)
            memory = mmap.mmap(-1, size_bytes) if at is None else kept.pop(at)[0]
            array: np.ndarray = np.ndarray(shape, dtype, memory)
            if len(kept) < KEPT:
                kept.append((memory, weakref.ref(array)))
        return array

    @staticmethod
    def tensor(values: np.ndarray) -> torch.Tensor:
        """The same memory as a tensor."""
        return torch.from_numpy(values)


class Pinned:
    """Arrays of one group in memory that GPUs copy from by themselves. torch keeps such memory and gives it out again once
    the copies of it have arrived, which it knows of its own tensors alone: so what is handed out is made of these."""

    def __init__(self) -> None:
        self._tensors: dict[int, torch.Tensor] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
        """An array with any content."""
        tensor = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
        array: np.ndarray = tensor.numpy()
        self._tensors[array.ctypes.data] = tensor
        return array

    def tensor(self, values: np.ndarray) -> torch.Tensor:
        """What `take` gave, as a tensor; a copy of anything else."""
        mine = self._tensors.get(values.ctypes.data)
        return torch.from_numpy(values).pin_memory() if mine is None or mine.shape != values.shape else mine
