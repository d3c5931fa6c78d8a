"""A fitted record and rows of a table -> `x`, `label`, `y`. The same for the rows that were fitted and for any new ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.columns import NO_LABEL
from distdl.data.table.profile import vectors
from distdl.data.table.scale import date_parts, edges_of, to_pieces, to_scale
from distdl.data.table.values import FLOAT32, dates, numbers, texts
from distdl.errors import InputError

Columns = Mapping[str, pa.Array]
Place = Callable[[int], str]


def outputs(feature: Mapping[str, Any]) -> list[str]:
    """The names of the columns of `x` that a column of the table becomes."""
    name, kind = feature["name"], feature["kind"]
    if kind == "category" and feature["encoding"] == "onehot":
        found = [f"{name}={level}" for level in feature["levels"]] + ([f"{name}=other"] if feature["other"] else [])
    elif kind == "date":
        found = [f"{name}.{part['part']}" for part in feature["parts"]]
    elif kind == "vector":
        found = [f"{name}[{i}]" for i in range(feature["length"])]
    else:
        cuts = feature.get("edges", ())
        found = [name, *(f"{name} {low:.6g} to {high:.6g}" for low, high in itertools.pairwise(cuts))]
    return [*found, f"{name} is empty"] if feature.get("indicator") else found


class Encoder:
    """Makes `x` float32 (n, F) by the record of the column `x`. `place(row)`: where a row is, for a person."""

    def __init__(self, record: Mapping[str, Any], place: Place) -> None:
        self.features, self.na, self.refuse = record["features"], record["na"], record["missing"] == "refuse"
        self._place = place
        self.at: list[int] = []
        """Where each feature begins in `x`."""
        self.width = 0
        for feature in self.features:
            self.at.append(self.width)
            self.width += len(outputs(feature))
        self._numbers = [i for i, feature in enumerate(self.features) if feature["kind"] == "number"]
        scales = [self.features[i]["scale"] for i in self._numbers]
        self._scale = {
            "method": scales[0]["method"] if scales else "none",
            **{key: np.array([scale[key] for scale in scales])[:, None] for key in ("shift", "divide")},
        }
        self._edges = [edges_of(self.features[i]) for i in self._numbers]
        self._fill = np.array([self.features[i]["fill"] for i in self._numbers])

    def encode(self, columns: Columns, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers (n,), by their columns. InputError names the first value that does not fit."""
        x = np.zeros((len(rows), self.width), np.float32)
        if self._numbers:
            self._encode_numbers(columns, rows, x)
        for feature, first in zip(self.features, self.at, strict=True):
            if feature["kind"] == "number":
                continue
            column = columns[feature["name"]]
            empty = getattr(self, f"_{feature['kind']}")(feature, column, rows, x[:, first:])
            self._refuse_empty(feature, column, empty, rows)
            if feature.get("indicator"):
                x[:, first + len(outputs(feature)) - 1] = empty
        return x

    def _encode_numbers(self, columns: Columns, rows: np.ndarray, x: np.ndarray) -> None:
        features = [self.features[i] for i in self._numbers]
        values, bad = numbers([columns[f["name"]] for f in features], self.na)
        for i, strange in bad.items():
            self._refuse_strange(features[i], columns[features[i]["name"]], strange, rows)
        empty = np.isnan(values)
        if empty.any():
            for i in np.flatnonzero(empty.any(1)).tolist():
                self._refuse_empty(features[i], columns[features[i]["name"]], empty[i], rows)
            values = np.where(empty, self._fill[:, None], values)
        with np.errstate(over="ignore"):
            scaled = to_scale(values, self._scale)
            found = scaled.astype(np.float32)
        if not np.isfinite(found).all() or np.abs(values).max(initial=0) > FLOAT32:
            i, row = np.argwhere(~np.isfinite(found) | (np.abs(values) > FLOAT32))[0]
            self._refuse(features[i]["name"], values[i, row], int(rows[row]))
        at = [self.at[i] for i in self._numbers]
        x[:, at] = found.T
        for i, feature in enumerate(features):
            width = len(self._edges[i]) - 1 if len(self._edges[i]) else 0
            if width:
                x[:, at[i] + 1 : at[i] + 1 + width] = to_pieces(scaled[i], self._edges[i])
            if feature["indicator"]:
                x[:, at[i] + 1 + width] = empty[i]

    def _boolean(self, feature: Mapping[str, Any], column: pa.Array, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        if feature["true"] is None:
            (values,), bad = numbers([column], self.na)
            if bad:
                self._refuse_strange(feature, column, bad[0], rows)
            other = (values != 0) & (values != 1) & ~np.isnan(values)
        else:
            words = texts(column, self.na)
            is_true = pc.equal(words, feature["true"])
            values = pc.cast(pc.cast(is_true, pa.uint8()), pa.float64()).to_numpy(zero_copy_only=False)
            values = values.astype(np.float64)
            other = pc.and_(pc.invert(is_true), pc.not_equal(words, feature["false"]))
            other = pc.fill_null(other, False).to_numpy(zero_copy_only=False)
        if other.any():
            i = int(other.argmax())
            allowed = "0 and 1" if feature["true"] is None else f"{feature['false']!r} and {feature['true']!r}"
            what = f"the column '{feature['name']}' has the value {column[i].as_py()!r}"
            raise InputError(what, where=self._place(int(rows[i])), allowed=allowed)
        empty = np.isnan(values)
        x[:, 0] = np.where(empty, feature["fill"], values)
        return empty

    def _category(self, feature: Mapping[str, Any], column: pa.Array, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        levels, words = feature["levels"], texts(column, self.na)
        found = pc.index_in(words, value_set=pa.array(levels, pa.string()))
        place = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        empty = words.is_null().to_numpy(zero_copy_only=False)
        if feature["encoding"] == "index":
            x[:, 0] = place + 1  # 0: unknown, as a word is that training did not see
            return empty
        if feature["other"]:
            place = np.where((place < 0) & ~empty, len(levels), place)
        known = np.flatnonzero(place >= 0)
        x[known, place[known]] = 1
        return empty

    def _date(self, feature: Mapping[str, Any], column: pa.Array, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        seconds, bad = dates(column, feature["pattern"], self.na)
        if bad.any():
            self._refuse_strange(feature, column, bad, rows)
        empty = np.isnan(seconds)
        parts = date_parts(np.where(empty, feature["fill"], seconds))
        for i, part in enumerate(feature["parts"]):
            x[:, i] = np.where(empty, 0, to_scale(parts[part["part"]], part["scale"]))
        return empty

    def _vector(self, feature: Mapping[str, Any], column: pa.Array, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        length = feature["length"]
        values = vectors(column, length) if len(column) else np.empty((0, length))
        if values is None:
            for i, value in enumerate(column.to_pylist()):
                if value is None or len(value) != length or None in value:
                    shown = "nothing" if value is None else f"{len(value)} values" + (", some empty" * (None in value))
                    what = f"the column '{feature['name']}' has {shown} here, and the first row has {length}"
                    raise InputError(what, where=self._place(int(rows[i])), fix="make all vectors of one length")
        assert values is not None
        with np.errstate(over="ignore"):
            found = to_scale(values, feature).astype(np.float32)
        if not np.isfinite(found).all():
            i, j = np.argwhere(~np.isfinite(found))[0]
            self._refuse(f"{feature['name']}[{j}]", values[i, j], int(rows[i]))
        x[:, :length] = found
        return np.zeros(len(rows), bool)

    def _refuse_empty(self, feature: Mapping[str, Any], column: pa.Array, empty: np.ndarray, rows: np.ndarray) -> None:
        """Where missing=refuse says so."""
        if self.refuse and empty.any():
            i, name = int(empty.argmax()), feature["name"]
            what = f"the column '{name}' has the value {column[i].as_py()!r}, which says nothing"
            fix = f"fill it in, choose another missing=, or leave '{name}' out: drop={name}"
            raise InputError(what, where=self._place(int(rows[i])), fix=fix)

    def _refuse_strange(
        self, feature: Mapping[str, Any], column: pa.Array, strange: np.ndarray, rows: np.ndarray
    ) -> None:
        """Values that are no numbers count as empty where the table that was fitted had them, too."""
        known = set() if self.refuse else set(feature["words"])
        for i in np.flatnonzero(strange).tolist():
            if (value := column[i].as_py()) is not None and str(value).strip() not in known:
                self._refuse(feature["name"], value, int(rows[i]))

    def _refuse(self, name: str, value: Any, row: int) -> None:
        raise not_a_number(name, value, self._place(row), f"correct it, or leave '{name}' out: drop={name}")


def not_a_number(name: str, value: Any, where: str, fix: str) -> InputError:
    """The refusal of a value."""
    shown = value.item() if isinstance(value, np.generic) else value
    return InputError(
        f"the column '{name}' has the value {shown!r}, which is not a finite number", where=where, fix=fix
    )


def encode_label(
    record: Mapping[str, Any], column: pa.Array, na: Sequence[str], rows: np.ndarray, place: Place
) -> np.ndarray:
    """Numbers of classes (n,) int64; -100 where there is no word. InputError: a word that is no class."""
    if record.get("numbered"):
        (values,), bad = numbers([column], na)
        wrong = ~np.isnan(values) & ~((values >= 0) & (values < len(record["classes"])) & (values == np.trunc(values)))
        if bad or wrong.any():
            i = int((bad[0] if bad else wrong).argmax())
            what = (
                f"the column '{record['name']}' has the value {column[i].as_py()!r}, which is not the number of a class"
            )
            raise InputError(what, where=place(int(rows[i])), allowed=f"0 to {len(record['classes']) - 1}")
        return np.where(np.isnan(values), NO_LABEL, values).astype(np.int64)
    words = texts(column, na)
    found = pc.index_in(words, value_set=pa.array(record["classes"], pa.string()))
    numbers_ = pc.fill_null(found, NO_LABEL).to_numpy(zero_copy_only=False).astype(np.int64)
    unknown = (numbers_ == NO_LABEL) & words.is_valid().to_numpy(zero_copy_only=False)
    if unknown.any():
        i = int(unknown.argmax())
        raise InputError(
            f"the column '{record['name']}' has the value {words[i].as_py()!r}, which is not one of the classes",
            where=place(int(rows[i])),
            allowed=", ".join(record["classes"][:20]),
        )
    return numbers_


def encode_target(
    record: Mapping[str, Any], column: pa.Array, na: Sequence[str], rows: np.ndarray, place: Place
) -> np.ndarray:
    """Numbers to predict (n,) float32, on their scale. InputError: a value that is no number."""
    (values,), bad = numbers([column], na)
    wrong = np.isnan(values) | (np.abs(values) > FLOAT32)
    if bad or wrong.any():
        i = int((bad[0] if bad else wrong).argmax())
        raise not_a_number(record["name"], column[i].as_py(), place(int(rows[i])), "correct it, or leave the row out")
    return to_scale(values, record["scale"]).astype(np.float32)
