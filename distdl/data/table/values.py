"""What the values of a table are read as: text, numbers, dates; and which of them say that there is nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NA = ("", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NaT", "NULL", "null", "None")
"""Words that stand for an empty value, as pandas has them, and the question mark of the UCI tables."""
SOME_CLASS = ("None",)
"""Those that are as likely the name of a class."""
NO_NUMBER = (".", "-", "--")
"""The same, among numbers and dates alone."""
FLOAT32 = float(np.finfo(np.float32).max)
DATE_FORMATS = (
    *("%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"),
    *("%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%d.%m.%Y", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M"),
    *("%m/%d/%Y", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M"),
    *("%m-%d-%Y", "%d-%m-%Y", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%B %d, %Y", "%m/%d/%y", "%d/%m/%y", "%d-%b-%y"),
)
"""In the order in which they are tried: where a day could be a month, the month comes first."""

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ZONE = r"(\.\d+)?\s?(Z|UTC|[+-]\d\d:?\d\d)?$"
_FIELDS = {"%Y": r"\d{4}", "%y": r"\d\d", "%b": "[A-Za-z]{3}", "%B": "[A-Za-z]{3,9}"}


def label_na(na: Sequence[str]) -> tuple[str, ...]:
    """The words that stand for no label."""
    return tuple(word for word in na if word not in SOME_CLASS)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type is read as what its words say."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    view = pa.types.is_string_view(kind)
    return bool(view or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether it holds numbers."""
    of_numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(test(kind) for test in (*of_numbers, pa.types.is_duration, pa.types.is_time))


def is_date(kind: pa.DataType) -> bool:
    """Whether it holds days or points in time."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def is_vector(kind: pa.DataType) -> bool:
    """Whether it holds lists of numbers."""
    of_lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(of_lists and is_number(kind.value_type))


def plain(values: pa.Array) -> pa.Array:
    """Without a dictionary, and in one piece."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def texts(values: pa.Array, na: Sequence[str]) -> pa.Array:
    """As words without blanks around them; null where they say that there is nothing."""
    values = plain(values)
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    trimmed = pc.utf8_trim_whitespace(pc.cast(values, pa.string()))
    empty = pc.is_in(trimmed, value_set=pa.array(na, pa.string()))
    return pc.if_else(empty, pa.scalar(None, pa.string()), trimmed)


def numbers(columns: Sequence[pa.Array], na: Sequence[str]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """(k, n) float64, NaN where there is nothing; and of the columns that hold something else, where: (n,) bool. Infinite
    is something else. All columns of words are read in one go: of a wide table each has few rows."""
    n = len(columns[0]) if columns else 0
    found = np.empty((len(columns), n))
    bad: dict[int, np.ndarray] = {}
    of_words = [i for i, values in enumerate(columns) if is_text(values.type)]
    for i, values in enumerate(columns):
        if not is_text(values.type):
            found[i] = _typed(values)
    if of_words:
        _read_words(columns, of_words, (*na, *NO_NUMBER), found, bad)
    infinite = np.isinf(found)
    for i in np.flatnonzero(infinite.any(1)).tolist():
        bad[i] = bad.get(i, False) | infinite[i]
    found[infinite] = np.nan
    return found, bad


def _read_words(
    columns: Sequence[pa.Array], of_words: list[int], na: Sequence[str], found: np.ndarray, bad: dict[int, np.ndarray]
) -> None:
    """Columns of words as numbers: all at once where all are, else one by one, and with blanks and gaps where there are."""
    words = [pc.cast(plain(columns[i]), pa.string()) for i in of_words]
    try:
        found[of_words] = _floats(pc.cast(pa.concat_arrays(words), pa.float64())).reshape(len(words), -1)
        return
    except pa.ArrowInvalid:
        pass
    for i, column in zip(of_words, words, strict=True):
        try:
            found[i] = _floats(pc.cast(column, pa.float64()))
        except pa.ArrowInvalid:
            found[i], strange = _some_numbers(texts(column, na))
            if strange is not None:
                bad[i] = strange


def dates(values: pa.Array, pattern: str, na: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970 (n,) float64, NaN where there is nothing, and where there is something that is no date.
    `pattern`: of words, as of strptime; parts of a second and zones are dropped. '' for a column of dates."""
    if not pattern:
        stamps = pc.cast(plain(values), pa.timestamp("us"), safe=False)
        return _floats(pc.divide(pc.cast(pc.cast(stamps, pa.int64()), pa.float64()), 1e6)), np.zeros(len(values), bool)
    words = texts(values, (*na, *NO_NUMBER))
    found = parse_dates(words, pattern)
    return _floats(pc.cast(found, pa.float64())), (pc.and_(pc.is_valid(words), pc.is_null(found))).to_numpy(False)


def parse_dates(words: pa.Array, pattern: str) -> pa.Array:
    """Seconds since 1970, null where a word is not of the pattern. A day that the month has not (30 February) is none."""
    if "%S" in pattern:
        words = pc.replace_substring_regex(words, pattern=_ZONE, replacement="")
    words = pc.if_else(pc.match_substring_regex(words, pattern=_shape(pattern)), words, pa.scalar(None, pa.string()))
    stamps = pc.strptime(words, format=pattern, unit="s", error_is_null=True)
    if "%d" not in pattern:
        return pc.cast(stamps, pa.int64())
    # strptime takes a year of two digits for one of four, and 30 February for a day in March.
    day = pc.cast(pc.replace_substring_regex(words, pattern=_shape(pattern), replacement=r"\1"), pa.int32())
    return pc.if_else(pc.equal(day, pc.cast(pc.day(stamps), pa.int32())), pc.cast(stamps, pa.int64()), None)


def _shape(pattern: str) -> str:
    """The regular expression of a pattern of strptime; its group is the day."""
    parts = []
    for part in pattern.split("%")[1:]:
        field = _FIELDS.get(f"%{part[0]}", r"\d{1,2}")
        parts.append((f"({field})" if part[0] == "d" else field) + part[1:].replace(".", r"\."))
    return "^" + "".join(parts) + "$"


def _typed(values: pa.Array) -> np.ndarray:
    values = plain(values)
    if pa.types.is_boolean(values.type):
        values = pc.cast(values, pa.uint8())
    elif pa.types.is_duration(values.type) or pa.types.is_time(values.type):
        values = pc.cast(values, pa.int32() if pa.types.is_time32(values.type) else pa.int64())
    return _floats(pc.cast(values, pa.float64(), safe=False))


def _some_numbers(words: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """A column (n,), and where it holds something else; None: nowhere."""
    try:
        return _floats(pc.cast(words, pa.float64())), None
    except pa.ArrowInvalid:
        fits = pc.fill_null(pc.match_substring_regex(words, pattern=_NUMBER), False)
        found = _floats(pc.cast(pc.if_else(fits, words, pa.scalar(None, pa.string())), pa.float64()))
        return found, (pc.and_(pc.is_valid(words), pc.invert(fits))).to_numpy(False)


def _floats(values: pa.Array) -> np.ndarray:
    """With NaN for null."""
    return values.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def is_file(kind: pa.DataType) -> bool:
    """Whether each value is the bytes of a whole file."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
