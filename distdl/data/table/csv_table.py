"""A table in text, read as text block by block: a value that is no number can then be named with its line."""

from __future__ import annotations

import copy
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from distdl.data.bad_rows import BadRows
from distdl.data.store import is_remote, shown
from distdl.data.table.cut_text import Stretch, Stretches, sections_of_records
from distdl.data.table.dialect import BLANKS, Dialect, Told, decodes, read_records, sniff
from distdl.data.table.reader import Counted, Table, doubled
from distdl.data.table.stream import before_gone
from distdl.data.unpack import ENDINGS, open_unpacked
from distdl.errors import InputError

BLOCK_BYTES = 1 << 20
RECORDS_A_BLOCK = 64
"""At least, so that a table of very many columns is not cut into pieces of a few rows."""
LONGEST_RECORD = 256 << 20
SURE = 0.9
ONE_BYTE = ("utf-8", "ascii", "cp125", "latin", "iso8859", "iso-8859")
"""Encodings in which the byte of a quote or of a line's end is nothing else."""


class CsvTable:
    """A file of values between delimiters, as strings; an empty value is an empty string.

    `label`: the column that will be predicted, which tells a first line without names. InputError: a file that is no
    such table, or that begins without names while nobody said which.
    """

    def __init__(self, path: str, told: Told | None = None, label: str = "", bad: BadRows | None = None):
        self.path, self.location = shown(path), path
        self._aside = bad if bad and bad.wanted else None
        self._torn: dict[int, str] | None = None if self._aside else {}
        """Records of too many or too few values that are left out: number among all records -> its text."""
        self._met: dict[int, str] = {}
        """Those of them that the pass under way has met."""
        self._undecoded: list[int] = []
        """Lines that are left out, as they are no text."""
        told = told or Told()
        self.dialect: Dialect = sniff(path, told, lenient=self._aside is not None)
        self._check_header(told, label)
        every = [name.strip() for name in told.names] or list(self.dialect.names)
        self._every = [name or f"\0{i}" for i, name in enumerate(every)]  # what pyarrow is to call a nameless one
        self.names = [name for name in every if name]
        self.notes = [f"{self.path}: {why}" for why in self.dialect.why]
        self._check_names(every)
        self.schema = pa.schema([(name, pa.string()) for name in self.names])
        self.classes: dict[str, list[str]] = {}
        if self._aside and self.dialect.encoding == "utf-8":
            self._undecoded = list(undecodable(path, self.path, self._aside))
        self.rows: int | None = None
        self._stretch: Stretches | None = None
        """What a section reads of the file."""
        self._sections: list[Table] = []
        self._counted = Counted()

    def _check_header(self, told: Told, label: str) -> None:
        dialect = self.dialect
        if told.names:
            if told.header is None and dialect.header and dialect.confidence >= SURE:
                raise InputError(
                    f"names= is given, and the first line of {self.path} seems to hold names: "
                    f"{', '.join(dialect.names[:5])}",
                    fix="header=yes reads what names= says instead of that line, header=no reads it as a row",
                )
            if told.header is None:  # names= says that the first line has none
                self.dialect = sniff(self.location, Told(**{**vars(told), "header": False}), self._aside is not None)
            if len(told.names) != len(dialect.names):
                raise InputError(
                    f"names= has {len(told.names)} names, the first line of {self.path} {len(dialect.names)} values"
                )
            return
        why = "" if dialect.header else dialect.why[-1] if dialect.why else ""
        if dialect.header and label and label in dialect.names and dialect.confidence < SURE:
            place = dialect.names.index(label)
            if told.header is None and any(row[place].strip() == label for row in dialect.sample if len(row) > place):
                why = f"'{label}' is a value of its own column"
        if told.header is None and why:
            raise InputError(
                f"{self.path} seems to have no line with the names of its columns: {why}",
                fix="names=..., one for each column; or header=no, which names them c0, c1, ...; header=yes if the "
                "first line holds names",
            )

    def _check_names(self, every: list[str]) -> None:
        double = doubled(self.names)
        if double:
            raise InputError(f"{self.path} has two columns of the same name: {', '.join(double)}", fix="names=...")
        if not self.names:
            raise InputError(f"{self.path} has no column with a name", fix="names=..., or header=no")
        for i, name in enumerate(every):
            if not name:
                some = ", ".join(row[i] or "nothing" for row in self.dialect.sample[:3] if len(row) > i)
                self.notes.append(
                    f"{self.path}: column {i + 1} has no name and is left out ({some}, …); names= keeps it"
                )

    def cut(self) -> list[Table]:
        """Some records each."""
        if not self._sections:
            for stretch in self._stretches():
                section = copy.copy(self)
                section._stretch, section.rows = stretch, stretch.rows
                self._sections.append(section)
        return self._sections or [self]

    def _stretches(self) -> list[Stretches]:
        plain = (
            not self._aside and self.dialect.encoding.lower().startswith(ONE_BYTE) and self.dialect.delimiter != BLANKS
        )
        return sections_of_records(self.location, self.dialect.delimiter) if plain else []

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The chosen columns, about a megabyte at a time; more where rows are long."""
        block, done = max(BLOCK_BYTES, RECORDS_A_BLOCK * self.dialect.record_bytes), 0
        torn = self._met = {}
        while True:
            try:
                before = done
                for batch in self._open(names, min(block, LONGEST_RECORD), torn):
                    skip, before = min(before, batch.num_rows), before - min(before, batch.num_rows)
                    if skip < batch.num_rows:
                        done += batch.num_rows - skip
                        yield self._numbers(batch.slice(skip))
                self._set_aside(torn)
                return
            except (pa.ArrowException, ValueError, OSError) as error:
                if "straddling" not in str(error) or block >= LONGEST_RECORD:
                    raise self._bad(error) from error
                block *= 8  # a row is longer than a block: once more from the beginning

    def _open(self, names: list[str], block_bytes: int, torn: dict[int, str]) -> Any:
        dialect = self.dialect
        plain = not is_remote(self.location) and dialect.delimiter != BLANKS and dialect.encoding == "utf-8"
        plain = plain and not self._undecoded

        def set_aside(row: Any) -> str:
            torn[row.number - dialect.lines - 1] = row.text
            return "skip"

        stream: Any = self._stream()
        if self._stretch:
            stream = Stretch(self.location, self._stretch.begin, self._stretch.end)
        elif plain and isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO):
            stream.close()
            stream = pa.OSFile(self.location)
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                column_names=self._every,
                skip_rows=0 if self._stretch and self._stretch.begin else dialect.lines,
                use_threads=False,
                block_size=block_bytes,
                encoding="utf8" if dialect.encoding == "utf-8" else dialect.encoding,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=" " if dialect.delimiter == BLANKS else dialect.delimiter,
                newlines_in_values=True,
                invalid_row_handler=set_aside if self._aside else None,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=names,
            ),
        )

    def _stream(self) -> BinaryIO:
        stream = self._text()
        return io.BufferedReader(_OneBlank(stream)) if self.dialect.delimiter == BLANKS else stream

    def _numbers(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Numbers with a decimal comma or with signs between thousands, as everybody writes them."""
        decimal, thousands = self.dialect.decimal, self.dialect.thousands
        if decimal == "." and not thousands:
            return batch
        groups = rf"\d{{1,3}}({re.escape(thousands)}\d{{3}})+|" if thousands else ""
        number = rf"^\s*[+-]?({groups}\d*)({re.escape(decimal)}\d*)?([eE][+-]?\d+)?\s*$"
        columns = []
        for column in batch.columns:
            plain = pc.replace_substring(column, thousands, "") if thousands else column
            plain = pc.replace_substring(plain, decimal, ".")
            columns.append(pc.if_else(pc.match_substring_regex(column, number), plain, column))
        return pa.record_batch(columns, schema=batch.schema)

    def _text(self) -> BinaryIO:
        """The file without lines that are no text, where those are left out."""
        stream = open_unpacked(self.location)
        return io.BufferedReader(WithoutLines(stream, self._undecoded)) if self._undecoded else stream

    def _set_aside(self, torn: dict[int, str]) -> None:
        """Lists the records of another number of values, after the first pass over all of them."""
        if self._torn is not None or self._aside is None:
            return
        self._torn, names = torn, len(self._every)
        left = set(torn)
        for number, (first, last, record) in enumerate(self._records() if left else ()):
            if number in left:
                what = f"the row has {len(record)} values where the table has {names} columns"
                if last > first:
                    what += f"; it goes on to line {last}, as a quote is open"
                where, lines = f"{self.path}:{first}", last - first + 1
                self._aside.add(where, what, reason="number of values", content=torn[number], rows=lines)
                left.remove(number)
        if left:  # the two readers do not agree where a record ends
            raise self._bad_file("its quotes cannot be told apart in the rows that are bad")

    def place(self, row: int) -> str:
        """`file:line` of the row's first line."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int]) -> list[str]:
        """The same of several rows, in rising order. The file is read up to the last of them."""
        return self._counted.places(rows, self._good_lines, self.path)

    def _good_lines(self) -> Iterator[str]:
        for number, (line, _, _) in enumerate(self._records()):
            if number not in (self._torn or self._met):
                yield f"{self.path}:{line}"

    def _records(self) -> Iterator[tuple[int, int, list[str]]]:
        for first, last, record in self._read_records():
            if self._undecoded:
                first, last = before_gone([line - 1 for line in self._undecoded], [first - 1, last - 1])
                first, last = first + 1, last + 1
            yield first, last, record

    def _read_records(self) -> Iterator[tuple[int, int, list[str]]]:
        with io.TextIOWrapper(self._text(), self.dialect.encoding, "replace", newline="") as lines:
            remarks = self.dialect.remarks
            records = read_records(itertools.islice(lines, remarks, None), self.dialect.delimiter)
            for first, last, record in records:
                if remarks + first > self.dialect.lines:
                    yield remarks + first, remarks + last, record

    def _bad(self, error: Exception) -> InputError:
        """The first row that is wrong, by its line, where it can be found."""
        if isinstance(error, UnicodeError) or "invalid UTF8" in str(error):
            with open_unpacked(self.location) as file:
                for number, line in enumerate(file, 1):
                    if not decodes(line, self.dialect.encoding):
                        return InputError(
                            f"a line is not {self.dialect.encoding}: {line.strip()[:40]!r}",
                            where=f"{self.path}:{number}",
                            fix="say the file's encoding=, such as cp1252",
                        )
        try:
            for begin, _, record in self._records():
                if len(record) != len(self._every):
                    return self._ragged(begin, record)
        except ValueError as ours:
            error = ours
        return self._bad_file(shown(error))

    def _bad_file(self, why: str) -> InputError:
        return InputError(
            f"{self.path} is not a CSV file that can be read: {why}", fix="check delimiter= and the row that is named"
        )

    def _ragged(self, line: int, record: list[str]) -> InputError:
        values, names = len(record), len(self._every)
        what = f"the row has {values} values where the table has {names} columns"
        fix = "correct the row; a value with a delimiter in it stands in double quotes"
        if values == names + 1 and not record[-1].strip():
            fix = "take the delimiter at the end of the rows away, or put one behind the names, too"
        elif values == names + 1 and self.dialect.header:
            fix = "if the first column has no name, put a delimiter before the names"
        return InputError(f"{what}: {self.dialect.delimiter.join(record):.60}", where=f"{self.path}:{line}", fix=fix)


def undecodable(path: str, told: str, bad: BadRows) -> Iterator[int]:
    """The lines (from 1) of a file that are no UTF-8; each is set aside."""
    line = 1
    with open_unpacked(path) as file:
        for block in _whole_lines(file):
            if not decodes(block, "utf-8"):
                for number, text in enumerate(block.split(b"\n"), line):
                    if not decodes(text, "utf-8"):
                        what = "the line is not written in UTF-8, as the others are"
                        bad.add(f"{told}:{number}", what, reason="no text", content=text.strip())
                        yield number
            line += block.count(b"\n")


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while block := file.read(BLOCK_BYTES):
        lines, end, left = block.rpartition(b"\n")
        if end:
            yield rest + lines + end
            rest = left
        else:
            rest += block
    if rest:
        yield rest


class _Lines(io.RawIOBase):
    """A stream that is made anew, some whole lines at a time."""

    def __init__(self, stream: BinaryIO):
        super().__init__()
        self._stream, self._blocks, self._ready = stream, _whole_lines(stream), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if (block := next(self._blocks, None)) is None:
                break
            self._ready = self._made(block)
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _made(self, lines: bytes) -> bytes:
        raise NotImplementedError


class _OneBlank(_Lines):
    """Lines of columns that are lined up by blanks and tabs, with one blank between two values."""

    def _made(self, lines: bytes) -> bytes:
        return re.sub(rb"(?m)^ | (?=\r?$)", b"", re.sub(rb"[ \t]+", b" ", lines))


class WithoutLines(_Lines):
    """A file without some lines, by their numbers from 1, in rising order."""

    def __init__(self, stream: BinaryIO, left_out: Sequence[int]):
        super().__init__(stream)
        self._left_out, self._line = set(left_out), 1

    def _made(self, lines: bytes) -> bytes:
        every = enumerate(io.BytesIO(lines).readlines(), self._line)
        kept = [line for number, line in every if number not in self._left_out]
        self._line += lines.count(b"\n")
        return b"".join(kept)


CSV_ENDINGS = tuple(
    ending + packed for ending in (".csv", ".tsv", ".tab", ".txt", ".data") for packed in ("", *ENDINGS)
)
