"""What the values of a table's columns are: one pass over all rows, in memory that does not grow with them.

Kinds are guessed from all rows; whatever is fitted (means, deviations, quantiles, levels) is counted on the training split.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.table.numbers import Numbers
from distdl.data.table.stream import Part
from distdl.data.table.values import (
    DATE_FORMATS,
    is_date,
    is_number,
    is_text,
    is_vector,
    label_na,
    numbers,
    parse_dates,
    texts,
)
from distdl.data.table.values import dates as read_dates

MOST_LEVELS = 10_000
"""Different words of a column that are counted; a column with more is no category."""
LONG_WORDS = 200
"""Characters beyond which a word is a text."""
SURE_ROWS = 1_000
"""After so many words a column is read as numbers no more."""
NAMED_STRANGE = 5
"""Values that are no numbers, of a column of numbers, that are told apart."""


@dataclass
class Words:
    """The words of a column."""

    counts: Counter[str] = field(default_factory=Counter)
    """Word -> rows of the training split, while there are not too many."""
    other: int = 0
    """Rows of the training split whose word came when there were too many."""
    longest: int = 0
    characters: int = 0
    rows: int = 0
    formats: tuple[str, ...] = DATE_FORMATS
    """The patterns of a date that all of them had so far."""
    few: set[str] = field(default_factory=set)
    """The words of all rows, held-out ones too, while they are two or three."""
    pictures: bool = True
    """All of them are names of pictures."""

    @property
    def too_many(self) -> bool:
        return self.other > 0

    def add(self, words: pa.Array, train: bool) -> None:
        """Words without the empty ones."""
        if not len(words):
            return
        table = pc.value_counts(words)
        distinct, counts = table.field("values"), table.field("counts")
        lengths = pc.utf8_length(distinct)
        self.rows += len(words)
        self.longest = max(self.longest, pc.max(lengths).as_py())
        self.characters += pc.sum(pc.multiply(lengths, pc.cast(counts, pa.int32()))).as_py()
        if self.formats:
            self.formats = _fitting(distinct, self.formats)
        if self.pictures:
            named = pc.match_substring_regex(distinct, pattern=r"\.(png|jpe?g|gif|bmp|tiff?|webp)$", ignore_case=True)
            self.pictures = bool(pc.all(named).as_py())
        if len(self.few) < 3:
            self.few.update(distinct.slice(0, 3).to_pylist())
        if not train:
            return
        if self.characters > LONG_WORDS * self.rows:
            self.other += len(words)
            return
        self._count(zip(distinct.to_pylist(), counts.to_pylist(), strict=True))

    def _count(self, counts: Iterable[tuple[str, int]]) -> None:
        for word, count in counts:
            if word in self.counts or len(self.counts) < MOST_LEVELS:
                self.counts[word] += count
            else:
                self.other += count

    def merge(self, behind: Words) -> None:
        """Add those of the rows behind these."""
        self._count(behind.counts.items())
        self.other += behind.other
        self.longest = max(self.longest, behind.longest)
        self.characters += behind.characters
        self.rows += behind.rows
        self.formats = tuple(pattern for pattern in self.formats if pattern in behind.formats)
        self.pictures = self.pictures and behind.pictures
        if len(self.few) < 3:
            self.few |= behind.few


def _fitting(words: pa.Array, formats: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the patterns that all words have. A few words decide about most patterns."""
    for part in (words.slice(0, 20), words):
        formats = tuple(f for f in formats if parse_dates(part, f).null_count == 0)
    return formats


@dataclass
class Look:
    """What a pass has found in one column."""

    name: str
    type: pa.DataType
    rows: int = 0
    missing: int = 0
    first_missing: int = -1
    numbers: int = 0
    """Values that are numbers."""
    strange: int = 0
    """Values that are none."""
    strange_words: set[str] = field(default_factory=set)
    """Some of them."""
    first_strange: int = -1
    words: Words | None = None
    uncounted: int = 0
    """Rows that had gone by when the words began to be counted."""
    vector: Numbers | None = None
    length: int = 0
    first_row: int = -1
    """Of a column of lists."""
    dates: Numbers | None = None

    def merge(self, behind: Look) -> None:
        """Add what the rows behind these have given."""
        if behind.words is not None and self.words is None:
            self.uncounted = self.rows
        elif self.words is not None and behind.words is None:
            self.uncounted += behind.rows
        self.uncounted += behind.uncounted
        self.words = _merged(self.words, behind.words)
        self._merge_vectors(behind)
        self.dates = _merged(self.dates, behind.dates)
        self.rows += behind.rows
        self.missing += behind.missing
        self.first_missing = _earlier(self.first_missing, behind.first_missing)
        self.numbers += behind.numbers
        self.strange += behind.strange
        self.first_strange = _earlier(self.first_strange, behind.first_strange)
        for word in sorted(behind.strange_words):  # a set has another order in every process
            if len(self.strange_words) <= NAMED_STRANGE:
                self.strange_words.add(word)

    def _merge_vectors(self, behind: Look) -> None:
        if self.length and behind.length and self.length != behind.length:
            self.strange += 1
            self.first_strange = _earlier(self.first_strange, behind.first_row)
            return
        self.length = self.length or behind.length
        self.vector = _merged(self.vector, behind.vector)


def _merged(one: Any, behind: Any) -> Any:
    if one is None or behind is None:
        return copy.deepcopy(behind) if one is None else one
    one.merge(behind)
    return one


def _earlier(one: int, other: int) -> int:
    """The first of two rows; -1 is none."""
    return max(one, other) if min(one, other) < 0 else min(one, other)


class Profile:
    """What a table's columns hold. `as_words`: columns whose words are wanted, even where they are numbers."""

    def __init__(
        self,
        schema: pa.Schema,
        names: list[str],
        na: Sequence[str],
        as_words: Sequence[str] = (),
        *,
        label: str = "",
        date_format: str = "",
        log: bool = False,
    ) -> None:
        self.na, self.label = tuple(na), label
        self.formats = (date_format, *DATE_FORMATS) if date_format else DATE_FORMATS
        self.names = names
        self._index = {name: i for i, name in enumerate(names)}
        self.looks = {name: Look(name, schema.field(name).type) for name in names}
        self.numbers = Numbers(len(names), log)
        self.rows = 0
        for name in as_words:
            if name in self.looks:
                self.looks[name].words = Words(formats=self.formats)
        self._wordy = {name for name in as_words if name in self.looks}

    def index(self, name: str) -> int:
        """The column's place in `numbers`."""
        return self._index[name]

    def add(self, part: Part) -> None:
        """Some rows, in any order of the splits."""
        train, n = part.split == "train", part.batch.num_rows
        values = np.full((len(self.names), n), np.nan)
        columns = {name: part.batch.column(i) for i, name in enumerate(self.names)}
        wordy = set(self._wordy)  # whose empty cells are not counted among the numbers
        numeric = [
            i for i, name in enumerate(self.names) if name not in self._wordy and not _apart(self.looks[name].type)
        ]
        if numeric:
            values[numeric], bad = numbers([columns[self.names[i]] for i in numeric], self.na)
            for place, strange in bad.items():
                self._strange(self.names[numeric[place]], columns[self.names[numeric[place]]], strange, part)
            there = (~np.isnan(values[numeric])).sum(1)
            for i, count in zip(numeric, there.tolist(), strict=True):
                self.looks[self.names[i]].numbers += count
            self._missing([self.names[i] for i in numeric], np.isnan(values[numeric]), bad, part.rows)
        self.numbers.add(values, part.rows, train)
        for name, look in self.looks.items():
            look.rows += n
            if look.words is not None:
                self._words(look, columns[name], part, train, name in wordy)
            elif is_vector(look.type):
                _vector(look, columns[name], part, train)
            elif is_date(look.type):
                seconds = read_dates(columns[name], "", self.na)[0]
                look.dates = look.dates or Numbers(1)
                look.dates.add(seconds[None], part.rows, train)
                self._missing([name], np.isnan(seconds)[None], {}, part.rows)
            elif _apart(look.type):
                self._missing([name], columns[name].is_null().to_numpy(zero_copy_only=False)[None], {}, part.rows)
        self.rows += n

    def merge(self, behind: Profile) -> None:
        """Add what the rows behind these have given."""
        self.numbers.merge(behind.numbers)
        for name, look in self.looks.items():
            look.merge(behind.looks[name])
        self.rows += behind.rows

    def late(self) -> list[str]:
        """Columns that turned out to hold words when the first ones had gone by: to be looked at once more."""
        found = [look for look in self.looks.values() if look.uncounted and look.words is not None]
        return [look.name for look in found if look.strange > 0.05 * max(look.numbers + look.strange, 1)]

    def _strange(self, name: str, column: pa.Array, strange: np.ndarray, part: Part) -> None:
        """Values of a column that are no numbers: from now on its words are counted, too."""
        look, at = self.looks[name], np.flatnonzero(strange)
        look.strange += len(at)
        first = int(part.rows[at[0]])
        look.first_strange = first if look.first_strange < 0 else min(first, look.first_strange)
        for value in pc.unique(column.filter(pa.array(strange))).to_pylist():
            if len(look.strange_words) <= NAMED_STRANGE:
                look.strange_words.add(str(value).strip())
        if is_text(look.type) and look.words is None:
            look.words, look.uncounted = Words(formats=self.formats), look.rows
        if look.strange > SURE_ROWS and look.strange > look.numbers:
            self._wordy.add(name)

    def _missing(self, names: list[str], nothing: np.ndarray, bad: dict[int, np.ndarray], rows: np.ndarray) -> None:
        for place, strange in bad.items():
            nothing[place] &= ~strange
        counts = nothing.sum(1)
        for place, name in enumerate(names):
            look = self.looks[name]
            if counts[place]:
                look.missing += int(counts[place])
                first = int(rows[nothing[place].argmax()])
                look.first_missing = first if look.first_missing < 0 else min(first, look.first_missing)

    def _words(self, look: Look, column: pa.Array, part: Part, train: bool, wordy: bool) -> None:
        assert look.words is not None
        words = texts(column, label_na(self.na) if look.name == self.label else self.na)
        look.words.add(words.drop_null(), train or look.name == self.label)
        if wordy:
            look.strange += len(words) - words.null_count
            self._missing([look.name], words.is_null().to_numpy(zero_copy_only=False)[None], {}, part.rows)


def _apart(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold no plain numbers."""
    return not (is_text(kind) or is_number(kind))


def _vector(look: Look, column: pa.Array, part: Part, train: bool) -> None:
    look.first_row = _earlier(look.first_row, int(part.rows[0]))
    values = vectors(column, look.length)
    if not look.length and values is not None:
        look.length = values.shape[1]
    if values is None:
        first = int(part.rows[_odd(column, look.length)])
        look.first_strange = first if not look.strange else min(first, look.first_strange)
        look.strange += 1
        return
    look.vector = look.vector or Numbers(look.length)
    look.vector.add(values.T, part.rows, train)


def _odd(column: pa.Array, length: int) -> int:
    """The first row of a batch that is no list of this length (0: of the first one's), or holds nothing somewhere."""
    values = column.to_pylist()
    length = length or next((len(value) for value in values if value), 1)
    return next(i for i, value in enumerate(values) if value is None or len(value) != length or None in value)


def vectors(column: pa.Array, length: int) -> np.ndarray | None:
    """(n, length) float64 of a column of lists; None where they are not all of one length, or hold nothing somewhere.
    `length` 0: that of the first."""
    if column.null_count or not len(column):
        return None
    sizes = pc.list_value_length(column)
    if not length:
        length = int(sizes[0].as_py())
    if not length or not pc.all(pc.equal(sizes, length)).as_py():
        return None
    flat = column.flatten()
    if flat.null_count:
        return None
    values: np.ndarray = pc.cast(flat, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values.reshape(-1, length)
