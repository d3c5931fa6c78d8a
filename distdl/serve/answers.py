"""What a served model says of rows in JSON, those of several requests at a time: the ways of `distdl predict`, from rows
to a batch and from tensors to words, with nothing of their own in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distdl.data.asking.rows import reader_of
from distdl.data.asking.told import Wish
from distdl.errors import InputError
from distdl.learner.answers import Answer
from distdl.model.model import Model

NOTES = 20
"""Of a request that are told."""


@dataclass(frozen=True)
class Asked:
    """The rows of one request."""

    rows: Sequence[Any]
    """As JSON has them."""
    wish: Wish = field(default_factory=lambda: Wish(inline=True))


@dataclass
class Reply:
    """What is said of them."""

    answers: list[dict[str, Any]]
    """One for each row; of a row that cannot be read `{"error": ..., "allowed": ..., "fix": ...}`."""
    set_aside: int = 0
    """Rows that cannot be read."""
    notes: dict[str, int] = field(default_factory=dict)
    """What else a person should know -> of how many rows it is so."""
    together: int = 0
    """Rows that were asked about at a time, those of other requests among them."""

    def refuse(self, row: int, error: dict[str, Any]) -> None:
        """Says of a row why it has no answer."""
        self.answers[row] = error
        self.set_aside += 1

    def note(self, texts: Sequence[str]) -> None:
        for text in texts:
            if text in self.notes or len(self.notes) < NOTES:
                self.notes[text] = self.notes.get(text, 0) + 1


class Answerer:
    """A model, and how its rows are read."""

    def __init__(self, model: Model, unknown: str = "refuse") -> None:
        model.refuse_unasked()
        self.model, self.reader = model, reader_of(model.ways, unknown)

    def schema(self) -> dict[str, Any]:
        """What goes in and what comes out, in plain values."""
        model = self.model
        return {
            "run": model.folder.path.name,
            "family": str(model.config.family),
            "step": model.step,
            "in": self.reader.columns(),
            "out": [self._told(name, answer) for name, answer in model.tells.items()],
            "units": "numbers are in the units of the file that was learned from, in and out",
            "example": self.reader.example(),
        }

    def _told(self, name: str, answer: Answer) -> dict[str, Any]:
        record = self.model.ways.record.get(answer.of, {})
        told = {"name": name, "kind": answer.kind, "meaning": answer.meaning}
        told |= {"of": record["name"]} if record.get("name") else {}
        return told | ({"classes": list(record["classes"])} if record.get("classes") else {})

    def together(self, asked: Sequence[Asked]) -> list[Reply]:
        """The replies to several requests, in their order. Those that wish for the same are asked about in one batch."""
        replies = [Reply([{}] * len(one.rows)) for one in asked]
        by_wish: dict[Wish, list[tuple[int, int, Any]]] = {}
        for number, one in enumerate(asked):
            for at, row in enumerate(one.rows):
                try:
                    read, notes = self.reader.read(row)
                except InputError as error:
                    replies[number].refuse(at, refusal(error))
                else:
                    replies[number].note(notes)
                    by_wish.setdefault(one.wish, []).append((number, at, read))
        for wish, rows in by_wish.items():
            self._answer(wish, rows, replies)
        return replies

    def _answer(self, wish: Wish, rows: Sequence[tuple[int, int, Any]], replies: Sequence[Reply]) -> None:
        try:
            found, bad = self.model.rows_told(self.reader.questions([read for *_, read in rows]), wish)
        except InputError as error:  # of all of them together: which of the requests it is about is seen one by one
            numbers = list(dict.fromkeys(number for number, *_ in rows))
            for number in numbers if len(numbers) > 1 else []:
                self._answer(wish, [row for row in rows if row[0] == number], replies)
            for number, at, _ in rows if len(numbers) == 1 else []:
                replies[number].refuse(at, refusal(error))
            return
        reasons = iter(bad)
        for (number, at, _), answer in zip(rows, found, strict=True):
            if answer is None:
                replies[number].refuse(at, {"error": next(reasons).why})
            else:
                replies[number].answers[at] = answer
                replies[number].together = len(rows)


def refusal(error: InputError) -> dict[str, Any]:
    """What is wrong, what is allowed and how to fix it, in plain values; what is empty is left out."""
    problem = error.problems[0]
    told = {"error": problem.what, "allowed": problem.allowed, "fix": problem.fix}
    return {key: value for key, value in told.items() if value}
