"""Files, folders and JSON lines -> texts, one document after the other.

A file is read a few megabytes at a time. A document that is a whole file comes in parts of some ten thousand letters,
cut at the end of a line where there is one: so a file of any size needs little memory. All others are read whole.
"""

from __future__ import annotations

import codecs
import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AnyStr, Literal

from distdl.data.bad_rows import BadRows
from distdl.data.raw import open_raw, read_blocks
from distdl.data.text.shares import value_beside
from distdl.data.text.tokens import half_a_character
from distdl.errors import InputError

PART_LETTERS = 1 << 14
FEW_LETTERS = 1 << 9
PARTS = 64
"""A small file has so many parts, of at least `FEW_LETTERS`: some of them can be held out."""
MOST_LETTERS = 1 << 28
"""Of a document that is not a whole file: a separator that never comes would fill the memory."""
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""What a file may begin with -> its encoding. UTF-32's stands first, for UTF-16's is its begin."""
OF_JSON = (".jsonl", ".ndjson", ".json")
SEPARATORS = {"line": "\n", "paragraph": "\n\n"}

Unit = Literal["file", "line", "paragraph"]
Found = tuple[str, str, int, bool, Any]
"""The fields of a `Text` but for its document's number."""


@dataclass(frozen=True)
class Text:
    """A document, or a part of one."""

    text: str
    where: str
    """`file:line` of its begin."""
    document: int
    """Number of the document, from 0."""
    part: int = 0
    last: bool = True
    """It is the document's last part."""
    beside: Any = None
    """Of JSON lines: the value of the field that says which split it belongs to."""


@dataclass
class Reader:
    """Reads the documents of files. `told`: what a reader of the outcome should know, in sentences."""

    encoding: str = ""
    """Empty: UTF-8, or what a byte order mark says."""
    unit: str = "file"
    separator: str = ""
    """Text between two documents; then `unit` does not count."""
    key: str = "text"
    """The field of JSON lines."""
    beside: str = ""
    """Another field of theirs that is wanted, too; empty: none."""
    told: list[str] = field(default_factory=list)
    bad: BadRows | None = None
    """JSON lines that are set aside."""

    def documents(self, paths: list[str]) -> Iterator[Text]:
        """Every document of these files, in order."""
        number = -1
        for path in paths:
            found = self._of_json(path) if is_json(path) else self._of_text(path)
            for text, where, part, last, beside in found:
                number += part == 0
                yield Text(text, where, number, part, last, beside)

    def _of_text(self, path: str) -> Iterator[Found]:
        letters = decoded(path, self.encoding, self._say)
        separator = self.separator or SEPARATORS.get(self.unit, "")
        if not separator:
            yield from _parts(path, letters)
            return
        line, rest = 1, ""
        for some in letters:
            *whole, rest = (rest + some).split(separator)
            for text in whole:
                if text.strip():
                    yield text, f"{path}:{line}", 0, True, None
                line += text.count("\n") + separator.count("\n")
            if len(rest) > MOST_LETTERS:
                what = f"a document of more than {MOST_LETTERS:,} letters: no {separator!r} ends it"
                raise InputError(what, where=f"{path}:{line}", fix="another separator, or document=file")
        if rest.strip():
            yield rest, f"{path}:{line}", 0, True, None

    def _of_json(self, path: str) -> Iterator[Found]:
        for where, record in json_records(path, self.bad):
            with guarded(self.bad, where, record, "no text"):
                if text := text_of(record, self.key, where):
                    yield text, where, 0, True, value_beside(record, self.beside, where)

    def _say(self, sentence: str) -> None:
        if sentence not in self.told:
            self.told.append(sentence)


def text_of(record: dict[str, Any], key: str, where: str) -> str:
    """The text of a field, or '' where it is blank. Raises InputError."""
    text = record.get(key)
    if not isinstance(text, str):
        what = f"the field '{key}' holds {text!r:.60}, not text"
        raise InputError(what, where=where, allowed="fields: " + ", ".join(record), fix="field=NAME")
    if half := half_a_character(text):
        raise InputError(f"the text has {half}", where=where)
    return text if text.strip() else ""


def guarded(bad: BadRows | None, where: str, content: Any, reason: str) -> AbstractContextManager[None]:
    """Around what is done with one record, which is set aside where it is refused and the options say so."""
    return bad.row(where, content, reason) if bad else nullcontext()


def is_json(path: str) -> bool:
    """Whether a file has a JSON object in each line, as its name says."""
    return re.sub(r"\.(gz|bz2|xz|zst|lz4)$", "", path.lower()).endswith(OF_JSON)


def json_lines(path: str, bad: BadRows | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, object) of every line that is not blank, and was not set aside. Raises InputError."""
    with open_raw(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip() or (bad and where in bad):
                continue
            with guarded(bad, where, line.strip(), "damaged line"):
                yield where, json_object(line, where, once)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object. ValueError: one stands there twice, of which only the last would be kept."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field '{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return found


def json_object(line: bytes, where: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> dict[str, Any]:
    """What a line holds. `pairs` makes an object of its fields. InputError: it is none."""
    try:
        record = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where=where, fix="one whole object a line") from None
    if not isinstance(record, dict):
        raise InputError(f"a line holds {record!r:.60}, not an object", where=where, allowed='{"field": ...}')
    return record


def json_records(path: str, bad: BadRows | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of a file that is one list of objects, too, as collections of instructions often are."""
    head = next((block for block in read_blocks(path) if block.strip()), b"").removeprefix(codecs.BOM_UTF8).lstrip()
    yield from _json_list(path, bad) if head.startswith(b"[") else json_lines(path, bad)


def _json_list(path: str, bad: BadRows | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file, object n`, object) of a list, without the whole of it in memory. Raises InputError."""
    read, rest, number, begun = json.JSONDecoder().raw_decode, "", 0, False
    for letters in _with_end(decoded(path, "", lambda _: None), ""):
        rest = (rest + letters).lstrip()
        if not begun and rest:
            rest, begun = rest[1:].lstrip(), True
        while rest and rest[0] != "]":
            try:
                record, end = read(rest)
                complete = not letters or rest[end:].strip()  # else a number may go on
            except (ValueError, RecursionError) as error:
                if letters and not isinstance(error, RecursionError) and len(rest) < MOST_LETTERS:
                    break  # it goes on in what is to come
                raise InputError(f"not valid JSON: {error}", where=f"{path}, object {number + 1}") from None
            if not complete:
                break
            number, where = number + 1, f"{path}, object {number + 1}"
            with guarded(bad, where, record, "damaged object"):
                if not isinstance(record, dict):
                    what = f"the list holds {record!r:.60}, not an object"
                    raise InputError(what, where=where, allowed='{"field": ...}')
                if not (bad and where in bad):
                    yield where, record
            rest = rest[end:].lstrip()
            if rest[0] not in ",]":
                raise InputError(f"not valid JSON: {rest[:20]!r} follows it", where=where, allowed=", or ]")
            rest = rest.removeprefix(",").lstrip()
    if rest.strip() != "]":
        raise InputError(
            f"not valid JSON: the list does not end after object {number:,}", where=path, fix="copy it again"
        )


def decoded(path: str, encoding: str, say: Callable[[str], None]) -> Iterator[str]:
    """The letters of a file, a few megabytes at a time. Raises InputError with the line of a byte that is none."""
    decoder: Any = None
    lines, told = 1, encoding or "utf-8"
    for block in _with_end(read_blocks(path), b""):
        if decoder is None:
            mark = next((mark for mark in MARKS if block.startswith(mark)), b"")
            if mark and not encoding:
                told = MARKS[mark]
                say(f"{path} begins with a byte order mark: it was read as {told}, without the mark")
            elif not mark and not encoding and like_utf16(block):
                what = "every second byte is zero: this is UTF-16 without a byte order mark, not UTF-8"
                raise InputError(what, where=path, fix="encoding=utf-16-le, or utf-16-be")
            name = "utf-8-sig" if mark == codecs.BOM_UTF8 and told.lower() in ("utf-8", "utf8") else told
            try:
                decoder = codecs.getincrementaldecoder(name)("strict")
            except LookupError:
                raise InputError(f"encoding={encoding}", allowed="such as utf-8, latin-1, utf-16") from None
        try:
            letters = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            what = f"the byte 0x{error.object[error.start]:02x} is no {told} ({error.reason})"
            fix = "encoding=latin-1, or whatever it was written in; or tokenizer=bytes, which takes any"
            raise InputError(what, where=f"{path}:{line}", fix=fix) from None
        lines += letters.count("\n")
        if letters:
            yield letters


def _with_end(blocks: Iterator[AnyStr], end: AnyStr) -> Iterator[AnyStr]:
    yield from blocks
    yield end


def like_utf16(block: bytes) -> bool:
    """Whether a file that begins so seems to be UTF-16 without a mark."""
    head = block[:4096]
    return (
        len(head) >= 4
        and any(head[i::2].count(0) > len(head[i::2]) * 0.4 for i in (0, 1))
        and head.count(0) < 0.7 * len(head)
    )


def _parts(path: str, letters: Iterator[str]) -> Iterator[Found]:
    """A file that is one document, in parts."""
    line, part, rest, most = 1, 0, "", 0
    for some in letters:
        rest += some
        start = 0
        most = most or max(
            FEW_LETTERS, min(PART_LETTERS, len(rest) // PARTS)
        )  # by the first few megabytes: all of a small file
        while len(rest) - start > 2 * most:
            end = rest.rfind("\n", start, start + most) + 1
            end = end if end > start else rest.rfind(" ", start, start + most)
            end = end if end > start else start + most
            yield rest[start:end], f"{path}:{line}", part, False, None
            line += rest.count("\n", start, end)
            start, part = end, part + 1
        rest = rest[start:]
    if rest or part:
        yield rest, f"{path}:{line}", part, True, None


def files_of(paths: tuple[str, ...], patterns: tuple[str, ...], say: Callable[[str], None]) -> list[str]:
    """The files themselves, and of folders those whose names fit a pattern, sorted. What is left out is said. Raises
    InputError."""
    found = []
    for path in paths:
        if not Path(path).is_dir():
            open_raw(path).close()  # a missing file is said before the first is read
            found.append(path)
            continue
        there = sorted(os.path.join(top, name) for top, _, names in os.walk(path) for name in names)
        kept = [name for name in there if any(fnmatch.fnmatch(os.path.basename(name), each) for each in patterns)]
        if not kept:
            what = f"the folder {path} has no file that fits {', '.join(patterns)}"
            raise InputError(what, fix="files=PATTERN", allowed=f"{len(there):,} other files")
        if left := len(there) - len(kept):
            others = sorted({os.path.splitext(name)[1] or os.path.basename(name) for name in {*there} - {*kept}})
            say(
                f"{path}: {left:,} of {len(there):,} files left out ({', '.join(others[:5])}); files=PATTERN takes others"
            )
        found += kept
    return found
