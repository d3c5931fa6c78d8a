"""Plain text: files, folders, JSON lines (.gz too), as bytes or as tokens of a tokenizer, in rows for a language model.

Bytes of files one after the other, as they are, unless the options ask for documents: a tokenizer, JSON lines, or packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from distdl.data.advice import Advice, Wish, by_ending, has_ending
from distdl.data.bad_rows import BadRows
from distdl.data.raw import BYTE_INFO, Prepared, pack_bytes, read_blocks, token_columns
from distdl.data.split_rules import SPLITS
from distdl.data.splits import Splitter, check_files, split_files
from distdl.data.text.documents import MARKS, Reader, Text, files_of, is_json, like_utf16
from distdl.data.text.learn import KINDS
from distdl.data.text.rows import (
    Encoded,
    RoundTrip,
    TokenOptions,
    array,
    make_layout,
    make_tokenizer,
    prepared,
)
from distdl.data.text.shares import Shares, field_of
from distdl.data.text.tokens import BYTES, Tokenizer
from distdl.errors import InputError

MANY_FILES = 20
"""From so many on a file is held out whole; of fewer, parts."""
BATCH = 64

ENDINGS = (".txt", ".text", ".md", ".rst", ".tex")


@dataclass(frozen=True)
class Options(TokenOptions):
    """Options of the source `text`."""

    path: tuple[str, ...]
    """The files or folders, separated by commas; they are read one after the other. Of a file whose name ends in .jsonl
    or .json each line holds a document."""
    context: int = 128
    """Tokens (or bytes) that a row predicts; a row holds one more."""
    test_path: tuple[str, ...] = ()
    """Files or folders that become the split `test`; then nothing is held out of `path`."""
    packing: Literal["stream", "best_fit", "none"] = "stream"
    """stream: documents follow each other, and rows are cut from that. best_fit: whole documents share a row. none: a
    row each."""
    document: Literal["file", "line", "paragraph"] = "file"
    """What one document of a text file is; a paragraph ends at an empty line."""
    separator: str = ""
    """Text that stands between two documents of a file, such as <|endoftext|>; then `document` does not count."""
    field: str = "text"
    """The field of JSON lines that holds the text."""
    files: tuple[str, ...] = ("*.txt", "*.md", "*.jsonl", "*.txt.gz", "*.jsonl.gz")
    """Names of the files of a folder that are read."""
    encoding: str = ""
    """How text files are written; empty: UTF-8, or what a byte order mark says."""


def prepare(options: Options) -> Prepared:
    """`tokens` uint8, uint16 or uint32 (context + 1,); with packing `labels` int32 and `documents`, as text/packing.py
    has them."""
    notes: list[str] = []
    paths, test = (files_of(given, options.files, notes.append) for given in (options.path, options.test_path))
    if _as_bytes(options, [*paths, *test]):
        notes += _marks([*paths, *test])
        splitter = Splitter(options, where=", ".join(options.path), tested=bool(test))
        train, tested = (
            pack_bytes(chain.from_iterable(map(read_blocks, some)), options.context) for some in (paths, test)
        )
        info = {**BYTE_INFO, "split": splitter.record(), **({"notes": notes} if notes else {})}
        return Prepared(token_columns(options.context), splitter.parts(lambda: train, lambda: tested), info)
    bad = BadRows(options) if any(map(is_json, [*paths, *test])) else None
    texts = _Texts(options, paths, test, notes, bad)
    tokenizer = make_tokenizer(options, texts.of_training)
    layout = make_layout(options, tokenizer, options.packing, options.context)
    return prepared(options, tokenizer, layout, texts.encoded(tokenizer), texts.split, notes, bad)


def _as_bytes(options: Options, paths: list[str]) -> bool:
    """Whether files are taken as they are, one after the other."""
    of_documents = options.document != "file" or options.separator or options.packing != "stream" or options.encoding
    return options.tokenizer == BYTES and not of_documents and not any(map(is_json, paths))


def _marks(paths: list[str]) -> Iterator[str]:
    """What a model of bytes would learn that is no text."""
    for path in paths:
        head = next(iter(read_blocks(path)), b"")
        if like_utf16(head) and not any(map(head.startswith, MARKS)):
            yield f"{path} has a zero in every second byte, as UTF-16 has: encoding=utf-16-le (or -be) reads it as text"
        if mark := next((mark for mark in MARKS if head.startswith(mark)), b""):
            how = (
                "is one of its bytes; encoding=utf-8 leaves it out"
                if MARKS[mark] == "utf-8"
                else "says that it is no UTF-8"
            )
            yield f"{path} begins with a byte order mark ({MARKS[mark]}), which {how}"


class _Texts:
    """The texts of the splits: read once for a tokenizer that is learned, and once more for their tokens."""

    def __init__(
        self, options: Options, paths: list[str], test: list[str], notes: list[str], bad: BadRows | None
    ) -> None:
        self.options, self.paths, self.test, self.notes, self.bad = options, paths, test, notes, bad
        of_json = [is_json(path) for path in paths]
        wanted = options.validation_fraction > 0 or (options.test_fraction > 0 and not test)
        one_each = options.document == "file" and not options.separator and not any(of_json)
        self._whole_files = one_each and len(paths) >= MANY_FILES and wanted
        self._shares = Shares(options, self._read, ", ".join(options.path), all(of_json), bool(test))
        held_out = replace(options, test_fraction=0.0) if test else options
        self.split = check_files(held_out) if self._whole_files else self._shares.record()
        """How they are shared out."""
        self._split_of = split_files(paths, held_out) if self._whole_files else {}

    def _reader(self, beside: str = "") -> Reader:
        options = self.options
        how = (options.encoding, options.document, options.separator, options.field)
        return Reader(*how, beside, self.notes, self.bad)

    def _read(self) -> Iterator[Text]:
        return self._reader(field_of(self.options)).documents(self.paths)

    def of_training(self) -> Iterator[str]:
        """Every text of the training split."""
        return (text.text for split, text in self.shared() if split == "train")

    def shared(self) -> Iterator[tuple[str, Text]]:
        """Every text with its split. A document is held out whole; where a few files are one document each, parts of
        them are."""
        good = 0
        for split, text in self._shared():
            good += text.part == 0
            yield split, text
        if self.bad:
            self.bad.check(good)

    def _shared(self) -> Iterator[tuple[str, Text]]:
        if self._whole_files:
            reader = self._reader()
            for path in self.paths:
                yield from ((self._split_of[path], text) for text in reader.documents([path]))
        else:
            yield from self._shares()
        yield from (("test", text) for text in self._reader().documents(self.test))

    def encoded(self, tokenizer: Tokenizer) -> Iterator[tuple[str, Encoded]]:
        """Every document's tokens, with what it begins and ends with. Raises InputError for a text that cannot be read."""
        ours = self.options.tokenizer in (BYTES, "bpe", "unigram")
        check = RoundTrip(tokenizer, ours, self.notes)
        joined = {split: _Joined(tokenizer, self.options.context) for split in SPLITS}
        for split, some in _by_split(self.shared()):
            for text, ids in zip(some, self._tokens(tokenizer, some)):
                check.look(text.text, ids, text.where)
                yield from ((split, found) for found in joined[split].add(text, ids))
        for split, rest in joined.items():
            yield from ((split, found) for found in rest.end())

    def _tokens(self, tokenizer: Tokenizer, texts: list[Text]) -> list[list[int]]:
        try:
            if any(text.part for text in texts) and self.options.tokenizer not in (BYTES, *KINDS):
                return self._with_further(tokenizer, texts)
            return tokenizer.encode([text.text for text in texts], self.options.special_in_text)
        except ValueError:
            for text in texts:  # which of them it is
                try:
                    tokenizer.encode([text.text])
                except ValueError as error:
                    raise InputError(f"the text has {error}", where=text.where) from None
            raise

    def _with_further(self, tokenizer: Tokenizer, texts: list[Text]) -> list[list[int]]:
        """Where some of the texts are parts that go on with the one before."""
        special = self.options.special_in_text
        found: dict[int, list[int]] = {}
        for encode, some in (
            (tokenizer.encode, [text for text in texts if not text.part]),
            (tokenizer.encode_further, [text for text in texts if text.part]),
        ):
            found |= dict(zip(map(id, some), encode([text.text for text in some], special)))
        return [found[id(text)] for text in texts]


class _Joined:
    """Puts the parts of a document together again, as far as they lie side by side in one split."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        self._ids: list[int] = []
        self._at: tuple[int, int] | None = None  # document and part that would go on
        self._follows = False

    def add(self, text: Text, ids: list[int]) -> Iterator[Encoded]:
        """The next part; what is complete by it."""
        if self._at is not None and self._at != (text.document, text.part):
            yield from self.end()  # the part between is of another split: the text breaks off
        if text.part == 0:
            self._ids += self.tokenizer.roles.begin
        self._ids += ids
        if text.last:
            self._ids.append(self.tokenizer.roles.end)
            yield from self.end()
            return
        self._at = (text.document, text.part + 1)
        whole = (len(self._ids) - 1) // self.context * self.context
        if whole > 0:
            yield Encoded(array(self._ids[: whole + 1], self.tokenizer), follows=self._follows, ends=False)
            self._ids, self._follows = self._ids[whole:], True

    def end(self) -> Iterator[Encoded]:
        """What is left of the document."""
        if self._ids:
            yield Encoded(array(self._ids, self.tokenizer), follows=self._follows)
        self._ids, self._at, self._follows = [], None, False


def _by_split(texts: Iterator[tuple[str, Text]]) -> Iterator[tuple[str, list[Text]]]:
    """Some texts of one split at a time, enough for the library's threads."""
    waiting: dict[str, list[Text]] = {}
    for split, text in texts:
        waiting.setdefault(split, []).append(text)
        if len(waiting[split]) == BATCH:
            yield split, waiting.pop(split)
    yield from waiting.items()


def recognise(path: Path) -> float:
    """By the ending, of a file or of all files of a folder; a file of numbers may have it, too, which a source of tables
    knows better."""
    return 0.6 * by_ending(path, ENDINGS)


def advise(path: str, wish: Wish) -> Advice:
    """Bytes of a file, or of a folder's files, for `distdl init`."""
    if wish.options():
        raise InputError(f"{path} is text: what comes next is learned, no column is")
    if not Path(path).is_dir():
        return Advice({"path": [path]})
    names = {file.name.lower() for file in Path(path).rglob("*") if file.is_file() and has_ending(file, ENDINGS)}
    endings = sorted({ending for ending in ENDINGS if any(has_ending(name, (ending,)) for name in names)})
    told = {"files": "all files of text"} if set(endings) - {".txt", ".md"} else {}
    patterns = {"files": [f"*{ending}{packed}" for ending in endings for packed in ("", ".gz")]} if told else {}
    return Advice({"path": [path], **patterns}, told)
