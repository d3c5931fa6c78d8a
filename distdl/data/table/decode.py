"""`x` -> the columns of the table that it was made of, as its file had them: what `encode.py` does, undone.

A number that went through float32 is given as the shortest decimal that becomes the same float32 again, so that 5.1
comes back as 5.1. What has no way back is left out: `lost` says what and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distdl.data.table.encode import outputs
from distdl.data.table.scale import DAY_S, from_scale, to_scale

CLOCK = {"hour": 3600, "minute": 60, "second": 1}
SLACK = 0.02
"""Of a day, by which midnight may be missed."""
EXACT = 22
"""Powers of ten up to this one are whole numbers that float64 has."""
DIGITS = 17
"""Significant ones that tell every float64 apart."""


@dataclass(frozen=True)
class Way:
    """A column of the table, and where it lies in `x`."""

    name: str
    type: pa.DataType
    feature: Mapping[str, Any]
    first: int
    width: int


def ways_back(record: Mapping[str, Any]) -> list[Way]:
    """The columns that come back, of the record of `x`."""
    found, first = [], 0
    for feature in record["features"]:
        width = len(outputs(feature))
        if (kind := _type(feature)) is not None:
            found.append(Way(feature["name"], kind, feature, first, width))
        first += width
    return found


def lost(record: Mapping[str, Any]) -> list[str]:
    """What does not come back as it was, in a sentence each."""
    back, told = {way.name for way in ways_back(record)}, []
    for feature in record["features"]:
        name = feature["name"]
        if name not in back:
            told.append(f"'{name}', one date throughout, was left out when it was prepared")
        elif feature["kind"] == "category" and (feature.get("other") or feature["encoding"] == "index"):
            told.append(
                f"words of '{name}' beyond the {len(feature['levels'])} that it was prepared with come back empty"
            )
        elif feature["kind"] == "number" and feature["words"]:
            told.append(
                f"the words of '{name}' that are no numbers ({', '.join(feature['words'][:3])}) come back empty"
            )
        elif feature["kind"] == "date" and (still := _still(feature)):
            told.append(f"the {' and '.join(still)} of '{name}', the same throughout, come back as 0")
    return told


def columns_back(record: Mapping[str, Any], x: np.ndarray) -> Iterator[tuple[str, pa.Array]]:
    """Name and values of each column, of rows of `x` (n, F)."""
    for way in ways_back(record):
        part = np.asarray(x[:, way.first : way.first + way.width], np.float32)
        empty = part[:, -1] > 0.5 if way.feature.get("indicator") else np.zeros(len(x), bool)
        yield way.name, _values(way, part, empty)


def decoded(record: Mapping[str, Any], x: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `x` (n, F) -> column -> value, of what comes back. Where a cell was empty, or a word unknown, the value is
    None."""
    columns = {name: values.to_pylist() for name, values in columns_back(record, x)}
    return [dict(zip(columns, row)) for row in zip(*columns.values())] if columns else [{} for _ in x]


def _type(feature: Mapping[str, Any]) -> pa.DataType | None:
    kind = feature["kind"]
    if kind == "boolean":
        return pa.int64() if feature["true"] is None else pa.string()
    if kind == "date":
        parts = {part["part"] for part in feature["parts"]}
        if "days" not in parts:
            return None
        return pa.timestamp("s") if parts & set(CLOCK) else pa.date32()
    return {"number": pa.float64(), "category": pa.string(), "vector": pa.list_(pa.float64())}[kind]


def _values(way: Way, part: np.ndarray, empty: np.ndarray) -> pa.Array:
    feature = way.feature
    if feature["kind"] == "number":
        return pa.array(numbers_back(part[:, 0], feature["scale"]), pa.float64(), mask=empty)
    if feature["kind"] == "boolean":
        names = (0, 1) if feature["true"] is None else (feature["false"], feature["true"])
        return pa.array([None if e else names[int(v > 0.5)] for v, e in zip(part[:, 0], empty)], way.type)
    if feature["kind"] == "category":
        words = _words(feature, part)
        return pa.array([None if e else word for word, e in zip(words, empty)], pa.string())
    if feature["kind"] == "vector":
        values = numbers_back(part, feature)
        return pa.ListArray.from_arrays(np.arange(len(part) + 1, dtype=np.int32) * way.width, values.reshape(-1))
    return _dates(way, part, empty)


def _words(feature: Mapping[str, Any], part: np.ndarray) -> list[str | None]:
    levels = feature["levels"]
    if feature["encoding"] == "index":
        return [levels[int(rank) - 1] if rank > 0 else None for rank in part[:, 0]]
    at = part[:, : len(levels)]
    return [levels[int(row.argmax())] if row.size and row.max() > 0.5 else None for row in at]


def _still(feature: Mapping[str, Any]) -> list[str]:
    """The parts of a clock that are not kept, where others are."""
    parts = {part["part"] for part in feature["parts"]}
    return [name for name in CLOCK if name not in parts] if parts & set(CLOCK) else []


def _dates(way: Way, part: np.ndarray, empty: np.ndarray) -> pa.Array:
    parts = {told["part"]: from_scale(part[:, i], told["scale"]) for i, told in enumerate(way.feature["parts"])}
    clock = sum(
        (np.rint(parts[name]) * seconds for name, seconds in CLOCK.items() if name in parts), np.zeros(len(part))
    )
    # In float32 the days since 1970 are right to some minutes; the clock's own parts say the rest.
    days = np.rint(parts["days"] - clock / DAY_S) if clock.any() else np.floor(parts["days"] + SLACK)
    if way.type == pa.date32():
        return pa.array(days.astype(np.int32), pa.int32(), mask=empty).cast(pa.date32())
    seconds = (days * DAY_S + clock).astype(np.int64)
    return pa.array(seconds, pa.int64(), mask=empty).cast(way.type)


def numbers_back(values: np.ndarray, scale: Mapping[str, Any]) -> np.ndarray:
    """Scaled float32 numbers in the units of their file, float64: of all that become the same float32 the shortest."""
    found = from_scale(values, scale)
    if not found.size:
        return found
    done = ~np.isfinite(found)
    with np.errstate(divide="ignore", invalid="ignore"):
        leading = np.where((found == 0) | done, 0, np.floor(np.log10(np.abs(found))))
    result = found.copy()
    for digits in range(DIGITS):
        if done.all():
            break
        short = _rounded(found, digits, leading) if digits else np.zeros_like(found)
        with np.errstate(over="ignore", invalid="ignore"):
            same = ~done & (to_scale(short, scale).astype(np.float32) == values)
        result[same] = short[same]
        done |= same
    return result


def _rounded(values: np.ndarray, digits: int, leading: np.ndarray) -> np.ndarray:
    """Each to so many significant digits, the first of which is that of 10 ** leading."""
    decimals = digits - 1 - leading
    up, down = (10.0 ** np.clip(sign * decimals, 0, EXACT) for sign in (1, -1))
    rounded = np.rint(values * up / down) * down / up
    far = np.abs(decimals) > EXACT
    rounded[far] = [float(f"{value:.{digits - 1}e}") for value in values[far]]
    return rounded
