"""What a table's columns become, fitted on the training split: plain values, from which `encode.py` makes the numbers.

{"name": "age", "kind": "number", "fill": 38.6, "indicator": false, "words": [],
 "scale": {"method": "standard", "shift": 38.6, "divide": 13.7}}
{"name": "gain", "kind": "number", ..., "edges": [0.0, 3103.0, 7298.0, 99999.0]}     with pieces=3
{"name": "city", "kind": "category", "encoding": "onehot", "levels": ["Bonn", "Rome"], "other": false,
     "indicator": true}
{"name": "seen", "kind": "boolean", "true": "yes", "fill": 0.4, "indicator": false, "words": []}
{"name": "born", "kind": "date", "pattern": "%Y-%m-%d", "fill": 1.1e9, "indicator": false,
 "parts": [{"part": "year", "scale": {...}}, ...]}
{"name": "embedding", "kind": "vector", "length": 2, "method": "standard", "shift": [0.1, 2.0], "divide": [1.0, 0.5]}
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distdl.data.classes import in_order
from distdl.data.table.kinds import ColumnKind
from distdl.data.table.numbers import Numbers
from distdl.data.table.options import TableOptions
from distdl.data.table.profile import Profile
from distdl.data.table.scale import PARTS, date_parts, to_scale

Record = dict[str, Any]
NARROWEST = 1e-9
"""Width of a piece on the scale of its column, above the rounding of its ends."""


def fitted(found: Profile, kind: ColumnKind, options: TableOptions) -> Record:
    """What a column of `x` becomes."""
    name, look = kind.name, found.looks[kind.name]
    record: Record = {"name": name, "kind": kind.kind}
    column = found.index(name)
    gaps = {"indicator": kind.missing > 0, "words": kind.details.get("words", [])}
    if kind.kind == "number":
        scale = scaled(found.numbers, column, options.scale)
        cut = edges(found.numbers.sample(column), scale, options.pieces) if options.pieces else []
        cuts = {"edges": cut} if cut else {}
        return {**record, "fill": _fill(found.numbers, column, options), **gaps, "scale": scale, **cuts}
    if kind.kind == "boolean":
        return {**record, **_boolean(found, kind), **gaps}
    if kind.kind == "category":
        assert look.words is not None
        levels = [word for word, _ in sorted(look.words.counts.items(), key=lambda item: (-item[1], item[0]))]
        other = len(levels) > options.max_categories or look.words.too_many
        levels = in_order(levels[: options.max_categories])
        return {
            **record,
            "encoding": options.categories,
            "levels": levels,
            "other": other,
            "indicator": kind.missing > 0,
        }
    if kind.kind == "date":
        numbers = look.dates
        assert numbers is not None
        pattern = kind.details["pattern"]
        fill = float(numbers.mean[0])
        return {**record, "pattern": pattern, "fill": fill, **gaps, "parts": _parts(numbers, options)}
    assert look.vector is not None and kind.kind == "vector"
    scales = [scaled(look.vector, i, options.scale) for i in range(look.length)]
    told = {key: [scale[key] for scale in scales] for key in ("shift", "divide")}
    return {**record, "length": look.length, "method": options.scale, **told}


def scaled(numbers: Numbers, column: int, method: str) -> Record:
    """The numbers by which those of a column are shifted and divided, by its training rows."""
    shift, divide = 0.0, 1.0
    if method in ("standard", "log"):
        shift, divide = float(numbers.mean[column]), numbers.deviation(column)
    elif method == "minmax" and numbers.count[column]:
        shift, divide = float(numbers.low[column]), float(numbers.high[column] - numbers.low[column])
    elif method == "robust":
        low, shift, high = numbers.quantiles(column, (0.25, 0.5, 0.75))
        divide = high - low or numbers.deviation(column)
    if numbers.constant(column) or not divide > 0:
        divide = 1.0
    return {"method": method, "shift": shift, "divide": divide}


def edges(values: np.ndarray, scale: Record, pieces: int) -> list[float]:
    """Where a column is cut, by a sample of its numbers: at each value that fills a piece by itself, such as the 0 of an
    amount that most have nothing of, and at quantiles of the others. []: fewer than two pieces come of it."""
    different, counts = np.unique(values, return_counts=True)
    often = different[counts * pieces > len(values)]
    others = values[~np.isin(values, often)]
    cuts = np.quantile(others, np.linspace(0, 1, max(2, pieces + 1 - len(often)))) if others.size else []
    found = np.unique(np.concatenate([often, cuts]))
    apart = np.diff(to_scale(found, scale), prepend=-np.inf) > NARROWEST
    return [float(value) for value in found[apart]] if apart.sum() > 2 else []


def _fill(numbers: Numbers, column: int, options: TableOptions) -> float:
    """What stands for an empty value, before it is scaled."""
    if options.missing == "zero":
        return 0.0
    if options.missing == "median":
        return numbers.quantiles(column, (0.5,))[0]
    if options.missing == "most_frequent":
        return numbers.most_frequent(column)
    if numbers.log:
        mean = float(numbers.mean[column])
        return float(np.sign(mean) * np.expm1(abs(mean)))
    return float(numbers.mean[column])


def _boolean(found: Profile, kind: ColumnKind) -> Record:
    true = kind.details.get("true")
    if true is None:
        return {"true": None, "fill": float(found.numbers.mean[found.index(kind.name)])}
    words = found.looks[kind.name].words
    assert words is not None
    rows = sum(words.counts.values())
    return {
        "true": true,
        "false": next((w for w in words.counts if w != true), ""),
        "fill": words.counts[true] / max(rows, 1),
    }


def _parts(seconds: Numbers, options: TableOptions) -> list[Record]:
    """The parts of a date that differ from row to row, and its distance in days; scaled by a sample of the rows."""
    parts = date_parts(seconds.sample(0))
    found = []
    for name in PARTS:
        values = parts[name]
        if not values.size or values.min() == values.max():
            continue
        numbers = Numbers(1)
        numbers.add(values[None], np.arange(len(values)), True)
        method = "none" if options.scale == "none" else "standard"
        found.append({"part": name, "scale": scaled(numbers, 0, method)})
    return found
