"""What a raw file is best prepared with, where nobody has said: which options, and why. For `distdl init`.

A source may have three things for it, each of which may be missing:

    ENDINGS = (".csv", ".tsv")         the endings of the names of its files, without a .gz behind them
    recognise(path) -> float           how well a file or folder fits, from 0 to 1; counts before the endings
    advise(path, wish) -> Advice       the options to prepare it with; by itself `path`, and what was wished for
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.data.table.header import EMPTY
from distdl.errors import InputError, Problem, did_you_mean

if TYPE_CHECKING:  # what a file is must be told before pyarrow is loaded
    import pyarrow as pa

BY_ENDING, SURE = 0.5, 0.9
"""How well a file fits whose name says what it is, and one whose first bytes do."""
ZIPPED = (".gz", ".bz2", ".zst", ".xz")
NAMED = ("label", "labels", "class", "classes", "target", "targets", "y", "outcome", "response")
"""Names of columns that mean "this is to be predicted", the most telling first."""
HEAD_BYTES = 1 << 16
"""Of a file that is looked at to tell what it is."""
FILES = 200
"""Files of a folder whose names are looked at."""
LOOKED_AT = 20_000
"""Rows that a guess is made from."""
PAIRS = (
    *(("x_train", "y_train"), ("x", "y"), ("images", "labels"), ("data", "target"), ("data", "labels")),
    *(("features", "labels"), ("train/x", "train/y"), ("x_train", "label_train")),
)
"""Names of the arrays of samples and of what is learned of them, as people call them, in any case."""
MOST_NUMBERS = 20
"""Whole numbers of more different values are taken for quantities, not for classes."""
MOST_DECIMALS = 10
"""The same of whole numbers that are written as 3.0: more often counts, with gaps among them, than classes."""
SAME = 5
"""Columns at the end that are passed over where each has one value, or names the rows."""
STRANGE, STRANGE_WORDS = 0.05, 5
"""Part of the rows, and different words, that may be no number in a column of numbers."""
MOST_NAMES = 1_000
PIECES, PIECES_ROWS, PIECES_COLUMNS = 16, 2_000, 64
"""Pieces that numbers are cut into, of tables of so many rows or more and of so many columns at most: fewer rows would be
learned by heart, and of more columns `x` grows long."""
ADVISED_SIDE = 64
"""Pixels that pictures are resized to where they differ, or are larger than twice that."""


def has_ending(path: str | os.PathLike[str], endings: Collection[str]) -> bool:
    """Whether a file's name has one of these endings, whatever its case and however it is compressed."""
    name = os.path.basename(os.fspath(path)).lower()
    for zipped in ZIPPED:
        name = name.removesuffix(zipped)
    return bool(endings) and name.endswith(tuple(endings))


def by_ending(path: Path, endings: Collection[str]) -> float:
    """How well a file fits by its name; a folder, by the names of the files in it and below it."""
    if path.is_dir():
        below = (one for one in path.rglob("*") if not one.name.startswith((".", "_")) and one.is_file())
        files = list(islice(below, FILES))
        return BY_ENDING if files and all(has_ending(one, endings) for one in files) else 0.0
    return BY_ENDING if path.is_file() and has_ending(path, endings) else 0.0


def begins_with(path: Path, magic: bytes) -> bool:
    """Whether a path is a file of these first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


@dataclass(frozen=True)
class Wish:
    """What was said of the file, if anything."""

    label: str = ""
    """Column with the class to predict."""
    target: str = ""
    """Column with the number to predict."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """Options that say how the file is written."""

    def options(self) -> dict[str, str]:
        return {key: value for key, value in (("label", self.label), ("target", self.target)) if value}


@dataclass(frozen=True)
class Advice:
    """The options to prepare a file with."""

    options: dict[str, Any]
    because: dict[str, str] = field(default_factory=dict)
    """Option -> why it was chosen, in a few words."""


@dataclass(frozen=True)
class Answer:
    """Whether a column can be what is predicted."""

    key: str
    """`label`, `target`, or '' where it can be neither."""
    words: str
    """What its values are: `text of 3 classes`."""
    empty: bool = False
    """There is one value in it, or none."""


def table_advice(table: Any, wish: Wish, options: dict[str, Any]) -> Advice:
    """What to predict of a table (a file of named columns that can be read again and again). `options`: how it is opened.

    InputError, with the columns to choose from: it has no column of that name, or none that is clearly the one.
    """
    found = _answered(table, wish, options)
    answer = found.options.get("label") or found.options.get("target")
    if not _bends(table, [name for name in table.names if name != answer]):
        return found
    why = f"numbers of {PIECES_ROWS:,} rows or more, which may bend at quantiles"
    return Advice({**found.options, "pieces": PIECES}, {**found.because, "pieces": why})


def _bends(table: Any, names: list[str]) -> bool:
    """Whether a table has rows enough for pieces, and a column of numbers among its first ones. No more of it is read."""
    rows, quantities = 0, False
    for batch in table.batches(names) if len(names) < PIECES_COLUMNS else ():
        quantities = quantities or any(map(_is_quantity, batch.columns))
        rows += batch.num_rows
        if rows >= PIECES_ROWS:
            return quantities
    return False


def _is_quantity(column: pa.Array) -> bool:
    """Whether more than two different numbers stand in it."""
    counts = Counter(text for text in _texts(column) or () if text.lower() not in EMPTY)
    return answer_of(counts).words.startswith(("numbers", "whole numbers")) and len(counts) > 2


def _answered(table: Any, wish: Wish, options: dict[str, Any]) -> Advice:
    """Which column is predicted."""
    if wish.label or wish.target:
        return Advice({**options, **_known(table, wish)})
    if len(table.names) == 1:
        raise InputError(
            f"{table.path} has one column, '{table.names[0]}': nothing is left to predict it from",
            fix="check the delimiter, or name the source: distdl data sources",
        )
    seen = []
    for name, reason, keys in _candidates(table):
        answer = answer_in(table, name)
        if answer.key in keys:
            return Advice({**options, answer.key: name}, {answer.key: f"{reason}, {answer.words}"})
        seen.append(f"'{name}' is {answer.words}")
    raise InputError(
        f"which column of {table.path} is to be predicted is not clear: {', '.join(seen)}",
        allowed=_some(table.names),
        fix="--label COLUMN for classes, --target COLUMN for a number",
    )


def _candidates(table: Any) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Columns that may be what is predicted, why, and as what: those that are called so, the last one that is not always
    the same and no id, and the first, where that has classes. No other: one in the middle is no better than its
    neighbours."""
    from distdl.data.table.kinds import is_named_id

    either = ("label", "target")
    called = sorted((NAMED.index(name.strip().lower()), name) for name in table.names if name.strip().lower() in NAMED)
    for _, name in called:
        yield name, f"the column is called {name}", either
    names = {name for _, name in called}
    ends = table.names[: -1 - SAME : -1]
    last = next((n for n in ends if not is_named_id(n) and not answer_in(table, n).empty), table.names[-1])
    passed = ends[: ends.index(last)]
    if last not in names:
        same = " that is not always the same" if any(not is_named_id(n) for n in passed) else ""
        no_id = (" and" if same else " that is") + " no id" if any(map(is_named_id, passed)) else ""
        yield last, f"the last column{same}{no_id}", either
    if table.names[0] not in (*names, last):
        yield table.names[0], "the first column, as the last is none to predict", ("label",)


def _known(table: Any, wish: Wish) -> dict[str, str]:
    problems = [
        Problem(f"{table.path} has no column '{name}', which --{key} names", fix=did_you_mean(name, table.names))
        for key, name in wish.options().items()
        if name not in table.names
    ]
    if wish.label and wish.target:
        problems.append(
            Problem("both --label and --target are given", fix="--label for classes, --target for a number")
        )
    if problems:
        raise InputError(*problems)
    return wish.options()


def _some(names: list[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def answer_in(table: Any, name: str) -> Answer:
    """What predicting a column would mean, from its first rows."""
    texts: dict[str, int] = {}
    rows = 0
    for batch in table.batches([name]):
        values = _texts(batch.column(0))
        if values is None:
            return Answer("", f"{batch.column(0).type}")
        for value in values:
            texts[value] = texts.get(value, 0) + 1
        rows += len(values)
        if rows >= LOOKED_AT:
            break
    answer = answer_of({text: count for text, count in texts.items() if text.lower() not in EMPTY})
    if not answer.words.startswith("text"):
        return answer
    from distdl.data.table.values import NA, label_na  # among words fewer of them mean that there is nothing

    return answer_of({text: count for text, count in texts.items() if text not in label_na(NA)})


def answer_of(texts: dict[str, int]) -> Answer:
    """What predicting these values would mean. `texts`: each different value, as text, and how often it stands there."""
    rows, distinct = sum(texts.values()), len(texts)
    if distinct < 2:
        return Answer("", "one value throughout" if texts else "empty", empty=True)
    numbers = [_number(text) for text in texts]
    if None in numbers:
        strange = [text for text, number in zip(texts, numbers, strict=True) if number is None]
        of_them = sum(texts[text] for text in strange)
        if len(strange) <= STRANGE_WORDS and of_them <= STRANGE * rows:
            rest = answer_of({text: count for text, count in texts.items() if text not in strange})
            if rest.key == "target":  # the preparation then names the row that is wrong
                return Answer("target", f"numbers but for {', '.join(map(repr, strange))}")
        if distinct > MOST_NAMES or distinct > rows / 2:
            return Answer("", f"text of {distinct:,} values in {rows:,} rows")
        return Answer("label", f"text of {distinct:,} classes")
    whole = all(float(number).is_integer() for number in numbers if number is not None)
    most = MOST_DECIMALS if any("." in text for text in texts) else MOST_NUMBERS
    if whole and distinct <= max(2, min(most, rows // 5)):
        return Answer("label", f"whole numbers of {distinct:,} classes")
    if whole and distinct == rows and _in_line([number for number in numbers if number is not None]):
        return Answer("", "the numbers of the rows")
    return Answer("target", "numbers")


def _in_line(numbers: list[float]) -> bool:
    return max(numbers) - min(numbers) == len(numbers) - 1


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _texts(values: pa.Array) -> list[str] | None:
    """The values of a column as trimmed text, '' for an empty one; None where a value is no single word or number."""
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_temporal(kind):
        return None
    return ["" if value is None else str(value).strip() for value in values.to_pylist()]


def arrays_advice(file: Any, wish: Wish) -> Advice:
    """What to learn of a file of named arrays (formats/_arrays.py).

    InputError, with the arrays to choose from: their names do not tell, and nor does `wish`.
    """
    path: str = file.path
    arrays: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in file.names():
        with suppress(InputError):  # values that no data set can hold
            array = file.array(name)
            arrays |= {name: (array.shape, array.dtype.kind)} if array is not None else {}
    answer, lower = wish.label or wish.target, {name.lower(): name for name in arrays}
    pair = next(([lower[n] for n in names] for names in PAIRS if all(n in lower for n in names)), None)
    if answer in arrays:
        rows = arrays[answer][0][:1]
        samples = [n for n, (shape, _) in arrays.items() if n != answer and len(shape) > 1 and shape[:1] == rows]
        pair = [samples[0], answer] if len(samples) == 1 else pair
    if pair is None or (answer and answer != pair[1]):
        raise InputError(
            f"which arrays of {path} are samples and which are labels is not clear",
            allowed=", ".join(f"{name} {list(shape)}" for name, (shape, _) in arrays.items()),
            fix="--label ARRAY or --target ARRAY; or columns=x,label train=SAMPLES,LABELS",
        )
    (sample, _), (answers, kind) = arrays[pair[0]], arrays[pair[1]]
    classes = kind in "biuSUO" and len(answers) == 1 and not wish.target
    options: dict[str, Any] = {
        "path": path,
        "columns": ["image" if len(sample) in (3, 4) else "x", "label" if classes else "y"],
        "train": pair,
    }
    tests = [lower.get(name.lower().replace("train", "test"), "") for name in pair]
    options |= {"test": tests} if all(tests) and tests != pair else {"test_fraction": 0.1}
    if len(sample) == 3:  # pictures without an axis of channels
        options["shape"] = [1, *sample[1:]]
    return Advice(options, {"train": "by the names of the arrays"})


def look_advice(modes: Collection[str], sizes: Collection[tuple[int, int]]) -> Advice:
    """One size for all pictures, and whether they have colours. `modes`: Pillow's names; `sizes`: height and width."""
    options: dict[str, Any] = {}
    because = {}
    if all(mode in ("1", "L", "LA") or mode.startswith("I") for mode in modes):
        options["channels"], because["channels"] = 1, "all pictures are grey"
    if len(sizes) > 1:
        because["size"] = "the pictures differ in size"
    elif any(max(size) > 2 * ADVISED_SIDE for size in sizes):
        because["size"] = "the pictures are large for a first run"
    if "size" in because:
        side = min(ADVISED_SIDE, *(side for size in sizes for side in size))
        options["size"] = f"{side}x{side}"
    return Advice(options, because)


def first_lines(path: Path, most: int = 50) -> list[str]:
    """The first lines of a text file that may be packed; [] where it is none."""
    from distdl.data.unpack import open_unpacked

    if not path.is_file():
        return []
    try:
        with open_unpacked(path) as file:
            lines = file.read(HEAD_BYTES).decode("utf-8-sig", "replace").splitlines()
    except InputError:
        return []
    return [] if "\0" in "".join(lines) else lines[:most]
