"""What every source of text does: make or read the tokenizer, lay documents into rows, and say what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distdl.data.bad_rows import BadRows
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import SplitOptions
from distdl.data.text.learn import KINDS, learned
from distdl.data.text.load import loaded
from distdl.data.text.packing import Layout, Packer, in_words
from distdl.data.text.tokens import Tokenizer
from distdl.errors import InputError

CHECKED = 64
"""Every so many texts one is read back from its tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenOptions(SplitOptions):
    """How texts become rows of tokens; the options of sources of text take these over."""

    tokenizer: str = "bytes"
    """`bytes`; `bpe`, `unigram` or `wordpiece`, learned from the training texts; a file `tokenizer.json`; a data set made
    with one; or a folder of a model of transformers, of which the tokenizer's files are read and no code is run."""
    vocabulary: int = 8192
    """Tokens of a tokenizer that is learned, at most."""
    end: str = ""
    """Special token that a document ends with; empty: the one that the tokenizer says."""
    special_in_text: bool = False
    """A text that spells a special token, such as `</s>`, means it; otherwise it is text like any other."""
    attention: Literal["within", "across"] = "within"
    """Where documents share a row: whether each sees itself only (`model.documents: true`), or what stands before it,
    too."""
    window: int = 8192
    """Documents among which best fit looks for those that fill a row together."""


@dataclass(frozen=True)
class Encoded:
    """A document's tokens, or those of a part of one (see `Packer.add`)."""

    ids: np.ndarray
    labels: np.ndarray | None = None
    follows: bool = False
    ends: bool = True


def make_tokenizer(options: TokenOptions, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer that the options ask for. `texts`: those of the training split, read once or twice where it is
    learned."""
    if options.tokenizer in KINDS:
        if options.end:
            raise InputError(
                f"end={options.end} with tokenizer={options.tokenizer}, which makes one", fix="leave end= out"
            )
        return learned(options.tokenizer, texts, options.vocabulary)
    return loaded(options.tokenizer, options.end)


def make_layout(options: TokenOptions, tokenizer: Tokenizer, packing: str, context: int, cut: bool = True) -> Layout:
    """How the options lay rows."""
    apart = packing == "best_fit" and options.attention == "within"
    return Layout(packing, context, options.window, tokenizer.dtype, tokenizer.roles.pad, apart, cut)


def prepared(
    options: TokenOptions,
    tokenizer: Tokenizer,
    layout: Layout,
    documents: Iterator[tuple[str, Encoded]],
    split: dict[str, Any],
    notes: list[str],
    bad: BadRows | None,
) -> Prepared:
    """Documents of the splits, in rows. `split`: how they were shared out. `notes` grows while they are read, and is in the
    manifest's `info`."""
    info: dict[str, Any] = {
        "encoding": options.tokenizer if options.tokenizer in ("bytes", *KINDS) else "tokenizer",
        "vocabulary": tokenizer.vocabulary,
        "split": split,
        "notes": notes,
    }
    if options.tokenizer == "unigram":
        notes.append("another unigram tokenizer is learned each time: tokenizer=PATH takes one that is kept")
    beside = [name for name in layout.columns if name != "tokens"]
    preparation = {"tokens": {**tokenizer.record(), "beside": beside}}
    return Prepared(layout.columns, _rows(layout, documents, info), info, preparation, bad=bad)


def _rows(layout: Layout, documents: Iterator[tuple[str, Encoded]], info: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    packers: dict[str, Packer] = {}
    for split, found in documents:
        packer = packers.setdefault(split, Packer(layout))
        for rows in packer.add(found.ids, found.labels, follows=found.follows, ends=found.ends):
            yield split, rows
    for split, packer in packers.items():
        for rows in packer.end():
            yield split, rows
    info["documents"] = {split: vars(packer.counts) for split, packer in packers.items()}
    for split, packer in packers.items():
        info["notes"] += in_words(split, packer.counts, layout)
    if "train" in packers and not packers["train"].counts.rows:
        counts = packers["train"].counts
        what = f"the training text has {counts.tokens:,} tokens, which fill no row of {layout.context + 1}"
        raise InputError(what, fix="a smaller context=, or packing=best_fit")


class RoundTrip:
    """Reads some texts back from their tokens, and says where that gives another text."""

    def __init__(self, tokenizer: Tokenizer, ours: bool, notes: list[str]) -> None:
        self.tokenizer, self.ours, self.notes = tokenizer, ours, notes
        self._seen = self._tried = self._lost = 0
        self._note: int | None = None

    def look(self, text: str, ids: list[int] | None, where: str) -> None:
        """One text in `CHECKED` is looked at, the first among them. `ids`: its tokens, where they are known."""
        self._seen += 1
        if (self._seen - 1) % CHECKED:
            return
        self._tried += 1
        back = self.tokenizer.decode(self.tokenizer.encode([text])[0] if ids is None else ids)
        if back == text:
            return
        if self.ours:
            raise InputError("the tokenizer does not give the text back as it was", where=where, fix="tokenizer=bytes")
        at = next((i for i, (a, b) in enumerate(zip(text, back)) if a != b), min(len(text), len(back)))
        start = max(0, at - 10)
        self._lost += 1
        if self._note is None:
            self._note, self._example = (
                len(self.notes),
                f"{where}: {text[start : at + 20]!r} becomes {back[start : at + 20]!r}",
            )
            self.notes.append("")
        told = f"the tokenizer does not keep every text: of {self._tried:,} that were read back {self._lost:,} differ"
        self.notes[self._note] = f"{told} ({self._example})"


def array(ids: list[int], tokenizer: Tokenizer) -> np.ndarray:
    """Tokens in the type that rows have."""
    return np.array(ids, tokenizer.dtype)
