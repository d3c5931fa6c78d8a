"""JSON lines as a table: one object a line, whose fields are columns; those of an object inside another by dotted path.

Two passes: the first finds the type of every field over the whole file, the second reads. Both take a few megabytes of
whole lines at a time, so that what is wrong is looked for in those alone, and told by its line. A field that is missing or
null is null.

Who goes over all rows before anything else (`trusting`) may have the fields taken from the file's beginning, which saves
the first pass: should a line further down have another field, or another type, that pass raises `Unforeseen`, and the file
is opened anew.
"""

from __future__ import annotations

import bisect
import copy
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.json

from distdl.data import workers
from distdl.data.bad_rows import BadRows
from distdl.data.store import shown
from distdl.data.table.cut_text import Stretch, sections_of_lines
from distdl.data.table.reader import Counted, Table
from distdl.data.table.typed import TypedTable, pieces
from distdl.data.text.documents import json_object, once
from distdl.data.unpack import ENDINGS as PACKED
from distdl.data.unpack import open_unpacked
from distdl.errors import InputError

BLOCK_BYTES = 4 << 20
BEGIN_BYTES = 8 << 20
"""Of a file, from which its fields are taken where its other lines are compared with them as they are read."""
ENDINGS = tuple(ending + packed for ending in (".jsonl", ".ndjson", ".json") for packed in ("", *PACKED))
R = TypeVar("R")
WORDS = {"b": "true or false", "i": "a number", "f": "a number", "s": "text", "l": "a list", "o": "an object"}


class Unforeseen(Exception):
    """A line has what the beginning of the file does not show: a field, a type, or damage."""


class JsonTable(TypedTable):
    """A file of JSON lines. InputError names the line that is no object, or whose field is of another type than above.

    `trusting`: the fields are those of the file's beginning, and reading it may raise Unforeseen, until `proven`.
    """

    def __init__(self, location: str, bad: BadRows | None = None, trusting: bool = False):
        self.location = location
        self._proven = True
        """Whether all lines are known to fit the fields."""
        self._bad = bad if bad and bad.wanted else None
        self._left_out: list[int] = []
        """Lines that are left out, as they cannot be read, in rising order."""
        self.rows: int | None = None
        self._stretch: tuple[int, int] | None = None
        """The bytes of a section of it."""
        self._sections: list[Table] = []
        self._counted = Counted()
        trusting = trusting and self._bad is None
        found = self._find_in_begin() if trusting else None
        self._fields = found or self._find_in_sections() or self._find_fields()[0]
        if not len(self._fields):
            raise InputError(f"{shown(location)} holds no objects")
        super().__init__(location, self._fields)
        for section in self._sections:
            vars(section).update({**vars(self), **vars(section)})

    def cut(self) -> list[Table]:
        """Some lines each."""
        return self._sections or [self]

    def proven(self) -> None:
        """All rows have been read: from now on a pass may read the columns that it asks for alone."""
        for one in (self, *self._sections):
            vars(one)["_proven"] = True

    def _find_in_begin(self) -> pa.Schema | None:
        """None: the file is not larger than what would be looked at, or something is wrong there. Lines are counted in all
        of it."""
        found, read, blocks = pa.schema([]), 0, self._blocks()
        try:
            for _, block in blocks:
                found, read = _with_block(found, block)[0], read + len(block)
                if read >= BEGIN_BYTES:
                    break
        except (pa.ArrowException, UnicodeError, TypeError):
            return None
        if next(blocks, None) is None:
            return None
        self._proven = False
        stretches, above = sections_of_lines(self.location), 0
        for section, rows in self._each_of(stretches, _lines_in):
            section.first_row, section.rows = above, rows
            above += rows
            self._sections.append(section)
        return _settled_schema(found)

    def _find_in_sections(self) -> pa.Schema | None:
        """None: there are none, or something is wrong, which is to be told with what stands above it."""
        stretches = [] if self._bad else sections_of_lines(self.location)
        found, above = pa.schema([]), 0
        try:
            for section, (fields, rows) in self._each_of(stretches, _fields_of):
                found = _merged_schemas(found, fields)
                section.first_row, section.rows = above, rows
                above += rows
                self._sections.append(section)
        except (InputError, TypeError):
            self._sections = []
            return None
        return _settled_schema(found) if stretches else None

    def _each_of(
        self, stretches: list[tuple[int, int]], function: Callable[[JsonTable], Iterator[R]]
    ) -> Iterator[tuple[JsonTable, R]]:
        """A section of each stretch, and what the function gives for it, in any process."""
        sections = [copy.copy(self) for _ in stretches]
        for section, stretch in zip(sections, stretches, strict=True):
            section._stretch, section._sections = stretch, []
        return zip(sections, workers.current().each(function, sections), strict=True)

    def _find_fields(self, settle: bool = True) -> tuple[pa.Schema, int]:
        """The fields, and how many rows there are."""
        found, rows = pa.schema([]), 0
        for line, block in self._blocks():
            try:
                found, count = _with_block(found, block)
            except (pa.ArrowException, UnicodeError, TypeError) as error:
                if self._bad is None:
                    raise self._wrong(block, line, found, error) from None
                count = 0
                if good := self._sound(block, line, found, self._bad):
                    try:
                        found, count = _with_block(found, good)
                    except (pa.ArrowException, UnicodeError, TypeError) as other:
                        raise self._wrong(good, line, found, other) from None
            rows += count
        return _settled_schema(found) if settle else found, rows

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, some whole lines), without those that are blank all of them."""
        stretch = self._stretch
        with Stretch(self.location, *stretch) if stretch else open_unpacked(self.location) as file:
            line, rest = 1, b""
            while block := file.read(BLOCK_BYTES):
                if line == 1 and not rest and not (stretch and stretch[0]):
                    self._check_begin(block)
                whole, end, left = block.rpartition(b"\n")
                if not end:
                    rest += block
                    continue
                text, rest = rest + whole + end, left
                if not text.isspace():
                    yield line, text
                line += text.count(b"\n")
            if rest.strip():
                yield line, rest

    def _check_begin(self, block: bytes) -> None:
        path = shown(self.location)
        if block.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            raise InputError(
                f"{path} holds one JSON array, not one object a line",
                fix="write its items one a line, for example by: jq -c '.[]' file.json > file.jsonl",
            )
        if block[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in block[:64]:
            raise InputError(f"{path} is not written in UTF-8, as JSON lines are", fix="write it again in UTF-8")

    def _stored_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self._fields.field(name) for name in columns])
        for line, block in self._blocks():
            block = self._without(block, line)
            if not block.strip():
                continue
            try:
                table = _read(block, schema) if self._proven else self._compared(block)
            except (pa.ArrowException, UnicodeError) as error:
                raise self._wrong(block, line, self._fields, error) from None
            for batch in table.select(columns).combine_chunks().to_batches():
                yield from pieces(batch)

    def _compared(self, block: bytes) -> pa.Table:
        """All fields of some lines. Unforeseen: they do not fit those of the file's beginning."""
        try:
            block.decode("utf-8")
            return _read(block, self._fields, others="error")
        except (pa.ArrowException, UnicodeError):
            raise Unforeseen from None

    def place(self, row: int) -> str:
        """`file:line`."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int]) -> list[str]:
        """The same of several rows, in rising order. The file is read up to the last of them."""
        return self._counted.places(rows, self._good_lines, self.path)

    def _good_lines(self) -> Iterator[str]:
        gone = set(self._left_out)
        with open_unpacked(self.location) as file:
            for number, line in enumerate(file, 1):
                if line.strip() and number not in gone:
                    yield f"{self.path}:{number}"

    def _without(self, block: bytes, first: int) -> bytes:
        """Some lines without those that are left out."""
        begin = bisect.bisect_left(self._left_out, first)
        end = bisect.bisect_left(self._left_out, first + block.count(b"\n") + 1)
        if begin == end:
            return block
        gone = set(self._left_out[begin:end])
        return b"".join(line for n, line in enumerate(io.BytesIO(block), first) if n not in gone)

    def _sound(self, block: bytes, first: int, schema: pa.Schema, bad: BadRows) -> bytes:
        """The lines that can be read; the others are set aside. A field that no line above has is of the type that most
        lines here have."""
        path = shown(self.location)
        known = {name: kind for field in schema for name, kind in _kinds(field.name, field.type)}
        records = list(self._records(block, first, bad))
        seen: dict[str, Counter[str]] = {}
        for _, _, record in records:
            for name, _, kind in _values("", record):
                seen.setdefault(name, Counter())["f" if kind == "i" else kind] += 1
        usual = {name: kinds.most_common(1)[0][0] for name, kinds in seen.items()} | known
        good = []
        for number, line, record in records:
            odd = next((each for each in _values("", record) if not _alike(each[2], usual[each[0]])), None)
            if odd is None:
                good.append(line.rstrip(b"\n") + b"\n")
                continue
            name, value, _ = odd
            what = f"the field '{name}' holds {value!r:.60}; in other lines it holds {WORDS[usual[name]]}"
            bad.add(f"{path}:{number}", what, reason="another type", column=name, content=line.strip())
            bisect.insort(self._left_out, number)
        return b"".join(good)

    def _records(self, block: bytes, first: int, bad: BadRows) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
        """Number, text and object of each line that is an object; the others are set aside."""
        for number, line in enumerate(io.BytesIO(block), first):
            if line.strip():
                where, record = f"{shown(self.location)}:{number}", None
                with bad.row(where, line.strip(), reason="damaged line"):
                    record = json_object(line, where, once)
                if record is None:
                    bisect.insort(self._left_out, number)
                else:
                    yield number, line, record

    def _wrong(self, block: bytes, first: int, schema: pa.Schema, error: Exception) -> InputError:
        """What is wrong in some lines, where it can be found, and what Arrow says otherwise."""
        path = shown(self.location)
        if self._stretch:
            with Stretch(self.location, 0, self._stretch[0]) as above:
                first += sum(some.count(b"\n") for some in iter(partial(above.read, BLOCK_BYTES), b""))
        known = {name: kind for field in schema for name, kind in _kinds(field.name, field.type)}
        for number, line in enumerate(block.split(b"\n"), first):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = json_object(line, where, once)
            except InputError as problem:
                return problem
            for name, value, kind in _values("", record):
                before = known.setdefault(name, kind)
                if not _alike(before, kind):
                    what = f"the field '{name}' holds {value!r:.60}; above it holds {WORDS[before]}"
                    fix = f"write all of '{name}' in one way, or null where there is none"
                    return InputError(what, where=where, fix=fix)
        return InputError(f"{path}:{first} or a line below it cannot be read: {error}")


def _alike(one: str, other: str) -> bool:
    """Whether values of two kinds can be of one column."""
    return one == other or {one, other} == {"i", "f"}


def _with_block(found: pa.Schema, block: bytes) -> tuple[pa.Schema, int]:
    """The fields with those of some more lines, and how many rows these are."""
    block.decode("utf-8")  # Arrow does not look at every letter
    table = _read(block)
    return _merged_schemas(found, table.schema), table.num_rows


def _fields_of(section: JsonTable) -> Iterator[tuple[pa.Schema, int]]:
    yield section._find_fields(settle=False)


def _lines_in(section: JsonTable) -> Iterator[int]:
    """How many lines are not blank, once."""
    yield sum(_lines(block) for _, block in section._blocks())


def _lines(block: bytes) -> int:
    if block[:1].isspace() or any(blank in block for blank in (b"\n\n", b"\n\r", b"\n ", b"\n\t")):
        return sum(bool(line.strip()) for line in block.split(b"\n"))
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _settled_schema(found: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(field.name, _settled(field.type)) for field in found])


def _read(block: bytes, schema: pa.Schema | None = None, others: str = "ignore") -> pa.Table:
    return pyarrow.json.read_json(
        pa.BufferReader(block),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else others
        ),
    )


def _merged_schemas(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    kinds = {field.name: field.type for field in one}
    for field in other:
        kinds[field.name] = _merged(kinds.get(field.name, pa.null()), field.type)
    return pa.schema(list(kinds.items()))


def _merged(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both. TypeError: there is none."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} <= {pa.int64(), pa.float64()}:
        return pa.float64()
    if all(pa.types.is_timestamp(kind) or pa.types.is_string(kind) for kind in (one, other)):
        return pa.string()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_merged(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return pa.struct(list(_merged_schemas(pa.schema(list(one)), pa.schema(list(other)))))
    raise TypeError(f"{one} and {other}")


def _settled(kind: pa.DataType) -> pa.DataType:
    """Words that look like a time are words: what they are is seen from all of them. What is null throughout is, too."""
    if pa.types.is_timestamp(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _settled(field.type)) for field in kind])
    return kind


def _kinds(name: str, kind: pa.DataType) -> Iterator[tuple[str, str]]:
    """(path, kind in a letter) of a field and of all inside it."""
    if pa.types.is_struct(kind):
        yield name, "o"
        for field in kind:
            yield from _kinds(f"{name}.{field.name}", field.type)
    elif pa.types.is_list(kind):
        yield name, "l"
        yield from _kinds(f"{name}[]", kind.value_type)
    elif not pa.types.is_null(kind):
        letters = {pa.bool_(): "b", pa.int64(): "i", pa.float64(): "f"}
        yield name, letters.get(kind, "s")


def _values(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """(path, value, kind in a letter) of a value and of all inside it."""
    if name and value is not None:
        letters = ((bool, "b"), (int, "i"), (float, "f"), (str, "s"), (list, "l"), (dict, "o"))
        yield name, value, next(letter for kind, letter in letters if isinstance(value, kind))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _values(f"{name}.{key}" if name else key, item)
    elif isinstance(value, list):
        for item in value:
            yield from _values(f"{name}[]", item)
