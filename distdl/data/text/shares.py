"""Who shares texts and conversations out over train, test and validation: the rules of every source (splits.py), on items.

An item is a document, a part of one, or a conversation. Its `beside` is the value of the one field of JSON lines that the
options name (`split_group`, `split_time`, `split_column`); plain text has no fields, and such an option is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from distdl.data.raw import Rows
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError

BATCH = 64
"""Items that are looked at together."""


class Item(Protocol):
    @property
    def beside(self) -> Any: ...


OneItem = TypeVar("OneItem", bound=Item)


def field_of(options: SplitOptions) -> str:
    """The field of JSON lines that says where a text belongs; '': none does."""
    return options.split_group or options.split_time or options.split_column


def value_beside(record: dict[str, Any], key: str, where: str) -> Any:
    """The value of the field `key` of a line ('': none is asked for). InputError: the line lacks it."""
    if key and record.get(key) is None:
        what = f"the field '{key}', which says where a text belongs, is missing"
        raise InputError(what, where=where, allowed="fields: " + ", ".join(record))
    return record[key] if key else None


class Shares(Generic[OneItem]):
    """The items of a source with their splits, as often as they are wanted.

    `read` gives all of them from the first on. `fields`: they come from JSON lines. `tested`: the test split comes from
    somewhere else. InputError: options that such items cannot be shared out by.
    """

    def __init__(
        self, options: SplitOptions, read: Callable[[], Iterator[OneItem]], where: str, fields: bool, tested: bool
    ):
        names = [name for name in (field_of(options),) if name and fields]
        self._read, self._splitter = read, Splitter(options, names=names, where=where, tested=tested)

    def __call__(self) -> Iterator[tuple[str, OneItem]]:
        """Every item with its split, in the order in which they are read."""
        self._look()
        for split, rows in self._splitter.share(self._chunks()):
            yield from ((split, item) for item in rows["item"])

    def record(self) -> dict[str, Any]:
        """What was done, for info["split"]."""
        self._look()
        return self._splitter.record()

    def _look(self) -> None:
        if self._splitter.looks:
            self._splitter.look(self._chunks())

    def _chunks(self) -> Iterator[Rows]:
        items = self._read()
        while some := list(islice(items, BATCH)):
            yield {"item": some, **{name: [item.beside for item in some] for name in self._splitter.columns}}
