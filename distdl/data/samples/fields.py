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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from distdl.data.classes import in_order
from distdl.data.manifest import ITEM_BYTES, VARIABLE, Column
from distdl.data.pictures import Look, make_look, need_pillow, picture_record, read_picture
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError, did_you_mean

CHUNK_BYTES = 8 << 20
CHUNK_ROWS = 1024
MAX_CLASSES = 10_000
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


@dataclass(frozen=True)
class Picture:
    """A field that is a picture, as the bytes of a file."""

    content: bytes


@dataclass(frozen=True)
class Sample:
    """One sample as it is stored: field -> Picture, array, number, text, bytes, or a mapping of such."""

    where: str
    """File and key, for a person."""
    fields: Mapping[str, Any]


@dataclass
class Kind:
    """What a field holds in all samples seen so far."""

    what: str
    """picture, array, whole, real, text or bytes."""
    dtype: str = ""
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = {
            "picture": "a picture",
            "whole": "a whole number",
            "real": "a number",
            "text": "text",
            "bytes": "bytes",
        }
        return words.get(self.what) or f"{self.dtype} of the shape {list(self.shape)}"


@dataclass
class _Facts:
    kinds: dict[str, Kind] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    label: str = ""
    samples: int = 0


Read = Callable[[Sequence[str]], Iterator[Sample]]
"""Samples with (at least) the fields of these names, or all fields where there are none."""


def prepare_samples(
    source: str, options: SampleOptions, train: Read, test: Read | None, info: dict[str, Any], notes: list[str]
) -> Prepared:
    """Columns as the fields are. Both readers are gone through twice; what they have to tell is in `notes` after the first
    time."""
    if options.names and len(options.names) != len(options.fields):
        raise InputError(
            f"names= has {len(options.names)} names for {len(options.fields)} fields",
            fix="name each field of fields= once",
        )
    facts = _scan(train, options, None)
    if test:
        _scan(test, options, facts)
    columns = _columns(facts, options)
    pictures = [name for name, kind in facts.kinds.items() if kind.what == "picture"]
    look = Look()
    preparation: dict[str, Any] = {}
    if pictures:
        need_pillow(source)
        look = make_look(options.channels, options.size, options.fit, options.range, options.background)
        first = next(train(_asked(options)))
        for name in pictures:
            size = read_picture(io.BytesIO(_part(first, name).content), f"{first.where}, {name}", look).shape
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
    made = {columns[name]: _column(kind, name == facts.label) for name, kind in facts.kinds.items()}
    made = {name: column for name, column in made.items() if name not in splitter.apart}

    def chunks() -> Iterator[tuple[str, Rows]]:
        for split, rows in splitter.share(stack.rows(train, options)):
            yield split, {name: rows[name] for name in made}
        for rows in stack.rows(test, options) if test else ():
            yield "test", {name: rows[name] for name in made}

    return Prepared(
        made, chunks(), {**info, **({"notes": notes} if notes else {}), "split": splitter.record()}, preparation
    )


def _asked(options: SampleOptions) -> tuple[str, ...]:
    return (*options.fields, *([options.label] if options.label and options.label not in options.fields else []))


def _scan(read: Read, options: SampleOptions, known: _Facts | None) -> _Facts:
    """What all samples hold. `known`: of the training samples, which those of the test split must be like."""
    facts = _Facts() if known is None else _Facts(dict(known.kinds), set(), known.label)
    asked = _asked(options)
    for sample in read(asked):
        names = asked or tuple(sample.fields)
        if not facts.kinds:
            facts.label = options.label or next((name for name in LABELS if name in names), "")
        if facts.kinds and set(names) != set(facts.kinds):
            more, less = set(names) - set(facts.kinds), set(facts.kinds) - set(names)
            told = f"has also {', '.join(sorted(more))}" if more else f"lacks {', '.join(sorted(less))}"
            raise InputError(
                f"the sample {told}", where=sample.where, allowed=f"the fields of the first: {', '.join(facts.kinds)}"
            )
        for name in names:
            value = _part(sample, name)
            kind = kind_of(value, f"{sample.where}, {name}")
            if name == facts.label and kind.what == "real" and not options.label:
                facts.label = ""  # a target, not a class
            if name == facts.label:
                if kind.what not in ("text", "whole"):
                    raise InputError(
                        f"the label is {kind}", where=f"{sample.where}, {name}", allowed="text or a whole number"
                    )
                facts.classes.add(_class(value))
                kind = Kind("whole")
            facts.kinds[name] = _merged(facts.kinds.get(name), kind, f"{sample.where}, {name}")
        if len(facts.classes) > MAX_CLASSES:
            raise InputError(
                f"the field {facts.label} has more than {MAX_CLASSES:,} different values", fix="label=, or fields="
            )
        facts.samples += 1
        if known and (strange := facts.classes - known.classes):
            raise InputError(
                f"the class {min(strange)!r} is none of the training samples",
                where=sample.where,
                allowed=", ".join(in_order(known.classes)[:20]),
            )
    if not facts.samples:
        raise InputError("there are no samples", fix="check the path")
    if known is not None:
        known.kinds.update(facts.kinds)
    return facts


def _class(value: Any) -> str:
    return value.strip() if isinstance(value, str) else str(int(value))


def _part(sample: Sample, name: str) -> Any:
    """A field, or what lies at the end of a path into one."""
    if name in sample.fields:
        return sample.fields[name]
    for holder in sorted((f for f in sample.fields if name.startswith(f"{f}.")), key=len, reverse=True):
        value = sample.fields[holder]
        for key in name[len(holder) + 1 :].split("."):
            if not isinstance(value, Mapping) or key not in value:
                known = ", ".join(value) if isinstance(value, Mapping) else ""
                raise InputError(f"the field {holder} has no part '{key}'", where=sample.where, allowed=known)
            value = value[key]
        return value
    raise InputError(f"the sample has no field '{name}'", where=sample.where, fix=did_you_mean(name, sample.fields))


def kind_of(value: Any, where: str) -> Kind:
    """What a value is. InputError: nothing that a column can hold."""
    if isinstance(value, Picture):
        return Kind("picture")
    if isinstance(value, bytes):
        return Kind("bytes")
    if isinstance(value, str):
        return Kind("text")
    if isinstance(value, bool | int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{value} is not a number of 64 bits", where=where)
    if isinstance(value, bool | int):
        return Kind("whole")
    if isinstance(value, Mapping):
        raise InputError(
            "the field holds several parts",
            where=where,
            fix=f"name them by their path in fields=; there are {', '.join(value)}",
        )
    if isinstance(value, list | float | np.generic | np.ndarray):
        array = _array(value, where)
        if not array.ndim:
            return Kind("whole" if array.dtype.kind in "iu" and array.dtype != np.uint64 else "real", str(array.dtype))
        return Kind("array", str(array.dtype), array.shape)
    raise InputError(f"the field holds {value!r:.60}", where=where, allowed="numbers, text, pictures, bytes")


def _array(value: Any, where: str) -> np.ndarray:
    """Numbers as finite ones of a type that a data set may hold."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.array(None)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.newbyteorder("=").name not in ITEM_BYTES:
        raise InputError(f"the field holds {array.dtype} values", where=where, allowed="numbers, lists of one length")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if type(value) in (float, list) and array.dtype == np.float64:  # of text, as JSON: no type was asked for
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if not array.size:
        raise InputError("the field holds an array without values", where=where)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        odd = array[~np.isfinite(array)].flat[0]
        raise InputError(
            f"the field holds the value {odd}, which is not finite", where=where, fix="correct or remove it"
        )
    return array


def _merged(known: Kind | None, kind: Kind, where: str) -> Kind:
    """What both are; whole numbers among real ones are real."""
    if known is None or known == kind:
        return kind
    if (
        known.what == kind.what == "array"
        and known.shape == kind.shape
        and {known.dtype, kind.dtype} <= {"int64", "float32"}
    ):
        return Kind("array", "float32", kind.shape)
    if {known.what, kind.what} <= {"whole", "real"}:
        return known if known.what == "real" else kind if kind.what == "real" else Kind("whole")
    fix = "bring all of them to one shape" if known.what == kind.what else "leave the field out by fields="
    raise InputError(f"the field is {kind}, before it was {known}", where=where, fix=fix)


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
        row_bytes = sum(math.prod(kind.shape) for kind in self.facts.kinds.values()) or 1
        at_once = max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
        pending: list[dict[str, Any]] = []
        waiting_bytes = 0  # of the values that no shape bounds
        for sample in read(_asked(options)):
            pending.append({name: self._value(sample, name) for name in self.facts.kinds})
            waiting_bytes += sum(len(value) for value in pending[-1].values() if isinstance(value, bytes))
            if len(pending) == at_once or waiting_bytes >= CHUNK_BYTES:
                yield self._stacked(pending)
                pending, waiting_bytes = [], 0
        if pending:
            yield self._stacked(pending)

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
        value, kind = _part(sample, name), self.facts.kinds[name]
        if name == self.facts.label:
            return self.numbers[_class(value)]
        if isinstance(value, Picture):
            pixels = read_picture(io.BytesIO(value.content), f"{sample.where}, {name}", self.look)
            if pixels.shape != kind.shape:
                (_, height, width), (_, first_height, first_width) = pixels.shape, kind.shape
                raise InputError(
                    f"the picture has {height} x {width} pixels, the first one {first_height} x {first_width}",
                    where=f"{sample.where}, {name}",
                    fix=f"resize all of them: size={first_height}x{first_width}",
                )
            return pixels
        if kind.what == "text":
            return value.encode("utf-8", "surrogatepass")
        if isinstance(value, list | float | np.generic | np.ndarray):
            return _array(value, f"{sample.where}, {name}")
        return value
