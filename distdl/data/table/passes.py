"""What is done with the rows of a table: looked at, or made into the rows of a data set. Each function is handed the parts
of a section, in this process or in another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from distdl.data.raw import Rows
from distdl.data.table.encode import Encoder, encode_label, encode_target
from distdl.data.table.numbers import Numbers
from distdl.data.table.pixels import encode_pixels, small_parts
from distdl.data.table.profile import Profile
from distdl.data.table.reader import Places
from distdl.data.table.sections import Elsewhere, Sections
from distdl.data.table.stream import Part
from distdl.data.table.values import dates, label_na


def chunks(
    tables: list[Sections], preparation: Mapping[str, Any], begin: int
) -> Iterator[tuple[int, tuple[str, Rows]]]:
    """The rows of all tables from a section on, which are numbered through."""
    names, before = needed_columns(preparation), 0
    for of_table in tables:
        if begin < before + of_table.count:
            function = Encoding(preparation, of_table.table)
            for section, chunk in of_table.each(function, names, max(0, begin - before)):
                yield before + section, chunk
        before += of_table.count


def rows_of(sections: Sequence[Sections]) -> int | None:
    """How many rows there will be; None: that is not known."""
    rows = [each.rows for each in sections]
    return None if None in rows else sum(int(count or 0) for count in rows)


def profiled(make: Callable[[], Profile], parts: Iterable[Part]) -> Iterator[Profile]:
    """What the columns hold, once."""
    found = make()
    for part in parts:
        found.add(part)
    yield found


def ranges_of_dates(patterns: list[str], na: Sequence[str], parts: Iterable[Part]) -> Iterator[list[Numbers]]:
    """What the columns hold that are dates of these patterns, once."""
    found = [Numbers(1) for _ in patterns]
    for part in parts:
        for i, (numbers, pattern) in enumerate(zip(found, patterns, strict=True)):
            seconds, _ = dates(part.batch.column(i), pattern, na)
            numbers.add(seconds[None], part.rows, part.split == "train")
    yield found


def together(of_sections: Iterable[Any]) -> Any:
    """What sections on end have given, as one. The first is copied: what another process gives may not be written to."""
    every = iter(of_sections)
    found = copy.deepcopy(next(every))
    for behind in every:
        found.merge(behind)
    return found


class Encoding:
    """Parts of a table -> rows of a data set, as a preparation says."""

    def __init__(self, preparation: Mapping[str, Any], table: Places) -> None:
        self.preparation, self.table = preparation, table

    def __getstate__(self) -> dict[str, Any]:
        """For another process, without the file: what fails there is looked at again here."""
        return {"preparation": self.preparation, "table": Elsewhere(self.table.path)}

    def __call__(self, parts: Iterable[Part]) -> Iterator[tuple[str, Rows]]:
        """(split, rows) of each part."""
        for part in parts:
            for piece in small_parts(part, self.preparation.get("image", {})):
                yield piece.split, encoded(self.preparation, piece, self.table)


def needed_columns(preparation: Mapping[str, Any]) -> list[str]:
    """The columns of a table that a preparation reads."""
    answers = [preparation[key]["name"] for key in ("image", "label", "y") if key in preparation]
    return [*(feature["name"] for feature in preparation["x"]["features"]), *answers]


def encoded(preparation: Mapping[str, Any], part: Part, table: Places) -> Rows:
    """The rows of a part, as a preparation says. InputError names the first value that does not fit."""
    columns = dict(zip(part.batch.schema.names, part.batch.columns, strict=True))
    record, na = preparation["x"], preparation["x"]["na"]
    rows: Rows = {"x": Encoder(record, table.place).encode(columns, part.rows)} if record["columns"] else {}
    if image := preparation.get("image"):
        rows["image"] = encode_pixels(image, columns[image["name"]], part.rows, table)
    if label := preparation.get("label"):
        rows["label"] = encode_label(label, columns[label["name"]], label_na(na), part.rows, table.place)
    if y := preparation.get("y"):
        rows["y"] = encode_target(y, columns[y["name"]], na, part.rows, table.place)
    return rows
