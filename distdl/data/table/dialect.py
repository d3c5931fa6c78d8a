"""How a table in text is written: what its first megabyte says of the encoding, the delimiter, the names, the numbers.

`sniff(path)` recognises it all; what was told (`Told`) is taken as it is. Whether the first line holds names is judged in
`header.py`. What was recognised and is not what everybody expects stands in `why`, one sentence each, to be said.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from distdl.data.store import shown
from distdl.data.table.header import EMPTY, has_header
from distdl.data.unpack import open_unpacked
from distdl.errors import InputError

SAMPLE_BYTES = 1 << 20
SAMPLE_RECORDS = 1000
DELIMITERS = (",", "\t", ";", "|")
BLANKS = "blanks"
"""The delimiter of columns that are lined up by any number of blanks."""
WORDS = {"tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|"}
LONGEST_VALUE = 1 << 28
BOMS = (
    *((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
_WHOLE = r"[+-]?\d+"
_DECIMAL_COMMA = re.compile(rf"{_WHOLE}(,\d+)?|[+-]?\d{{1,3}}(\.\d{{3}})+,\d+|[+-]?\d{{1,3}}(\.\d{{3}}){{2,}}")
_COMMAS = re.compile(rf"{_WHOLE}|[+-]?\d{{1,3}}(,\d{{3}})+")
_COMMAS_AND_POINT = re.compile(rf"{_COMMAS.pattern}|[+-]?(\d{{1,3}}(,\d{{3}})+|\d*)\.\d+")


@dataclass(frozen=True)
class Told:
    """What somebody said of a table in text; what is None or empty is recognised."""

    names: tuple[str, ...] = ()
    delimiter: str = ""
    encoding: str = ""
    header: bool | None = None
    decimal: str = ""
    thousands: str = ""


@dataclass(frozen=True)
class Dialect:
    """How a table in text is written."""

    delimiter: str
    """One character, or `blanks`."""
    encoding: str
    header: bool
    """The first line that is not blank holds the names of the columns."""
    decimal: str
    thousands: str
    """The character between groups of three digits; '' for none."""
    confidence: float
    """Of `header`: 1 where it is plain or was told, 0.5 where nothing tells."""
    why: tuple[str, ...]
    """What was recognised that a reader should know, in sentences."""
    names: tuple[str, ...] = ()
    """The names in the first line, or c0, c1, …"""
    lines: int = 0
    """Lines of the file before the first row."""
    remarks: int = 0
    """Those of them that are remarks."""
    record_bytes: int = 0
    """The longest row seen."""
    sample: tuple[tuple[str, ...], ...] = ()
    """The first rows, as text."""


def sniff(path: str | os.PathLike[str], told: Told | None = None, lenient: bool = False) -> Dialect:
    """How the file is written. `lenient`: some lines may be no text. InputError: it is empty, it is no text, or not in the
    encoding that was told."""
    told = told or Told()
    with open_unpacked(path) as file:
        sample = _read(file, SAMPLE_BYTES)
    whole = len(sample) < SAMPLE_BYTES
    encoding, why = _encoding(sample, told.encoding, os.fspath(path))
    text, remarks, last_remark = _without_remarks(
        _decode(sample, encoding, whole, os.fspath(path), "replace" if lenient else "strict")
    )
    delimiter = WORDS.get(told.delimiter, told.delimiter)
    if len(delimiter) != 1 and delimiter not in ("", BLANKS):
        raise InputError(f"delimiter is {told.delimiter!r}", allowed=f"one character, {', '.join(WORDS)}, {BLANKS}")
    delimiter = delimiter or delimiter_of(text, whole)
    records, end = _records(text, delimiter, whole)
    if not records:
        raise InputError(f"{shown(path)} is not a CSV file that can be read: it holds no rows")
    named = next(csv.reader([last_remark], delimiter=delimiter), []) if delimiter != BLANKS else last_remark.split()
    if len(named) == len(records[0]) > 1 and told.header is not False:  # as NumPy writes names
        records, end = [named, *records], 0
    elif remarks:
        why.append(f"{remarks} lines of remarks before its first row, each with a # before it, are left out")
    if delimiter != "," and not told.delimiter:
        why.append(f"its values are divided by {_name(delimiter)} (delimiter= says otherwise)")
    header, confidence, because = has_header(records) if told.header is None else (told.header, 1.0, "")
    rows = records[1:] if header else records
    decimal, thousands, about = _numbers(rows, delimiter, told)
    if told.header is None and confidence < 0.8:
        why.append(
            f"its first line is taken {'as names' if header else 'for a row'}: {because} (header= says otherwise)"
        )
    names = tuple(name.strip() for name in records[0]) if header else tuple(f"c{i}" for i in range(len(records[0])))
    longest = max(sum(map(len, record)) + len(record) for record in records)
    return Dialect(
        delimiter,
        encoding,
        header,
        decimal,
        thousands,
        confidence,
        (*why, *about, *([] if header or told.header is False else [because])),
        names,
        remarks + (end if header else 0),
        remarks,
        4 * longest if encoding.startswith("utf-") and encoding != "utf-8" else longest,
        tuple(map(tuple, rows)),
    )


def read_records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, values) of each record; blank lines are none. ValueError: it is no CSV."""
    csv.field_size_limit(LONGEST_VALUE)
    if delimiter == BLANKS:
        yield from ((number, number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        return
    reader, end = csv.reader(lines, delimiter=delimiter), 0
    try:
        for record in reader:
            begin, end = end + 1, reader.line_num
            if record:
                yield begin, end, record
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _read(file: BinaryIO, count: int) -> bytes:
    blocks, size = [], 0
    while size < count and (block := file.read(count - size)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


def _encoding(sample: bytes, told: str, path: str) -> tuple[str, list[str]]:
    if told:
        try:
            found = codecs.lookup(told).name
        except LookupError:
            raise InputError(
                f"encoding is '{told}'", allowed="an encoding that Python knows: utf-8, utf-16, latin-1, cp1252, …"
            ) from None
        return "utf-8" if found == "utf-8-sig" else found, []
    for mark, name in BOMS:
        if sample.startswith(mark):
            return name, [] if name == "utf-8" else [f"it is written in {name}"]
    if len(sample) >= 8 and sample[:4].count(0) == 2 and (sample[0] == 0) != (sample[1] == 0):
        name = "utf-16-be" if sample[0] == 0 else "utf-16-le"
        return name, [f"it is written in {name}"]
    for block in (sample[i : i + 1024] for i in range(0, len(sample), 1024)):
        if 0 in block:
            raise InputError(
                f"{shown(path)} is not a CSV file that can be read: it begins with the bytes {sample[:8].hex(' ')}",
                fix=_other_source(sample) or "check the path, or say its encoding=",
            )
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8", []
    except UnicodeDecodeError as error:
        name = "cp1252" if decodes(sample, "cp1252") else "latin-1"
        begin, end = sample.rfind(b"\n", 0, error.start) + 1, error.start
        near = sample[max(begin, end - 20) : end + 20].split(b"\n")[0].decode(name, "replace").strip()
        line = sample.count(b"\n", 0, error.start) + 1
        return name, [f"it is not UTF-8 and is read as {name}: '{near}' in line {line} (encoding= says otherwise)"]


def _other_source(sample: bytes) -> str:
    known = {b"PAR1": "parquet", b"ARROW1": "arrow", b"FEA1": "arrow", b"\xff\xff\xff\xff": "arrow"}
    return next((f"use the source {name}" for magic, name in known.items() if sample.startswith(magic)), "")


def decodes(sample: bytes, encoding: str) -> bool:
    """Whether these bytes are a text in that encoding."""
    try:
        sample.decode(encoding)
        return True
    except UnicodeError:
        return False


def _decode(sample: bytes, encoding: str, whole: bool, path: str, errors: str) -> str:
    try:
        return codecs.getincrementaldecoder(encoding)(errors).decode(sample, whole).removeprefix("\ufeff")
    except UnicodeError as error:
        raise InputError(f"{shown(path)} is not written in {encoding}: {error}", fix="another encoding=") from error


def _without_remarks(text: str) -> tuple[str, int, str]:
    """Without the lines at the beginning that have a # before them, how many these are, and what the last one says."""
    lines = text.splitlines(keepends=True)
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    return "".join(lines[count:]), count, lines[count - 1].lstrip("#").strip() if count else ""


def delimiter_of(text: str, whole: bool) -> str:
    """The one that cuts the most rows into equally many values, and leaves none of the other delimiters in them."""
    best, chosen = (0.0, 0.0, 0), ","
    for delimiter in DELIMITERS:
        records, _ = _records(text, delimiter, whole, 200)
        count, rows = Counter(map(len, records)).most_common(1)[0] if records else (0, 0)
        if count > 1:
            cells = [cell for record in records for cell in record]
            left = sum(any(other in cell for other in DELIMITERS[1:] if other != delimiter) for cell in cells)
            score = (round(rows / len(records), 2), -round(left / len(cells), 2), count)
            if score > best:
                best, chosen = score, delimiter
    if best[0] < 0.9:
        records, _ = _records(text, BLANKS, whole, 200)
        counts = {len(record) for record in records}
        if len(counts) == 1 and counts.pop() > 1 and '"' not in text:
            return BLANKS
    return chosen


def _records(text: str, delimiter: str, whole: bool, most: int = SAMPLE_RECORDS) -> tuple[list[list[str]], int]:
    """The first records, and the line where the first of them ends."""
    found: list[tuple[int, int, list[str]]] = []
    try:
        for record in islice(read_records(io.StringIO(text, newline=""), delimiter), most + 1):
            found.append(record)
    except ValueError:
        pass  # said with its line when the rows are read
    if len(found) > 1 and (not whole or len(found) > most):
        found.pop()  # may be cut
    return [record for _, _, record in found], found[0][1] if found else 0


def _name(delimiter: str) -> str:
    return {"\t": "tabs", BLANKS: "blanks"}.get(delimiter, f"'{delimiter}'")


def _numbers(rows: list[list[str]], delimiter: str, told: Told) -> tuple[str, str, list[str]]:
    """Decimal and thousands signs, where all columns that have commas in their numbers say the same; what is to be said."""
    if told.decimal or told.thousands:
        return *_told_signs(told), []
    found: Counter[str] = Counter()
    doubtful = ""
    for cells in zip(*(row for row in rows if len(row) == len(rows[0])), strict=True):
        values = [cell.strip() for cell in cells if cell.strip().lower() not in EMPTY]
        if any("," in value or value.count(".") > 1 for value in values):
            signs = _signs(values)
            found[signs] += 1
            doubtful = doubtful or (next(value for value in values if "," in value) if signs == "?" else "")
    if found["1.234,5"] + found["1,5"] and not found["1,234.5"]:
        points = found["1.234,5"] > 0
        also = " and points between thousands" if points else ""
        return ",", "." if points else "", [f"its numbers have a decimal comma{also} (decimal= says otherwise)"]
    if found["1,234.5"] and not found["1.234,5"] + found["1,5"]:
        return ".", ",", ["its numbers have commas between thousands (thousands= says otherwise)"]
    if doubtful:
        what = f"'{doubtful}' may have a decimal comma or one between thousands: decimal= or thousands= says which"
        return ".", "", [what]
    return ".", "", []


def _signs(values: list[str]) -> str:
    """How the numbers of a column are written, by an example: ? commas may be either, '' it holds other things."""
    if all(_COMMAS.fullmatch(value) for value in values):
        return "1,234.5" if any(value.count(",") > 1 for value in values) else "?"
    if all(_DECIMAL_COMMA.fullmatch(value) for value in values):
        return "1.234,5" if any("." in value for value in values) else "1,5"
    return "1,234.5" if all(_COMMAS_AND_POINT.fullmatch(value) for value in values) else ""


def _told_signs(told: Told) -> tuple[str, str]:
    thousands = WORDS.get(told.thousands, told.thousands)
    decimal = WORDS.get(told.decimal, told.decimal) or ("," if thousands == "." else ".")
    if decimal not in (".", ",") or len(thousands) > 1 or thousands == decimal or thousands.isdigit():
        raise InputError(
            f"decimal is '{told.decimal}', thousands '{told.thousands}'",
            allowed="decimal: . or ,; thousands: another character, or space",
        )
    return decimal, thousands
