"""Sentences in two languages, one a line, as numbers of words: parallel text files (.gz too).

Words are runs of letters and digits, and single other signs, in lower case. A language's vocabulary holds the most frequent
words of the training text. 0 is padding, 1 a word that the vocabulary lacks, 2 begins a sentence, 3 ends it.

Without a path: the numbers below a million, from digits to English words, a translation that needs no download.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, read_blocks
from distdl.data.splits import SplitOptions, Splitter
from distdl.data.vocabulary import MARKS, WORD, record_of, tokens, words_in
from distdl.errors import InputError

CHUNK_ROWS = 8192

Sentences = list[list[str]]


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `translation`."""

    path: str = ""
    """File of the sentences that are read; empty: numbers in digits."""
    target_path: str = ""
    """File of their translations, line by line; empty: numbers in words."""
    test_path: str = ""
    """File of held-out sentences; then nothing is held out of `path`."""
    test_target_path: str = ""
    """File of the held-out translations."""
    source_vocabulary: int = 8000
    """Words of the language that is read, the four marks included."""
    target_vocabulary: int = 6000
    """Words of the language that is written, the four marks included."""
    source_length: int = 32
    """Tokens of a row of `source`, its end included; what is longer is cut."""
    target_length: int = 32
    """Tokens that a row of `target` predicts, its end included; what is longer is cut."""
    rows: int = 2000
    """Numbers that are drawn where no file is given."""
    seed: int = 0
    """Seed of these numbers."""


def prepare(options: Options) -> Prepared:
    """`source` uint16 (source_length,) and `target` uint16 (target_length + 1,), which begins with the mark 2."""
    splitter = Splitter(options, where=options.path, tested=bool(options.test_path))
    for name in ("source_length", "target_length"):
        if getattr(options, name) < 2:
            raise InputError(f"{name} is {getattr(options, name)}", allowed="at least 2: a word and the end")
    for name in ("source_vocabulary", "target_vocabulary"):
        if not len(MARKS) < getattr(options, name) < 2**16:
            raise InputError(f"{name} is {getattr(options, name)}", allowed=f"from {len(MARKS) + 1} to {2**16 - 1}")
    pairs = _read(options.path, options.target_path, "target_path") if options.path else _numbers(options)
    held_out = _read(options.test_path, options.test_target_path, "test_target_path") if options.test_path else None
    sizes = (options.source_vocabulary, options.target_vocabulary)
    words = [vocabulary(side, size) for side, size in zip(pairs, sizes)]
    lengths = (options.source_length, options.target_length + 1)
    columns = {name: Column("uint16", (length,)) for name, length in zip(("source", "target"), lengths)}
    chunks = splitter.parts(
        lambda: _rows(pairs, words, lengths), (lambda: _rows(held_out, words, lengths)) if held_out else None
    )
    info = {"source_words": words[0], "target_words": words[1], "split": splitter.record()}
    letters = not options.path  # numbers are read digit by digit
    preparation = {
        "source": record_of(words[0], lengths[0], begin=False, letters=letters),
        "target": record_of(words[1], lengths[1], begin=True),
    }
    return Prepared(columns, chunks, info, preparation)


def vocabulary(sentences: Sentences, size: int) -> list[str]:
    """The marks, then the most frequent words; of equally frequent ones the first in the alphabet."""
    counts = Counter(word for sentence in sentences for word in sentence)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [*MARKS, *ranked[: size - len(MARKS)]]


def _rows(pairs: tuple[Sentences, Sentences], words: list[list[str]], lengths: tuple[int, int]) -> Iterator[Rows]:
    numbers = [{word: number for number, word in enumerate(side)} for side in words]
    for start in range(0, len(pairs[0]), CHUNK_ROWS):
        yield {
            name: np.array(
                [tokens(s, numbers[side], lengths[side], side == 1) for s in pairs[side][start : start + CHUNK_ROWS]],
                np.uint16,
            )
            for side, name in enumerate(("source", "target"))
        }


def _read(source: str, target: str, option: str) -> tuple[Sentences, Sentences]:
    if not target:
        raise InputError(f"the source translation has {source} and no translations of it", fix=f"give {option}=FILE")
    sides = []
    for path in (source, target):
        try:
            lines = b"".join(read_blocks(path)).decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8: {error}") from error
        sides.append([words_in(line) for line in lines])
    if len(sides[0]) != len(sides[1]):
        raise InputError(f"{source} has {len(sides[0])} lines and {target} has {len(sides[1])}: they are not parallel")
    return sides[0], sides[1]


# -- numbers -----------------------------------------------------------------------------------------------------------

UNITS = WORD.findall(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = WORD.findall("twenty thirty forty fifty sixty seventy eighty ninety")


def in_words(n: int) -> list[str]:
    """A number from 0 to 999,999 in English: 342 is three hundred forty two."""
    if n < 20:
        return [UNITS[n]]
    if n < 100:
        return [TENS[n // 10 - 2], *(in_words(n % 10) if n % 10 else [])]
    size, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    return [*in_words(n // size), name, *(in_words(n % size) if n % size else [])]


def _numbers(options: Options) -> tuple[Sentences, Sentences]:
    """Of one to six digits equally often."""
    random = np.random.default_rng(options.seed)
    drawn = [int(random.integers(10**digits)) for digits in random.integers(1, 7, options.rows)]
    return [list(str(n)) for n in drawn], [in_words(n) for n in drawn]
