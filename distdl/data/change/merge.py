"""Several data sets as one: the rows of each split one after another, in the order of the data sets.

That is right only where a number means the same in all of them. So columns must be of one type and shape, and what is
told of how their values came about (classes, scales, words, sizes) must be equal; the first difference is named, with
both values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distdl.data.change.duplicates import Duplicates
from distdl.data.change.origin import BAD_ROWS, Stored, check_new, stored, written
from distdl.data.change.split import fitted_columns
from distdl.data.manifest import Manifest
from distdl.data.progress import Follow
from distdl.data.raw import Rows
from distdl.data.read import stored_rows
from distdl.data.split_rules import SPLITS
from distdl.errors import InputError

ABOUT = (
    BAD_ROWS,
    "notes",
    "split",
    "origin",
    "kinds",
    "documents",
    "series_lengths",
    "missing_values",
    "sounds",
    "left_out",
)
"""What a manifest's info says of the rows of its own data set, and not of what values mean."""


def merge_datasets(
    sources: Sequence[str], target: str, overwrite: bool = False, *, follow: Follow | None = None
) -> Manifest:
    """Writes the rows of all data sets to `target`. InputError: they do not belong together, or the target exists (unless
    `overwrite`). Rows that are there more than once stay, and are told in `info["notes"]`."""
    if len(sources) < 2:
        raise InputError("there is one data set to merge", allowed="two or more")
    all_of = [stored(path) for path in sources]
    check_new(target, overwrite, sources)
    for other in all_of[1:]:
        check_alike(all_of[0], other)
    _check_different(all_of)
    double = Duplicates(list(all_of[0].manifest.columns))
    info = _info(all_of)
    return written("merge", target, all_of, _rows(all_of, double, info), info, overwrite=overwrite, follow=follow)


def check_alike(one: Stored, other: Stored) -> None:
    """InputError where two data sets are not of one kind, with the first difference and both values."""
    columns, others = one.manifest.columns, other.manifest.columns
    if missing := [name for name in columns if name not in others] or [name for name in others if name not in columns]:
        has, lacks = (one, other) if missing[0] in columns else (other, one)
        raise InputError(
            f"{has.name} has a column '{missing[0]}', and {lacks.name} has none",
            allowed="data sets of the same columns",
        )
    for name in columns:
        for what in ("dtype", "shape"):
            ours, theirs = getattr(columns[name], what), getattr(others[name], what)
            if ours != theirs:
                raise _different(f"the {what} of the column '{name}'", one, ours, other, theirs)
    facts = (
        ("the preparation", one.manifest.preparation, other.manifest.preparation),
        ("what is told", _meaning(one.manifest), _meaning(other.manifest)),
    )
    for what, ours, theirs in facts:
        if found := first_difference(ours, theirs, ""):
            path, left, right = found
            raise _different(f"{what} of {path}", one, left, other, right)


def _meaning(manifest: Manifest) -> dict[str, Any]:
    return {key: value for key, value in manifest.info.items() if key not in ABOUT}


def first_difference(ours: Any, theirs: Any, path: str) -> tuple[str, Any, Any] | None:
    """Where two plain values differ first, and what stands there; None: they are equal."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys([*ours, *theirs]):
            inner = f"{path}.{key}" if path else f"'{key}'"
            if found := first_difference(ours.get(key), theirs.get(key), inner):
                return found
        return None
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        inside = any(isinstance(value, Mapping) for value in ours)
        differences = (first_difference(a, b, f"{path}[{_named(a, i)}]") for i, (a, b) in pairs)
        found = next(filter(None, differences), None)
        return found if inside or found is None else (path, ours, theirs)
    return None if ours == theirs and type(ours) is type(theirs) else (path, ours, theirs)


def _named(value: Any, number: int) -> Any:
    return value.get("name", number) if isinstance(value, Mapping) else number


def _different(what: str, one: Stored, ours: Any, other: Stored, theirs: Any) -> InputError:
    return InputError(
        f"{what} differs: {_short(ours)} in {one.name}, {_short(theirs)} in {other.name}",
        allowed="data sets in which every number means the same",
        fix="prepare their raw files together (a folder, or a pattern with *), or both with the same options",
    )


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _check_different(all_of: Sequence[Stored]) -> None:
    seen: dict[str, str] = {}
    for one in all_of:
        fingerprint = one.manifest.fingerprint
        if fingerprint in seen:
            what = (
                f"{one.name} holds the very rows of {seen[fingerprint]}" if one.name != seen[fingerprint] else one.name
            )
            raise InputError(
                f"{what}{' is named twice' if what == one.name else ''}: each would be there twice",
                fix="name one of them",
            )
        seen[fingerprint] = one.name


def _info(all_of: Sequence[Stored]) -> dict[str, Any]:
    """Of the first one; and the notes of all."""
    first = all_of[0].manifest
    notes = [f"{one.name}: {note}" for one in all_of for note in one.manifest.info.get("notes", [])]
    if fitted := fitted_columns(first):
        notes.append(f"the scales and words of {', '.join(fitted)} are those that all of them were prepared with")
    kept = {key: value for key, value in first.info.items() if key not in ABOUT or key == "kinds"}
    return {**kept, "split": {"by": "merge"}, "notes": notes}


def _rows(all_of: Sequence[Stored], double: Duplicates, info: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    there = {name for one in all_of for name in one.manifest.splits}
    for split in [*(name for name in SPLITS if name in there), *sorted(there - set(SPLITS))]:
        for one in all_of:
            if split not in one.manifest.splits:
                continue
            double.begin(one.name, split)
            for rows in stored_rows(one.path, one.manifest, split):
                double.add(rows)
                yield split, rows
    info["notes"] += double.notes()  # the manifest is written behind this
