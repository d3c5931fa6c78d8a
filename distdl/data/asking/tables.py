"""Rows of a table, made into what a model reads by the record of its preparation. Nothing is fitted to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.asking.question import Asking, Bad, Question, why
from distdl.data.preparation import ready_table
from distdl.data.raw import Rows
from distdl.data.table.pixels import small_parts
from distdl.data.table.prepare import encoded
from distdl.data.table.reader import Places, Table, places_of
from distdl.data.table.sections import Elsewhere
from distdl.data.table.stream import Part, Undotted, whole_split
from distdl.data.table.values import texts
from distdl.errors import InputError, did_you_mean

TOGETHER = 8192
"""Rows of a portion: few enough that several workers have some of a table that is not large."""


def of_table(
    record: Mapping[str, Mapping[str, Any]],
    table: Table,
    keep: Sequence[str] = (),
    answers: bool = False,
    notes: bool = True,
) -> Asking:
    """The rows of a table, some thousand at a time. `keep`: columns of it that go along as they are; `*`: all. `answers`:
    `label` or `y`, too, where the table has them. `notes`: words that the model never saw are counted. InputError: it lacks
    a column that the model reads."""
    table, preparation, names = ready_table(record, table, answers)
    kept = list(table.names) if "*" in keep else list(keep)
    if missing := [name for name in kept if name not in table.names]:
        fix = did_you_mean(missing[0], table.names)
        raise InputError(f"{table.path} has no column '{missing[0]}', which is to be kept", fix=fix)
    parts = portions(whole_split(table, list(dict.fromkeys([*names, *kept])), ""))
    read = Encoded(preparation, Elsewhere(table.path), kept, isinstance(table, Undotted), notes)
    return Asking(read, ((len(part.rows), Sent(part)) for part in parts), lambda question: placed(question, table))


def portions(parts: Iterable[Part]) -> Iterator[Part]:
    """Parts of no more rows than one worker should have at a time."""
    for part in parts:
        for i in range(0, len(part.rows), TOGETHER):
            yield Part(part.split, part.rows[i : i + TOGETHER], part.batch.slice(i, TOGETHER))


class Sent:
    """A part of a table that may go to another process: the rows of a slice, and not all of what it was cut from."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __getstate__(self) -> tuple[Any, ...]:
        batch = self.part.batch
        return self.part.split, self.part.rows, batch.schema.serialize().to_pybytes(), batch.serialize()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        split, rows, schema, batch = state
        schema = pa.ipc.read_schema(pa.py_buffer(schema))
        self.part = Part(split, rows, pa.ipc.read_record_batch(batch, schema))


class Encoded:
    """Makes parts of a table into questions. The table is in another process, which alone knows where a bad row is."""

    def __init__(
        self, preparation: Mapping[str, Any], table: Places, kept: Sequence[str], undotted: bool, notes: bool = True
    ) -> None:
        self.preparation, self.table, self.kept, self.undotted, self.notes = preparation, table, kept, undotted, notes

    def __call__(self, sent: Sent | list[Bad]) -> Iterator[Question]:
        if isinstance(sent, list):  # lines that are no rows
            yield Question({}, {}, np.zeros(0, bool), sent)
            return
        for part in small_parts(sent.part, self.preparation.get("image", {})):
            rows, real, bad = readable(self.preparation, part, self.table)
            of = dict(zip(part.batch.schema.names, part.batch.columns, strict=True))
            about = {"row": part.rows.tolist(), **{name: of[name].to_pylist() for name in self.kept}}
            notes = unknown(self.preparation, of, self.table.path) if self.notes else {}
            if self.undotted:
                notes[f"classes in {self.table.path} have a dot behind them and are read without it"] = len(part.rows)
            yield Question(about, rows, real, bad, notes)


def placed(question: Question, table: Table) -> Question:
    """With where its bad rows are."""
    lost = [bad for bad in question.bad if bad.row >= 0]
    if not lost:
        return question
    where = dict(zip(lost, places_of(table, [bad.row for bad in lost]), strict=True))
    return replace(question, bad=[Bad(where[bad], bad.why) if bad in where else bad for bad in question.bad])


def readable(preparation: Mapping[str, Any], part: Part, table: Places) -> tuple[Rows, np.ndarray, list[Bad]]:
    """The rows of a part that can be encoded, which these are, and why the others cannot. A part with a bad row is halved
    until the row is alone."""
    try:
        return encoded(preparation, part, table), np.ones(len(part.rows), bool), []
    except InputError as error:
        if len(part.rows) == 1:
            nothing = encoded(preparation, Part(part.split, part.rows[:0], part.batch.slice(0, 0)), table)
            return nothing, np.zeros(1, bool), [Bad("", why(error).why, int(part.rows[0]))]
    half = len(part.rows) // 2
    parts = [
        Part(part.split, part.rows[:half], part.batch.slice(0, half)),
        Part(part.split, part.rows[half:], part.batch.slice(half)),
    ]
    found = [readable(preparation, one, table) for one in parts]
    rows = {name: np.concatenate([one[0][name] for one in found]) for name in found[0][0]}
    return rows, np.concatenate([one[1] for one in found]), [bad for one in found for bad in one[2]]


def unknown(preparation: Mapping[str, Any], columns: Mapping[str, pa.Array], path: str) -> dict[str, int]:
    """Words that the model never saw: they count as `other`, or as nothing."""
    told = {}
    na = preparation["x"]["na"]
    for feature in preparation["x"]["features"]:
        if feature["kind"] != "category":
            continue
        words = texts(columns[feature["name"]], na)
        strange = pc.and_(pc.is_valid(words), pc.invert(pc.is_in(words, pa.array(feature["levels"], pa.string()))))
        if count := pc.sum(strange).as_py() or 0:
            taken = "count as others" if feature.get("other") else "count as unknown"
            told[f"values of '{feature['name']}' in {path} that were not among those learned from {taken}"] = count
    return told
