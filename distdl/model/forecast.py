"""What series do next, as a table: a line for each series and step, in the numbers and at the moments of the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl.errors import InputError
from distdl.model.drawn import gone_on, makes
from distdl.model.model import Model, Told

if TYPE_CHECKING:
    from distdl.data.asking.open import How
    from distdl.data.asking.series import Series
    from distdl.data.progress import Follow
    from distdl.model.asked import Answered

SCALED = "series are forecast in the numbers of the data set, which does not say how each was scaled"


def forecasts(model: Model, paths: Sequence[str], horizon: int | None) -> bool:
    """Whether such files are answered with a table of forecasts: where a horizon is asked for, and of `.tsf` files, whose
    head may say one. InputError: a horizon of something that goes on with no series."""
    from distdl.data.asking.data_sets import is_data_set
    from distdl.data.asking.series import of_many

    if horizon is not None and horizon < 1:
        raise InputError(f"--horizon is {horizon}", allowed="at least 1")
    goes_on = makes(model) == "series" and set(model.ways.asked) == {"x"}
    if horizon is not None and not goes_on:
        what = (
            f"--horizon {horizon} is about models of series that go on, and this one answers {', '.join(model.tells)}"
        )
        raise InputError(what, fix="leave it out")
    raw = any(not is_data_set(path) for path in paths)
    return goes_on and bool(paths) and (horizon is not None or (raw and of_many(model.ways.record.get("x", {}))))


def tell(
    model: Model,
    paths: Sequence[str],
    out: str,
    form: str,
    how: How,
    horizon: int | None,
    overwrite: bool = False,
    follow: Follow | None = None,
) -> Told:
    """Writes the forecasts of the series in files or data sets, in their order; of one that cannot be gone on with an
    empty line. InputError."""
    from distdl.data.asking.open import spooled
    from distdl.data.asking.question import STDIN
    from distdl.data.asking.write import writing
    from distdl.data.progress import Progress

    told = Told(beside=None if out == "-" else Path(f"{out}.bad.jsonl"))
    progress = Progress("predict", {"paths": tuple(paths)})

    def answered() -> Iterator[Answered]:
        for path in paths:
            with spooled(model.ways, how.source) if path == "-" else contextlib.nullcontext(path) as place:
                named = STDIN if path == "-" else path
                yield from _of(model, place, how.split, horizon, named, len(paths) > 1)

    with writing(out, form, overwrite) as writer, follow(progress) if follow else contextlib.nullcontext():
        for question, columns in answered():
            told.see(question)
            progress.rows = told.rows
            writer.write(columns)
    return told


def _of(model: Model, path: str, split: str, horizon: int | None, named: str, several: bool) -> Iterator[Answered]:
    """Some series at a time: which these are, and the lines of their forecasts. `named`: what the file is called."""
    import numpy as np

    from distdl.data.asking.question import Question, why
    from distdl.data.asking.series import ahead, horizon_of

    record = model.ways.record.get("x", {})
    steps = horizon or horizon_of(path) or 1
    notes: dict[str, int] = {}
    for some in _together(model, _series(model, path, split, notes)):
        real = np.array([not isinstance(one, InputError) for one in some])
        good: list[Series] = [one for one in some if not isinstance(one, InputError)]
        found: Any = gone_on(model, np.stack([one.read() for one in good]), steps) if good else []
        values = [one.restored(more) for one, more in zip(good, found)]
        bad = [why(one) for one in some if isinstance(one, InputError)]
        bad = [replace(one, where=one.where.replace(path, named)) for one in bad]
        columns = ahead(record, some, values, path, named, several)
        yield Question({}, {}, real, bad, dict(notes)), columns
        notes.clear()


def _series(model: Model, path: str, split: str, notes: dict[str, int]) -> Iterator[Series | InputError]:
    """Those of a raw file, or the rows of a data set; an error in the place of one that cannot be gone on with."""
    import numpy as np

    from distdl.data.asking.data_sets import is_data_set, of_data_set, refuse_other_preparation
    from distdl.data.asking.series import KIND, Series, each_series

    record = model.ways.record.get("x", {})
    if not is_data_set(path):
        if record.get("kind") != KIND:
            what = f"how {path} becomes what the family {model.config.family} reads is not in the checkpoint"
            raise InputError(what, fix="prepare it into a data set (distdl data prepare), and give that folder")
        for one in each_series(record, path):
            if isinstance(one, Series) and len(one.values) < record["length"] - 1:
                short = (
                    f"series have fewer values than the {record['length'] - 1:,} that the model learned from at a time"
                )
                notes[short] = notes.get(short, 0) + 1
            yield one
        return
    scale: Any = record.get("scale", {"shift": 0.0, "divide": 1.0})
    known = "scale" in record or record.get("normalise") == "none"
    shift, divide = (np.atleast_1d(np.asarray(scale[key], np.float64)) for key in ("shift", "divide"))
    number = 0
    refuse_other_preparation(model.ways.record, path, ["x"])
    for question in of_data_set(path, split, model.ways.asked):
        for row in question.rows["x"]:
            if not known:
                notes[SCALED] = notes.get(SCALED, 0) + 1
            yield Series(f"row {number}", row * divide + shift, shift, divide)
            number += 1


def _together(model: Model, found: Iterator[Series | InputError]) -> Iterator[list[Series | InputError]]:
    """Series of one shape that follow each other, as many as the model is asked about at a time."""
    some: list[Series | InputError] = []
    for one in found:
        shapes = {tuple(other.values.shape) for other in (*some, one) if not isinstance(other, InputError)}
        if some and (len(some) == model.batch or len(shapes) > 1):
            yield some
            some = []
        some.append(one)
    if some:
        yield some
