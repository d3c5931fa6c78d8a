"""One value of a sample: what it is, where it lies, and what it has in common with those of the samples before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distdl.data.manifest import ITEM_BYTES
from distdl.errors import InputError, did_you_mean


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


def class_of(value: Any) -> str:
    return value.strip() if isinstance(value, str) else str(int(value))


def part_of(sample: Sample, name: str) -> Any:
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
        array = array_of(value, where)
        if not array.ndim:
            return Kind("whole" if array.dtype.kind in "iu" and array.dtype != np.uint64 else "real", str(array.dtype))
        return Kind("array", str(array.dtype), array.shape)
    raise InputError(f"the field holds {value!r:.60}", where=where, allowed="numbers, text, pictures, bytes")


def array_of(value: Any, where: str) -> np.ndarray:
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


def merged(known: Kind | None, kind: Kind, where: str) -> Kind:
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
