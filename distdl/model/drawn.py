"""What a trained model makes by itself: texts that go on, samples of its data, series that go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distdl.errors import InputError
from distdl.model.model import Model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


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
    from distdl.learner import Learner

    if type(model.learner).draw is not Learner.draw:
        return "samples"
    told = model.tells.get("next")
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
    for _ in range(how.length):
        row = torch.tensor([[*begun, *new]], device=model.device)
        token = drawn(model.learner.predict({"tokens": row})["next"][0].cpu(), how, generator)
        if token == end:
            break
        new.append(token)
        if how.stop and any(stop in tokenizer.decode(new[-64:]) for stop in how.stop):
            break
    text = tokenizer.decode(new)
    cuts = [text.index(stop) + len(stop) for stop in how.stop if stop in text]
    return text[: min(cuts)] if cuts else text


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
