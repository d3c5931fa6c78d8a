"""Rows of a table that are not as the others of their columns: found before anything is shared out or fitted.

A column is of a kind by nearly all of its values (`kinds.py`, or the option `kinds`). What then is no number, no date, no
list of the others' length, or no label, makes its row a bad one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.bad_rows import LISTED_ROWS, UNLABELLED, BadRows
from distdl.data.split_values import TIMES, reads_as
from distdl.data.table.kinds import STRANGE, Kind
from distdl.data.table.options import TableOptions
from distdl.data.table.profile import NAMED_STRANGE, Look, Profile
from distdl.data.table.reader import Table, places_of
from distdl.data.table.stream import Part, Without, is_empty, whole_split
from distdl.data.table.values import (
    DATE_FORMATS,
    FLOAT32,
    dates,
    is_number,
    is_text,
    is_vector,
    label_na,
    numbers,
    parse_dates,
    texts,
)
from distdl.errors import InputError

MOST_COLUMNS = 1000
"""A wider table's rows are listed by their wrong values alone."""
LISTED_AT_ONCE = 10_000
FIRST_WORDS = 1000
"""By which is told how times are written."""

Wrong = Callable[[pa.Array], np.ndarray]


@dataclass(frozen=True)
class Check:
    """What makes a value of a column a bad one."""

    column: str
    reason: str
    what: str
    """The end of a sentence: the column has the value '...', which is no number."""
    wrong: Wrong


class Nowhere(Without):
    """A table that is not asked where a row is: that may be a pass over its file."""

    def __init__(self, table: Table) -> None:
        super().__init__(table, np.empty(0, np.int64))

    def place(self, row: int) -> str:
        return ""


def without_bad(
    table: Table, options: TableOptions, given: Mapping[str, Kind], apart: Sequence[str], bad: BadRows
) -> Table:
    """The table without its bad rows, which are set aside. `apart`: columns that rows are shared out by."""
    answer, na = options.label or options.target, ("", *options.na)
    names = list(options.features) or [name for name in table.names if name not in options.drop]
    names = list(dict.fromkeys([*names, *apart, *([answer] if answer else [])]))
    of_text = {name for name in names if is_text(table.schema.field(name).type)}
    as_words = [name for name, kind in given.items() if kind == "boolean" or (kind == "date" and name in of_text)]
    as_words = [name for name in as_words if name in names]
    found = Profile(table.schema, names, na, as_words, label=options.label, date_format=options.date_format)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in whole_split(table, names, "train"):
            found.add(part)
    checks = list(_checks(found, table, options, given, bad, apart))
    sound = _without(table, checks, bad) if checks else table
    bad.check(found.rows - (len(sound.left_out) if isinstance(sound, Without) and sound is not table else 0))
    return sound


def without_empty(table: Table, names: Sequence[str], na: Sequence[str], bad: BadRows) -> Table:
    """The table without rows in which one of these columns is empty."""
    checks = [Check(name, "empty value", "which says nothing", lambda v: is_empty(v, na)) for name in names]
    return _without(table, checks, bad)


def without_odd(table: Table, names: list[str], attempt: Callable[[Part], object], bad: BadRows) -> Table:
    """The table without rows that an attempt refuses, each of which is set aside."""
    rows: list[int] = []
    for part in whole_split(table, names, ""):
        odd = list(refused(part, attempt))
        rows += [row for row, _ in odd]
        batch = part.batch.take(pa.array([row - part.rows[0] for row, _ in odd], pa.int64()))
        contents = [_content(batch, i) for i in range(len(odd))]
        for (_, error), where, content in zip(odd, places_of(table, [row for row, _ in odd]), contents, strict=True):
            bad.refused(where, error, content, reason="does not fit")
    return Without(table, np.array(rows, np.int64)) if rows else table


def refused(part: Part, attempt: Callable[[Part], object]) -> Iterator[tuple[int, InputError]]:
    """The rows of a part that an attempt refuses, and why, found by halves."""
    try:
        attempt(part)
    except InputError as error:
        if len(part.rows) == 1:
            yield int(part.rows[0]), error
            return
        middle = len(part.rows) // 2
        for half in (slice(0, middle), slice(middle, None)):
            rows = part.rows[half]
            yield from refused(Part(part.split, rows, part.batch.slice(half.start, len(rows))), attempt)


def _checks(
    found: Profile, table: Table, options: TableOptions, given: Mapping[str, Kind], bad: BadRows, apart: Sequence[str]
) -> Iterator[Check]:
    """What is to be looked at in every row: nothing where the columns hold what they should."""
    na = ("", *options.na)
    for name, look in found.looks.items():
        if name in apart:
            if look.missing:
                yield Check(name, "empty value", "and rows are shared out by it", lambda v: is_empty(v, ("",)))
            if name == options.split_time and is_text(look.type):
                yield Check(name, "no time", "which is no time as those of other rows", _no_time(table, name))
        elif name == options.label:
            yield from _of_label(look, table, options)
        elif name == options.target:
            if look.strange or _too_large(found, name):
                yield _number(name, na)
            if options.unlabelled == "refuse" and look.missing:
                yield Check(name, UNLABELLED, "which says nothing", lambda v: is_empty(v, na))
        elif name not in options.drop:
            yield from _of_feature(found, look, table, options, given.get(name), bad)


def _no_time(table: Table, name: str) -> Wrong:
    """Where a text is not read as most of the first ones are, when rows are shared out by time."""
    first = next((batch.column(0) for batch in table.batches([name]) if batch.num_rows), pa.array([], pa.string()))
    ways = Counter(map(reads_as, texts(first.slice(0, FIRST_WORDS), ("",)).to_pylist()))
    usual = next((way for way, _ in ways.most_common() if way), "")

    def wrong(column: pa.Array) -> np.ndarray:
        words = texts(column, ("",))
        with suppress(pa.ArrowInvalid, KeyError):
            pc.cast(words, TIMES[usual])
            return np.zeros(len(words), bool)
        odd = [word for word in pc.unique(words).to_pylist() if reads_as(word) != usual]
        return np.asarray(pc.is_in(words, value_set=pa.array(odd, pa.string())).to_numpy(zero_copy_only=False))

    return wrong


def _of_label(look: Look, table: Table, options: TableOptions) -> Iterator[Check]:
    na = label_na(("", *options.na))
    if options.unlabelled == "refuse":
        yield Check(look.name, UNLABELLED, "which says nothing", lambda v: is_empty(v, na))
    if look.name in table.classes:
        most = len(table.classes[look.name])

        def no_class(column: pa.Array) -> np.ndarray:
            (values,), strange = numbers([column], na)
            wrong = ~np.isnan(values) & ~((values >= 0) & (values < most) & (values == np.trunc(values)))
            return wrong | strange.get(0, np.zeros(len(wrong), bool))

        yield Check(look.name, "no class", f"which is not the number of a class, 0 to {most - 1}", no_class)


def _of_feature(
    found: Profile, look: Look, table: Table, options: TableOptions, asked: Kind | None, bad: BadRows
) -> Iterator[Check]:
    na, name = ("", *options.na), look.name
    if is_vector(look.type):
        if asked in (None, "vector") and (check := _vector(look, table)):
            yield check
    elif asked == "boolean":
        assert look.words is not None
        if len(look.words.counts) > 2:
            two = [word for word, _ in look.words.counts.most_common(2)]
            yield Check(name, "no boolean", f"which is neither {two[0]!r} nor {two[1]!r}", _others(two, na))
    elif asked == "date" or (asked is None and is_text(look.type) and look.words and not _is_of_numbers(look, bad)):
        pattern = options.date_format if asked == "date" and options.date_format else _usual(look, asked == "date", bad)
        if pattern:
            yield Check(name, "no date", f"which is no date as {pattern}", lambda v: dates(v, pattern, na)[1])
    elif is_number(look.type) or is_text(look.type):
        wanted = asked == "number" or (asked is None and _is_of_numbers(look, bad))
        if wanted and (look.strange or _too_large(found, name)):
            yield _number(name, na)


def _is_of_numbers(look: Look, bad: BadRows) -> bool:
    """Whether a column holds numbers but for a few values: a few words again and again, or no more than may be bad."""
    every = look.numbers + look.strange
    few = len(look.strange_words) <= NAMED_STRANGE or look.strange <= bad.at_most * every
    return bool(look.numbers) and look.strange <= STRANGE * every and few


def _too_large(found: Profile, name: str) -> bool:
    column, of = found.index(name), found.numbers
    ends = np.array([of.low[column], of.high[column]])
    return bool((np.abs(ends[np.isfinite(ends)]) > FLOAT32).any())


def _number(name: str, na: Sequence[str]) -> Check:
    def wrong(column: pa.Array) -> np.ndarray:
        (values,), strange = numbers([column], na)
        with np.errstate(invalid="ignore"):
            large = np.abs(values) > FLOAT32
        return large | strange.get(0, np.zeros(len(values), bool))

    return Check(name, "no finite number", "which is not a finite number of 32 bits", wrong)


def _others(two: list[str], na: Sequence[str]) -> Wrong:
    def wrong(column: pa.Array) -> np.ndarray:
        words = texts(column, na)
        other = pc.and_(pc.is_valid(words), pc.invert(pc.is_in(words, value_set=pa.array(two, pa.string()))))
        return np.asarray(other.to_numpy(zero_copy_only=False))

    return wrong


def _usual(look: Look, asked: bool, bad: BadRows) -> str:
    """The pattern of a date that nearly all words of a column have, or where dates are asked for, most; or ''."""
    words = look.words
    if words is None or not words.counts or (words.formats and not words.other):
        return ""  # all of them are dates, or none is a word
    distinct, counts = pa.array(list(words.counts), pa.string()), np.array(list(words.counts.values()))
    least = (0.5 if asked else 1 - bad.at_most) * counts.sum()
    fits = {
        pattern: int(counts[parse_dates(distinct, pattern).is_valid().to_numpy(zero_copy_only=False)].sum())
        for pattern in DATE_FORMATS
    }
    best = max(fits, key=lambda pattern: fits[pattern])
    return best if fits[best] >= max(1, least) else ""


def _vector(look: Look, table: Table) -> Check | None:
    """The check of lists of numbers: of the length that most have, and finite throughout. None: they are sound, or of many
    lengths."""
    of = look.vector
    ends = np.concatenate([of.low, of.high]) if of else np.zeros(0)
    if of and not look.strange and (np.abs(ends) <= FLOAT32).all() and of.count.min() == look.rows:
        return None
    first = next(batch.column(0) for batch in table.batches([look.name]) if batch.num_rows)
    lengths = Counter(pc.fill_null(pc.list_value_length(first), -1).to_pylist())
    length, rows = lengths.most_common(1)[0]
    if length < 1 or rows < (1 - STRANGE) * len(first):
        return None

    def wrong(column: pa.Array) -> np.ndarray:
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        out = lengths != length
        fits = np.flatnonzero(~out)
        values = column.take(pa.array(fits)).flatten()
        flat = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, length)
        out[fits] = ~(np.abs(flat) <= FLOAT32).all(1)
        return np.asarray(out)

    return Check(look.name, "no vector", f"which is no list of {length} finite numbers", wrong)


def _without(table: Table, checks: Sequence[Check], bad: BadRows) -> Table:
    """The table without the rows that a check finds; each is set aside by the first one that does."""
    names = list(dict.fromkeys(check.column for check in checks))
    names = names if len(table.names) > MOST_COLUMNS else table.names
    rows: list[int] = []
    waiting: list[tuple[int, Check, Any, str]] = []
    for part in whole_split(table, names, ""):
        first = np.full(len(part.rows), len(checks))
        for number, check in reversed(list(enumerate(checks))):
            first[check.wrong(part.batch.column(names.index(check.column)))] = number
        for i in np.flatnonzero(first < len(checks)).tolist():
            check = checks[first[i]]
            value = part.batch.column(names.index(check.column))[i].as_py()
            waiting.append((int(part.rows[i]), check, value, _content(part.batch, i)))
            rows.append(int(part.rows[i]))
        if len(waiting) >= LISTED_AT_ONCE:
            _list(table, waiting, bad)
    _list(table, waiting, bad)
    return Without(table, np.array(rows, np.int64)) if rows else table


def _list(table: Table, waiting: list[tuple[int, Check, Any, str]], bad: BadRows) -> None:
    places = places_of(table, [row for row, *_ in waiting])
    for where, (_, check, value, content) in zip(places, waiting, strict=True):
        what = f"the column '{check.column}' has the value {value!r:.60}, {check.what}"
        bad.add(where, what, reason=check.reason, column=check.column, content=content)
    waiting.clear()


def list_unlabelled(table: Table, rows: Sequence[int], name: str, bad: BadRows) -> None:
    """Lists the rows (in rising order) without a label, which another option leaves out."""
    listed, what = (
        np.array(rows[:LISTED_ROWS], np.int64),
        f"the column '{name}' is empty: unlabelled=drop leaves it out",
    )
    contents: list[str] = []
    for part in whole_split(table, [name] if len(table.names) > MOST_COLUMNS else table.names, ""):
        here = listed[(listed >= part.rows[0]) & (listed <= part.rows[-1])] - part.rows[0]
        contents += [_content(part.batch, i) for i in here.tolist()]
        if len(contents) == len(listed):
            break
    for where, content in zip(places_of(table, listed.tolist()), contents, strict=True):
        bad.add(where, what, reason=UNLABELLED, column=name, content=content, asked=True)
    bad.asked[UNLABELLED] += len(rows) - len(listed)


def _content(batch: pa.RecordBatch, row: int) -> str:
    """A row as its columns and values, whatever these are."""
    values = batch.slice(row, 1).to_pylist()[0]
    short = {name: f"{len(v):,} bytes" if isinstance(v, bytes) else v for name, v in values.items()}
    return json.dumps(short, ensure_ascii=False, default=str)
