"""Pictures and recordings of a folder, an archive, or by themselves, made into what a model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distdl.data import pictures, sounds
from distdl.data.asking.question import Asking, Bad, Question, why
from distdl.data.folders import Files, open_files
from distdl.data.raw import Rows
from distdl.errors import InputError

TOGETHER = 64
"""Files that are read before their rows are asked about."""
Read = Callable[[BinaryIO], Rows]


def reads_files(record: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a row was made of a file."""
    return any(column.get("kind") in (pictures.KIND, sounds.KIND) for column in record.values())


def file_column(record: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any], Read] | None:
    """The column that is made of a file, its record, and what makes the row of one; None: there is no such column.
    InputError: the library that reads such files is missing."""
    if not reads_files(record):
        return None
    name = next(name for name, column in record.items() if column.get("kind") in (pictures.KIND, sounds.KIND))
    column = record[name]
    if column["kind"] == pictures.KIND:
        pictures.need_pillow("images")
        return name, column, _picture(name, column)
    sounds.need_soundfile("sound")
    return name, column, _sound(name, column)


def of_files(record: Mapping[str, Mapping[str, Any]], path: str, label: Mapping[str, Any] | None = None) -> Asking:
    """The files at `path`, in the order of their names. `label`: the record of the classes, after which their folders are
    called. InputError: there are none of that kind."""
    found = file_column(record)
    assert found is not None
    read = _Decoded({found[0]: found[1]}, path, label)
    if read.by_itself:
        return Asking(read, [(1, range(1))], total=1)
    if not (count := len(read.files.names)):
        what = "picture" if read.of_pictures else "recording"
        raise InputError(f"there is no {what} in {path}", allowed=", ".join(sorted(read.endings)))
    at_a_time = count if read.files.forward_only else TOGETHER
    ranges = (range(first, min(first + at_a_time, count)) for first in range(0, count, at_a_time))
    return Asking(read, ((len(numbers), numbers) for numbers in ranges), total=count)


class _Decoded:
    """Reads files by their numbers in a folder or an archive, which each process looks through once."""

    def __init__(
        self, record: Mapping[str, Mapping[str, Any]], path: str, label: Mapping[str, Any] | None = None
    ) -> None:
        """`record`: that of the column that is made of a file."""
        self.record, self.path, self.label = record, path, label
        self.of_pictures = all(column["kind"] == pictures.KIND for column in record.values())
        self.endings = pictures.endings() if self.of_pictures else frozenset(sounds.ENDINGS)
        self.by_itself = Path(path).is_file() and Path(path).suffix.lower() in self.endings

    @cached_property
    def files(self) -> Files:
        return open_files(self.path, self.endings)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "files"}

    def _open(self, number: int) -> BinaryIO:
        return Path(self.path).open("rb") if self.by_itself else self.files.open(number)

    def __call__(self, numbers: range) -> Iterator[Question]:
        found = file_column(self.record)
        assert found is not None
        read = found[2]
        for first in range(numbers.start, numbers.stop, TOGETHER):
            waiting = _Waiting()
            for number in range(first, min(first + TOGETHER, numbers.stop)):
                called = self.path if self.by_itself else self.files.called(number)
                try:
                    with self._open(number) as file:
                        label = _class_of(called, self.path, self.label) if self.label else {}
                        waiting.add(called, {**read(file), **label})
                except InputError as error:
                    waiting.set_aside(called, Bad(called, why(error).why))
            yield waiting.question()


def _class_of(called: str, path: str, label: Mapping[str, Any]) -> Rows:
    """The class whose folder a file is in, the innermost that is one."""
    folders = Path(called).relative_to(path).parts[:-1] if Path(called).is_relative_to(path) else ()
    known = {str(name): number for number, name in enumerate(label["classes"])}
    for folder in [*reversed(folders), "/".join(folders)]:
        if folder in known:
            return {"label": np.int64(known[folder])}
    shown = ", ".join(list(known)[:20])
    raise InputError(f"{called} is in no folder that is called after a class", allowed=shown)


class _Waiting:
    """Files that were read, until there are some."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.rows: list[Rows] = []
        self.real: list[bool] = []
        self.bad: list[Bad] = []

    def add(self, called: str, row: Rows) -> None:
        self.files.append(called)
        self.rows.append(row)
        self.real.append(True)

    def set_aside(self, called: str, bad: Bad) -> None:
        self.files.append(called)
        self.bad.append(bad)
        self.real.append(False)

    def question(self) -> Question:
        rows = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]} if self.rows else {}
        return Question({"file": self.files}, rows, np.array(self.real), self.bad)


def _picture(name: str, record: Mapping[str, Any]) -> Read:
    return lambda file: {name: pictures.prepare_picture(record, file)}


def _sound(name: str, record: Mapping[str, Any]) -> Read:
    length = "frames" if record["features"] == "log_mel" else "samples"

    def read(file: BinaryIO) -> Rows:
        row, real = sounds.prepare_sound(record, file)
        return {name: row, length: np.int64(real)}

    return read
