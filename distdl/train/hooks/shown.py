"""What families show of an evaluation (nn/watch.py), as small arrays for the spool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distdl.nn.watch import COLOURS, FEW, MOST_PLACES, Arrays
from distdl.track.pictures.arrays import packed, thinned

GROWING = {
    "field": ("place", "told", "true"),
    "view": ("origin", "direction", "told", "true"),
    "returns": ("returns",),
    "map": ("winner",),
}
"""Drawings that all batches of an evaluation add to, and the arrays that grow; of the others the first batch is drawn."""
PICTURES = {"samples", "reconstructions", "masks"}
"""Drawings whose arrays are pictures where they have the shape of some."""
MOST_LAYERS = 4
"""Of a drawing that several layers show."""
MOST_ROWS = {
    "samples": FEW,
    "reconstructions": FEW // 2,
    "masks": FEW // 4,
    "filters": 64,
    "attention": 4,
    "spikes": 500,
    "series": 500,
}
MOST_GROWN = 4096
"""Rows that come together."""
MOST_WIDE = {"attention": MOST_PLACES, "heat": 200, "beside": 200, "spikes": 300, "places": 2048, "series": 8}
"""Columns, and of matrices rows."""


class Shown:
    """What an evaluation has shown so far."""

    def __init__(self) -> None:
        self._calls: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
        self._grown: dict[str, dict[str, list[np.ndarray]]] = {}
        self._first, self._real = True, True
        self.failed: dict[str, str] = {}
        """Drawing -> why it could not be made."""

    def next_batch(self, number: int, real: bool) -> None:
        self._first, self._real = number == 0, real

    def see(self, drawing: str, arrays: Arrays) -> None:
        """Made on every rank alike, since a weight may have to be gathered for it."""
        kind = drawing.partition(":")[0]
        if drawing in self.failed or not (self._first or kind in GROWING):
            return
        if kind not in GROWING and len(self._calls[drawing]) >= MOST_LAYERS:
            return
        if kind in GROWING and self._full(drawing):
            return
        try:
            with torch.no_grad():
                made = {name: array.detach().float().cpu().numpy() for name, array in arrays().items()}
        except Exception as error:  # a picture is worth less than anything else of a run
            self.failed[drawing] = f"{type(error).__name__}: {error}".splitlines()[0]
            return
        if not self._real or any(not array.size for array in made.values()):
            return  # a batch that fills up, or a weight whose parts lie on other ranks
        if kind in GROWING:
            self._grow(drawing, GROWING[kind], made)
        else:
            self._calls[drawing].append({name: _small(kind, array) for name, array in made.items()})

    def _full(self, drawing: str) -> bool:
        grown = self._grown.get(drawing, {})
        return any(sum(map(len, parts)) >= MOST_GROWN for parts in grown.values())

    def _grow(self, drawing: str, growing: tuple[str, ...], made: Mapping[str, np.ndarray]) -> None:
        grown = self._grown.setdefault(drawing, {name: [] for name in growing})
        for name, array in made.items():
            if name in growing:
                grown[name].append(array)
            elif not self._calls[drawing]:
                self._calls[drawing].append({name: array})

    def told(self) -> dict[str, list[dict[str, Any]]]:
        """Drawing -> its arrays, of each layer that showed some."""
        found = {drawing: [dict(call) for call in calls] for drawing, calls in self._calls.items() if calls}
        for drawing, arrays in self._grown.items():
            whole = {name: np.concatenate(parts)[:MOST_GROWN] for name, parts in arrays.items()}
            found[drawing] = [{**dict(*found.get(drawing, [])), **whole}]
        return {
            drawing: [{name: packed(array, _bits(drawing, array)) for name, array in call.items()} for call in calls]
            for drawing, calls in found.items()
        }


def _bits(drawing: str, array: np.ndarray) -> int:
    """What a number of it is worth."""
    kind = drawing.partition(":")[0]
    if kind == "spikes" or (kind in PICTURES and array.ndim == 4 and array.min() >= 0 and array.max() <= 1):
        return 8
    return 32 if kind in (*GROWING, "series", "places") else 16


def _small(kind: str, array: np.ndarray) -> np.ndarray:
    """No more of an array than a picture shows."""
    array = array[: MOST_ROWS.get(kind, MOST_WIDE.get(kind, MOST_GROWN))]
    if wide := MOST_WIDE.get(kind):
        array = array[..., :wide] if array.ndim < 3 else array[..., :wide, :wide]
    if kind in PICTURES and array.ndim >= 3:
        if array.ndim > 3 and array.shape[1] not in COLOURS:
            array = array[:, :1]
        return thinned(array)
    return array
