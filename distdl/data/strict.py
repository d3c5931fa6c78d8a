"""Strict reading of decoded JSON: every failure names the file and the key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from distdl.errors import InputError, did_you_mean


def checksum(record: Any) -> str:
    """sha256 (hex) of plain values."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class StrictReader:
    """Checks what was read, value by value; InputError where it is not what was expected."""

    where: str
    """The file, for messages."""

    def need(self, condition: bool, what: str) -> None:
        if not condition:
            raise InputError(what, where=self.where, fix="prepare the data set again")

    def typed(self, value: Any, kind: type, key: str) -> Any:
        self.need(type(value) is kind, f"{key} is {value!r:.80}, not a {kind.__name__}")
        return value

    def count(self, value: Any, key: str) -> int:
        self.need(type(value) is int and 0 <= value < 1 << 62, f"{key} is {value!r:.80}, not a count")
        return int(value)

    def keys(self, record: Any, what: str, known: Set[str], optional: Set[str] = frozenset()) -> None:
        self.typed(record, dict, what)
        for key in sorted(record.keys() - known - optional):
            self.need(False, f"{what} has the unknown key '{key}', {did_you_mean(key, known)}")
        for key in sorted(known - record.keys()):
            self.need(False, f"{what} lacks the key '{key}'")

    def number(self, value: Any, key: str) -> float | None:
        self.need(value is None or type(value) in (int, float), f"{key} is {value!r:.80}, not a number")
        return value

    def pair(self, value: Any, key: str) -> tuple[int, int]:
        self.need(isinstance(value, list) and len(value) == 2, f"{key} is {value!r:.80}, not a number and a row")
        return self.count(value[0], key), self.count(value[1], key)

    def sealed(self, raw: Any, what: str) -> dict[str, Any]:
        """The `splits` of a record with a checksum of them."""
        self.keys(raw, what, {"checksum", "splits"})
        splits = self.typed(raw["splits"], dict, f"the splits of {what}")
        self.need(
            raw["checksum"] == checksum(splits), f"the checksum of {what} does not match: they were edited by hand"
        )
        return dict(splits)
