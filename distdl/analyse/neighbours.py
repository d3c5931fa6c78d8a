"""Of each row those that the model learned from whose embeddings lie nearest to its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from distdl.analyse import drawings
from distdl.analyse.look import PICTURES, Look
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
    query = np.concatenate([_embedding(look, found) for found in own])
    near, rows, of = _nearest(look, path, query)
    words = _truths(look, rows)
    table: list[tuple[Value, ...]] = []
    for i, row in enumerate(look.rows):
        for place, (distance, at) in enumerate(near[i], 1):
            table.append((row.name, look.true(i), place, int(rows[at]["row"]), words[at], float(distance)))
    heads = ("row", "true", "nearest", "row of the training split", "its truth", "distance")
    section.tables.append(Table("neighbours", f"The {NEAREST} nearest of each row", heads, table, shown=50))
    known = [(row[1], row[4]) for row in table if row[1] and row[4]]
    if known and look.probe.subject.classes:
        share = sum(a == b for a, b in known) / len(known)
        section.numbers["share_of_the_same_class"] = share
        section.sentences.append(f"{share:.1%} of these neighbours are of the class of the row.")
    among = (
        f"{len(rows):,} of {of:,} rows of the training split, evenly spread" if len(rows) < of else f"all {of:,} rows"
    )
    section.sentences.append(f"Looked for among {among}, by the Euclidean distance of {query.shape[1]:,} numbers.")
    section.numbers |= {"reference_rows": len(rows), "training_rows": of}
    _draw(look, near, rows, words, section)
    return section


def _embedding(look: Look, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, D) of answers."""
    own = next((name for name, answer in look.model.tells.items() if answer.kind == "embedding"), "embedding")
    return found[own].reshape(len(found[own]), -1)


def _nearest(
    look: Look, path: str, query: np.ndarray
) -> tuple[list[list[tuple[float, int]]], list[dict[str, Any]], int]:
    """Of each query (distance, place among the rows) of the nearest; the rows; how many the split has."""
    of = read_manifest(path).splits["train"].rows
    rows: list[dict[str, Any]] = []
    near: list[list[tuple[float, int]]] = [[] for _ in query]
    for part in _chosen(look, path, of):
        columns = {name: part[name] for name in look.model.ways.asked}
        found = _embedding(look, look.model.answers(columns, embedding=True)).astype(np.float64)
        apart = query.astype(np.float64)[:, None] - found[None] if query.size * len(found) <= 1 << 22 else None
        distance = np.sqrt((apart**2).sum(-1)) if apart is not None else _far(query, found)
        for i, row in enumerate(distance):
            best = np.argsort(row, kind="stable")[:NEAREST].tolist()
            near[i] = sorted([*near[i], *((float(row[j]), len(rows) + j) for j in best)])[:NEAREST]
        truth = look.probe.subject.truth
        for j, number in enumerate(part["row"]):
            picture = part[look.probe.names[0]][j] if look.picture(0) is not None and len(rows) < REFERENCE else None
            rows.append({"row": number, "truth": part[truth][j] if truth in part else None, "picture": picture})
    return near, rows, of


def _far(query: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Distances (n, m) of many long vectors, a query at a time."""
    return np.stack([np.sqrt(((found - one.astype(np.float64)) ** 2).sum(-1)) for one in query])


def _chosen(look: Look, path: str, of: int) -> Iterator[dict[str, Any]]:
    """Columns of the rows of the training split that are looked among, and their numbers."""
    wanted = np.unique(np.linspace(0, of - 1, min(of, REFERENCE)).astype(np.int64))
    truth = look.probe.subject.truth in read_manifest(path).columns
    for question in questions(look.model.ways, path, How(split="train", answers=truth)):
        numbers = np.asarray(question.about["row"])
        here = np.isin(numbers, wanted)
        if here.any():
            yield {**{name: column[here] for name, column in question.rows.items()}, "row": numbers[here].tolist()}


def _truths(look: Look, rows: list[dict[str, Any]]) -> list[str]:
    """What is true of each, in words."""
    if look.probe.subject.value:
        return ["" if row["truth"] is None else f"{float(look.in_units(row['truth'])):.6g}" for row in rows]
    return ["" if row["truth"] is None or row["truth"] < 0 else look.thing(int(row["truth"])) for row in rows]


def _draw(
    look: Look, near: list[list[tuple[float, int]]], rows: list[dict[str, Any]], words: list[str], section: Section
) -> None:
    pictures, titles = [], []
    for i in range(min(PICTURES, len(look.rows))):
        if (own := look.picture(i)) is None:
            return
        pictures.append(own)
        titles.append(f"{look.rows[i].name[-18:]}\n{look.true(i)[:16]}")
        for distance, at in near[i]:
            pictures.append(np.asarray(rows[at]["picture"], np.float64) / (255 if look.probe.bytes_of else 1))
            titles.append(f"train {rows[at]['row']}: {words[at][:10]}\n{distance:.3g}")
    section.pictures.append(
        Picture("Each line: a row, and its nearest of the training split.", drawings.grid(pictures, titles))
    )
