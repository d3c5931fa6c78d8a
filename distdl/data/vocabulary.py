"""Sentences as rows of numbers of words, and back, by a vocabulary that a data set's preparation records:

    {"kind": "words", "version": 1, "words": ["<pad>", "<unknown>", "<begin>", "<end>", "the", ...],
     "length": 32, "begin": false, "letters": false}

Words are runs of letters and digits, and single other signs, in lower case. 0 is padding, 1 a word that the vocabulary
lacks, 2 begins a sentence, 3 ends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KIND, VERSION = "words", 1
PAD, UNKNOWN, BEGIN, END = "<pad>", "<unknown>", "<begin>", "<end>"
MARKS = [PAD, UNKNOWN, BEGIN, END]
WORD, LETTER = re.compile(r"\w+|[^\w\s]"), re.compile(r"\S")
SILENT = {MARKS.index(mark) for mark in (PAD, BEGIN, END)}
"""Numbers that are no words."""


def record_of(words: Sequence[str], length: int, begin: bool, letters: bool = False) -> dict[str, Any]:
    """How a column of `length` numbers came from sentences. `begin`: a row begins with the mark for that; `letters`: each
    letter or digit is a word."""
    return {
        "kind": KIND,
        "version": VERSION,
        "words": list(words),
        "length": length,
        "begin": begin,
        "letters": letters,
    }


def words_in(text: str, letters: bool = False) -> list[str]:
    """The words of a sentence."""
    return (LETTER if letters else WORD).findall(text.lower())


def tokens(sentence: Sequence[str], numbers: Mapping[str, int], length: int, begin: bool) -> list[int]:
    """Numbers of a sentence with its marks, cut to `length`, the end kept, and padded."""
    row = [numbers[BEGIN]] * begin + [numbers.get(word, numbers[UNKNOWN]) for word in sentence]
    row = [*row[: length - 1], numbers[END]]
    return row + [numbers[PAD]] * (length - len(row))


def sentence(record: Mapping[str, Any], numbers: Iterable[int]) -> str:
    """The words of a row, without its marks, with blanks between them. What is below 0 is no word."""
    words = record["words"]
    return " ".join(words[i] if i < len(words) else str(i) for i in numbers if i >= 0 and i not in SILENT)
