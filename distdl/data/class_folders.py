"""Which class and which split each file of a folder or archive belongs to: pictures and sounds alike.

The class is the folder. The rules, and each is said where it was needed (`Found.notes`):

- Folders that all files lie in (an archive's only folder, `images/`) name nothing.
- `train/` beside `val/` (`valid`, `validation`, `dev`) or `test/`, and nothing else, each with folders of classes in it,
  are splits. One such name among others is a class: a train is one, too. What lies between the two is refused, and
  decided by `split_folders=yes` or `no`.
- Where every file lies in a folder within a folder, the path of folders is the class (`Korean/character01`); where only
  some do, the outer folder is, and what is within is merged into it. `class_from` decides otherwise.
- A table of labels takes the place of the folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

import numpy as np

from distdl.data.bad_rows import CURE, BadRows
from distdl.data.classes import in_order, same_numbers
from distdl.data.each_file import Part, Refused, of_each
from distdl.data.folders import Files, open_files, some_names
from distdl.data.label_table import labels_of
from distdl.data.raw import Rows
from distdl.data.split_rules import SPLITS as IN_ORDER
from distdl.data.splits import SplitOptions, Splitter, asked_beyond_fraction
from distdl.errors import InputError, Problem

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
WAYS = {"first": "the outermost folder", "last": "the innermost folder", "path": "all folders from the outermost on"}
LISTED = 100
"""Bad files that an error names one by one."""

Header = TypeVar("Header")


@dataclass(frozen=True, kw_only=True)
class FolderOptions(SplitOptions):
    """Options of the sources that take files in folders of classes."""

    test_path: str = ""
    """A folder or archive of the same classes that becomes the split `test`; then nothing is held out of `path`."""
    split_folders: str = ""
    """Whether `train/` and `val/` or `test/` are splits: `yes`, or `no`: they are classes. Empty: seen from them."""
    class_from: str = ""
    """Of folders within folders, which is the class: `first`, `last`, or the whole `path`. Empty: seen from the folders."""
    labels: str = ""
    """A CSV file of labels, here or within `path`, instead of folders of classes. Files without a row are left out."""
    label_columns: tuple[str, str] = ("file", "label")
    """Its columns of file names (paths within `path`; the ending may be left out) and of labels."""


@dataclass(frozen=True)
class Found:
    """All files that are taken, and what there is to say about them."""

    parts: list[Part]
    classes: list[str]
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    """How the files were shared out."""

    def info(self, notes: list[str]) -> dict[str, Any]:
        """What the manifest says of them, with more notes."""
        told = self.notes + notes
        return {"classes": self.classes, "left_out": self.left_out, "split": self.split} | (
            {"notes": told} if told else {}
        )

    def label_record(self) -> dict[str, Any]:
        """How the column `label` came from the names."""
        return {"kind": "class", "version": 1, "classes": self.classes}


def headers_of(
    found: Found, read: Callable[[BinaryIO, str], Header], bad: list[Problem]
) -> Iterator[tuple[Part, int, str, Header]]:
    """Part, number in it, name and header of every file that `read` accepts; why it refuses the others goes into `bad`."""
    for part, i, header in of_each(found.parts, _Header(read)):
        if isinstance(header, Refused):
            bad += header.problems
        elif header is not None:
            yield part, i, part.called(i), header


@dataclass(frozen=True)
class _Header:
    read: Callable[[BinaryIO, str], Any]

    def __call__(self, part: Part, i: int) -> Iterator[Any]:
        with part.open(i) as file:
            yield self.read(file, part.called(i))


def find_sound(
    path: str,
    options: FolderOptions,
    endings: Collection[str],
    what: str,
    bad: BadRows,
    look: Callable[[Part, int], Iterable[tuple[Hashable, str]]],
) -> Found:
    """`find`, without files that cannot be read where these are set aside. `look` reads a part's i-th file and gives (also
    in words) the form that all files must have; None where they need not be alike."""
    found = find(path, options, endings, what, bad)
    if not bad.wanted:
        return found
    forms: dict[Hashable, list[str]] = {}
    words: dict[Hashable, str] = {}
    for part, i, seen in of_each(found.parts, look):
        name = part.called(i)
        if isinstance(seen, Refused):
            bad.refused(name, InputError(*seen.problems), reason="cannot be read")
        elif seen is not None:
            form, words[form] = seen
            forms.setdefault(form, []).append(name)
    most = max(forms, key=lambda form: len(forms[form]), default=None)
    for form, names in forms.items():
        for name in names if form != most else ():
            bad.add(name, f"{name} has {words[form]}, most {what} have {words[most]}", reason="another form")
    found = find(path, options, endings, what, bad) if bad.rows else found
    bad.check(sum(len(part.numbers) for part in found.parts))
    return found


def rows_of(
    found: Found, chunk: int, make: Callable[[Part, int], Iterable[dict[str, Any]]]
) -> Iterator[tuple[str, Rows]]:
    """The rows of all files with their `label`, at most `chunk` at a time; `make` gives the rows of a part's i-th file, in
    any process.

    Whole files are held out: what one file holds resembles itself. InputError names all files that `make` refuses.
    """
    bad: list[Problem] = []
    at: Part | None = None
    waiting: dict[str, list[dict[str, Any]]] = {}
    for part, i, row in of_each(found.parts, make):
        if part is not at:
            yield from ((split, _stacked(rows)) for split, rows in waiting.items() if rows)
            at, waiting = part, {}
        rows = waiting.setdefault(part.shares[i], [])
        if isinstance(row, Refused):
            bad += row.problems
        elif row is not None:
            rows.append({**row, "label": part.labels[i]})
            if len(rows) == chunk and not bad:
                yield part.shares[i], _stacked(rows)
                rows.clear()
        if bad:  # nothing will be written; the others are still looked at, so that one pass finds all
            waiting = {}
    yield from ((split, _stacked(rows)) for split, rows in waiting.items() if rows)
    refuse_all(bad)


def refuse_all(bad: list[Problem], others: Sequence[Problem] = ()) -> None:
    """InputError that lists what is wrong with files, if anything is; `others`: with all of them."""
    more = f", {LISTED} of them are named here" if len(bad) > LISTED else ""
    told = "1 file" if len(bad) == 1 else f"{len(bad):,} files"
    cure = [Problem(f"{told} cannot be read{more}", fix=f"replace what is damaged; {CURE}")] if bad else []
    if bad or others:
        raise InputError(*bad[:LISTED], *others, *cure)


def _stacked(rows: list[dict[str, Any]]) -> Rows:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass
class _Entries:
    """The files of a place: number, split and class by name."""

    numbers: list[int] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def find(path: str, options: FolderOptions, endings: Collection[str], what: str, bad: BadRows | None = None) -> Found:
    """The files of `path` (and `options.test_path`) with their classes and splits, without those in `bad`.

    `what`: pictures, recordings.

    InputError: there are none, or the folders can be read in two ways.
    """
    splitter = _splitter(path, options, bool(options.test_path))
    if options.class_from and options.class_from not in WAYS:
        raise InputError(f"class_from is '{options.class_from}'", allowed=", ".join(WAYS))
    if options.split_folders not in ("", "yes", "no"):
        raise InputError(f"split_folders is '{options.split_folders}'", allowed="yes, no")
    notes: list[str] = []
    left_out: Counter[str] = Counter()
    files = open_files(path, endings)
    bad = bad or BadRows(options)
    entries = _entries(files, options, what, notes, left_out, bad)
    classes = in_order(name for split, name in zip(entries.splits, entries.classes) if split in ("", "train"))
    if torn := same_numbers(classes):
        groups = "; ".join(", ".join(group) for group in torn[:5])
        notes.append(f"classes whose names are the same number stay apart: {groups}")
    shared = ""
    if by_folders := set(entries.splits) - {""}:
        asked = asked_beyond_fraction(options)
        if asked and ("validation" in by_folders or not options.validation_fraction):
            what = f"the folders of {path} are splits, so that {' and '.join(asked)} say nothing"
            raise InputError(what, fix="leave them out, or split_folders=no")
        splitter, shared = _splitter(path, options, tested=True), "train" if asked else ""
    parts = _parts(files, entries, classes, splitter, shared)
    if options.test_path:
        if any(entries.splits):
            raise InputError(f"{path} has folders of splits of its own", fix="leave out test_path, or split_folders=no")
        test_files = open_files(options.test_path, endings)
        tested = _entries(test_files, options, what, notes, left_out, bad)
        tested = _Entries(tested.numbers, ["test"] * len(tested.numbers), tested.classes)
        parts += _parts(test_files, tested, classes, splitter)
        notes += _absent(classes, tested.classes, "test")
    for split in sorted(set(entries.splits) - {"", "train"}):
        notes += _absent(classes, [name for name, s in zip(entries.classes, entries.splits) if s == split], split)
    if left_out:
        notes.append("left out: " + ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items())))
    record = splitter.record()
    if by_folders:
        record = {"by": "folders", **({"validation": record} if shared else {})}
    return Found(parts, classes, notes, dict(sorted(left_out.items())), record)


def _splitter(path: str, options: FolderOptions, tested: bool) -> Splitter:
    return Splitter(options, names=("label", "folder"), label="label", where=path, tested=tested)


def _parts(files: Files, entries: _Entries, classes: list[str], splitter: Splitter, shared: str = "") -> list[Part]:
    """One part for each split, its files in the order of the classes, or of the archive where that is read forward.
    `shared`: the split whose files are shared out; '': those that no folder puts into one."""
    place = {name: number for number, name in enumerate(classes)}
    if strange := sorted(set(entries.classes) - place.keys()):
        what = f"{files.place}: the classes {some_names(strange)} are not among those of the training split"
        raise InputError(what, allowed=some_names(classes))
    numbers, splits = np.array(entries.numbers, np.int64), np.array(entries.splits)
    labels = np.array([place[name] for name in entries.classes], np.int64)
    order = np.argsort(numbers if files.forward_only else labels, kind="stable")
    chosen = {split: order[splits[order] == split] for split in sorted(set(entries.splits))}
    return [
        Part(
            files,
            numbers[some],
            labels[some],
            split or "train",
            _shares(files, numbers[some], labels[some], splitter) if split == shared else [split] * len(some),
        )
        for split, some in chosen.items()
    ]


def _shares(files: Files, numbers: np.ndarray, labels: np.ndarray, splitter: Splitter) -> list[str]:
    """The split of each of a part's files, by their number, class or innermost folder."""
    files_of = {"label": labels, "folder": [files.names[n].rpartition("/")[0] or "." for n in numbers.tolist()]}
    splitter.look([files_of])
    return [IN_ORDER[which] for which in splitter.assign(files_of, 0).tolist()]


def _absent(classes: list[str], found: list[str], split: str) -> list[str]:
    absent = [name for name in classes if name not in set(found)]
    return [f"the split {split} has nothing of the classes {some_names(absent)}"] if absent else []


def _entries(
    files: Files, options: FolderOptions, what: str, notes: list[str], left_out: Counter[str], bad: BadRows
) -> _Entries:
    left_out.update(files.left_out)
    table = labels_of(files, options.labels, options.label_columns, what, bad) if options.labels else None
    numbers = list(range(len(files.names)))
    if table is not None:
        numbers = [n for n in numbers if n in table]
        left_out.update({f"without a row in {options.labels}": len(files.names) - len(numbers)} if table else {})
        numbers = [n for n in numbers if table[n]]
    if bad.rows:
        numbers = [n for n in numbers if files.called(n) not in bad]
    folders = [tuple(files.names[n].split("/")[:-1]) for n in numbers]
    if table is None:
        alone = sum(not parts for parts in folders)
        left_out.update({"outside of the folders": alone} if alone else {})
        numbers = [n for n, parts in zip(numbers, folders) if parts]
        folders = [parts for parts in folders if parts]
    if not numbers:
        raise _nothing(files, options, what)
    above = _shared(folders, 0 if table is not None else 1)
    if above:
        notes.append(f"all {what} of {files.place} lie in {'/'.join(folders[0][:above])}/, which names no class")
    folders = [parts[above:] for parts in folders]
    splits = _splits(files.place, folders, options, what, table is not None)
    if any(splits):
        folders = [parts[1:] for parts in folders]
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(Counter(splits).items()))
        notes.append(f"the folders of {files.place} are splits: {told} {what}")
    if table is not None:
        return _Entries(numbers, splits, [table[n] for n in numbers])
    notes += _empty(files, what)
    return _Entries(numbers, splits, _classes(files.place, folders, options.class_from, what, notes))


def _nothing(files: Files, options: FolderOptions, what: str) -> InputError:
    others = ", ".join(f"{count:,} {why}" for why, count in sorted(files.left_out.items()))
    found = f"; it has {len(files.names):,} {what} outside of folders" if files.names else ""
    return InputError(
        f"{files.place} holds no folders with {what}" + found + (f"; left out: {others}" if others else ""),
        allowed=f"folder/class/file with one of the endings {', '.join(sorted(files.endings))}",
        fix="labels=labels.csv names a table of labels" if files.names else "check the path",
    )


def _shared(folders: list[tuple[str, ...]], kept: int) -> int:
    """How many folders all files have above them, apart from the `kept` innermost ones."""
    shared = min(len(parts) for parts in folders) - kept
    first = folders[0]
    for parts in folders:
        while parts[:shared] != first[:shared]:
            shared -= 1
    return max(shared, 0)


def _splits(
    place: str, folders: list[tuple[str, ...]], options: FolderOptions, what: str, flat_is_right: bool
) -> list[str]:
    """The split of each file by its outermost folder, or empty ones."""
    outer = {parts[0] if parts else "" for parts in folders}
    known = sorted(name for name in outer if name.lower() in SPLITS)
    either = f"split_folders=yes or no says whether {some_names(known)} are splits or classes"
    if options.split_folders == "yes":
        if strange := sorted(outer - set(known)):
            raise InputError(f"{place}: {some_names(strange)} are no splits", allowed=", ".join(sorted(SPLITS)))
    elif options.split_folders == "no" or len(known) < 2:
        return [""] * len(folders)
    elif len(known) < len(outer):
        raise InputError(
            f"{place} has the folders {some_names(known)}, and {some_names(sorted(outer - set(known)))}", fix=either
        )
    flat = sorted({parts[0] for parts in folders if len(parts) == 1})
    if flat and not flat_is_right:
        what = f"{place}: {some_names(flat)} looks like a split, and holds {what} outside of folders of classes"
        raise InputError(what, fix=f"point path at {place}/train alone; or {either}; or name a table with labels=")
    splits = [SPLITS[parts[0].lower()] for parts in folders]
    if "train" not in splits:
        raise InputError(f"{place} has the folders {some_names(known)}, and no train", fix=either)
    return splits


def _classes(place: str, folders: list[tuple[str, ...]], way: str, what: str, notes: list[str]) -> list[str]:
    """The class of each file by the folders that are left."""
    inner = sorted({parts for parts in folders if len(parts) > 1})
    outer = sorted({parts[0] for parts in folders})
    if not inner:
        return [parts[0] for parts in folders]
    second = {parts[1].lower() for parts in inner}
    if not way and len(second) > 1 and second <= SPLITS.keys():
        raise InputError(
            f"{place}: the folders of classes hold {some_names(sorted(second))}, which look like splits",
            fix="move them outside of the classes (train/class/file), or merge them: class_from=first",
        )
    chosen = way or ("path" if all(len(parts) > 1 for parts in folders) else "first")
    pick = {"first": lambda parts: parts[0], "last": lambda parts: parts[-1], "path": "/".join}[chosen]
    names = [pick(parts) for parts in folders]
    count = len(set(names))
    how = {"first": "merged into", "last": "named by the innermost folder:", "path": "named by their path:"}[chosen]
    others = ", ".join(f"class_from={name} takes {told}" for name, told in WAYS.items() if name != chosen)
    notes.append(
        f"{place}: {len(outer):,} folders with {len(inner):,} folders of {what} within them, {how} {count:,} classes "
        f"({others})"
    )
    return names


def _empty(files: Files, what: str) -> list[str]:
    """Innermost folders without a file that is taken."""
    full = {str(above) for name in files.names for above in PurePosixPath(name).parents}
    above_others = {str(PurePosixPath(name).parent) for name in files.folders}
    empty = sorted(files.folders - full - above_others)
    return [f"{files.place}: no {what} in the folders {some_names(empty)}, which are no classes"] if empty else []
