"""Of each row those that the model learned from whose embeddings lie nearest to its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distdl.analyse import drawings
from distdl.analyse.look import PICTURES, Look
from distdl.analyse.rows import knows_truth
from distdl.analyse.section import Picture, Section, Table, Value
from distdl.data.asking.data_sets import is_data_set
from distdl.data.asking.open import How, questions
from distdl.data.manifest import read_manifest

NEAREST = 5
REFERENCE = 5000
"""Rows of the training split that neighbours are looked for among; of more so many, evenly spread."""


def neighbours(look: Look) -> Section:
    """The section. Distances are Euclidean."""
    path = str(look.model.config.data.path)
    if not is_data_set(path) or "train" not in read_manifest(path).splits:
        return Section(refused=f"the data set that the run learned from is not at {path} any more")
    section = Section()
    own = [look.model.answers(columns, embedding=True) for _, columns in look.sample.batches(look.model.batch)]
    query = np.concatenate([_embedding(look, answers) for answers in own])
    found = _nearest(look, path, query)
    table: list[tuple[Value, ...]] = []
    for i, row in enumerate(look.rows):
        for place, (distance, at) in enumerate(found.near[i], 1):
            table.append((row.name, look.true(i), place, found.numbers[at], found.truths[at], float(distance)))
    heads = ("row", "true", "nearest", "row of the training split", "its truth", "distance")
    section.tables.append(Table("neighbours", f"The {NEAREST} nearest of each row", heads, table, shown=50))
    known = [(row[1], row[4]) for row in table if row[1] and row[4]]
    if known and look.probe.subject.classes:
        share = sum(a == b for a, b in known) / len(known)
        section.numbers["share_of_the_same_class"] = share
        section.sentences.append(f"{share:.1%} of these neighbours are of the class of the row.")
    rows, of = len(found.numbers), found.of
    among = f"{rows:,} of {of:,} rows of the training split, evenly spread" if rows < of else f"all {of:,} rows"
    section.sentences.append(f"Looked for among {among}, by the Euclidean distance of {query.shape[1]:,} numbers.")
    section.numbers |= {"reference_rows": rows, "training_rows": of}
    _draw(look, found, section)
    return section


def _embedding(look: Look, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, D) of answers."""
    own = next((name for name, answer in look.model.tells.items() if answer.kind == "embedding"), "embedding")
    return found[own].reshape(len(found[own]), -1)


@dataclass
class _Found:
    """What is looked among, by place."""

    of: int
    """Rows that the training split has."""
    near: list[list[tuple[float, int]]]
    """Of each query (distance, place) of the nearest."""
    numbers: list[int] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    """Of those that are near to a row that is drawn, where they are pictures."""


def _nearest(look: Look, path: str, query: np.ndarray) -> _Found:
    found = _Found(read_manifest(path).splits["train"].rows, [[] for _ in query])
    drawn = look.picture(0) is not None
    for part in _chosen(look, path, found.of):
        columns = {name: part[name] for name in look.model.ways.asked}
        vectors = _embedding(look, look.model.answers(columns, embedding=True)).astype(np.float64)
        first = len(found.numbers)
        for i, one in enumerate(query.astype(np.float64)):
            distance = np.sqrt(((vectors - one) ** 2).sum(-1))
            best = np.argsort(distance, kind="stable")[:NEAREST].tolist()
            found.near[i] = sorted([*found.near[i], *((float(distance[j]), first + j) for j in best)])[:NEAREST]
        found.numbers += part["row"]
        found.truths += _truths(look, part)
        if drawn:
            kept = {at for row in found.near[:PICTURES] for _, at in row}
            new = {first + j: part[look.probe.names[0]][j] for j in range(len(vectors)) if first + j in kept}
            found.pictures = {at: p for at, p in (found.pictures | new).items() if at in kept}
    return found


def _chosen(look: Look, path: str, of: int) -> Iterator[dict[str, Any]]:
    """Columns of the rows of the training split that are looked among, and their numbers."""
    wanted = np.unique(np.linspace(0, of - 1, min(of, REFERENCE)).astype(np.int64))
    for question in questions(look.model.ways, path, How(split="train", answers=knows_truth(look.model, path))):
        numbers = np.asarray(question.about["row"])
        here = np.isin(numbers, wanted)
        if here.any():
            yield {**{name: column[here] for name, column in question.rows.items()}, "row": numbers[here].tolist()}


def _truths(look: Look, part: Mapping[str, Any]) -> list[str]:
    """What is true of each row, in words; '': it is not known."""
    truth = part.get(look.probe.subject.truth)
    if truth is None or truth.ndim != 1:
        return [""] * len(part["row"])
    if look.probe.subject.value:
        return [f"{value:.6g}" for value in look.in_units(truth).tolist()]
    return [look.thing(int(value)) if value >= 0 else "" for value in truth.tolist()]


def _draw(look: Look, found: _Found, section: Section) -> None:
    pictures, titles = [], []
    for i in range(min(PICTURES, len(look.rows))):
        if (own := look.picture(i)) is None:
            return
        line, names = [own], [f"{look.rows[i].name[-18:]}\n{look.true(i)[:16]}"]
        for distance, at in found.near[i]:
            line.append(np.asarray(found.pictures[at], np.float64) / (255 if look.probe.bytes_of else 1))
            names.append(f"train {found.numbers[at]}: {found.truths[at][:10]}\n{distance:.3g}")
        blank = drawings.PER_LINE - len(line)
        pictures += [*line, *[np.ones_like(own)] * blank]
        titles += [*names, *[""] * blank]
    caption = "Each line: a row, and its nearest of the training split."
    section.pictures.append(Picture(caption, drawings.grid(pictures, titles)))
