"""What a column of a table is taken for: guessed from its values, or as the option `kinds` says.

number      standardised, or as `scale` says             boolean     0 and 1
category    one column of `x` for each of its words      date        its parts, and how long ago
vector      a list of numbers of one length              text, id, group, constant, empty: left out
image path  names of pictures: with `size=` the column `image` (pixels.py), without it left out
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from distdl.data.table.options import TableOptions
from distdl.data.table.profile import Look, Profile
from distdl.data.table.reader import Table
from distdl.data.table.values import FLOAT32, is_date, is_file, is_number, is_text, is_vector
from distdl.errors import InputError, Problem, did_you_mean

Kind = Literal[
    "number",
    "category",
    "boolean",
    "date",
    "vector",
    "text",
    "id",
    "image path",
    "group",
    "constant",
    "empty",
    "nested",
]
USED = ("number", "category", "boolean", "date", "vector")
SETTABLE = (*USED, "text", "id", "image path", "group")
_PIXELS = "names of pictures: size=HEIGHTxWIDTH makes pixels of them"
STRANGE = 0.05
"""Part of a column's values that may be no numbers before it is one of words."""
FEW_LEVELS = 20
"""So many words are a category even where each stands but once or twice."""
_ID = re.compile(r"|unnamed: \d+|index|idx|row_?names?|uuid|guid|(.*[_ .-])?(id|ids|row|key)|[A-Za-z0-9]*(Id|ID)")
_TRUE_FALSE = {("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"), ("off", "on")}


@dataclass(frozen=True)
class ColumnKind:
    """A column, and what becomes of it."""

    name: str
    kind: Kind
    missing: int = 0
    """Rows without a value."""
    told: str = ""
    """What a reader should know: why it is left out, what was guessed, merged or taken for empty."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the encoder needs: `pattern` of a date, `words` taken for empty, `true` of a boolean."""

    @property
    def used(self) -> bool:
        """Whether it becomes a part of `x`."""
        return self.kind in USED


def given_kinds(options: TableOptions, names: Sequence[str], where: str) -> dict[str, Kind]:
    """The option `kinds`. InputError lists all that is wrong with it."""
    given: dict[str, Any] = {}
    problems = []
    for entry in options.kinds:
        name, colon, kind = entry.rpartition(":")
        kind = kind.strip().replace("_", " ")
        if not colon or kind not in SETTABLE:
            problems.append(Problem(f"kinds={entry!r}", allowed=f"column:kind, where kind is {', '.join(SETTABLE)}"))
        elif name not in names:
            problems.append(
                Problem(f"{where} has no column '{name}', which kinds= names", fix=did_you_mean(name, names))
            )
        elif given.setdefault(name, kind) != kind:
            problems.append(Problem(f"kinds= says of '{name}' that it is a {given[name]} and a {kind}"))
    if problems:
        raise InputError(*problems)
    return given


def kind_of(found: Profile, name: str, table: Table, options: TableOptions, asked: Kind | None) -> ColumnKind:
    """What a column is taken for. `asked`: what the options say. InputError: its values are not of that kind."""
    look = found.looks[name]
    if asked is None and look.missing == look.rows:
        return ColumnKind(name, "empty", look.missing, "no row has a value")
    if asked is not None:
        return _as_asked(found, look, table, options, asked)
    if is_vector(look.type):
        return _vector(look, table)
    if (is_date(look.type) or _is_dated(look)) and look.dates and look.dates.constant(0) and not look.missing:
        return ColumnKind(name, "constant", 0, "always the same date")
    if is_date(look.type):
        return ColumnKind(name, "date", look.missing, details={"pattern": ""})
    if is_file(look.type) and options.size:
        return ColumnKind(name, "image path", look.missing)
    if not is_text(look.type) and not is_number(look.type):
        return ColumnKind(name, "nested", look.missing, f"{look.type}, which is no number, word or date")
    if name in table.classes:
        return ColumnKind(name, "category", look.missing)
    if look.strange <= STRANGE * (look.numbers + look.strange) and look.numbers:
        return _number(found, look, table, options)
    return _of_words(look, options)


def _is_dated(look: Look) -> bool:
    """Whether all words of a column are dates."""
    return look.words is not None and bool(look.words.formats) and look.words.rows > 0 and not look.numbers


def _number(found: Profile, look: Look, table: Table, options: TableOptions) -> ColumnKind:
    column, name = found.index(look.name), look.name
    numbers = found.numbers
    whole = bool(numbers.whole[column]) and not look.strange
    if whole and not look.missing and is_named_id(name) and _is_unique(found, column):
        return ColumnKind(name, "id", 0, "whole numbers that name the rows")
    if numbers.constant(column) and not look.missing and not look.strange and options.scale != "none":
        return ColumnKind(name, "constant", 0, f"always {numbers.high[column]:g}")
    binary = bool(numbers.binary[column]) and not look.strange
    details: dict[str, Any] = {"words": sorted(look.strange_words)} if look.strange else {}
    told = []
    if look.strange:
        if len(look.strange_words) > 5 and is_text(look.type):  # too many to be words for nothing
            return _of_words(look, options)
        words = ", ".join(repr(word) for word in details["words"])
        told.append(
            f"{look.strange:,} values are no finite numbers and count as empty: {words} ({table.place(look.first_strange)})"
        )
    return ColumnKind(name, "boolean" if binary else "number", look.missing + look.strange, "; ".join(told), details)


def is_named_id(name: str) -> bool:
    """Whether a column is called as those that name the rows, or what these belong to."""
    return _ID.fullmatch(name) is not None or _ID.fullmatch(name.lower()) is not None


def _is_unique(found: Profile, column: int) -> bool:
    """Whether no value stands twice, as far as a sample shows."""
    sample = found.numbers.sample(column)
    return len(set(sample.tolist())) == len(sample)


def _of_words(look: Look, options: TableOptions) -> ColumnKind:
    words, name = look.words, look.name
    assert words is not None
    if words.pictures and words.rows:
        return ColumnKind(name, "image path", look.missing, _PIXELS if not options.size else "")
    if _is_dated(look):
        return ColumnKind(name, "date", look.missing, _ambiguous(words.formats), {"pattern": words.formats[0]})
    levels, seen = len(words.counts), sum(words.counts.values()) + words.other
    if levels == 1 and not look.missing and not words.too_many:
        return ColumnKind(name, "constant", 0, f"always {next(iter(words.counts))!r}")
    if tuple(sorted(word.lower() for word in words.few)) in _TRUE_FALSE and len(words.counts) == 2:
        true = max(words.counts, key=str.lower)
        return ColumnKind(name, "boolean", look.missing, f"{true!r} is 1", {"true": true})
    common = sum(count for _, count in words.counts.most_common(options.max_categories))
    told_apart = seen / max(levels + words.other, 1)  # rows of each word
    if (levels <= FEW_LEVELS or told_apart >= 2) and (not words.too_many or common >= seen / 2):
        return ColumnKind(name, "category", look.missing, _rare(levels, words.too_many, common, seen, options))
    many = f"more than {levels:,}" if words.too_many else f"{levels:,}"
    if levels == seen and words.longest <= 64 and (is_named_id(name) or words.characters < 32 * words.rows):
        return ColumnKind(name, "id", look.missing, f"{many} different words, one for each row")
    fix = f"kinds={name}:category takes the {options.max_categories} most frequent ones"
    return ColumnKind(name, "text", look.missing, f"{many} different texts in {seen:,} rows; {fix}")


def _rare(levels: int, too_many: bool, common: int, seen: int, options: TableOptions) -> str:
    if levels <= options.max_categories and not too_many:
        return ""
    many = f"more than {levels:,}" if too_many else f"{levels:,}"
    return f"{options.max_categories} of {many} words; the others, {1 - common / seen:.1%} of the rows, are one: other"


def _ambiguous(formats: Sequence[str]) -> str:
    """What is said of dates that could be read in two ways."""
    first = formats[0]
    other = next((f for f in formats[1:] if f.count("%d") and f != first), None)
    return f"read as {first}; {other} fits, too: date_format= decides" if other else f"read as {first}"


def _vector(look: Look, table: Table) -> ColumnKind:
    if look.strange or look.vector is None:
        told = f"its lists are not of one length, or hold empty values (the first: {table.place(look.first_strange)})"
        return ColumnKind(look.name, "nested", look.missing, told)
    return ColumnKind(look.name, "vector", look.missing, details={"length": look.length})


def _as_asked(found: Profile, look: Look, table: Table, options: TableOptions, asked: Kind) -> ColumnKind:
    name = look.name
    if asked not in USED:
        return ColumnKind(name, asked, look.missing, "as kinds= says")
    fits = {
        "number": is_text(look.type) or is_number(look.type),
        "category": is_text(look.type) or is_number(look.type),
        "boolean": is_text(look.type) or is_number(look.type),
        "date": is_text(look.type) or is_date(look.type),
        "vector": is_vector(look.type),
    }
    if not fits[asked]:
        raise InputError(f"the column '{name}' of {table.path} holds {look.type}, and kinds= takes it for a {asked}")
    if asked == "number":
        if look.strange:
            value = min(look.strange_words)
            what = f"the column '{name}' has the value {value!r}, which is not a finite number"
            fix = f"correct it, name it in na=, or take it for words: kinds={name}:category"
            raise InputError(what, where=table.place(look.first_strange), fix=fix)
        return ColumnKind(name, "number", look.missing)
    if asked == "vector":
        if look.strange:
            what = f"the column '{name}' has no list here, or one of another length than before, or with empty values"
            raise InputError(what, where=table.place(look.first_strange), fix="make all vectors of one length")
        return _vector(look, table)
    if asked == "date":
        return _asked_date(look, table, options)
    assert look.words is not None
    words = look.words
    if asked == "boolean":
        if len(words.counts) > 2 or words.too_many:
            shown = ", ".join(list(words.counts)[:5])
            raise InputError(
                f"the column '{name}' of {table.path} has more than two values: {shown}", fix=f"kinds={name}:category"
            )
        true = max(words.counts, key=lambda word: (_as_number(word), word.lower()), default="1")
        return ColumnKind(name, "boolean", look.missing, f"{true!r} is 1", {"true": true})
    common = sum(count for _, count in words.counts.most_common(options.max_categories))
    seen = sum(words.counts.values()) + words.other
    return ColumnKind(
        name, "category", look.missing, _rare(len(words.counts), words.too_many, common, max(seen, 1), options)
    )


def _as_number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return 0.0


def _asked_date(look: Look, table: Table, options: TableOptions) -> ColumnKind:
    if is_date(look.type):
        return ColumnKind(look.name, "date", look.missing, details={"pattern": ""})
    assert look.words is not None
    if options.date_format:
        told = f"read as {options.date_format}"
        return ColumnKind(look.name, "date", look.missing, told, {"pattern": options.date_format})
    if not look.words.formats:
        shown = ", ".join(list(look.words.counts)[:3])
        what = f"the column '{look.name}' of {table.path} is of no pattern of dates that is known: {shown}"
        raise InputError(what, fix="date_format=, as of strptime: date_format=%d.%m.%Y")
    return ColumnKind(
        look.name, "date", look.missing, _ambiguous(look.words.formats), {"pattern": look.words.formats[0]}
    )


def check_range(found: Profile, name: str, table: Table) -> None:
    """InputError for a column of numbers some of which float32 does not hold."""
    column, numbers = found.index(name), found.numbers
    ends = ((numbers.high[column], numbers.high_row[column]), (numbers.low[column], numbers.low_row[column]))
    for end, row in ends:
        if FLOAT32 < abs(end) < float("inf"):
            what = f"the column '{name}' has the value {_value_at(table, name, int(row))}, which is not a finite number"
            fix = f"correct it, name it in na=, or leave '{name}' out: drop={name}"
            raise InputError(f"{what} of 32 bits", where=table.place(int(row)), fix=fix)


def _value_at(table: Table, name: str, row: int) -> str:
    """A value as the file has it."""
    for batch in table.batches([name]):
        if row < batch.num_rows:
            return repr(batch.column(0)[row].as_py())
        row -= batch.num_rows
    return "?"


assert set(SETTABLE) <= set(get_args(Kind))
