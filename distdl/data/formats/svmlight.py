"""Files of SVMlight and LIBSVM (.gz too): a line for each sample, its label and `feature:value` of what is not 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np

from distdl.data.classes import in_order
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, open_raw, read_blocks
from distdl.data.splits import SplitOptions, check_fraction, hold_out
from distdl.data.values import numbered
from distdl.errors import InputError

ENDINGS = (".svmlight", ".libsvm", ".svm")
MOST_FEATURES = 1 << 16
"""A row of more, made dense, would be 256 KiB of almost nothing but zeros."""
MOST_CLASSES = 10_000
CHUNK_ROWS, CHUNK_BYTES = 4096, 8 << 20
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Options(SplitOptions):
    """Options of the source `svmlight`."""

    path: str
    """The file."""
    target: bool = False
    """Whether the first value of a line is a number to predict; without it, a class by its whole number."""
    features: int = 0
    """Features of a row; 0: as many as the largest number of a feature in any of the files says."""
    zero_based: bool | None = None
    """Whether the first feature has the number 0; without it: where any of the files has a feature 0."""
    test_path: str = ""
    """A file of the same kind that becomes the split `test`; then nothing is held out of `path`."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (F,), dense; `label` int64 or `y` float32; `qid` int64, the query of a row, where the lines have one. The
    files are read twice: for what there is, then for the rows."""
    check_fraction(options.test_fraction)
    files = [_File(path) for path in (options.path, options.test_path) if path]
    if len({file.queries for file in files}) > 1:
        raise InputError(f"only one of {options.path} and {options.test_path} has qid: in its lines")
    found = _Found.of(files, options)
    zero_based = found.low == 0 if options.zero_based is None else options.zero_based
    if options.zero_based is None:
        first = "0, which one of them has" if zero_based else "1, as none of them is 0"
        print(
            f"{options.path}: features are counted from {first} (zero_based={str(zero_based).lower()})", file=sys.stderr
        )
    width = _width(options, found, zero_based)
    classes = [] if options.target else in_order(f"{value:.0f}" for value in found.labels)
    columns = {"x": Column("float32", (width,))} | ({"y": Column("float32")} if options.target else {})
    columns |= ({} if options.target else {"label": Column("int64")}) | (
        {"qid": Column("int64")} if files[0].queries else {}
    )

    def chunks() -> Iterator[tuple[str, Rows]]:
        train, *test = (numbered(_rows(file, width, zero_based, classes)) for file in files)
        yield from hold_out(train, 0 if test else options.test_fraction)
        for rows in test[0] if test else ():
            yield "test", rows

    def place(split: str, column: str, row: int) -> str:
        return files[-1 if split == "test" else 0].place(row)

    record = {"label": {"kind": "class", "version": 1, "classes": classes}} if classes else {}
    info: dict[str, Any] = {"zero_based": zero_based} | ({"classes": classes} if classes else {})
    return Prepared(columns, chunks(), info, record, place)


def _width(options: Options, found: _Found, zero_based: bool) -> int:
    if not zero_based and found.low == 0:
        raise InputError(f"{found.low_path} has a feature 0", fix="zero_based=true, or leave it out")
    needed = max(1, found.high + zero_based)
    if options.features and options.features < needed:
        what = f"features is {options.features:,}, and {found.high_path} has a feature {found.high:,}"
        raise InputError(what, allowed=f"{needed:,} or more")
    if (width := options.features or needed) > MOST_FEATURES:
        raise InputError(
            f"{found.high_path} has {width:,} features, and a row would hold all of them, nearly all 0",
            allowed=f"up to {MOST_FEATURES:,}",
            fix="make fewer of them first, for example by sklearn's TruncatedSVD, SelectKBest or by hashing",
        )
    return width


class _File:
    """A file that can be parsed again and again, about a megabyte at a time, by scikit-learn."""

    def __init__(self, path: str) -> None:
        self.path = path
        open_raw(path).close()
        first = next((line for _, line in self._lines() if _content(line)), b"")
        self.queries = b" qid:" in first.replace(b"\t", b" ")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        rest, number = b"", 0
        for block in read_blocks(self.path):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                number += 1
                yield number, line
        if rest:
            yield number + 1, rest

    def place(self, row: int) -> str:
        """`file:line`"""
        numbers = (number for number, line in self._lines() if _content(line))
        return f"{self.path}:{next((number for i, number in enumerate(numbers) if i == row), row)}"

    def parsed(self, width: int | None = None) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """(features, labels, queries) of a block of lines: a sparse matrix, float64, int64. InputError: a line is none."""
        pending: list[tuple[int, bytes]] = []
        size = 0
        for number, line in self._lines():
            pending.append((number, line))
            size += len(line) + 1
            if size >= BLOCK_BYTES:
                yield self._parse(pending, width)
                pending, size = [], 0
        yield self._parse(pending, width)

    def _parse(self, lines: list[tuple[int, bytes]], width: int | None) -> tuple[Any, np.ndarray, np.ndarray]:
        try:
            return self._of(b"\n".join(line for _, line in lines), width)
        except (ValueError, OverflowError):
            for number, line in lines:
                try:
                    self._of(line, width)
                except (ValueError, OverflowError) as error:
                    raise InputError(
                        f"{line.decode('utf-8', 'replace')!r:.80} cannot be read: {error}",
                        where=f"{self.path}:{number}",
                        allowed="LABEL [qid:QUERY] FEATURE:VALUE ..., with the features in rising order",
                    ) from error
            raise

    def _of(self, text: bytes, width: int | None) -> tuple[Any, np.ndarray, np.ndarray]:
        from sklearn.datasets import load_svmlight_file

        content = BytesIO(text)
        x, labels, queries = load_svmlight_file(content, n_features=width, zero_based=True, query_id=True)
        if len(queries) != self.queries * len(labels):  # it gives only those of the lines that have one
            raise ValueError("some lines have qid:, and some have none")
        return x, labels, queries


def _content(line: bytes) -> bytes:
    return line.partition(b"#")[0].strip()


@dataclass
class _Found:
    """What the files hold."""

    low: int = sys.maxsize
    high: int = -1
    low_path: str = ""
    high_path: str = ""
    labels: set[float] = field(default_factory=set)
    """Of the training file."""

    @staticmethod
    def of(files: list[_File], options: Options) -> _Found:
        found = _Found()
        for file in files:
            row = 0
            for x, labels, _ in file.parsed():
                if x.nnz and x.indices.min() < found.low:
                    found.low, found.low_path = int(x.indices.min()), file.path
                if x.nnz and x.indices.max() > found.high:
                    found.high, found.high_path = int(x.indices.max()), file.path
                if not options.target:
                    odd = np.flatnonzero(~(labels == np.floor(labels)))
                    if odd.size:
                        what = f"the label is {labels[odd[0]]:g}, which is no whole number"
                        raise InputError(
                            what, where=file.place(row + int(odd[0])), fix="target=true for numbers to predict"
                        )
                    if file is files[0]:
                        found.labels.update(np.unique(labels).tolist())
                row += len(labels)
            if not row:
                raise InputError(f"{file.path} holds no rows")
        if len(found.labels) > MOST_CLASSES:
            what = f"{options.path} has more than {MOST_CLASSES:,} different labels"
            raise InputError(what, fix="predict them as numbers: target=true")
        return found


def _rows(file: _File, width: int, zero_based: bool, classes: list[str]) -> Iterator[Rows]:
    numbers = np.array([float(name) for name in classes])  # rising, as classes stand
    row, rows = 0, max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * width)))
    for x, labels, queries in file.parsed(width + (not zero_based)):
        if classes:
            places = np.searchsorted(numbers, labels).clip(max=len(numbers) - 1)
            odd = np.flatnonzero(numbers[places] != labels)
            if odd.size:
                raise InputError(
                    f"the label is {labels[odd[0]]:g}, which is none of the {len(classes)} classes of the training file",
                    where=file.place(row + int(odd[0])),
                    allowed=", ".join(classes[:20]),
                )
        row += len(labels)
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            found: Rows = {"x": x[part].toarray()[:, 0 if zero_based else 1 :]}
            found |= {"label": places[part]} if classes else {"y": labels[part]}
            yield found | ({"qid": queries[part]} if file.queries else {})
