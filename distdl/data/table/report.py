"""What is told of a table that was prepared: one row for each column, and what is worth knowing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from distdl.data import bad_rows
from distdl.data.classes import same_numbers
from distdl.data.table.encode import outputs
from distdl.data.table.kinds import ColumnKind
from distdl.data.table.profile import Look, Profile
from distdl.data.table.reader import Table
from distdl.data.table.stream import Kept

MOST_ROWS = 60
"""Rows of the table that are printed; beyond it neighbours of one kind become one row."""
MOST_KEPT = 1_000
"""The same of the manifest."""
MANY_CLASSES = 50
MERGED_ROWS, MERGED = 100, 0.01
"""Part of a sample of fractions that may fall together in 32 bits: some always do."""


def rows_of_kinds(
    kinds: Sequence[ColumnKind],
    features: Sequence[Mapping[str, Any]],
    preparation: Mapping[str, Any],
    answer: str,
    found: Profile,
) -> list[dict[str, Any]]:
    """Column, kind, what becomes of it, empty values, and what is said of it; as plain values for the manifest."""
    made = {feature["name"]: feature for feature in features}
    rows = [
        {
            "column": kind.name,
            "kind": kind.kind,
            "becomes": _becomes(made[kind.name])
            if kind.name in made
            else _pixels(preparation["image"])
            if kind.name == preparation.get("image", {}).get("name")
            else "left out",
            "missing": kind.missing,
            "told": kind.told,
        }
        for kind in kinds
    ]
    if answer:
        label = preparation.get("label")
        scale = preparation["y"]["scale"] if not label else {}
        becomes = f"label: {len(label['classes'])} classes" if label else f"y: {_scale(scale)}"
        rows.append(
            {"column": answer, "kind": "target", "becomes": becomes, "missing": found.looks[answer].missing, "told": ""}
        )
    return rows if len(rows) <= MOST_KEPT else list(_grouped(rows))


def _becomes(feature: Mapping[str, Any]) -> str:
    count, kind = len(outputs(feature)), feature["kind"]
    if kind == "number":
        told = _scale(feature["scale"])
        told += f", and {len(feature['edges']) - 1} pieces" if "edges" in feature else ""
    elif kind == "boolean":
        told = "0 or 1"
    elif kind == "category":
        told = (
            f"{len(feature['levels'])} words" if feature["encoding"] == "onehot" else f"1 to {len(feature['levels'])}"
        )
    elif kind == "date":
        told = ", ".join(part["part"] for part in feature["parts"])
    else:
        told = f"{feature['length']} numbers"
    return told + (f" ({count} columns)" if count > 1 else "")


def _pixels(record: Mapping[str, Any]) -> str:
    return f"image: pixels, {record['channels']} x {record['size'][0]} x {record['size'][1]}"


def _scale(scale: Mapping[str, Any]) -> str:
    if scale["method"] == "none":
        return "as it is"
    return f"{scale['method']}: (x - {scale['shift']:.6g}) / {scale['divide']:.6g}".replace("log: (x", "log: (log x")


def unlabelled_note(gap: Kept, answer: str) -> str:
    """What is said of rows that were left out."""
    count, first = len(gap.left_out), gap.table.place(gap.left_out[0])
    return f"{count:,} rows have no '{answer}' and are left out (the first: {first}); unlabelled=refuse stops there"


def notes_of_label(look: Look, classes: Sequence[str]) -> Iterator[str]:
    """What looks odd about the classes."""
    for group in same_numbers(classes):
        yield f"the classes {', '.join(group)} are the same number, and stay classes of their own"
    if len(classes) == 1:
        yield f"there is one class alone, {classes[0]!r}: nothing is to be told apart"
    if len(classes) > MANY_CLASSES and all(_is_number(name) for name in classes):
        yield f"'{look.name}' has {len(classes):,} classes that are numbers: to predict a number, say target={look.name}"
    if look.missing:
        yield f"{look.missing:,} rows have no '{look.name}': their label is -100, which counts nowhere"


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def notes_of_numbers(found: Profile, records: Sequence[Mapping[str, Any]], table: Table) -> Iterator[str]:
    """Numbers that fall together as float32, in which they are stored."""
    for record in records:
        if record["kind"] != "number" or record["scale"]["method"] == "log":
            continue
        name, scale, numbers = record["name"], record["scale"], found.numbers
        column = found.index(name)
        ends = ((numbers.low[column], numbers.low_row[column]), (numbers.high[column], numbers.high_row[column]))
        value, row = max(ends, key=lambda end: abs(end[0] - scale["shift"]))
        if numbers.whole[column]:
            step = float(np.spacing(np.float32(abs(value - scale["shift"]) / scale["divide"]))) * scale["divide"]
            step = max(step, float(np.spacing(abs(value))))
            if step > 1:
                yield (
                    f"'{name}' has whole numbers as {value:.0f} ({table.place(int(row))}): in 32 bits those that are "
                    f"less than {step:.3g} apart become one there; drop={name} leaves it out"
                )
        elif (
            numbers.count[column] > MERGED_ROWS
            and (lost := numbers.merged(column, scale["shift"], scale["divide"]))
            and lost[1] < lost[0] * (1 - MERGED)
        ):
            yield (
                f"'{name}' has {lost[0]:,} different values in a sample and {lost[1]:,} in 32 bits: beside {value:g} "
                f"the others look alike (one of them: {table.place(lost[2])}); scale=log or robust keeps them apart"
            )


def told(info: Mapping[str, Any]) -> list[str]:
    """All that a preparation has to tell, of a manifest's info, as lines for a person: what became of each column of a
    table, what else was guessed, cut or left out, and the rows that were set aside."""
    notes = [f"note: {note}" for note in info.get("notes", [])]
    return [*render(info), *notes, *bad_rows.told(info)]


def render(info: Mapping[str, Any]) -> list[str]:
    """The table of kinds in a manifest's info, as lines for a person; [] where there is none."""
    rows = list(_grouped(info.get("kinds", ())))
    if not rows:
        return []
    head = ("column", "kind", "becomes", "empty", "")
    cells = [
        (
            row["column"] or "(no name)",
            row["kind"],
            row["becomes"],
            f"{row['missing']:,}" if row["missing"] else "",
            row["told"],
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(4)]
    lines = []
    for line in (head, *cells):
        padded = [cell.ljust(width) for cell, width in zip(line, widths)]
        lines.append("  ".join([*padded, line[4]]).rstrip())
    return lines


def _grouped(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if len(rows) <= MOST_ROWS:
        yield from rows
        return
    for (kind, told), group in groupby(rows, key=lambda row: (row["kind"], row["told"])):
        same = list(group)
        if len(same) < 3:
            yield from same
            continue
        missing = sum(row["missing"] for row in same)
        first, last = same[0]["column"], same[-1]["column"]
        becomes = "left out" if same[0]["becomes"] == "left out" else "as the others of its kind"
        yield {
            "column": f"{first} to {last} ({len(same):,})",
            "kind": kind,
            "becomes": becomes,
            "missing": missing,
            "told": told,
        }
