"""Pictures and recordings of a folder, an archive, or by themselves, made into what a model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distdl.data import pictures, sounds
from distdl.data.asking.question import Bad, Question, why
from distdl.data.folders import open_files
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


def of_files(
    record: Mapping[str, Mapping[str, Any]], path: str, label: Mapping[str, Any] | None = None
) -> Iterator[Question]:
    """The files at `path`, in the order of their names. `label`: the record of the classes, after which their folders are
    called. InputError: there are none of that kind."""
    found = file_column(record)
    assert found is not None
    _, column, read = found
    if column["kind"] == pictures.KIND:
        endings, what = pictures.endings(), "picture"
    else:
        endings, what = frozenset(sounds.ENDINGS), "recording"
    waiting = _Waiting()
    for called, opened in _opened(path, endings, what):
        try:
            with opened() as file:
                waiting.add(called, {**read(file), **(_class_of(called, path, label) if label else {})})
        except InputError as error:
            waiting.set_aside(called, Bad(called, why(error).why))
        if len(waiting.real) == TOGETHER:
            yield waiting.question()
            waiting = _Waiting()
    if waiting.real:
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


def _opened(path: str, endings: frozenset[str], what: str) -> Iterator[tuple[str, Callable[[], BinaryIO]]]:
    if Path(path).is_file() and Path(path).suffix.lower() in endings:
        yield path, lambda: Path(path).open("rb")  # noqa: SIM115
        return
    files = open_files(path, endings)
    if not files.names:
        raise InputError(f"there is no {what} in {path}", allowed=", ".join(sorted(endings)))
    for number in range(len(files.names)):
        yield files.called(number), lambda number=number: files.open(number)  # type: ignore[misc]


def _picture(name: str, record: Mapping[str, Any]) -> Read:
    return lambda file: {name: pictures.prepare_picture(record, file)}


def _sound(name: str, record: Mapping[str, Any]) -> Read:
    length = "frames" if record["features"] == "log_mel" else "samples"

    def read(file: BinaryIO) -> Rows:
        row, real = sounds.prepare_sound(record, file)
        return {name: row, length: np.int64(real)}

    return read
