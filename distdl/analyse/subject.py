"""The one number of an answer that is explained: of a class how much likelier it is than all others together, else
the number itself.

    log-odds   log p_k - log(sum of the other p)         of the class, or of the next token, k

They are the logits of a model of two classes. Where p_k itself, or its logarithm, hardly changes any more because the
model is sure, they still do: their gradient is that of the cross entropy divided by 1 - p_k, so it has the same signs
and does not vanish.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distdl.errors import InputError
from distdl.learner.answers import Answer

Form = Literal["log-odds", "score", "chance", "worth", "number"]
FORMS: dict[str, str] = {
    "log-odds": "the log-odds of the {what}: how much likelier it is than all others together, in nats",
    "score": "the score of the {what}: the larger the likelier, and no more",
    "chance": "the log-odds of the {what}, which the others do not exclude, in nats",
    "worth": "the worth of the {what}",
    "number": "{what}",
}


@dataclass(frozen=True)
class Subject:
    """Which number of a family's answer is explained."""

    name: str
    """The tensor of `Learner.predict` that it is in."""
    form: Form
    of: str
    """Column of the data set whose classes or units it speaks; '': none."""
    truth: str = ""
    """Column that says what is right; '': nothing does."""

    @property
    def classes(self) -> bool:
        """Whether the answer is a class, which is right or wrong."""
        return bool(self.truth) and self.form in ("log-odds", "score")

    @property
    def value(self) -> bool:
        """Whether the answer is a number that the file has the truth of."""
        return bool(self.truth) and self.form == "number"

    @property
    def words(self) -> str:
        what = {"worth": "action", "chance": "thing"}.get(self.form, "class" if self.truth else "next token")
        return FORMS[self.form].format(what=f"the answer '{self.name}'" if self.form == "number" else what)

    def numbers(self, found: Mapping[str, Tensor]) -> Tensor:
        """(B, K): what stands for each of K things, so that the largest is the answer."""
        values = found[self.name]
        return values.reshape(len(values), -1)

    def told(self, found: Mapping[str, Tensor]) -> Tensor:
        """(B,): which of the K things is the answer. Of several numbers the first is explained."""
        numbers = self.numbers(found)
        if self.form == "number":
            return torch.zeros(len(numbers), dtype=torch.long, device=numbers.device)
        return numbers.argmax(-1)

    def number(self, found: Mapping[str, Tensor], thing: Tensor) -> Tensor:
        """(B,): what is explained, of the thing (B,) of each row."""
        numbers, at = self.numbers(found), thing[:, None]
        own = numbers.gather(1, at)[:, 0]
        if self.form == "chance":
            tiny = torch.finfo(own.dtype).tiny
            return own.clamp(min=tiny).log() - (1 - own).clamp(min=tiny).log()
        if self.form != "log-odds":
            return own
        logs = numbers.clamp(min=torch.finfo(numbers.dtype).tiny).log()
        others = logs.scatter(1, at, -torch.inf).logsumexp(1)
        return logs.gather(1, at)[:, 0] - others


def subject_of(tells: Mapping[str, Answer], asked: Collection[str], going_on: Collection[str], family: str) -> Subject:
    """What is explained of a family. `going_on`: columns whose answers are how they go on. InputError: it has no one
    number."""
    if "class" in tells:
        for name, form in (("probabilities", "log-odds"), ("scores", "score")):
            if name in tells:
                return Subject(name, form, tells[name].of, truth=tells["class"].of)  # type: ignore[arg-type]
    for name, answer in tells.items():
        if answer.kind == "probabilities":
            return Subject(name, "log-odds", answer.of)
    for name, answer in tells.items():
        if answer.kind == "values":
            if "action" in tells:
                return Subject(name, "worth", "")
            if answer.of in asked and answer.of not in going_on:
                continue  # its own input, restored
            return Subject(name, "number", answer.of, truth="y" if name == "value" and answer.of == "y" else "")
    for name, answer in tells.items():
        if answer.kind == "chances":
            return Subject(name, "chance", answer.of)
    raise InputError(f"the family {family} cannot be analysed: {_why(tells)}", allowed=ALLOWED, fix=FIX)


ALLOWED = "families that answer with a class, a number, a chance, or the next token"
FIX = "`distdl predict RUN FILE --embeddings` shows what it makes of a row, where it has such a thing"


def _why(tells: Mapping[str, Answer]) -> str:
    if not tells:
        return "no question has an answer, it only draws samples"
    kinds = " and ".join(dict.fromkeys(WORDS.get(answer.kind, answer.kind) for answer in tells.values()))
    return f"its answer is {kinds}, and no single number of it says what to explain"


WORDS = {
    "picture": "a picture",
    "mask": "a class for each pixel, without probabilities",
    "tokens": "a string, which it chooses step by step",
    "embedding": "an embedding",
    "nodes": "a parse",
    "cell": "a place on a map",
    "boxes": "boxes",
    "values": "its own input, restored",
    "class": "a class without what speaks for it",
}
