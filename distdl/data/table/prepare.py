"""Tables -> `x`, `label` or `y`: what all sources of tables share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distdl.data.classes import in_order
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.splits import check_fraction, hold_out
from distdl.data.table.options import TableOptions
from distdl.data.table.reader import Table
from distdl.errors import InputError, Problem, did_you_mean

MAX_CLASSES = 10_000  # a column with more distinct values is not a label


def prepare_table(options: TableOptions, table: Table, others: Mapping[str, Table] | None = None) -> Prepared:
    """`x` float32 (F,), and `label` int64 with its class names in the info, or `y` float32. The table is read twice:
    for the classes, then for the rows. InputErrors name the file, the line, the column and the value.

    `others`: split -> a table of the same columns that is that split; then nothing is held out of `table`."""
    check_fraction(options.test_fraction)
    features = _choose_features(options, table)
    classes = _classes(table, options.label) if options.label else []
    columns = {"x": Column("float32", (len(features),))}
    if options.label:
        columns["label"] = Column("int64")
    if options.target:
        columns["y"] = Column("float32")
    info: dict[str, Any] = {
        "features": features,
        **({"classes": classes} if classes else {}),
        **({"target": options.target} if options.target else {}),
    }

    def chunks() -> Iterator[tuple[str, Rows]]:
        yield from hold_out(_rows(table, options, features, classes), 0 if others else options.test_fraction)
        for split, other in (others or {}).items():
            for rows in _rows(other, options, features, classes):
                yield split, rows

    return Prepared(columns, chunks(), info)


def _choose_features(options: TableOptions, table: Table) -> list[str]:
    chosen = [("label", options.label), ("target", options.target), *(("features", name) for name in options.features)]
    problems = [
        Problem(f"{table.path} has no column '{name}', which {key}= names", fix=did_you_mean(name, table.names))
        for key, name in chosen
        if name and name not in table.names
    ]
    if options.label and options.target:
        problems.append(Problem("both label= and target= are given", fix="label= for classes, target= for a number"))
    if not (options.label or options.target or options.features):
        problems.append(
            Problem(
                "neither label= (classes) nor target= (a number) is given",
                fix="name the column to predict, or features= alone for unlabelled data",
                allowed=", ".join(table.names),
            )
        )
    if problems:
        raise InputError(*problems)
    features = list(options.features) or [name for name in table.names if name not in (options.label, options.target)]
    if not features:
        raise InputError(f"{table.path} has no columns left as features")
    return features


def _classes(table: Table, label: str) -> list[str]:
    """The distinct values of the label column, in their order."""
    found: set[str] = set()
    for batch in table.batches([label]):
        found.update(value for value in pc.unique(_texts(batch.column(0))).to_pylist() if value)
        if len(found) > MAX_CLASSES:
            raise InputError(
                f"the column '{label}' of {table.path} has more than {MAX_CLASSES:,} different values",
                fix=f"predict it as a number: target={label}",
            )
    return in_order(found)


def _rows(table: Table, options: TableOptions, features: list[str], classes: list[str]) -> Iterator[Rows]:
    numbers = {name: i for i, name in enumerate(classes)}
    wanted = list(dict.fromkeys([*features, *filter(None, (options.label, options.target))]))
    row = 0
    for batch in table.batches(wanted):
        columns = {name: batch.column(wanted.index(name)) for name in wanted}
        rows: Rows = {"x": np.stack([_numbers(columns[name], table, name, row) for name in features], axis=1)}
        if options.label:
            values = _texts(columns[options.label]).to_pylist()
            for i, value in enumerate(values):
                if value not in numbers:
                    raise InputError(
                        f"the column '{options.label}' has the value {value!r}, which is not one of the classes "
                        "of the table",
                        where=table.place(row + i),
                        allowed=", ".join(classes[:20]),
                    )
            rows["label"] = np.array([numbers[value] for value in values], np.int64)
        if options.target:
            rows["y"] = _numbers(columns[options.target], table, options.target, row)
        row += batch.num_rows
        if batch.num_rows:
            yield rows


def _texts(values: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(pc.cast(values, pa.string()))


def _numbers(values: pa.Array, table: Table, name: str, first_row: int) -> np.ndarray:
    """A column as finite float32 (n,). InputError that names the first value that is not a number."""
    texts = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    try:
        cast = pc.cast(_texts(values) if texts else values, pa.float64())
        with np.errstate(over="ignore"):  # what does not fit float32 becomes inf and is refused below
            found = cast.to_numpy(zero_copy_only=False).astype(np.float32)
        if not cast.null_count and np.isfinite(found).all():
            return found
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    for i, value in enumerate(values.to_pylist()):
        if not _is_finite(value):
            raise InputError(
                f"the column '{name}' has the value {value!r}, which is not a finite number",
                where=table.place(first_row + i),
                fix=f"correct it, or leave '{name}' out by listing features=...",
            )
    raise InputError(f"the column '{name}' of {table.path} has the type {values.type}", allowed="numbers")


def _is_finite(value: Any) -> bool:
    try:
        return abs(float(value)) <= float(np.finfo(np.float32).max)
    except (TypeError, ValueError):
        return False
