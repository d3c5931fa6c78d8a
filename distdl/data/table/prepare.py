"""Tables -> `x`, `label` or `y`: what all sources of tables share.

The table is read twice: what its columns hold (`profile.py`), from which follow their kinds (`kinds.py`) and the fitted
numbers (`fit.py`); then its rows, made into numbers by what was fitted (`encode.py`). Dates and some options take one more.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from distdl.data.bad_rows import BadRows
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Sectioned
from distdl.data.splits import Splitter
from distdl.data.table.answer import OF_PIECES, VERSION, check_answer, label_record, target_record
from distdl.data.table.encode import outputs
from distdl.data.table.fit import fitted
from distdl.data.table.kinds import USED, ColumnKind, Kind, check_range, given_kinds, kind_of
from distdl.data.table.options import TableOptions
from distdl.data.table.passes import chunks, encoded, needed_columns, profiled, ranges_of_dates, rows_of, together
from distdl.data.table.pixels import encode_pixels, pixels_record, small_parts
from distdl.data.table.profile import Profile
from distdl.data.table.reader import Table
from distdl.data.table.report import notes_of_label, notes_of_numbers, rows_of_kinds, unlabelled_note
from distdl.data.table.sections import Miscounted, Sections, files_of
from distdl.data.table.set_aside import Nowhere, list_unlabelled, without_bad, without_empty, without_odd
from distdl.data.table.stream import Kept, Part, Renamed, Undotted, dotted_word
from distdl.data.table.values import NO_NUMBER, is_text, label_na
from distdl.data.table.vectors import with_vectors
from distdl.errors import InputError, Problem, did_you_mean

MOST_PIECES = 256
"""Of a number: of a sample of 8,192 each then has some tens of rows."""


def prepare_table(
    options: TableOptions, table: Table, others: Mapping[str, Table] | None = None, bad: BadRows | None = None
) -> Prepared:
    """`x` float32 (F,), and `label` int64 with its class names in the info, or `y` float32.

    `others`: split -> a table of the same columns that is that split; what they hold is fitted to nothing. `bad`: what the
    reader has set aside, which rows may join. InputErrors name the file, the line, the column and the value.
    """
    renamed = parse_renamed(options)
    if renamed:
        table = Renamed(table, renamed)
        others = {split: Renamed(other, renamed) for split, other in (others or {}).items()}
    opened = Opened(options, table, dict(others or {}), bad or BadRows(options))
    opened.refuse()
    opened.table, opened.others = with_vectors(opened.table, opened.others)
    opened.look()
    return opened.prepared()


def parse_renamed(options: TableOptions) -> dict[str, str]:
    """Old name -> new one. InputError for an entry that is none."""
    pairs = [entry.partition(":") for entry in options.rename]
    if bad := [f"{old}{colon}{new}" for old, colon, new in pairs if not (old and new)]:
        raise InputError(f"rename={','.join(bad)}", allowed="old:new,old:new")
    return {old: new for old, _, new in pairs}


class Opened:
    """A table with the options of its preparation, on the way to a data set."""

    def __init__(self, options: TableOptions, table: Table, others: dict[str, Table], bad: BadRows) -> None:
        self.options, self.table, self.others, self.bad = options, table, others, bad
        self.na = ("", *options.na)
        self.answer = options.label or options.target
        self.gaps: list[Kept] = []
        """The tables without rows that lack their label."""
        self.dropped: Kept | None = None
        self.kinds: list[ColumnKind] = []
        self.dotted: list[str] = []
        """What is to be said of tables whose classes have a dot behind them."""

    # -- before anything is read -----------------------------------------------------------------------------------------

    def refuse(self) -> None:
        """InputError lists all that is wrong with the choice of columns."""
        options, table = self.options, self.table
        have, listed = set(table.names), Counter(options.features)
        chosen = [("label", options.label), ("target", options.target)]
        chosen += [(key, name) for key in ("features", "drop") for name in getattr(options, key)]
        problems = [
            Problem(f"{table.path} has no column '{name}', which {key}= names", fix=did_you_mean(name, table.names))
            for key, name in chosen
            if name and name not in have
        ]
        if options.label and options.target:
            problems.append(
                Problem("both label= and target= are given", fix="label= for classes, target= for a number")
            )
        if not (options.label or options.target or options.features):
            problems.append(
                Problem(
                    "neither label= (classes) nor target= (a number) is given",
                    fix="name the column to predict, or features= alone for unlabelled data",
                    allowed=", ".join(table.names[:50]),
                )
            )
        for name, times in listed.items():
            if name and name == self.answer:
                what = f"'{name}' is to be predicted, and features= names it, too"
                problems.append(Problem(what, fix="leave it out of features="))
            if times > 1:
                problems.append(Problem(f"features= names the column '{name}' {times} times"))
        if self.answer in options.drop:
            problems.append(Problem(f"'{self.answer}' is to be predicted, and drop= leaves it out"))
        if options.target and options.unlabelled == "keep":
            what = "unlabelled=keep gives a row without a class the number -100, and target= has no such number"
            problems.append(Problem(what, allowed="drop or refuse"))
        if options.pieces != 0 and not 2 <= options.pieces <= MOST_PIECES:
            problems.append(Problem(f"pieces is {options.pieces}", allowed=f"0, or 2 to {MOST_PIECES}"))
        if options.max_categories < 1:
            problems.append(Problem(f"max_categories is {options.max_categories}", allowed="at least 1"))
        if problems:
            raise InputError(*problems)
        for other in self.others.values():
            missing = [name for name in (self.answer, *options.features) if name and name not in other.names]
            if missing:
                fix = did_you_mean(missing[0], other.names)
                raise InputError(f"{other.path} has no column '{missing[0]}', as {table.path} has", fix=fix)

    # -- the first pass --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """What the columns hold, and what they are taken for."""
        options = self.options
        if self.answer and options.unlabelled == "drop":
            na = label_na(self.na) if options.label else (*self.na, *NO_NUMBER)
            self.gaps = [Kept(table, [self.answer], na) for table in (self.table, *self.others.values())]
            self.table = self.gaps[0]
            self.others = dict(zip(self.others, self.gaps[1:], strict=True))
        given = given_kinds(options, self.table.names, self.table.path)
        if self.bad.wanted:
            by = [name for name in (options.split_group, options.split_time, options.split_column) if name]
            by = [name for name in by if name in self.table.names]
            self.table = without_bad(self.table, options, given, by, self.bad)
        self._pass(given)
        needed = [kind.name for kind in self.kinds if kind.used and kind.missing]
        if needed and options.missing == "refuse" and self.bad.wanted:
            self.table = without_empty(self.table, needed, self.na, self.bad)
            self._pass(given)
        if self.bad.wanted and (image := pixels_record(self.kinds, options, self.table)):
            whole, nowhere = self.table, Nowhere(self.table)
            self.table = without_odd(whole, [image["name"]], partial(_attempt_pixels, image, nowhere), self.bad)
            if self.table is not whole:
                self._pass(given)
        if options.missing == "drop" and needed:
            self.dropped = Kept(self.table, needed, self.na)
            self.table = self.dropped
            self.others = {split: Kept(other, needed, self.na) for split, other in self.others.items()}
            self._pass(given)
        if self.answer:
            check_answer(self.options, self.table, self.found, self.answer)
        if options.label and is_text(self._type(options.label)):
            self._without_dots(options.label)

    def _without_dots(self, label: str) -> None:
        """A table that is a split of its own may have a dot behind each class, as the test file of adult has."""
        words = self.found.looks[label].words
        assert words is not None
        for split, other in self.others.items():
            if example := dotted_word(other, label, words.counts, label_na(self.na)):
                self.others[split] = Undotted(other, label)
                what = f"the classes of {other.path} have a dot behind them ('{example}') and are read without it"
                self.dotted.append(what)

    def _pass(self, given: Mapping[str, Kind]) -> None:
        options, table = self.options, self.table
        self.splitter = Splitter(
            options,
            names=table.names,
            label=options.label,
            where=table.path,
            place=table.place,
            tested="test" in self.others,
            validated="validation" in self.others,
        )
        apart = {*options.drop, *self.splitter.apart, self.answer}
        names = list(options.features) or [name for name in table.names if name not in apart]
        every = [*names, self.answer] if self.answer else names
        as_words = [
            n
            for n, kind in given.items()
            if kind in ("category", "boolean") or (kind == "date" and is_text(self._type(n)))
        ]
        as_words += [options.label] if options.label else []
        as_words += [name for name in table.classes if name in every]
        log = "log" in (options.scale, options.target_scale)
        told: dict[str, Any] = {"label": options.label, "date_format": options.date_format, "log": log}
        self.sections = Sections(table, self.splitter, whole=self.bad.wanted)
        try:
            self.found = self._profile(every, [n for n in as_words if n in every], told)
        except InputError:  # rows that cannot be shared out: that there are none is what to say of none
            self._refuse_none()
            raise
        self._refuse_none()
        if not self.found.rows:
            raise InputError(f"{table.path} has no rows")
        self._look_again(told)
        self._dates({name for name, kind in given.items() if kind == "date"})
        self.kinds = [kind_of(self.found, name, table, options, given.get(name)) for name in names]
        if options.features:
            self.kinds = [self._as_listed(kind) for kind in self.kinds]

    def _refuse_none(self) -> None:
        for gap in self.gaps[:1]:
            gap.refuse_none()

    def _profile(self, names: list[str], as_words: list[str], told: Mapping[str, Any]) -> Profile:
        make = partial(Profile, self.table.schema, names, self.na, as_words, **told)
        function = partial(profiled, make)
        try:
            return together((found for _, found in self.sections.each(function, names)))
        except Miscounted:
            self.sections.count_again()
            return together((found for _, found in self.sections.each(function, names)))

    def _look_again(self, told: Mapping[str, Any]) -> None:
        """At columns of words that began with numbers: the first words were not counted."""
        if late := self.found.late():
            again = self._profile(late, late, told)
            for name in late:
                self.found.looks[name].words = again.looks[name].words

    def _dates(self, asked: set[str]) -> None:
        """The range of the columns that hold dates as words."""
        pattern = {
            name: self.options.date_format if name in asked and self.options.date_format else look.words.formats[0]
            for name, look in self.found.looks.items()
            if look.words and look.words.rows and name != self.answer
            if look.words.formats or (name in asked and self.options.date_format)
        }
        if not pattern:
            return
        ranges = partial(ranges_of_dates, list(pattern.values()), self.na)
        for _, of_section in self.sections.each(ranges, list(pattern)):
            for name, numbers in zip(pattern, of_section, strict=True):
                look = self.found.looks[name]
                look.dates = copy.deepcopy(numbers) if look.dates is None else together([look.dates, numbers])

    def _as_listed(self, kind: ColumnKind) -> ColumnKind:
        """A column that features= lists is used, whatever it would be taken for."""
        if kind.used:
            return kind
        look = self.found.looks[kind.name]
        if kind.kind in ("id", "constant") and look.numbers and not look.strange:
            return ColumnKind(kind.name, "number", kind.missing)
        what = f"features= names the column '{kind.name}' of {self.table.path}, which is taken for {kind.kind}: {kind.told}"
        fix = f"leave it out of features=, or say what it is: kinds={kind.name}:category"
        raise InputError(what, allowed=", ".join(USED), fix=fix)

    def _type(self, name: str) -> Any:
        return self.table.schema.field(name).type

    # -- the second pass -------------------------------------------------------------------------------------------------

    def prepared(self) -> Prepared:
        """The columns of the data set, and the rows as they will be read."""
        options, found = self.options, self.found
        used = [kind for kind in self.kinds if kind.used]
        for kind in used:
            if kind.kind == "number":
                check_range(found, kind.name, self.table)
        features = [fitted(found, kind, options) for kind in used]
        preparation: dict[str, Any] = {
            "x": {
                "kind": "features",
                "version": OF_PIECES if any("edges" in feature for feature in features) else VERSION,
                "features": features,
                "columns": [name for feature in features for name in outputs(feature)],
                "na": list(self.na),
                "missing": options.missing,
                "rename": parse_renamed(options),
            }
        }
        image = pixels_record(self.kinds, options, self.table)
        width = len(preparation["x"]["columns"])
        if not width and not image:
            self._refuse_no_features()
        columns = {"x": Column("float32", (width,))} if width else {}
        if image:
            preparation["image"] = image
            columns["image"] = Column("uint8", (image["channels"], *image["size"]))
        info: dict[str, Any] = {"features": preparation["x"]["columns"]}
        notes = [note for gap in self.gaps[:1] if gap.left_out for note in [unlabelled_note(gap, self.answer)]]
        notes += self.dotted
        if self.dropped and self.dropped.left_out:
            gone = self.dropped
            first = gone.table.place(gone.left_out[0])
            notes.append(f"{len(gone.left_out):,} rows with an empty value are left out (the first: {first})")
        if options.label:
            preparation["label"] = label_record(self.options, self.table, self.found)
            columns["label"] = Column("int64")
            info["classes"] = preparation["label"]["classes"]
            notes += notes_of_label(found.looks[options.label], info["classes"])
        if options.target:
            preparation["y"] = target_record(self.options, self.found)
            columns["y"] = Column("float32")
            info["target"] = options.target
        self._set_others_aside(preparation)
        notes += notes_of_numbers(found, [*features, *([preparation["y"]] if options.target else [])], self.table)
        info["kinds"] = rows_of_kinds(self.kinds, features, preparation, self.answer, found)
        info["notes"] = notes
        info["split"] = self.splitter.record()
        others = [Sections(other, split=split, whole=self.bad.wanted) for split, other in self.others.items()]
        tables = [self.sections, *others]
        from_section = partial(chunks, tables, preparation)
        count = sum(of_table.count for of_table in tables)
        files = () if image else tuple(file for of_table in tables for file in files_of(of_table.table))
        sections = Sectioned(count, from_section, files) if count > len(tables) else None
        every = (chunk for _, chunk in from_section(0))
        rows = rows_of(tables)
        return Prepared(columns, every, info, preparation, bad=self.bad, sections=sections, rows=rows)

    def _refuse_no_features(self) -> None:
        told = "; ".join(f"'{kind.name}' is {kind.kind}" for kind in self.kinds[:10])
        named = any(kind.kind == "image path" for kind in self.kinds)
        fix = "size=64x64 makes pixels of the pictures" if named else "kinds=name:category, ..."
        told = told or f"there is none beside '{self.answer}'"
        fix = fix if self.kinds else "predict another column, or leave more of them in"
        raise InputError(f"{self.table.path} has no columns left as features: {told}", fix=fix)

    def _set_others_aside(self, preparation: dict[str, Any]) -> None:
        """The rows of the other tables that do not fit, and what there is to list of all."""
        if not self.bad.wanted:
            return
        names, others = needed_columns(preparation), 0
        for split, other in self.others.items():
            self.others[split] = without_odd(other, names, partial(_attempt, preparation, Nowhere(other)), self.bad)
            others += sum(batch.num_rows for batch in self.others[split].batches(names[:1]))
        for gap in self.gaps:
            if gap.left_out:
                list_unlabelled(gap.table, gap.left_out, self.answer, self.bad)
        self.bad.check(self.found.rows + others)


def _attempt(preparation: Mapping[str, Any], table: Table, part: Part) -> None:
    for piece in small_parts(part, preparation.get("image", {})):
        encoded(preparation, piece, table)


def _attempt_pixels(image: Mapping[str, Any], table: Table, part: Part) -> None:
    for piece in small_parts(part, image):
        encode_pixels(image, piece.batch.column(0), piece.rows, table)
