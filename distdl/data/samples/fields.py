"""Samples of named fields -> columns: what the sources of streamed shards (webdataset, mds, litdata) share.

    scan    every sample once: which fields, of which type and shape, which classes; damage is refused here, by its sample
    rows    every sample once more: pictures decoded, classes numbered, stacked

A picture becomes uint8 (C, H, W); a number or an array keeps its type; the label becomes int64; other text and bytes stay
bytes. Of JSON (and of an .npz) a part is named by its path: `fields=jpg,json.caption`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from distdl.data import workers
from distdl.data.bad_rows import BadRows
from distdl.data.classes import MAX_CLASSES, in_order
from distdl.data.manifest import VARIABLE, Column
from distdl.data.pictures import Look, make_look, need_pillow, picture_record, read_picture
from distdl.data.raw import Prepared, Rows
from distdl.data.samples.values import Kind, Picture, Sample, array_of, class_of, kind_of, merged, part_of
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError

CHUNK_BYTES = 8 << 20
CHUNK_ROWS = 1024
PICTURES = ["avif", "bmp", "gif", "jp2", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "tif", "tiff", "webp"]
"""Endings of fields that are pictures."""
LABELS = ("cls", "label", "class")
"""Fields that hold the class, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SplitOptions):
    """How samples become rows; the options of a source of samples take these over."""

    test_path: str = ""
    """Samples with the same fields that become the split `test`; then nothing is held out of `path`."""
    fields: tuple[str, ...] = ()
    """Fields of a sample that become columns, all others are left out; a part of JSON by its path, as `json.caption`.
    Without it all fields."""
    names: tuple[str, ...] = ()
    """Names of their columns, in the same order. Without it `image` for the only picture, `label` for the label, and the
    field's own, with _ for what no name of a column may hold."""
    label: str = ""
    """Field that holds the class, text or a whole number; without it the one called cls, label or class."""
    size: tuple[int, int] | None = None
    """Height and width that pictures are resized to, as 224x224; without it all must have the same size."""
    channels: int = 3
    """3 for colour, 1 for grey."""
    fit: str = "stretch"
    """How a picture comes to that size: stretch, crop (its middle) or pad."""
    range: tuple[float, float] | None = None
    """Values of pictures of more than 8 bits that become 0 and 255; without it the range of their kind."""
    background: str = "white"
    """Colour behind what is transparent."""


@dataclass
class _Facts:
    kinds: dict[str, Kind] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    label: str = ""
    samples: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the first pictures, where all are looked at."""


Read = Callable[[Sequence[str]], Iterator[Sample]]
"""Samples with (at least) the fields of these names, or all fields where there are none."""


def prepare_samples(
    source: str,
    options: SampleOptions,
    train: Read,
    test: Read | None,
    info: dict[str, Any],
    notes: list[str],
    bad: BadRows | None = None,
) -> Prepared:
    """Columns as the fields are. Both readers are gone through twice; what they have to tell is in `notes` after the first
    time. `bad`: samples that the readers have set aside, which others may join."""
    bad = bad or BadRows(options)
    train, test = _without(train, bad), _without(test, bad) if test else None
    if options.names and len(options.names) != len(options.fields):
        raise InputError(
            f"names= has {len(options.names)} names for {len(options.fields)} fields",
            fix="name each field of fields= once",
        )
    facts = _scan(train, options, None, bad, source)
    of_test = _scan(test, options, facts, bad, source) if test else _Facts()
    bad.check(facts.samples + of_test.samples)
    columns = _columns(facts, options)
    pictures = [name for name, kind in facts.kinds.items() if kind.what == "picture"]
    look = Look()
    preparation: dict[str, Any] = {}
    if pictures:
        need_pillow(source)
        look = make_look(options.channels, options.size, options.fit, options.range, options.background)
        first = next(train(_asked(options)))
        for name in pictures:
            size = read_picture(io.BytesIO(part_of(first, name).content), f"{first.where}, {name}", look).shape
            facts.kinds[name].shape = size
            preparation[columns[name]] = picture_record(look, (size[1], size[2]))
    classes = in_order(facts.classes)
    if facts.label:
        info = {**info, "classes": classes}
        preparation[columns[facts.label]] = {"kind": "class", "version": 1, "classes": classes}
    stack = _Stack(facts, columns, {c: i for i, c in enumerate(classes)}, look)
    splitter = Splitter(
        options,
        names=[columns[name] for name, kind in facts.kinds.items() if kind.what in ("whole", "real", "text")],
        label=columns[facts.label] if facts.label else "",
        where=source,
        tested=test is not None,
    )
    if splitter.looks:
        splitter.look(stack.of(train, splitter.columns))
    every = {columns[name]: _column(kind, name == facts.label) for name, kind in facts.kinds.items()}
    made = {name: column for name, column in every.items() if name not in splitter.apart}

    def chunks() -> Iterator[tuple[str, Rows]]:
        for split, rows in splitter.share(stack.rows(train, options)):
            yield split, {name: rows[name] for name in made}
        for rows in stack.rows(test, options) if test else ():
            yield "test", {name: rows[name] for name in made}

    info = {**info, **({"notes": notes} if notes else {}), "split": splitter.record()}
    return Prepared(made, chunks(), info, preparation, bad=bad)


def _without(read: Read, bad: BadRows) -> Read:
    """A reader that leaves out what was set aside."""
    return lambda fields: (sample for sample in read(fields) if sample.where not in bad)


def _asked(options: SampleOptions) -> tuple[str, ...]:
    return (*options.fields, *([options.label] if options.label and options.label not in options.fields else []))


def _scan(read: Read, options: SampleOptions, known: _Facts | None, bad: BadRows, source: str) -> _Facts:
    """What all samples hold. `known`: of the training samples, which those of the test split must be like."""
    facts = _Facts() if known is None else _Facts(dict(known.kinds), set(), known.label, shapes=known.shapes)
    asked = _asked(options)
    for sample in read(asked):
        with bad.row(sample.where, _in_short(sample) if bad.wanted else "", reason="does not fit"):
            _take(facts, sample, asked or tuple(sample.fields), options, known)
            if bad.wanted:
                _check_pictures(facts, sample, options, source)
            facts.samples += 1
        if len(facts.classes) > MAX_CLASSES:
            raise InputError(
                f"the field {facts.label} has more than {MAX_CLASSES:,} different values", fix="label=, or fields="
            )
    if not facts.samples:
        raise InputError("there are no samples", fix="check the path")
    if known is not None:
        known.kinds.update(facts.kinds)
    return facts


def _take(facts: _Facts, sample: Sample, names: Sequence[str], options: SampleOptions, known: _Facts | None) -> None:
    """Adds a sample to what is known of all; nothing of one that is refused."""
    kinds, label, classes = dict(facts.kinds), facts.label, set[str]()
    if not kinds:
        label = options.label or next((name for name in LABELS if name in names), "")
    if kinds and set(names) != set(kinds):
        more, less = set(names) - set(kinds), set(kinds) - set(names)
        told = f"has also {', '.join(sorted(more))}" if more else f"lacks {', '.join(sorted(less))}"
        raise InputError(
            f"the sample {told}", where=sample.where, allowed=f"the fields of the first: {', '.join(kinds)}"
        )
    for name in names:
        value = part_of(sample, name)
        kind = kind_of(value, f"{sample.where}, {name}")
        if name == label and kind.what == "real" and not options.label:
            label = ""  # a target, not a class
        if name == label:
            if kind.what not in ("text", "whole"):
                raise InputError(
                    f"the label is {kind}", where=f"{sample.where}, {name}", allowed="text or a whole number"
                )
            classes.add(class_of(value))
            kind = Kind("whole")
        kinds[name] = merged(kinds.get(name), kind, f"{sample.where}, {name}")
    if known and (strange := classes - known.classes):
        raise InputError(
            f"the class {min(strange)!r} is none of the training samples",
            where=sample.where,
            allowed=", ".join(in_order(known.classes)[:20]),
        )
    facts.kinds, facts.label = kinds, label
    facts.classes |= classes


def _check_pictures(facts: _Facts, sample: Sample, options: SampleOptions, source: str) -> None:
    """InputError: a picture cannot be decoded, or has another size than the first."""
    for name, kind in facts.kinds.items():
        if kind.what == "picture":
            need_pillow(source)
            look = make_look(options.channels, options.size, options.fit, options.range, options.background)
            where = f"{sample.where}, {name}"
            shape = read_picture(io.BytesIO(part_of(sample, name).content), where, look).shape
            _same_size(shape, facts.shapes.setdefault(name, shape), where)


def _same_size(shape: tuple[int, ...], first: tuple[int, ...], where: str) -> None:
    if shape != first:
        (_, height, width), (_, first_height, first_width) = shape, first
        raise InputError(
            f"the picture has {height} x {width} pixels, the first one {first_height} x {first_width}",
            where=where,
            fix=f"resize all of them: size={first_height}x{first_width}",
        )


def _in_short(sample: Sample) -> dict[str, Any]:
    """A sample's fields, for a person."""
    return {
        name: value if isinstance(value, str | int | float) else f"{type(value).__name__}"
        for name, value in sample.fields.items()
    }


def _columns(facts: _Facts, options: SampleOptions) -> dict[str, str]:
    """Field -> the name of its column. InputError: two fields have one."""
    names = dict(zip(options.fields, options.names))
    pictures = [name for name, kind in facts.kinds.items() if kind.what == "picture"]
    for name in facts.kinds:
        own = re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("_-") or "field"
        names.setdefault(name, "label" if name == facts.label else "image" if pictures == [name] else own)
    for name, column in names.items():
        if twins := [other for other in names if other != name and names[other] == column]:
            raise InputError(
                f"the fields {name} and {twins[0]} would both be the column '{column}'",
                fix="fields= and names= name them",
            )
    return names


def _column(kind: Kind, label: bool) -> Column:
    if label or kind.what == "whole":
        return Column("int64")
    if kind.what == "real":
        return Column(kind.dtype or "float32")
    return Column(VARIABLE) if kind.what in ("text", "bytes") else Column(kind.dtype or "uint8", kind.shape)


def _size(value: Any) -> int:
    """Bytes of a value that may be of any size."""
    value = value.content if isinstance(value, Picture) else value
    return len(value) if isinstance(value, bytes | str) else 0


@dataclass
class _Stack:
    """Samples of a known form, as rows."""

    facts: _Facts
    names: dict[str, str]
    """Field -> column."""
    numbers: dict[str, int]
    """Class -> its number."""
    look: Look

    def rows(self, read: Read, options: SampleOptions) -> Iterator[Rows]:
        """The rows of all samples. Reading goes forward in this process; pictures are decoded by all workers."""
        pictures = any(kind.what == "picture" for kind in self.facts.kinds.values())
        decoding = workers.current() if pictures else workers.Here()
        return decoding.each(self._made, self._together(read(_asked(options))))

    def _together(self, samples: Iterable[Sample]) -> Iterator[list[Sample]]:
        """Some samples at a time, whose rows are a few megabytes."""
        row_bytes = sum(math.prod(kind.shape) for kind in self.facts.kinds.values()) or 1
        at_once = max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
        some: list[Sample] = []
        waiting_bytes = 0  # of the values that no shape bounds
        for sample in samples:
            some.append(sample)
            waiting_bytes += sum(map(_size, sample.fields.values()))
            if len(some) == at_once or waiting_bytes >= CHUNK_BYTES:
                yield some
                some, waiting_bytes = [], 0
        if some:
            yield some

    def _made(self, samples: list[Sample]) -> Iterator[Rows]:
        yield self._stacked([{name: self._value(sample, name) for name in self.facts.kinds} for sample in samples])

    def of(self, read: Read, columns: Sequence[str]) -> Iterator[Rows]:
        """The rows of some columns alone, without the others' being decoded."""
        fields = [name for name, column in self.names.items() if column in columns]
        samples = read(fields)
        while some := list(islice(samples, CHUNK_ROWS)):
            yield {self.names[name]: np.array([self._value(sample, name) for sample in some]) for name in fields}

    def _stacked(self, pending: list[dict[str, Any]]) -> Rows:
        rows: Rows = {}
        for name, kind in self.facts.kinds.items():
            values = [row[name] for row in pending]
            column = _column(kind, name == self.facts.label)
            rows[self.names[name]] = values if column.dtype == VARIABLE else np.array(values, column.dtype)
        return rows

    def _value(self, sample: Sample, name: str) -> Any:
        value, kind = part_of(sample, name), self.facts.kinds[name]
        if name == self.facts.label:
            return self.numbers[class_of(value)]
        if isinstance(value, Picture):
            pixels = read_picture(io.BytesIO(value.content), f"{sample.where}, {name}", self.look)
            _same_size(pixels.shape, kind.shape, f"{sample.where}, {name}")
            return pixels
        if kind.what == "text":
            return value.encode("utf-8", "surrogatepass")
        if isinstance(value, list | float | np.generic | np.ndarray):
            return array_of(value, f"{sample.where}, {name}")
        return value
