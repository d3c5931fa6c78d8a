"""The preparation of a table inside a graph: its inputs are the table's own columns, in the units of the file.

    a number      float64 (B,), as the file has it; not-a-number where the cell is empty
    a boolean     int64 (B,): 1, 0, or -1 where it is empty
    a category    int64 (B,): the place of the word among `levels` of the metadata, -1 where it is empty, more: unknown

Dates, vectors and pictures are prepared outside: then the input is `x`, and preparation.json says how it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distdl.data.table.encode import outputs
from distdl.data.table.scale import edges_of, from_pieces, from_scale

KINDS = ("number", "boolean", "category")
EMPTY = -1


class Front(nn.Module):
    """The columns of a table -> `x` (B, F) float32, as `data/table/encode.py` makes it."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__()
        self.features: list[Mapping[str, Any]] = list(record["features"])
        self.edges = {f["name"]: edges_of(f).tolist() for f in self.features if "edges" in f}
        """Plain numbers: the weights' precision is not theirs."""

    @staticmethod
    def fits(record: Mapping[str, Any]) -> bool:
        """Whether every column of the table is of a kind that a graph prepares."""
        features = record.get("features", ())
        return record.get("kind") == "features" and bool(features) and all(f["kind"] in KINDS for f in features)

    @property
    def names(self) -> list[str]:
        return [str(feature["name"]) for feature in self.features]

    def forward(self, *columns: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for feature, column in zip(self.features, columns, strict=True):
            parts += getattr(self, f"_{feature['kind']}")(feature, column)
        return torch.cat(parts, 1).float()

    def _number(self, feature: Mapping[str, Any], column: Tensor) -> list[Tensor]:
        scale, empty = feature["scale"], column.isnan()
        values = torch.where(empty, float(feature["fill"]), column)
        if scale["method"] == "log":
            values = values.sign() * values.abs().log1p()
        found = ((values - scale["shift"]) / scale["divide"])[:, None]
        if feature["name"] in self.edges:
            edges = torch.tensor(self.edges[feature["name"]], dtype=torch.float64, device=column.device)
            found = torch.cat([found, ((found - edges[:-1]) / edges.diff()).clamp(0, 1)], 1)
        return _told(found, empty, feature)

    def _boolean(self, feature: Mapping[str, Any], column: Tensor) -> list[Tensor]:
        empty = column < 0
        return _told(torch.where(empty, float(feature["fill"]), column.double()), empty, feature)

    def _category(self, feature: Mapping[str, Any], column: Tensor) -> list[Tensor]:
        known, empty = len(feature["levels"]), column < 0
        if feature["encoding"] == "index":
            return _told(torch.where(empty | (column >= known), 0, column + 1).double(), empty, feature)
        place = torch.where(column >= known, known, column)[:, None]
        levels = torch.arange(known + bool(feature["other"]), device=column.device)
        return _told((place == levels).double(), empty, feature)

    def back(self, x: np.ndarray) -> dict[str, Tensor]:
        """The columns that become these rows `x` (n, F)."""
        found, first = {}, 0
        for feature in self.features:
            width = len(outputs(feature))
            part, empty = x[:, first : first + width], np.zeros(len(x), bool)
            if feature.get("indicator"):
                empty = part[:, -1] > 0.5
            found[str(feature["name"])] = torch.from_numpy(_BACK[feature["kind"]](feature, part, empty))
            first += width
        return found


def _told(values: Tensor, empty: Tensor, feature: Mapping[str, Any]) -> list[Tensor]:
    """Columns of `x` (B, k), with the one that says where the cell was empty."""
    found = [values if values.ndim == 2 else values[:, None]]
    return [*found, empty.double()[:, None]] if feature.get("indicator") else found


def _number_back(feature: Mapping[str, Any], part: np.ndarray, empty: np.ndarray) -> np.ndarray:
    scaled, edges = part[:, 0].astype(np.float64), edges_of(feature)
    if len(edges):
        scaled = from_pieces(scaled, part[:, 1 : len(edges)].astype(np.float64), edges)
    return np.where(empty, np.nan, from_scale(scaled, feature["scale"]))


def _boolean_back(feature: Mapping[str, Any], part: np.ndarray, empty: np.ndarray) -> np.ndarray:
    filled = (part[:, 0] != 0) & (part[:, 0] != 1)
    return np.where(empty | filled, EMPTY, part[:, 0] > 0.5).astype(np.int64)


def _category_back(feature: Mapping[str, Any], part: np.ndarray, empty: np.ndarray) -> np.ndarray:
    known = len(feature["levels"])
    if feature["encoding"] == "index":
        place = part[:, 0].astype(np.int64) - 1
        return np.where(place < 0, np.where(empty, EMPTY, known), place)
    hot = part[:, : known + bool(feature["other"])]
    nothing = ~(hot > 0.5).any(1)
    return np.where(nothing, np.where(empty | bool(feature["other"]), EMPTY, known), hot.argmax(1)).astype(np.int64)


_BACK = {"number": _number_back, "boolean": _boolean_back, "category": _category_back}


def described(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each column of the table is, for whoever fills it in."""
    found = {}
    for feature in record["features"]:
        told: dict[str, Any] = {"kind": feature["kind"]}
        if feature["kind"] == "category":
            told["levels"] = [str(level) for level in feature["levels"]]
        if feature["kind"] == "boolean":
            told |= {"1": feature["true"], "0": feature["false"]} if feature["true"] is not None else {}
        found[str(feature["name"])] = told
    return found
