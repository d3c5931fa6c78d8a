"""The column that is to be predicted: what of it can be learned, and how `label` or `y` came about."""

from __future__ import annotations

from typing import Any

import numpy as np

from distdl.data.classes import MAX_CLASSES, in_order
from distdl.data.table.encode import not_a_number
from distdl.data.table.fit import scaled
from distdl.data.table.kinds import check_range
from distdl.data.table.options import TableOptions
from distdl.data.table.profile import Profile
from distdl.data.table.reader import Table
from distdl.data.table.values import is_date, is_number, is_text
from distdl.errors import InputError

VERSION = 1
OF_PIECES = 2
"""Version of the record of `x` where numbers are cut into pieces, which the first one does not know."""


def check_answer(options: TableOptions, table: Table, found: Profile, name: str) -> None:
    """InputError for a label or a target (`name`) whose values cannot be learned, or that lacks one where that is to be
    refused."""
    look = found.looks[name]
    if options.unlabelled == "refuse" and look.missing:
        what = f"the column '{look.name}' has the value '', which is not "
        what += "one of the classes" if options.label else "a finite number"
        raise InputError(what, where=table.place(look.first_missing), fix="fill it in, or unlabelled=drop")
    if options.label:
        assert look.words is not None
        if look.words.too_many:
            raise InputError(
                f"the column '{look.name}' of {table.path} has more than {MAX_CLASSES:,} different values",
                fix=f"predict it as a number: target={look.name}",
            )
        return
    if is_date(look.type) or not (is_text(look.type) or is_number(look.type)):
        raise InputError(f"the column '{look.name}' of {table.path} has the type {look.type}", allowed="numbers")
    if look.strange:
        fix = f"correct it, name it in na=, or predict classes: label={look.name}"
        raise not_a_number(look.name, min(look.strange_words), table.place(look.first_strange), fix)
    check_range(found, look.name, table)


def label_record(options: TableOptions, table: Table, found: Profile) -> dict[str, Any]:
    """How the column `label` came about. `undotted`: a table whose words have a dot behind each is read without it."""
    name, record = options.label, {"kind": "class", "version": VERSION, "name": options.label}
    if name in table.classes:
        return {**record, "classes": list(table.classes[name]), "numbered": True}
    words = found.looks[name].words
    assert words is not None
    return {**record, "classes": in_order(words.counts), "undotted": True}


def target_record(options: TableOptions, found: Profile) -> dict[str, Any]:
    """How the column `y` came about. `center`: about the mean, in the file's units."""
    name = options.target
    column = found.index(name)
    scale = scaled(found.numbers, column, options.target_scale)
    center = float(np.mean(found.numbers.sample(column)))
    return {"kind": "number", "version": VERSION, "name": name, "scale": scale, "center": center}
