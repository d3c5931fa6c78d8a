"""Documents -> rows of one length: one after the other, one a row, or several in a row by best fit.

    stream     documents follow each other, and every `context` tokens a row begins; its last token is the next one's
    first, so
               that each token is predicted once
    best_fit   whole documents share a row: of a window of documents the longest is laid first, each where it leaves the
    least room
               (best fit decreasing)
    none       a row for each document

A document of more than `context` + 1 tokens becomes several pieces in the same way: the last token of one is the first
of the next. So a row holds `context` + 1 tokens, of which all but the first of a piece are predicted; in the column
`labels` those that are not, and what fills up a row, are -100. In the column `documents` the pieces of a row have the
numbers 1, 2, ..., and 0 is filling.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distdl.columns import NO_LABEL
from distdl.data.manifest import Column
from distdl.data.raw import Rows
from distdl.errors import InputError

WINDOW_TOKENS = 1 << 24
"""A window ends at so many tokens, however few documents it has: 130 MB at most."""
STREAM_TOKENS = 1 << 20
CHUNK_ROWS = 256

Packing = Literal["stream", "best_fit", "none"]


@dataclass(frozen=True)
class Layout:
    """How rows are laid out."""

    packing: str
    context: int
    window: int
    dtype: str
    """Type of the column `tokens`."""
    pad: int
    apart: bool
    """Whether rows say which document each token is of, so that documents of one row do not see each other."""
    cut: bool = True
    """Longer documents are cut into pieces; else left out."""

    def __post_init__(self) -> None:
        if self.context < 1:
            raise InputError(f"context is {self.context}", allowed="at least 1")
        if self.window < 1:
            raise InputError(f"window is {self.window}", allowed="at least 1 document")

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of a row."""
        shape = (self.context + 1,)
        columns = {"tokens": Column(self.dtype, shape)}
        if self.packing != "stream":
            columns["labels"] = Column("int32", shape)
            if self.apart:
                columns["documents"] = Column("uint16" if self.context < 1 << 16 else "uint32", shape)
        return columns


@dataclass
class Counts:
    """What became of the documents of a split."""

    documents: int = 0
    tokens: int = 0
    """Of the documents, each once."""
    learned: int = 0
    """Those that are predicted and count."""
    rows: int = 0
    filling: int = 0
    """Places of rows that hold no document."""
    cut: int = 0
    """Documents longer than a row, which became several pieces."""
    left_out: int = 0
    """Documents longer than a row that were left out."""
    unpredicted: int = 0
    """Pieces with nothing to predict, which were left out."""
    rest: int = 0
    """Tokens at the end of a stream that fill no row."""


@dataclass(frozen=True)
class _Piece:
    ids: np.ndarray
    labels: np.ndarray
    """Equal to `ids` where a token is learned, else -100."""


class Packer:
    """Lays the documents of one split into rows."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.counts = layout, Counts()
        self._stream: list[np.ndarray] = []
        self._window: list[_Piece] = []
        self._waiting = 0  # tokens in either

    def add(
        self, ids: np.ndarray, labels: np.ndarray | None = None, *, follows: bool = False, ends: bool = True
    ) -> Iterator[Rows]:
        """A document, or a part of one that is long; `labels` as `_Piece` has them. `follows`: it is not the first
        part, and begins with the last token of the part before. `ends`: it is the last one."""
        if follows and self.layout.packing == "stream":
            ids = ids[1:]
        self.counts.documents += ends
        self.counts.tokens += len(ids) - (follows and self.layout.packing != "stream")
        self.counts.cut += ends and (follows or len(ids) > self.layout.context + 1) and self.layout.packing != "stream"
        self._waiting += len(ids)
        if self.layout.packing == "stream":
            self._stream.append(ids)
            if self._waiting >= STREAM_TOKENS:
                yield from self._flow()
            return
        labels = ids.astype(np.int32) if labels is None else labels
        self._window += self._pieces(ids, labels)
        if len(self._window) >= self.layout.window or self._waiting >= WINDOW_TOKENS:
            yield from self._fill()

    def end(self) -> Iterator[Rows]:
        """The last rows."""
        if self.layout.packing == "stream":
            yield from self._flow()
            self.counts.rest = max(0, self._waiting - 1)
            self.counts.learned = self.counts.rows * self.layout.context
        else:
            yield from self._fill()

    def _flow(self) -> Iterator[Rows]:
        """The rows that the stream fills; what is left waits."""
        context = self.layout.context
        flat = np.concatenate(self._stream) if self._stream else np.zeros(0, self.layout.dtype)
        count = max(0, (len(flat) - 1) // context)
        self._stream = [flat[count * context :]]
        self._waiting = len(flat) - count * context
        self.counts.rows += count
        if count:
            flat = np.ascontiguousarray(flat[: count * context + 1])
            yield {"tokens": np.lib.stride_tricks.sliding_window_view(flat, context + 1)[::context]}

    def _pieces(self, ids: np.ndarray, labels: np.ndarray) -> Iterator[_Piece]:
        context = self.layout.context
        if len(ids) > context + 1 and not self.layout.cut:
            self.counts.cut, self.counts.left_out = 0, self.counts.left_out + 1
            return
        for start in range(0, max(1, len(ids) - 1), context):
            piece = _Piece(ids[start : start + context + 1], labels[start : start + context + 1].copy())
            piece.labels[:1] = NO_LABEL  # nothing precedes it, or the piece before has learned it
            learned = int((piece.labels != NO_LABEL).sum())
            self.counts.learned += learned
            if learned:
                yield piece
            else:
                self.counts.unpredicted += 1

    def _fill(self) -> Iterator[Rows]:
        """Lays the window into rows."""
        pieces, self._window, self._waiting = self._window, [], 0
        lengths = [len(piece.ids) for piece in pieces]
        bins = (
            [[i] for i in range(len(pieces))]
            if self.layout.packing == "none"
            else best_fit(lengths, self.layout.context + 1)
        )
        for first in range(0, len(bins), CHUNK_ROWS):
            yield self._rows([[pieces[i] for i in chosen] for chosen in bins[first : first + CHUNK_ROWS]])

    def _rows(self, bins: list[list[_Piece]]) -> Rows:
        columns = {name: np.zeros((len(bins), *c.shape), c.dtype) for name, c in self.layout.columns.items()}
        columns["tokens"][:], columns["labels"][:] = self.layout.pad, NO_LABEL
        for row, pieces in enumerate(bins):
            at = 0
            for number, piece in enumerate(pieces, 1):
                here = slice(at, at + len(piece.ids))
                columns["tokens"][row, here], columns["labels"][row, here] = piece.ids, piece.labels
                if self.layout.apart:
                    columns["documents"][row, here] = number
                at = here.stop
            self.counts.filling += self.layout.context + 1 - at
        self.counts.rows += len(bins)
        return dict(columns)


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Indices of `lengths`, each at most `room`, shared out over as few bins as best fit decreasing finds: the longest
    first, the earlier one of two, each into the bin that it leaves the least room in, the older one of two. Bins, and
    what is in each, stand in the order of the input."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, bin) of every bin that is not full, sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(free, (lengths[index], -1))
        if place == len(free):
            bins.append([])
            left, chosen = room, len(bins) - 1
        else:
            left, chosen = free.pop(place)
        bins[chosen].append(index)
        if left > lengths[index]:
            bisect.insort(free, (left - lengths[index], chosen))
    return sorted(map(sorted, bins))


def in_words(split: str, counts: Counts, layout: Layout) -> list[str]:
    """What became of a split's documents, in sentences."""
    places = counts.rows * (layout.context + 1)
    told = []
    if layout.packing != "stream" and places:
        share = 100 * counts.filling / places
        told = [f"{split}: {counts.rows:,} rows, {share:.2g} % of them filling; {counts.learned:,} tokens are learned"]
    if counts.cut:
        told.append(
            f"{split}: {counts.cut:,} of {counts.documents:,} documents are longer than a row and were cut into pieces"
        )
    if counts.left_out:
        told.append(
            f"{split}: {counts.left_out:,} of {counts.documents:,} documents are longer than a row and were left out"
        )
    if counts.unpredicted:
        told.append(f"{split}: {counts.unpredicted:,} pieces with nothing to learn were left out")
    if counts.rest:
        told.append(f"{split}: the last {counts.rest:,} tokens fill no row and were left out")
    return told
