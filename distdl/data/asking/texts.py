"""Texts that are to be gone on with: each line of a file is one, as tokens of the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.asking.question import Asking, Bad, Question
from distdl.data.text.documents import json_lines
from distdl.data.text.load import loaded
from distdl.data.text.tokens import BYTES, Tokenizer, from_record
from distdl.data.vocabulary import KIND, tokens, words_in
from distdl.errors import InputError

TOGETHER = 256
UNKNOWN_WORDS = "words were not among those learned from and count as <unknown>"


def tokenizer_of(record: Mapping[str, Mapping[str, Any]], vocabulary: int) -> Tokenizer | None:
    """That of a model's tokens; plain bytes where 256 of them were learned without a record; None: it cannot be told."""
    column = record.get("tokens")
    if column is not None and column.get("kind") == "tokens" and column.get("tokenizer"):
        return from_record(column)
    return loaded(BYTES) if vocabulary in (256, 257) else None


def of_texts(read: Texts | Sentences, texts: Iterable[tuple[str, str]]) -> Asking:
    """(where, text) -> rows of `tokens`, filled up behind their `length`. An empty text has nothing to go on with."""
    numbered = ((number, where, text) for number, (where, text) in enumerate(texts))
    together = iter(lambda: list(islice(numbered, TOGETHER)), [])
    return Asking(read, ((len(some), some) for some in together))


class Texts:
    """Makes tokens of texts. `record`, `vocabulary`: `tokenizer_of` them; each process makes its tokenizer once."""

    def __init__(self, record: Mapping[str, Mapping[str, Any]], vocabulary: int) -> None:
        self.record, self.vocabulary = record, vocabulary

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        return tokenizer_of(self.record, self.vocabulary)

    def __getstate__(self) -> dict[str, Any]:
        return {"record": self.record, "vocabulary": self.vocabulary}

    def __call__(self, texts: Sequence[tuple[int, str, str]]) -> Iterator[Question]:
        tokenizer = self.tokenizer
        assert tokenizer is not None
        waiting: list[tuple[int, str, list[int], Bad | None]] = []
        for number, where, text in texts:
            ids, bad = [], None
            try:
                ids = [*tokenizer.roles.begin, *tokenizer.encode([text])[0]]
            except ValueError as error:
                bad = Bad(where, f"the text has {error}")
            if not ids and bad is None:
                bad = Bad(where, "the text is empty: there is nothing to go on with")
            waiting.append((number, text, ids, bad))
        yield _question(waiting)


def sentences_of(record: Mapping[str, Mapping[str, Any]]) -> Sentences | None:
    """What reads the sentences of a model that is asked about one column alone, which came from some."""
    name = next(iter(record), "")
    return Sentences(name, record[name]) if len(record) == 1 and record[name].get("kind") == KIND else None


class Sentences:
    """Makes numbers of words of sentences, as `record` says of the column `name`."""

    def __init__(self, name: str, record: Mapping[str, Any]) -> None:
        self.name, self.record = name, record
        self._numbers: dict[str, int] = {}

    def __call__(self, texts: Sequence[tuple[int, str, str]]) -> Iterator[Question]:
        numbers = self._numbers = self._numbers or {word: i for i, word in enumerate(self.record["words"])}
        length, begin = self.record["length"], self.record["begin"]
        sentences = [words_in(text, self.record["letters"]) for _, _, text in texts]
        cut = f"sentences are longer than {length - begin - 1} words and are cut"
        found, bad, notes = [], [], {UNKNOWN_WORDS: 0, cut: 0}
        for (_, where, _), words in zip(texts, sentences):
            if words:
                found.append(tokens(words, numbers, length, begin))
                notes[UNKNOWN_WORDS] += sum(word not in numbers for word in words)
                notes[cut] += len(words) + begin >= length
            else:
                bad.append(Bad(where, "the text is empty: there is nothing to answer"))
        rows = {self.name: np.array(found, np.int64).reshape(-1, length)}
        about: dict[str, list[Any]] = {"row": [number for number, *_ in texts], "text": [text for *_, text in texts]}
        real = np.array([bool(words) for words in sentences])
        yield Question(about, rows, real, bad, {note: times for note, times in notes.items() if times})


def _question(waiting: list[tuple[int, str, list[int], Bad | None]]) -> Question:
    about: dict[str, list[Any]] = {
        "row": [number for number, *_ in waiting],
        "text": [text for _, text, _, _ in waiting],
    }
    found = [ids for *_, ids, bad in waiting if bad is None]
    width = max(map(len, found), default=0)
    rows, length = np.zeros((len(found), width), np.int64), np.array([len(ids) for ids in found], np.int64)
    for row, ids in zip(rows, found):
        row[: len(ids)] = ids
    bad = [bad for *_, bad in waiting if bad is not None]
    return Question(about, {"tokens": rows, "length": length}, np.array([bad is None for *_, bad in waiting]), bad)


def lines_of(path: str, field: str = "text") -> Iterator[tuple[str, str]]:
    """(where, text) of each line of a file of texts, or of a field of JSON lines. InputError: it is no text."""
    if Path(path).suffix.lower() in (".jsonl", ".ndjson"):
        for where, record in json_lines(path):
            if not isinstance(record.get(field), str):
                raise InputError(f"the record has no text '{field}'", where=where, allowed=", ".join(record))
            yield where, record[field]
        return
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line.rstrip("\r\n")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", fix="check the path") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from None
