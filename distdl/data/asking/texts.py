"""Texts that are to be gone on with: each line of a file is one, as tokens of the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.asking.question import Bad, Question
from distdl.data.text.documents import json_lines
from distdl.data.text.load import loaded
from distdl.data.text.tokens import BYTES, Tokenizer, from_record
from distdl.errors import InputError

TOGETHER = 256


def tokenizer_of(record: Mapping[str, Mapping[str, Any]], vocabulary: int) -> Tokenizer | None:
    """That of a model's tokens; plain bytes where 256 of them were learned without a record; None: it cannot be told."""
    column = record.get("tokens")
    if column is not None and column.get("kind") == "tokens" and column.get("tokenizer"):
        return from_record(column)
    return loaded(BYTES) if vocabulary in (256, 257) else None


def of_texts(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> Iterator[Question]:
    """(where, text) -> rows of `tokens`, filled up behind their `length`. An empty text has nothing to go on with."""
    waiting: list[tuple[int, str, list[int], Bad | None]] = []
    for number, (where, text) in enumerate(texts):
        ids, bad = [], None
        try:
            ids = [*tokenizer.roles.begin, *tokenizer.encode([text])[0]]
        except ValueError as error:
            bad = Bad(where, f"the text has {error}")
        if not ids and bad is None:
            bad = Bad(where, "the text is empty: there is nothing to go on with")
        waiting.append((number, text, ids, bad))
        if len(waiting) == TOGETHER:
            yield _question(waiting)
            waiting = []
    if waiting:
        yield _question(waiting)


def _question(waiting: list[tuple[int, str, list[int], Bad | None]]) -> Question:
    about: dict[str, list[Any]] = {
        "row": [number for number, *_ in waiting],
        "text": [text for _, text, _, _ in waiting],
    }
    found = [ids for *_, ids, bad in waiting if bad is None]
    width = max(map(len, found), default=0)
    tokens, length = np.zeros((len(found), width), np.int64), np.array([len(ids) for ids in found], np.int64)
    for row, ids in zip(tokens, found):
        row[: len(ids)] = ids
    bad = [bad for *_, bad in waiting if bad is not None]
    return Question(about, {"tokens": tokens, "length": length}, np.array([bad is None for *_, bad in waiting]), bad)


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
