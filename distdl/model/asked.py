"""Questions on their way to a model and back: in this process, or in others that have read the same checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.own_process import keep_memory, memory_kept
from distdl.run.folder import RunFolder

if TYPE_CHECKING:
    from distdl.data.asking.question import Asking, Question
    from distdl.data.asking.told import Wish

Answered = tuple["Question", dict[str, Any]]
"""A question without its rows, and the answers to those that could be read, as columns."""
LOST = 5
"""Processes that may be ended by somebody while they answer."""


@dataclass(frozen=True)
class Portion:
    """Some of the rows that are asked about."""

    first: int
    """The number of the first of them among all, which names the files of answers that are pictures."""
    raw: Any


class Asker:
    """Makes questions of a portion, and answers them. It may go to another process, where the model is read once."""

    def __init__(self, model: Any, read: Callable[[Any], Iterable[Question]], wish: Wish) -> None:
        """`model`: a `Model` of model.py, whose class goes along by its name."""
        self._model, self._read, self._wish = model, read, wish
        self._where: tuple[Any, ...] = (
            type(model),
            str(model.folder.path),
            str(model.checkpoint),
            model.asked_on,
            model.batch,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": None}

    def __call__(self, portion: Portion) -> Iterator[Answered]:
        model = self._model or loaded(*self._where)
        yield from answered_here(model, self._read(portion.raw), self._wish, portion.first)


def answered_here(model: Any, asked: Iterable[Question], wish: Wish, first: int = 0) -> Iterator[Answered]:
    """The answers of a `Model` of this process to questions. `first`: the number of the first row."""
    import numpy as np

    teller = model.teller(wish)
    for question in asked:
        columns: dict[str, Any] = {}
        if question.real.any():
            numbers = (first + np.flatnonzero(question.real)).tolist()
            columns = teller.columns(model.answers(question.rows, wish.embeddings), numbers)
        first += len(question.real)
        yield replace(question, rows={}), columns


@lru_cache(maxsize=1)
def loaded(kind: Callable[..., Any], folder: str, checkpoint: str, device: str, batch: int) -> Any:
    """A `Model` in a process that does nothing else."""
    import torch

    torch.set_num_threads(1)
    keep_memory(device)
    return kind(RunFolder(Path(folder)), checkpoint, own_device(device, torch.cuda.device_count()), batch)


def own_device(device: str, count: int) -> str:
    """Of several processes on a machine with `count` GPUs each takes the next; who sees one alone takes that."""
    from distdl.data.workers import NUMBER

    return f"cuda:{int(os.environ.get(NUMBER, 0)) % count}" if device == "cuda" and count > 1 else device


class Counter:
    """Numbers the rows of what is asked about, one path after another."""

    def __init__(self) -> None:
        self.rows = 0

    def portions(self, asking: Asking) -> Iterator[Portion]:
        for rows, raw in asking.portions:
            yield Portion(self.rows, raw)
            self.rows += rows


@contextmanager
def one_thread() -> Iterator[None]:
    """This process computes as each of several does: sums over other numbers of threads may round differently."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def workers(count: int | None, ray: str | None, device: str) -> Iterator[None]:
    """Who answers within the block: this process, with all its threads, where nothing is said; so many processes with a
    thread each, or actors of the Ray cluster at the address `ray`. InputError: there are none."""
    from distdl.data.workers import Local, using
    from distdl.errors import InputError

    if count is not None and count < 1:
        raise InputError(f"--workers is {count}", allowed="1 or more processes")
    if count and count > 1 and ray is None and ":" in device:
        raise InputError(f"--device {device} with {count} workers", fix="--device cuda: each takes the next GPU")
    if ray is not None:
        from distdl.runtime.ray_workers import model_workers

        with model_workers(count or 0, ray, device.startswith("cuda")) as actors, using(actors):
            yield
    elif count == 1:
        with one_thread(), memory_kept(device), using(1):
            yield
    elif count:
        with using(Local(count, LOST)):
            yield
    else:
        with memory_kept(device):
            yield
