"""The rows of a data set shared out again, by the ways that every source has (splits.py): to the bit as they were, each
in one split, none lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distdl.data.bad_rows import NAMES
from distdl.data.change.origin import BAD_ROWS, Stored, check_new, stored, written
from distdl.data.manifest import Manifest
from distdl.data.prepare import parsed_options
from distdl.data.progress import Follow
from distdl.data.raw import Rows
from distdl.data.read import stored_rows
from distdl.data.split_rules import SPLITS
from distdl.data.splits import SplitOptions, Splitter
from distdl.errors import InputError, Problem, did_you_mean

ALL = "all"
UNHEEDED = "label= names the classes for stratify=true, which is not asked for"


@dataclass(frozen=True, kw_only=True)
class Options(SplitOptions):
    """How a data set is shared out again."""

    of: str = "train"
    """The split whose rows are shared out; the others stay as they are. `all`: the rows of all splits, anew."""
    label: str = "label"
    """Column of the classes, for stratify."""


def split_dataset(
    source: str,
    target: str,
    given: Mapping[str, Any],
    overwrite: bool = False,
    *,
    follow: Follow | None = None,
) -> Manifest:
    """Writes the rows of the data set at `source` to `target`, in the splits that the options (values, or their text) say.

    What is not held out stays in the split that it was in, or is `train` where all are shared out. InputError: options
    that do not fit the data set or each other, rows that cannot be shared out so, a target that exists (unless
    `overwrite`)."""
    options: Options = sharing_options(Options, given)
    old = stored(source)
    check_new(target, overwrite, [source])
    sharing = _Sharing(old, options, set(given))
    return written("split", target, [old], sharing.rows(), sharing.info(), overwrite=overwrite, follow=follow)


def sharing_options(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """The options of a split. InputError for those that only raw files have."""
    if asked := [key for key in given if key in NAMES]:
        what = f"{asked[0]}= is of raw files: a data set has no bad rows, and those of a table are moved as they are"
        raise InputError(what, fix=f"leave {asked[0]}= out, or prepare the raw file with it")
    return parsed_options(kind, "distdl data split", given)


class _Sharing:
    """One data set on its way to other splits. InputError: it cannot be shared out so."""

    def __init__(self, old: Stored, options: Options, given: set[str]):
        self.old, self.options, self.label_asked = old, options, "label" in given
        known = old.manifest.splits
        if options.of != ALL and options.of not in known:
            fix = did_you_mean(options.of, [*known, ALL])
            raise InputError(f"{old.name} has no split '{options.of}', which of= names", fix=fix)
        first = [name for name in SPLITS if name in known]
        every = [*first, *(name for name in sorted(known) if name not in first)]
        self.shared = every if options.of == ALL else [options.of]
        self.kept = [name for name in every if name not in self.shared]
        self.rest = "train" if options.of == ALL else options.of
        """The split of what is not held out."""
        tested = "test" in [*self.kept, self.rest]
        if tested and "test_fraction" not in given:
            options = replace(options, test_fraction=0.0)
        self._check(options)
        label = options.label if options.stratify else ""
        self.splitter = Splitter(
            options, names=list(old.manifest.columns), label=label, where=old.name, place=self._place, tested=tested
        )
        if self.splitter.looks:
            self.splitter.look(self._shared_rows())

    def _check(self, options: Options) -> None:
        """InputError for a split that would be there twice, and where nothing is asked for."""
        problems, others = [], [*self.kept, self.rest]
        for name in ("test", "validation"):
            if getattr(options, f"{name}_fraction") > 0 and name in others and not options.split_column:
                told = f"{self.old.name} has a split '{name}'"
                what = f"{told} already, and {name}_fraction={getattr(options, f'{name}_fraction'):g} asks for one"
                problems.append(Problem(what, fix=f"{name}_fraction=0; or of=all shares all rows out anew"))
        if options.split_column and set(others) & {"test", "validation"}:
            there = sorted(set(others) & {"test", "validation"})[0]
            what = f"{self.old.name} has a split '{there}', and split_column={options.split_column} says it, too"
            problems.append(Problem(what, fix="of=all shares all rows out anew"))
        if self.label_asked and not options.stratify:
            problems.append(Problem(UNHEEDED, fix="stratify=true, or leave label= out"))
        nothing = not (options.test_fraction or options.validation_fraction or options.split_column)
        if nothing and options.of != ALL:
            what = f"nothing is held out of '{self.rest}' of {self.old.name}"
            allowed = "validation_fraction=0.1, split_column=part, of=all, ..."
            problems.append(Problem(what, allowed=allowed))
        if problems:
            raise InputError(*problems)

    def rows(self) -> Iterator[tuple[str, Rows]]:
        """Pairs of a split and some of its rows: first those that are shared out, then the splits that stay."""
        for split, rows in self.splitter.share(self._shared_rows()):
            yield (self.rest if split == "train" else split), rows
        for name in self.kept:
            for rows in stored_rows(self.old.path, self.old.manifest, name):
                yield name, rows

    def _shared_rows(self) -> Iterator[Rows]:
        for name in self.shared:
            yield from stored_rows(self.old.path, self.old.manifest, name)

    def _place(self, row: int) -> str:
        for name in self.shared:
            count = self.old.manifest.splits[name].rows
            if row < count:
                break
            row -= count
        return f"{self.old.name}, split '{name}', row {row:,}"

    def info(self) -> dict[str, Any]:
        """The old one's, with what is done."""
        info = {key: value for key, value in self.old.manifest.info.items() if key != BAD_ROWS}  # its list is not here
        info["split"] = {**self.splitter.record(), "of": self.options.of, "before": info.get("split", {})}
        notes = [*info.get("notes", [])]
        if told := self._fitted():
            notes.append(told)
        return {**info, **({"notes": notes} if notes else {})}

    def _fitted(self) -> str:
        """What knows of rows that are held out now."""
        fitted = fitted_columns(self.old.manifest)
        if not fitted or "train" not in self.shared:
            return ""
        return (
            f"the scales and words of {', '.join(fitted)} were found over the training split of {self.old.name}, so over "
            "rows that may be held out now: to fit them on the new one, prepare the raw file with these options"
        )


def fitted_columns(manifest: Manifest) -> list[str]:
    """The columns whose preparation holds what was found over the rows of the training split."""
    return [name for name, record in manifest.preparation.items() if _is_fitted(record)]


def _is_fitted(record: Mapping[str, Any]) -> bool:
    if record["kind"] == "number":
        return bool(record.get("scale", {}).get("method", "none") != "none")
    if record["kind"] != "features":
        return False
    for feature in record["features"]:
        methods = [feature, feature.get("scale", {}), *(part["scale"] for part in feature.get("parts", ()))]
        if (
            feature["kind"] == "category"
            or "edges" in feature
            or any(of.get("method", "none") != "none" for of in methods)
        ):
            return True
    return False
