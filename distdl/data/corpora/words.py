"""The words of a text by number, for vectors of words: runs of letters in lower case, the most frequent one is number 0.

Rare words are left out, and their neighbours become neighbours, as word2vec.c does it (Mikolov et al. 2013). The manifest's
`info` lists the words.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.corpora import stdlib
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, open_raw, read_blocks
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError

PIECE_BYTES = 1 << 14
CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `words`."""

    path: tuple[str, ...] = ()
    """The text file or files (.gz too), separated by commas; none: the Python standard library of this machine."""
    context: int = 128
    """Words of a row."""
    min_count: int = 5
    """Words that occur less often are left out."""
    vocabulary: int = 0
    """Keep so many of the most frequent words; 0: all."""
    max_bytes: int = 0
    """Stop after this many bytes of the standard library; 0 takes all."""


def prepare(options: Options) -> Prepared:
    """`tokens` uint32 (context,)."""
    splitter = Splitter(options)
    if options.context < 2:
        raise InputError(f"context is {options.context}", allowed="at least 2")
    for path in options.path:
        open_raw(path).close()  # a missing file is said before the first is read
    numbers: dict[str, int] = {}
    text = array("L", (numbers.setdefault(word, len(numbers)) for word in _words(options)))
    read, names = np.frombuffer(text, np.dtype("L")), np.array(list(numbers))
    counts = np.bincount(read, minlength=len(names))
    order = np.lexsort([names, -counts])
    kept = order[counts[order] >= options.min_count][: options.vocabulary or None]
    if len(kept) < 2:
        raise InputError(f"{len(kept)} words occur {options.min_count} times", fix="more text, or a smaller min_count")
    renumbered = np.full(len(names), -1)
    renumbered[kept] = np.arange(len(kept))
    tokens = renumbered[read]
    columns = {"tokens": Column("uint32", (options.context,))}
    chunks = splitter.parts(lambda: _rows(tokens[tokens >= 0], options.context))
    info = {"encoding": "words", "vocabulary": len(kept), "words": names[kept].tolist(), "split": splitter.record()}
    return Prepared(columns, chunks, info)


def _words(options: Options) -> Iterator[str]:
    """Every word of the text, in order."""
    blocks: Iterator[bytes]
    if options.path:
        blocks = itertools.chain.from_iterable(itertools.chain(read_blocks(path), [b"\n"]) for path in options.path)
    else:
        pieces = stdlib.prepare(stdlib.Options(PIECE_BYTES, options.max_bytes, test_fraction=0.0)).chunks
        blocks = (piece[:-1].tobytes() for _, rows in pieces for piece in rows["tokens"])
    rest = b""
    for block in blocks:
        head, _, tail = (rest + block).rpartition(b" ")
        yield from _of(head)
        rest = tail
    yield from _of(rest)


def _of(text: bytes) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.decode("utf-8", "replace").lower())


def _rows(tokens: np.ndarray, context: int) -> Iterator[Rows]:
    """What does not fill a last row is left out."""
    whole = tokens[: len(tokens) // context * context].reshape(-1, context).astype(np.uint32)
    for start in range(0, len(whole), CHUNK_ROWS):
        yield {"tokens": whole[start : start + CHUNK_ROWS]}
