"""A trained model that is asked: its weights, and the record by which files become what it reads and answers become words.

model = Model(find_run("adult", "runs"))
told = model.tell(["new.csv"], "answers.csv")
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distdl import driver
from distdl.errors import InputError
from distdl.run.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import torch

    from distdl.data.asking.open import How, Ways
    from distdl.data.asking.question import Asking, Bad, Question
    from distdl.data.asking.told import Teller, Wish
    from distdl.data.progress import Follow, Progress
    from distdl.data.raw import Rows

SHOWN = 20
"""Bad rows that are told one by one."""
BATCH = 256
"""Rows that the model is asked about at a time."""


@dataclass
class Told:
    """What came of a question."""

    rows: int = 0
    set_aside: int = 0
    """Rows that could not be read, and stand in the answers as empty ones."""
    lost: int = 0
    """Lines among them that are no rows at all, and stand nowhere in the answers."""
    bad: list[Bad] = field(default_factory=list)
    """The first of them."""
    notes: dict[str, int] = field(default_factory=dict)
    beside: Path | None = None
    """File that all of them are told of in."""

    def see(self, question: Question) -> None:
        lost = len(question.bad) - int((~question.real).sum())
        self.lost += lost
        self.rows += len(question.real) + lost
        if question.bad and self.beside is not None:
            with self.beside.open("a" if self.set_aside else "w", encoding="utf-8") as file:
                file.writelines(json.dumps({"where": bad.where, "why": bad.why}) + "\n" for bad in question.bad)
        self.set_aside += len(question.bad)
        self.bad += question.bad[: SHOWN - len(self.bad)]
        for note, times in question.notes.items():
            self.notes[note] = self.notes.get(note, 0) + times


class Model:
    """The model of a run's checkpoint, on one device, in evaluation mode."""

    def __init__(
        self, folder: RunFolder, which: str = "latest", device: str = "cpu", batch: int = BATCH, here: bool = True
    ) -> None:
        """`device`: where it answers; unless `here`, that is in other processes. InputError."""
        from distdl.data.asking.open import Ways
        from distdl.families import load_family, model_config
        from distdl.learner.units import Units

        if batch < 1:
            raise InputError(f"--batch is {batch}", allowed="at least 1")
        config, learner, checkpoint = driver.trained(folder, which)
        self.folder, self.config, self.step, self.batch = folder, config, checkpoint.step, batch
        self.checkpoint = checkpoint.path.absolute()
        self.asked_on = device
        self.device = usable(device if here else "cpu")
        self.learner = learner.to(self.device).eval()
        record = checkpoint.preparation
        self.learner.file_units = Units.of({"columns": record})
        family, model = load_family(config.model["family"]), model_config(config.model)
        self.tells, self.columns = family.tells(model), family.columns(model)
        self.ways: Ways = Ways(family.asked(model), record, checkpoint.reading, str(config.family), self.columns)
        self.tasks = list(record.get("y", {}).get("tasks", ()))

    def refuse_unasked(self) -> None:
        """InputError for a family whose questions have no answers."""
        if not self.tells:
            what = f"the family {self.config.family} says of no question what its answer is"
            raise InputError(what, fix="`distdl sample` draws from it, where it makes samples; or give it `tells`")

    def answers(self, rows: Mapping[str, Any], embedding: bool = False) -> dict[str, np.ndarray]:
        """Columns that the model reads -> its answers, `batch` rows at a time. InputError: they have another shape."""
        import numpy as np
        import torch

        self._check(rows)
        n = len(next(iter(rows.values())))
        parts: list[dict[str, np.ndarray]] = []
        for first in range(0, n, self.batch):
            batch = {
                name: torch.from_numpy(np.ascontiguousarray(column[first : first + self.batch])).to(self.device)
                for name, column in rows.items()
            }
            found = self.learner.predict(batch, embedding=embedding)
            parts.append({name: tensor.cpu().numpy() for name, tensor in found.items()})
        return {name: joined([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _check(self, rows: Mapping[str, Any]) -> None:
        for name, column in self.ways.asked.items():
            if name not in rows:
                raise InputError(f"the model reads '{name}', which is not there", allowed=", ".join(self.ways.asked))
            have = rows[name].shape[1:]
            wanted = column.shape
            if len(have) != len(wanted) or any(a not in (None, b) for a, b in zip(wanted, have, strict=True)):
                what = f"'{name}' has rows of the shape {list(have)}, and the model reads {list(wanted)}"
                raise InputError(what, fix="prepare it as the data set was that the model learned from")

    # -- questions in files ------------------------------------------------------------------------------------------------

    def teller(self, wish: Wish) -> Teller:
        from distdl.data.asking.told import Teller

        return Teller(self.tells, self.ways.record, wish, self.ways.tokenizer, self.tasks)

    def tell(
        self,
        paths: Sequence[str],
        out: str,
        form: str,
        wish: Wish,
        how: How,
        overwrite: bool = False,
        follow: Follow | None = None,
        texts: Sequence[str] = (),
    ) -> Told:
        """Writes the answers to files (or `texts`), in their order; a row that cannot be read is an empty one, and is told
        of in a file beside. InputError."""
        from distdl.data.asking.write import writing
        from distdl.data.progress import Progress

        self.refuse_unasked()
        self.teller(wish)  # refuses what the wish lacks
        told = Told(beside=None if out == "-" else Path(f"{out}.bad.jsonl"))
        progress = Progress("predict", {"paths": tuple(paths)})
        with writing(out, form, overwrite) as writer, follow(progress) if follow else contextlib.nullcontext():
            asked = iter([("", self._of_texts(texts))]) if texts else self._asked(paths, how, progress)
            for columns in self._columns(asked, wish, told):
                writer.write(columns)
                progress.rows = told.rows
        return told

    def _of_texts(self, texts: Sequence[str]) -> Asking:
        from distdl.data.asking.texts import of_texts

        if (read := self.ways.lines) is None:
            raise InputError(f"this model reads {', '.join(self.ways.asked)}, and no text", fix="give a file")
        return of_texts(read, ((f"text {i}", text) for i, text in enumerate(texts)))

    def _asked(self, paths: Sequence[str], how: How, progress: Progress | None = None) -> Iterator[tuple[str, Asking]]:
        """What is asked about one path after another, and the path where there are several."""
        from distdl.data.asking.open import questions, spooled
        from distdl.data.asking.question import STDIN, called

        for path in paths:
            with spooled(self.ways, how.source) if path == "-" else contextlib.nullcontext(path) as place:
                asking = questions(self.ways, place, how)
                asking = called(asking, place, STDIN) if path == "-" else asking
                if progress and len(paths) == 1:
                    progress.total = asking.total
                yield path if len(paths) > 1 else "", asking

    def _columns(self, asked: Iterator[tuple[str, Asking]], wish: Wish, told: Told) -> Iterator[dict[str, Any]]:
        from distdl.data.asking.write import columns_of
        from distdl.data.workers import current
        from distdl.model.asked import Answered, Asker, Counter

        def answered() -> Iterator[Answered]:
            counter = Counter()
            for path, asking in asked:
                for question, columns in current().each(Asker(self, asking.read, wish), counter.portions(asking)):
                    question = asking.finish(question)
                    if path and "file" not in question.about:
                        question.about["file"] = [path] * len(question.real)
                    told.see(question)
                    yield question, columns

        return columns_of(answered())

    def told_of(self, rows: Any, wish: Wish) -> list[dict[str, Any]]:
        """The answers to rows in memory: mappings of the columns of a table, texts, arrays of the columns that the model
        reads, or the path of a file. InputError: a row that cannot be read."""
        from distdl.data.asking.open import How, rows_as_table
        from distdl.data.asking.tables import of_table

        self.refuse_unasked()
        if isinstance(rows, str | Path):
            _, asking = next(self._asked([str(rows)], How()))
        elif isinstance(rows, Mapping) and self.ways.asked.keys() <= rows.keys():
            asking = self._of_arrays(rows)
        elif self.ways.lines is not None and all(isinstance(row, str) for row in rows):
            asking = self._of_texts(rows)
        elif self.ways.of_tables:
            asking = of_table(self.ways.record, rows_as_table(rows))
        else:
            raise InputError(
                f"the model reads {', '.join(self.ways.asked)}", fix="give arrays of them by name, or a path"
            )
        found, bad = self.rows_told(asking, wish)
        if bad:
            raise InputError(f"{bad[0].where}: {bad[0].why}" if bad[0].where else bad[0].why)
        return [answer for answer in found if answer is not None]

    def rows_told(self, asked: Iterable[Question], wish: Wish) -> tuple[list[dict[str, Any] | None], list[Bad]]:
        """What is told of each row, in their order, None of those that could not be read; and why these could not."""
        from distdl.data.asking.told import plain
        from distdl.data.asking.write import columns_of
        from distdl.model.asked import Answered, answered_here

        real: list[bool] = []
        bad: list[Bad] = []
        found: list[dict[str, Any]] = []

        def seen() -> Iterator[Answered]:
            for question, columns in answered_here(self, asked, wish):
                real.extend(question.real.tolist())
                bad.extend(question.bad)
                yield question, columns

        for columns in columns_of(seen()):
            values = {name: plain(column) for name, column in columns.items() if name not in ("row", "text", "file")}
            rows_of_these = len(next(iter(columns.values())))
            found += [dict(zip(values, row)) for row in zip(*values.values())] or [{}] * rows_of_these
        return [answer if is_real else None for answer, is_real in zip(found, real, strict=True)], bad

    def _of_arrays(self, rows: Mapping[str, Any]) -> Asking:
        import numpy as np

        from distdl.data.asking.question import Asking, Question

        columns: Rows = {name: np.asarray(values) for name, values in rows.items()}
        n = len(next(iter(columns.values())))
        return Asking(iter, [(n, [Question({"row": list(range(n))}, columns, np.ones(n, bool))])])


def usable(device: str) -> torch.device:
    """A device by its name. InputError: there is none such."""
    import torch

    gpus = torch.cuda.device_count()
    allowed = ", ".join(["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))])
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(f"--device is {device!r}", allowed=allowed) from None
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise InputError(f"--device is {device!r}, and torch sees {gpus} GPUs here", allowed=allowed)
    return found


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one behind the other; rows of whole numbers may be of other lengths, and are filled up with -1."""
    import numpy as np

    if parts[0].ndim > 1 and parts[0].dtype.kind in "iu":
        width = max(part.shape[1] for part in parts)
        rest = ((0, 0),) * (parts[0].ndim - 2)
        parts = [np.pad(p, ((0, 0), (0, width - p.shape[1]), *rest), constant_values=-1) for p in parts]
    return np.concatenate(parts)
