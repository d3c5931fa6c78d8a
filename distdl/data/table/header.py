"""Whether the first line of a table in text holds the names of its columns, or is its first row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

EMPTY = ("", "?", "-", "--", ".", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "nat", "null", "none")
"""What stands where a value is missing, in small letters."""
MOSTLY = 0.9
YEARS = (1700, 2200)
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?|[+-]?\d{1,3}([.,' ]\d{3})+([.,]\d+)?|[+-]?inf")


def is_number(text: str) -> bool:
    """Whether a value is a number in one of the ways that people write them."""
    return _NUMBER.fullmatch(text.strip().lower()) is not None


def has_header(records: Sequence[Sequence[str]]) -> tuple[bool, float, str]:
    """(it does, how sure that is from 0.5 to 1, why) of the first record, from those below it.

    Words above a column of numbers are names. Numbers above numbers are none, and nor are words that stand below, too,
    in columns whose values come again and again. Numbers that count up (0, 1, 2, … or years) may be names, and so may
    numbers that rise above rows that each have a name: those of a table of counts.
    """
    first = [value.strip() for value in records[0]]
    rest = [record for record in records[1:] if len(record) == len(first)]
    numbers = [is_number(value) for value in first]
    if not rest:
        alone = "no other line has as many values"
        return (False, 0.8, f"it is all numbers, and {alone}") if all(numbers) else (True, 0.6, alone)
    words_above_numbers: list[str] = []
    numbers_above_numbers: list[str] = []
    known: list[str] = []
    new: list[str] = []
    for i, value in enumerate(first):
        below = [row[i].strip() for row in rest if row[i].strip().lower() not in EMPTY]
        if not below or value.lower() in EMPTY:
            continue
        if sum(map(is_number, below)) >= MOSTLY * len(below):
            (numbers_above_numbers if numbers[i] else words_above_numbers).append(value)
        elif len(distinct := set(below)) <= len(below) / 2:
            (known if value in distinct else new).append(value)
    if _counts_up([value for value in first if is_number(value)], all(numbers), rest):
        return True, 0.8, "its numbers count up"
    if _numbered(first, rest) and not known:
        return True, 0.8, "its numbers count up, beside a word that no row has"
    if _names_rows(first, rest):
        return True, 0.8, "its first value alone is empty, and its numbers rise"
    if numbers and all(numbers):
        return False, 1.0, "its first line is all numbers"
    if words_above_numbers and not numbers_above_numbers:
        return True, 1.0, f"'{words_above_numbers[0]}' stands above numbers"
    if numbers_above_numbers and not words_above_numbers:
        also = f", and '{known[0]}' is a value of its own column" if known else ""
        return False, 1.0, f"'{numbers_above_numbers[0]}' stands above other numbers{also}"
    if numbers_above_numbers:
        names = len(words_above_numbers) > len(numbers_above_numbers)
        return names, 0.6, "there are words and numbers in it, above numbers"
    if known and len(known) >= len(new):
        return False, 0.9, f"'{known[0]}' is a value of its own column"
    return (True, 0.9, f"'{new[0]}' is no value of its own column") if new else (True, 0.5, "nothing tells what it is")


def _counts_up(values: list[str], all_numbers: bool, rest: Sequence[Sequence[str]]) -> bool:
    """Whether numbers in a first line are names: 0, 1, 2, … without words beside them; or years, above other numbers."""
    if len(values) < 2 or not all(value.isdigit() for value in values):
        return False
    found = [int(value) for value in values]
    if len({b - a for a, b in itertools.pairwise(found)}) != 1 or found[0] == found[1]:
        return False
    if all_numbers and found[0] in (0, 1) and found[1] == found[0] + 1 and len(found) > 3:
        return True
    years = all(YEARS[0] <= number <= YEARS[1] for number in found)
    cells = [cell.strip() for row in rest for cell in row if is_number(cell)]
    return years and not all(cell.isdigit() and YEARS[0] <= int(cell) <= YEARS[1] for cell in cells)


def _numbered(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether a first line is 0, 1, 2, … (or 1, 2, 3, …) and then names, as pandas writes columns without names beside one
    that has one: `0,1,2,y`. No row below counts so."""

    def counts(cells: Sequence[str]) -> bool:
        return [cell.strip() for cell in cells[:count]] in ([str(i + begin) for i in range(count)] for begin in (0, 1))

    words = [not is_number(value) and value.lower() not in EMPTY for value in first]
    count = words.index(True) if True in words else 0
    return count > 2 and all(words[count:]) and counts(first) and not any(counts(row) for row in rest)


def _names_rows(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether numbers in a first line are names: nothing stands above the names of the rows, and the numbers rise."""
    below = [row[0].strip() for row in rest]
    if len(first) < 4 or first[0] or "" in below or len(set(below)) < len(below):
        return False
    try:
        values = [float(value) for value in first[1:]]
    except ValueError:
        return False
    return all(b > a for a, b in itertools.pairwise(values))
