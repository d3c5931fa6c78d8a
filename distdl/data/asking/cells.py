"""Rows of a table as programs send them, in JSON: objects whose keys are the columns."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from distdl.data.asking.open import Rows
from distdl.data.asking.question import Question
from distdl.data.asking.sent import FEW, missing, object_of, picture_of, picture_told, shown
from distdl.data.asking.tables import of_table
from distdl.data.table.vectors import numbers_of
from distdl.errors import InputError


class OfTable:
    """Objects whose keys are the columns of the table that was learned from."""

    def __init__(self, record: Mapping[str, Mapping[str, Any]], unknown: str) -> None:
        of_x = record["x"]
        self.record, self.unknown = {**record, "x": {**of_x, "rename": {}}}, unknown
        self.na, self.features = tuple(of_x["na"]), list(of_x["features"])
        self.null = of_x["missing"] != "refuse"
        self.old = {new: old for old, new in of_x.get("rename", {}).items()}
        """Name of a column -> what its file called it."""
        self.image = str(record.get("image", {}).get("name", ""))
        self.levels = {f["name"]: frozenset(f["levels"]) for f in self.features if f["kind"] == "category"}
        names = [feature["name"] for feature in self.features]
        names += [self.image] if self.image and self.image not in names else []
        answers = [record[key]["name"] for key in ("label", "y") if "name" in record.get(key, {})]
        self.known = {*names, *answers, *self.old.values()}
        self.names = [self.old.get(name, name) for name in names]

    def read(self, row: Any) -> tuple[dict[str, Any], list[str]]:
        row = object_of(row, self.names)
        strange = [key for key in row if key not in self.known]
        notes = [f"'{key}' is no column that the model reads, and is left alone" for key in strange]
        found: dict[str, Any] = {}
        for feature in self.features:
            value = self._value(row, feature["name"], strange)
            found[feature["name"]] = self._cell(feature, value, notes)
        if self.image:
            found[self.image] = picture_of(self.image, self._value(row, self.image, strange))
        return found, notes

    def _value(self, row: Mapping[str, Any], name: str, strange: Sequence[str]) -> Any:
        """By the name that the column had in its file, or has since."""
        old = self.old.get(name, name)
        if old in row:
            return row[old]
        if name in row:
            return row[name]
        raise missing(old, self.names, strange, self.null)

    def _cell(self, feature: Mapping[str, Any], value: Any, notes: list[str]) -> Any:
        name, kind = feature["name"], feature["kind"]
        if value is None:
            return None
        if kind == "vector":
            return vector_of(name, value)
        if isinstance(value, list | dict):
            raise InputError(f"the column '{name}' has the value {shown(value)}", allowed=allowed_of(feature))
        if kind == "number" or (kind == "boolean" and feature["true"] is None):
            return value if isinstance(value, str) else number_of(name, value)
        if kind == "date":
            return date_of(feature, value)
        word = word_of(value)
        if kind == "category" and (text := word.strip()) not in self.levels[name] and text not in self.na:
            self._strange_word(feature, text, notes)
        return word

    def _strange_word(self, feature: Mapping[str, Any], word: str, notes: list[str]) -> None:
        """A word of a category that training did not see: it counts as the rare ones, where these were put together."""
        what = f"the column '{feature['name']}' has the value '{word:.60}', which is none of those learned from"
        if not feature["other"] and self.unknown == "refuse":
            fix = "null where it is not known; a server started with --unknown answer takes it for an unknown one"
            raise InputError(what, allowed=", ".join(feature["levels"][:FEW]), fix=fix)
        notes.append(f"{what}, and counts as {'others' if feature['other'] else 'unknown'}")

    def questions(self, rows: Sequence[dict[str, Any]]) -> Iterable[Question]:
        columns = {f["name"]: _array(f, [row[f["name"]] for row in rows]) for f in self.features}
        if self.image:
            columns[self.image] = pa.array([row[self.image] for row in rows], pa.binary())
        return of_table(self.record, Rows(pa.table(columns)), notes=False)  # `read` has told them

    def columns(self) -> list[dict[str, Any]]:
        found = []
        for feature in self.features:
            name = self.old.get(feature["name"], feature["name"])
            told = {"name": name, "kind": feature["kind"], "null": self.null and feature["kind"] != "vector"}
            if feature["kind"] == "category":
                told |= {"classes": list(feature["levels"]), "others": bool(feature["other"])}
            elif feature["kind"] == "boolean":
                told["values"] = [0, 1] if feature["true"] is None else [feature["false"], feature["true"]]
            elif feature["kind"] == "date":
                told["format"] = feature["pattern"] or "ISO 8601"
            elif feature["kind"] == "vector":
                told["length"] = feature["length"]
            found.append(told)
        if self.image:
            found.append({"name": self.old.get(self.image, self.image), **picture_told(self.record["image"])})
        return found

    def example(self) -> Any:
        return None if self.image else dict(zip(self.names, map(example_of, self.features)))


def allowed_of(feature: Mapping[str, Any]) -> str:
    """What a cell may hold, in words."""
    kind = feature["kind"]
    if kind == "category":
        return ", ".join(feature["levels"][:FEW])
    if kind == "boolean":
        return "0 and 1" if feature["true"] is None else f"{feature['false']!r} and {feature['true']!r}"
    if kind == "date":
        return f"a date in words, as {feature['pattern'] or '2024-05-17'}"
    return "a number"


def example_of(feature: Mapping[str, Any]) -> Any:
    """A value that is as likely as any."""
    kind = feature["kind"]
    if kind == "category":
        return feature["levels"][0] if feature["levels"] else None
    if kind == "boolean":
        return 1 if feature["true"] is None else feature["true"]
    if kind == "date":
        when = datetime.datetime.fromtimestamp(feature["fill"], datetime.timezone.utc)
        return when.strftime(feature["pattern"] or "%Y-%m-%dT%H:%M:%S")
    if kind == "vector":
        return [float(f"{value:.4g}") for value in feature["shift"]]
    return float(f"{feature['fill']:.4g}")


def number_of(name: str, value: Any) -> float:
    """InputError: it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"the column '{name}' has the value {shown(value)}", allowed="a finite number") from None


def word_of(value: Any) -> str:
    """A value as the word that it is in a table."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(pa.scalar(value, pa.float64()).cast(pa.string()).as_py())
    return str(value)


def date_of(feature: Mapping[str, Any], value: Any) -> Any:
    """Words as they are, where their pattern is known; else a point in time. InputError: it is none."""
    if isinstance(value, str) and feature["pattern"]:
        return value
    try:
        when = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        what = f"the column '{feature['name']}' has the value {shown(value)}, which is no date"
        raise InputError(what, allowed=allowed_of(feature)) from None
    return when.astimezone(datetime.timezone.utc).replace(tzinfo=None) if when.tzinfo else when


def vector_of(name: str, value: Any) -> list[float]:
    """InputError: it is no list of numbers."""
    if isinstance(value, str) and (read := numbers_of(value)) is not None:
        value = read.tolist()
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
        raise InputError(f"the column '{name}' has the value {shown(value)}", allowed="a list of numbers")
    return [number_of(name, item) for item in value]


def _array(feature: Mapping[str, Any], cells: list[Any]) -> pa.Array:
    """Cells of one column. Numbers are read from words and as such to the same bits, so that one row's word changes nothing
    for the others."""
    kind = feature["kind"]
    if kind == "vector":
        return pa.array(cells, pa.list_(pa.float64()))
    if kind == "date" and not feature["pattern"]:
        return pa.array(cells, pa.timestamp("us"))
    if any(isinstance(cell, str) for cell in cells):
        return pa.array([repr(cell) if isinstance(cell, float) else cell for cell in cells], pa.string())
    of_numbers = kind == "number" or (kind == "boolean" and feature["true"] is None)
    return pa.array(cells, pa.float64() if of_numbers else pa.string())
