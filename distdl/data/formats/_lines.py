"""What the first lines of a table in text say: what stands between two values, and whether they begin with names."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from distdl.data.raw import open_raw

LINES = 20
LOOKED_AT_BYTES = 1 << 20
DELIMITERS = (",", "\t", ";", "|")
EMPTY = ("", "?", "na", "nan", "null")


def is_table(path: Path) -> bool:
    """Whether the first lines of a file of whatever name are cut into the same number of values, two or more, and one of
    the columns holds numbers: prose may have as many commas in each line."""
    lines = _first_lines(path) if path.is_file() else []
    if len(lines) < 2 or any("\0" in line or "\ufffd" in line for line in lines):
        return False
    rows = list(csv.reader(lines, delimiter=_delimiter(lines)))
    if len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return False
    return any(all(_is_number(value) for value in column) for column in zip(*rows[1:]))


def told_by_lines(path: str) -> dict[str, Any]:
    """The options of a file of values: `delimiter` where it is no comma, `names` where the first line has none."""
    lines = _first_lines(path)
    if not lines:
        return {}
    best = _delimiter(lines)
    options: dict[str, Any] = {} if best == "," else {"delimiter": "tab" if best == "\t" else best}
    first = [value.strip() for value in next(csv.reader(lines, delimiter=best))]
    if any(_is_number(value) for value in first) and not _names_numbers(first, lines[1:], best):
        options["names"] = [f"column_{i}" for i in range(1, len(first) + 1)]
    return options


def _first_lines(path: str | Path) -> list[str]:
    """Without the last, which may be cut off, where a file is longer than what is looked at."""
    with open_raw(path) as file:
        block = file.read(LOOKED_AT_BYTES)
    lines = block.decode("utf-8-sig", "replace").splitlines()
    lines = lines[:-1] if len(block) == LOOKED_AT_BYTES and len(lines) > 1 else lines
    return [line for line in lines if line.strip()][:LINES]


def _widths(lines: list[str], mark: str) -> set[int]:
    return {len(row) for row in csv.reader(lines, delimiter=mark)}


def _delimiter(lines: list[str]) -> str:
    """The one that cuts every line into the same number of values, and into the most of them."""

    def fit(mark: str) -> tuple[bool, int]:
        widths = _widths(lines, mark)
        return (len(widths) == 1, max(widths)) if max(widths) > 1 else (False, 0)

    return max(DELIMITERS, key=fit)


def _names_numbers(first: list[str], below: list[str], mark: str) -> bool:
    """Whether a line with numbers in it is one of names all the same: years, say, above columns that never have them."""
    words = [i for i, value in enumerate(first) if not _is_number(value) and value.lower() not in EMPTY]
    rows = [row for row in csv.reader(below, delimiter=mark) if len(row) == len(first)]
    return bool(rows) and any(all(_is_number(row[i]) for row in rows) for i in words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in EMPTY
