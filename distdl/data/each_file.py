"""Files one after another, read by all workers that there are (workers.py): what a function gives for each, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np

from distdl.data import workers
from distdl.data.folders import Files
from distdl.errors import InputError, Problem

TOGETHER = 32
"""Files that a worker is given at a time."""

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Files of one split, or of all of them."""

    files: Files
    numbers: np.ndarray
    """Of `files.names`, in the order in which they are read."""
    labels: np.ndarray
    """int64 class numbers."""
    split: str
    """The one that all of them are of, or were before some were held out."""
    shares: list[str]
    """The split of each."""

    def called(self, i: int) -> str:
        """The i-th file's name for a person."""
        return self.files.called(int(self.numbers[i]))

    def open(self, i: int) -> BinaryIO:
        """The i-th file, for reading bytes."""
        return self.files.open(int(self.numbers[i]))


@dataclass(frozen=True)
class Refused:
    """Why a file gives no more."""

    problems: list[Problem]


@dataclass(frozen=True)
class _OfFiles:
    """What a function gives for files: each result, and None or why it was refused behind those of each file."""

    parts: list[Part]
    function: Callable[[Part, int], Iterable[Any]]

    def __call__(self, some: tuple[int, Sequence[int]]) -> Iterator[Any]:
        number, files = some
        for i in files:
            try:
                yield from self.function(self.parts[number], i)
                yield None
            except InputError as error:
                yield Refused(error.problems)


def of_each(
    parts: list[Part], function: Callable[[Part, int], Iterable[T]], split: str = ""
) -> Iterator[tuple[Part, int, T | Refused | None]]:
    """Part, number in it and a result of every file, in their order, from all workers that there are; behind the results of
    each file None, or why it was refused. `function` may go to other processes. `split`: of the files of that split alone.
    """
    chosen = [[i for i, of in enumerate(part.shares) if split in ("", of)] for part in parts]
    some = [(n, files[i : i + TOGETHER]) for n, files in enumerate(chosen) for i in range(0, len(files), TOGETHER)]
    every = ((parts[n], i) for n, files in some for i in files)
    forward = any(part.files.forward_only for part in parts)  # each worker would unpack all of it
    results = (workers.Here() if forward else workers.current()).each(_OfFiles(parts, function), some)
    part, i = next(every, (None, 0))
    for result in results:
        assert part is not None
        yield part, i, result
        if result is None or isinstance(result, Refused):
            part, i = next(every, (None, 0))
