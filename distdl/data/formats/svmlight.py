"""Files of SVMlight and LIBSVM (.gz too): a line for each sample, its label and `feature:value` of what is not 0."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distdl.data.advice import LOOKED_AT, SURE, Advice, Wish, answer_of, first_lines
from distdl.data.bad_rows import BadRows
from distdl.data.classes import in_order
from distdl.data.formats._scaled import Scales, on_scale, scales_of
from distdl.data.inputs import check_not_the_same
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows, open_raw, read_blocks
from distdl.data.splits import SplitOptions, Splitter
from distdl.data.values import numbered
from distdl.errors import InputError

ENDINGS = (".svmlight", ".libsvm", ".svm")
MOST_FEATURES = 1 << 16
"""A row of more, made dense, would be 256 KiB of almost nothing but zeros."""
MOST_CLASSES = 10_000
CHUNK_ROWS, CHUNK_BYTES = 4096, 8 << 20
BLOCK_BYTES = 1 << 20
FIRST_WORD = re.compile(rb"^[^\S\n]*(\S+)", re.MULTILINE)
"""Of each line that has any."""
MOST_DIGITS = 18
"""Of the number of a feature."""


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
    scale: Literal["standard", "none"] = "none"
    """standard: every feature, and with `target` the target, to mean 0 and deviation 1 of the training rows."""


def prepare(options: Options) -> Prepared:
    """`x` float32 (F,), dense; `label` int64 or `y` float32; `qid` int64, the query of a row, where the lines have one. The
    files are read twice: for what there is, then for the rows."""
    check_not_the_same(options.path, options.test_path)
    files = [_File(path) for path in (options.path, options.test_path) if path]
    if len({file.queries for file in files}) > 1:
        raise InputError(f"only one of {options.path} and {options.test_path} has qid: in its lines")
    bad = BadRows(options)
    if bad.wanted:
        bad.check(sum(file.set_aside(bad, options.target) for file in files))
    found = _Found.of(files, options)
    if bad.wanted and len(files) > 1 and not options.target:
        good = bad.good - files[1].without_classes(found.labels, bad)
        bad.check(good)
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

    scales: Scales = {}

    def rows_of(file: Any) -> Iterator[Rows]:
        return numbered(on_scale(_rows(file, width, zero_based, classes), scales))

    tested, place_of = len(files) > 1, files[0].place
    splitter = Splitter(options, names=tuple(columns), label="label", where=options.path, place=place_of, tested=tested)
    if options.scale == "standard":
        scales.update(scales_of(splitter.parts(lambda: rows_of(files[0]))))
    chunks = splitter.parts(lambda: rows_of(files[0]), (lambda: rows_of(files[1])) if tested else None)

    def place(split: str, column: str, row: int) -> str:
        return files[-1 if split == "test" else 0].place(row)

    record: dict[str, Any] = {"label": {"kind": "class", "version": 1, "classes": classes}} if classes else {}
    for name, (shift, divide) in scales.items():
        scale = {"method": "standard", "shift": shift.tolist(), "divide": divide.tolist()}
        kind = {"kind": "scaled"} if name == "x" else {"kind": "number", "name": "target", "center": float(shift)}
        record[name] = {**kind, "version": 1, "scale": scale}
    columns = {name: column for name, column in columns.items() if name not in splitter.apart}
    info: dict[str, Any] = {"zero_based": zero_based, "split": splitter.record()} | (
        {"classes": classes} if classes else {}
    )
    return Prepared(columns, chunks, info, record, place, bad=bad)


def _width(options: Options, found: _Found, zero_based: bool) -> int:
    if not zero_based and found.low == 0:
        raise InputError(f"{found.low_path} has a feature 0", fix="zero_based=true, or leave it out")
    needed = max(1, found.high + zero_based)
    if options.features and options.features < needed:
        what = f"features is {options.features:,}, and a line has a feature {found.high:,}"
        raise InputError(what, where=_File(found.high_path).place_of(found.high), allowed=f"{needed:,} or more")
    if (width := options.features or needed) > MOST_FEATURES:
        raise InputError(
            f"a feature has the number {found.high:,}: a row would hold {width:,} values, nearly all 0",
            where=_File(found.high_path).place_of(found.high),
            allowed=f"up to {MOST_FEATURES:,}",
            fix="make fewer of them first, for example by sklearn's TruncatedSVD, SelectKBest or by hashing",
        )
    return width


class _File:
    """A file that can be read again and again, about a megabyte of whole lines at a time."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.left_out: set[int] = set()
        """Lines that are read as if they were empty."""
        open_raw(path).close()
        first = next((line for block in self._blocks() for line in block.split(b"\n") if _content(line)), b"")
        self.queries = b" qid:" in first.replace(b"\t", b" ")

    def _blocks(self) -> Iterator[bytes]:
        number = 1
        for block in self._whole_blocks():
            lines = block.split(b"\n")
            last = number + len(lines) - 1
            if self.left_out and not self.left_out.isdisjoint(range(number, last + 1)):
                block = b"\n".join(b"" if n in self.left_out else line for n, line in enumerate(lines, number))
            number = last
            yield block

    def _whole_blocks(self) -> Iterator[bytes]:
        rest = b""
        for block in read_blocks(self.path):
            rest += block
            at = 0
            while (end := rest.find(b"\n", at + BLOCK_BYTES)) >= 0:
                yield rest[at : end + 1]
                at = end + 1
            rest = rest[at:]
        if rest:
            yield rest

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, content) of the lines that are rows."""
        number = 0
        for block in self._blocks():
            for line in block.removesuffix(b"\n").split(b"\n"):
                number += 1
                if content := _content(line):
                    yield number, content

    def set_aside(self, bad: BadRows, target: bool) -> int:
        """Leaves out the lines that cannot be read; how many others there are."""
        number, good = 1, 0
        for block in self._whole_blocks():
            lines = block.split(b"\n")
            some = [(n, content) for n, line in enumerate(lines, number) if (content := _content(line))]
            odd = list(self._odd(some, target))
            for n, content, why in odd:
                bad.add(f"{self.path}:{n}", why, reason="damaged line", content=content)
                self.left_out.add(n)
            number, good = number + len(lines) - 1, good + len(some) - len(odd)
        return good

    def without_classes(self, classes: set[float], bad: BadRows) -> int:
        """Leaves out the lines of other classes; how many these are."""
        before = len(self.left_out)
        for n, content in list(self.numbered()):
            if float(content.split(None, 1)[0]) not in classes:
                what = "the label is none of the classes of the training file"
                bad.add(f"{self.path}:{n}", what, reason="no class", content=content)
                self.left_out.add(n)
        return len(self.left_out) - before

    def _odd(self, lines: list[tuple[int, bytes]], target: bool) -> Iterator[tuple[int, bytes, str]]:
        """The lines that cannot be read, and why, found by halves."""
        try:
            if lines:
                self._check(b"\n".join(content for _, content in lines), target)
        except (ValueError, OverflowError) as error:
            if len(lines) == 1:
                ((number, content),) = lines
                yield number, content, f"the line cannot be read: {error}"
                return
            yield from self._odd(lines[: len(lines) // 2], target)
            yield from self._odd(lines[len(lines) // 2 :], target)

    def _check(self, text: bytes, target: bool) -> None:
        """ValueError: lines that are no rows."""
        numbers = _features(text)
        if numbers.size and numbers.max() >= MOST_FEATURES:
            raise ValueError(f"a feature has the number {numbers.max():,}")
        x, labels, _ = self._parse(text, MOST_FEATURES + 1, True)
        values = np.concatenate([x.data, labels])
        if not (np.abs(values) <= np.finfo(np.float32).max).all():
            raise ValueError("a value is not a finite number of 32 bits")
        if not target and (labels != np.trunc(labels)).any():
            raise ValueError("the label is no whole number")

    def place(self, row: int) -> str:
        """`file:line`"""
        return f"{self.path}:{next((n for i, (n, _) in enumerate(self.numbered()) if i == row), row)}"

    def place_of(self, feature: int) -> str:
        """The first line that has a feature."""
        lines = (number for number, line in self.numbered() if (_features(line) == feature).any())
        return f"{self.path}:{next(lines, 0)}"

    def scanned(self) -> Iterator[tuple[np.ndarray, set[bytes]]]:
        """(numbers of features, different labels as text) of a block. What a line means is seen when it is parsed."""
        for block in self._blocks():
            if b"#" in block:
                block = b"\n".join(map(_content, block.split(b"\n")))
            yield _features(block), set(FIRST_WORD.findall(block))

    def parsed(self, width: int, zero_based: bool) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """(features, labels, queries) of a block: a sparse matrix, float64, int64. InputError names a line that is none."""
        for block in self._blocks():
            try:
                found = self._parse(block, width, zero_based)
            except (ValueError, OverflowError):
                for number, line in self.numbered():
                    try:
                        self._parse(line, width, zero_based)
                    except (ValueError, OverflowError) as error:
                        raise InputError(
                            f"{line.decode('utf-8', 'replace')!r:.80} cannot be read: {error}",
                            where=f"{self.path}:{number}",
                            allowed="LABEL [qid:QUERY] FEATURE:VALUE ..., with the features in rising order",
                        ) from error
                raise
            yield found

    def _parse(self, text: bytes, width: int, zero_based: bool) -> tuple[Any, np.ndarray, np.ndarray]:
        from sklearn.datasets import load_svmlight_file

        x, labels, queries = load_svmlight_file(BytesIO(text), n_features=width, zero_based=zero_based, query_id=True)
        if len(queries) != self.queries * len(labels):  # it gives only those of the lines that have one
            raise ValueError("some lines have qid:, and some have none")
        return x, labels, queries


def _features(text: bytes) -> np.ndarray:
    """The whole numbers that stand before a colon: (n,) int64."""
    letters = np.frombuffer(text, np.uint8)
    colons = np.flatnonzero(letters == ord(":"))
    numbers, power, going = np.zeros(len(colons), np.int64), 1, np.ones(len(colons), bool)
    for back in range(1, MOST_DIGITS + 1):
        letter = letters[np.maximum(colons - back, 0)]
        going &= (colons >= back) & (letter >= ord("0")) & (letter <= ord("9"))
        if not going.any():
            break
        if back == 1:
            colons, letter, numbers, going = colons[going], letter[going], numbers[going], going[going]
        numbers += np.where(going, letter.astype(np.int64) - ord("0"), 0) * power
        power *= 10
    return numbers if power > 1 else numbers[:0]


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
            rows = False
            for features, labels in file.scanned():
                rows = rows or bool(labels)
                if features.size and features.min() < found.low:
                    found.low, found.low_path = int(features.min()), file.path
                if features.size and features.max() > found.high:
                    found.high, found.high_path = int(features.max()), file.path
                if not options.target:
                    numbers = _whole(file, labels)
                    found.labels |= numbers if file is files[0] else set()
            if not rows:
                raise InputError(f"{file.path} holds no rows")
        if len(found.labels) > MOST_CLASSES:
            what = f"{options.path} has more than {MOST_CLASSES:,} different labels"
            raise InputError(what, fix="predict them as numbers: target=true")
        return found


def _whole(file: _File, labels: set[bytes]) -> set[float]:
    """The numbers of labels. InputError: one is no whole number."""
    numbers = set()
    for label in labels:
        try:
            number = float(label)
            whole = number == int(number)
        except (ValueError, OverflowError):
            whole = False
        if not whole:
            line = next((n for n, content in file.numbered() if content.split(None, 1)[0] == label), 0)
            what = f"the label is {label.decode('utf-8', 'replace')[:40]}, which is no whole number"
            fix = "target=true for numbers to predict; lines of several labels are not read"
            raise InputError(what, where=f"{file.path}:{line}", fix=fix)
        numbers.add(number)
    return numbers


def _rows(file: _File, width: int, zero_based: bool, classes: list[str]) -> Iterator[Rows]:
    numbers = np.array([float(name) for name in classes])  # rising, as classes stand
    row, rows = 0, max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * width)))
    for x, labels, queries in file.parsed(width, zero_based):
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
            found: Rows = {"x": (x[part] if len(labels) > rows else x).toarray()}
            found |= {"label": places[part]} if classes else {"y": labels[part]}
            yield found | ({"qid": queries[part]} if file.queries else {})


LINE = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?(\s+qid:\d+)?(\s+\d+:\S+)*\s*(#.*)?")


def recognise(path: Path) -> float:
    """Lines of a number and of features with theirs, `1 3:0.5 7:1`, whatever the file is called."""
    lines = [line.strip() for line in first_lines(path)[:-1] if line.strip() and not line.startswith("#")]
    if not lines or not all(LINE.fullmatch(line) for line in lines):
        return 0.0
    return SURE if any(":" in line.partition("#")[0] for line in lines) else 0.0


def advise(path: str, wish: Wish) -> Advice:
    """Classes, or a number to predict; and the test file that lies beside it, for `distdl init`."""
    if wish.options():
        raise InputError(f"{path} has no columns: what stands first in a line is predicted, target=true as a number")
    labels = Counter[str]()
    for _, line in islice(_File(path).numbered(), LOOKED_AT):
        labels[line.split(None, 1)[0].decode("utf-8", "replace").removeprefix("+")] += 1
    answer = answer_of(dict(labels))
    if not answer.key:
        raise InputError(f"what stands first in the lines of {path} is {answer.words}: nothing to predict")
    options: dict[str, Any] = {"path": path, "scale": "standard"}
    because = {"scale": "a network learns from numbers of one size"}
    if answer.key == "target":
        options["target"], because["target"] = True, f"what stands first in a line is {answer.words}"
    if Path(f"{path}.t").is_file():
        options["test_path"], because["test_path"] = f"{path}.t", "as the collection of LIBSVM names test files"
    return Advice(options, because)
