"""Pairs of passages of a text, of which half follow each other, as BERT is pre-trained on (Devlin et al. 2019, A.2).

    [CLS] passage A [SEP] passage B [SEP] padding

Passages are whole lines that together fill the context; the longer one is shortened where they do not fit. The tokens are
bytes: 0 is padding, 1 [CLS], 2 [SEP], 3 [MASK], and a byte is itself plus 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from distdl.data.corpora import stdlib
from distdl.data.formats import text
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.split_rules import SPLITS
from distdl.data.splits import SplitOptions
from distdl.errors import InputError

CLS, SEP, MASK, FIRST_BYTE = 1, 2, 3, 4
DOCUMENT_BYTES, DOCUMENT_ROWS = 2048, 8
"""Lines within so many bytes, or so many rows' worth, belong together: text is held out in pieces of this size."""
CHUNK_ROWS = 2048

Document = list[bytes]


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `sentence_pairs`."""

    path: tuple[str, ...] = ()
    """The file or files of text; none: the Python standard library of this machine."""
    test_path: tuple[str, ...] = ()
    """Files that become the split `test`; then nothing is held out of `path`."""
    context: int = 128
    """Tokens of a row, the three marks included."""
    max_bytes: int = 0
    """Stop after this many bytes of the standard library; 0 takes all."""
    passes: int = 1
    """How often the text is gone through; each pass makes other pairs."""
    seed: int = 0
    """Seed of the pairs."""


def prepare(options: Options) -> Prepared:
    """`tokens` uint16 (context,), `segments` uint8 (context,) 0 for A and 1 for B, `label` int64 0 where B follows A."""
    for name, value, least in (("context", options.context, 8), ("passes", options.passes, 1)):
        if value < least:
            raise InputError(f"{name} is {value}", allowed=f"at least {least}")
    size = max(DOCUMENT_BYTES, DOCUMENT_ROWS * options.context)
    shares = {field.name: getattr(options, field.name) for field in fields(SplitOptions)}
    if options.path:
        raw = text.prepare(text.Options(options.path, size, options.test_path, **shares))
    else:
        raw = stdlib.prepare(stdlib.Options(size, options.max_bytes, **shares))
    row = (options.context,)
    columns = {"tokens": Column("uint16", row), "segments": Column("uint8", row), "label": Column("int64")}
    info: dict[str, Any] = {"vocabulary": 256 + FIRST_BYTE, "cls": CLS, "sep": SEP, "mask": MASK}
    info |= {"classes": ["follows", "does not"], "split": raw.info["split"]}
    return Prepared(columns, _chunks(raw, options), info)


def _chunks(raw: Prepared, options: Options) -> Iterator[tuple[str, Rows]]:
    documents: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for split, rows in raw.chunks:
        for piece in rows["tokens"]:
            lines = [line.strip() for line in piece[:-1].tobytes().split(b"\n")[:-1]]  # the last is cut off
            documents[split].append([line for line in lines if line])
    for place, (split, found) in enumerate(documents.items()):
        random = np.random.default_rng([options.seed, place])
        rows_of_split: list[tuple[bytes, bytes, int]] = []
        for _ in range(options.passes if split == "train" else 1):
            for number in range(len(found)):
                rows_of_split += _pairs(found, number, options.context - 3, random)
        for start in range(0, len(rows_of_split), CHUNK_ROWS):
            yield split, _rows(rows_of_split[start : start + CHUNK_ROWS], options.context)


def _pairs(
    documents: list[Document], number: int, room: int, random: np.random.Generator
) -> Iterator[tuple[bytes, bytes, int]]:
    """(A, B, whether B is from elsewhere) of one document, from its first line to its last."""
    lines, begin = documents[number], 0
    while begin < len(lines):
        end, size = begin, 0
        while end < len(lines) and size < room:
            size += len(lines[end]) + 1
            end += 1
        middle = int(random.integers(begin + 1, max(end, begin + 2)))  # where A ends
        a = b"\n".join(lines[begin:middle])
        elsewhere = middle == end or random.random() < 0.5
        if elsewhere:
            other = documents[(number + int(random.integers(1, max(len(documents), 2)))) % len(documents)]
            first = int(random.integers(len(other))) if other else 0
            b = b"\n".join(other[first:])[: max(room - len(a), room // 2)]
            begin = middle  # the lines behind A were not used
        else:
            b = b"\n".join(lines[middle:end])
            begin = end
        if a and b:
            yield *_fitted(a, b, room, random), int(elsewhere)


def _fitted(a: bytes, b: bytes, room: int, random: np.random.Generator) -> tuple[bytes, bytes]:
    """Both shortened until they fit, to half of the room each where both are long, at the front or at the end."""
    size = min(len(a), max(room // 2, room - len(b)))
    parts = []
    for part, kept in ((a, size), (b, min(len(b), room - size))):
        first = len(part) - kept if random.random() < 0.5 else 0
        parts.append(part[first : first + kept])
    return parts[0], parts[1]


def _rows(pairs: list[tuple[bytes, bytes, int]], context: int) -> Rows:
    tokens = np.zeros((len(pairs), context), np.uint16)
    segments = np.zeros((len(pairs), context), np.uint8)
    for row, (a, b, _) in enumerate(pairs):
        marks = np.array([[CLS], [SEP]], np.uint16)
        of_bytes = [np.frombuffer(part, np.uint8).astype(np.uint16) + FIRST_BYTE for part in (a, b)]
        joined = np.concatenate([marks[0], of_bytes[0], marks[1], of_bytes[1], marks[1]])
        tokens[row, : len(joined)] = joined
        segments[row, len(a) + 2 : len(joined)] = 1
    return {"tokens": tokens, "segments": segments, "label": np.array([label for *_, label in pairs], np.int64)}
