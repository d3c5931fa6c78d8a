"""What a trained model makes by itself: texts that go on, samples of its data, series that go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distdl.errors import InputError
from distdl.model.model import Model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from distdl.data.text.tokens import Tokenizer
    from distdl.learner import Learner


@dataclass(frozen=True)
class Writing:
    """How a text goes on."""

    length: int = 200
    """Tokens, at most."""
    temperature: float = 1.0
    """What the logarithms of probabilities are divided by; 0: always the likeliest token."""
    top_k: int = 0
    """The so many likeliest tokens are drawn from; 0: all."""
    top_p: float = 1.0
    """The likeliest tokens that make up so much of the probability are drawn from (Holtzman et al. 2020)."""
    stop: tuple[str, ...] = ()
    """Texts behind which nothing more is written."""
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            f"--length is {self.length}": self.length < 1,
            f"--temperature is {self.temperature:g}": self.temperature < 0,
            f"--top-k is {self.top_k}": self.top_k < 0,
            f"--top-p is {self.top_p:g}": not 0 < self.top_p <= 1,
        }
        allowed = "a length of 1 or more, a temperature of 0 or more, a top-p above 0 and up to 1"
        if what := [text for text, is_wrong in wrong.items() if is_wrong]:
            raise InputError(*what, allowed=allowed)


def makes(model: Model) -> str:
    """`text`, `samples`, `series`, or '' for a family that makes nothing by itself."""
    from distdl.families import model_config

    return made_by(type(model.learner), model_config(model.config.model))


def made_by(family: type[Learner], config: Any) -> str:
    """The same of a family that is configured like this."""
    if family.draws(config):
        return "samples"
    told = family.tells(config).get("next")
    if told is None:
        return ""
    return "text" if told.of == "tokens" else "series"


def samples(model: Model, n: int, seed: int = 0) -> np.ndarray:
    """n samples (n, ...). InputError: the family makes none."""
    if n < 1:
        raise InputError(f"--n is {n}", allowed="at least 1")
    if makes(model) != "samples":
        raise InputError(f"the family {model.config.family} draws no samples", fix="distdl predict asks it")
    found: np.ndarray = model.learner.sample(n, seed).float().cpu().numpy()
    return found


def written(model: Model, prompt: str, how: Writing, number: int = 0) -> str:
    """What follows a text. `number`: of several from the same prompt, which differ by it. InputError."""
    import torch

    tokenizer = model.ways.tokenizer
    if makes(model) != "text" or tokenizer is None:
        raise InputError(f"the family {model.config.family} writes no text", allowed="gpt, mamba, lstm, huggingface …")
    try:
        ids = [*tokenizer.roles.begin, *tokenizer.encode([prompt])[0]]
    except ValueError as error:
        raise InputError(f"the text has {error}", where="--text") from None
    end = tokenizer.roles.end
    vocabulary = int(model.ways.asked["tokens"].high or 0) + 1
    begun = ids or [end if end < vocabulary else 10]  # a border between documents, or an end of a line
    generator = torch.Generator().manual_seed(how.seed * 1_000_003 + number)
    new: list[int] = []
    reading = Reading(model)
    for _ in range(how.length):
        token = drawn(reading.next_of([*begun, *new]), how, generator)
        if token == end:
            break
        new.append(token)
        if how.stop and any(stop in tokenizer.decode(new[-64:]) for stop in how.stop):
            break
    text = behind(tokenizer, ids, new)
    cuts = [text.index(stop) + len(stop) for stop in how.stop if stop in text]
    return text[: min(cuts)] if cuts else text


def behind(tokenizer: Tokenizer, read: Sequence[int], new: Sequence[int]) -> str:
    """The text of new tokens behind others: some tokenizers leave a blank out where a text begins."""
    before, whole = tokenizer.decode(read), tokenizer.decode([*read, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


class Reading:
    """A text that a model reads while it grows. Where it can be, what was read is kept and the new tokens read alone."""

    def __init__(self, model: Model) -> None:
        self.model, self.memory = model, model.learner.memory()

    def next_of(self, tokens: Sequence[int]) -> Tensor:
        """The probabilities (V,) of what follows all tokens, of which those of the last time were the first."""
        import torch

        memory = self.memory
        if memory is not None and len(tokens) > memory.most:
            memory = self.memory = None  # every token has another place from now on, one further to the front each time
        new = list(tokens[memory.length :] if memory else tokens)
        with memory.of(len(new)) if memory else contextlib.nullcontext():
            found = self.model.learner.predict({"tokens": torch.tensor([new], device=self.model.device)})
        return found["next"][0].cpu()


def drawn(probabilities: Tensor, how: Writing, generator: Any) -> int:
    """One token by its probabilities (V,)."""
    import torch

    if how.temperature == 0:
        return int(probabilities.argmax())
    p = probabilities.double().clamp(min=1e-300).log().div(how.temperature).softmax(-1)
    order = p.argsort(descending=True, stable=True)
    kept = p[order]
    if how.top_k:
        kept[how.top_k :] = 0
    if how.top_p < 1:
        kept[(kept.cumsum(0) - kept) >= how.top_p * kept.sum()] = 0
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def gone_on(model: Model, rows: Sequence[np.ndarray] | np.ndarray, steps: int) -> np.ndarray:
    """Series (n, T, D) -> their next values (n, steps, D), each of which is an input of the one after. InputError."""
    import numpy as np

    if makes(model) != "series":
        raise InputError(f"the family {model.config.family} goes on with no series")
    if steps < 1:
        raise InputError(f"--length is {steps}", allowed="at least 1")
    series = np.asarray(rows, np.float32)
    if series.ndim != 3:
        raise InputError(f"series have the shape {list(series.shape)}", allowed="rows, steps, values of a step")
    found: list[np.ndarray] = []
    while sum(part.shape[1] for part in found) < steps:
        told = model.answers({"x": series})["next"]
        told = told[:, None] if told.ndim == 2 else told
        found.append(told)
        series = np.concatenate([series, told.astype(series.dtype)], 1)
    return np.concatenate(found, 1)[:, :steps]


def series_going_on(model: Model, path: str, split: str, steps: int) -> Iterator[dict[str, Any]]:
    """`series` and `more` of each series of a raw file or a data set, in the numbers of the file where the checkpoint says
    how; and `where` it is, in a file. InputError."""
    from distdl.data.asking.data_sets import is_data_set, of_data_set
    from distdl.data.asking.series import KIND, restored, series_in

    record = model.ways.record.get("x", {})
    if is_data_set(path):
        for question in of_data_set(path, split, model.ways.asked):
            for row in question.rows["x"]:
                more = gone_on(model, row[None], steps)[0]
                yield {"series": restored(record, row).tolist(), "more": restored(record, more).tolist()}
        return
    if record.get("kind") != KIND:
        what = f"how {path} becomes what the family {model.config.family} reads is not in the checkpoint"
        raise InputError(what, fix="prepare it into a data set (distdl data prepare), and give that folder")
    for one in series_in(record, path):
        more = one.restored(gone_on(model, one.read()[None], steps)[0])
        yield {"where": one.where, "series": one.values.tolist(), "more": more.tolist()}
