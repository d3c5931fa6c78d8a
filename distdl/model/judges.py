"""Who tells how right answers are, by what these mean: each gathers truths and answers, and tells of any of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from distdl.model.model import joined

if TYPE_CHECKING:
    import numpy as np

    from distdl.learner.answers import Answer
    from distdl.model.model import Model

Found = Mapping[str, "np.ndarray"]


class Judge(Protocol):
    """One of them. `column`: what is true; `notes`: what is to be said of the metrics."""

    column: str
    notes: list[str]

    def add(self, rows: Found, answers: Found) -> None:
        """Some rows, with the truth among their columns, and the answers to them."""
        ...

    def tell(self, chosen: np.ndarray) -> dict[str, float]:
        """Metrics of the rows for which that (n,) is True."""
        ...


def judge_of(model: Model) -> Judge | None:
    """Who judges the answers of a model; None: nobody knows what is true of them."""
    tells, asked = model.tells, model.ways.asked
    if "class" in tells and {"probabilities", "scores"} & tells.keys():
        return Classes(model, "class", tells["class"])
    for name, answer in tells.items():
        if answer.kind == "values" and name == "value" and answer.of == "y":
            return Values(model, name, answer)
        if answer.kind == "chances" and answer.of == "y":
            return Tasks(model, name, answer)
        if answer.kind == "tokens" and answer.of and answer.of not in asked:
            return Texts(model, name, answer)
        if answer.kind == "picture" and answer.of in asked:  # it is the picture that was shown
            return Pictures(model, name, answer)
        if answer.kind == "mask" and answer.of not in asked:
            return Masks(model, name, answer)
    return None


class _Judge:
    def __init__(self, model: Model, name: str, answer: Answer) -> None:
        self.model, self.name, self.answer, self.column = model, name, answer, answer.of
        self.notes: list[str] = []
        self._truth: list[Any] = []
        self._told: list[Any] = []

    def add(self, rows: Found, answers: Found) -> None:
        self._truth.append(rows[self.column])
        self._told.append(answers[self.name])

    def _all(self) -> tuple[Any, Any]:
        """Truths and answers of all rows; put together once."""
        if len(self._truth) > 1:
            self._truth, self._told = [joined(self._truth)], [joined(self._told)]
        return self._truth[0], self._told[0]

    def _note(self, notes: list[str]) -> None:
        self.notes += [note for note in notes if note not in self.notes]


class Classes(_Judge):
    """Of a class for each row."""

    def add(self, rows: Found, answers: Found) -> None:
        self._truth.append(rows[self.column])
        self._told.append({n: answers[n] for n in ("class", "probabilities", "scores") if n in answers})

    def tell(self, chosen: np.ndarray) -> dict[str, float]:
        from distdl.data.asking import measures

        truth, answers = self._all()
        chosen = chosen & (truth >= 0)
        if not chosen.any():
            return {}
        chances, scores = (answers[n][chosen] if n in answers else None for n in ("probabilities", "scores"))
        ranked = chances if chances is not None else scores
        assert ranked is not None
        if ranked.size > measures.MOST_VALUES:
            self._note(["areas under curves are left out: too many rows times classes to rank"])
        told = answers["class"][chosen]
        return measures.finite(measures.of_classes(truth[chosen], told, chances, scores, ranked.shape[1]))

    def confusion(self) -> tuple[list[Any], list[list[int]]]:
        """The names of the classes, and how many rows of each were taken for each; none of more than 50 classes."""
        from distdl.data.asking import measures

        truth, answers = self._all()
        real, count = truth >= 0, next(answers[n] for n in ("probabilities", "scores") if n in answers).shape[1]
        known = self.model.ways.record.get(self.column, {}).get("classes")
        table = measures.confusion(truth[real], answers["class"][real], count) if count <= 50 and real.any() else []
        return list(known or range(count)), table

    def _all(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if len(self._truth) > 1:
            self._told = [{name: joined([part[name] for part in self._told]) for name in self._told[0]}]
            self._truth = [joined(self._truth)]
        return self._truth[0], self._told[0]


class Values(_Judge):
    """Of a number, or several, for each row."""

    def tell(self, chosen: np.ndarray) -> dict[str, float]:
        import torch

        from distdl.data.asking import measures

        truth, told = (values[chosen].reshape(-1) for values in self._all())
        return measures.finite(
            measures.of_values(self.model.learner.in_file_units(torch.from_numpy(truth)).numpy(), told)
        )


class Tasks(_Judge):
    """Of several questions of yes or no for each row, some of which have no answer."""

    def tell(self, chosen: np.ndarray) -> dict[str, float]:
        from distdl.data.asking.measures_of_media import of_tasks

        truth, told = self._all()
        return of_tasks(truth[chosen], told[chosen], self.model.tasks)


class Texts(_Judge):
    """Of a text, or a string of labels, for each row."""

    def add(self, rows: Found, answers: Found) -> None:
        from distdl.data.asking.told import spoken

        truth = rows[self.column]
        if "length" in rows and "length" not in self.model.ways.asked:
            import numpy as np

            truth = np.where(np.arange(truth.shape[1]) < rows["length"][:, None], truth, -1)
        for values, texts in ((truth, self._truth), (answers[self.name], self._told)):
            texts += spoken(self.answer, self.model.ways.record, self.model.ways.tokenizer, values)

    def tell(self, chosen: np.ndarray) -> dict[str, float]:
        from itertools import compress

        from distdl.data.asking.measures_of_media import of_texts
        from distdl.data.asking.told import between

        record = self.model.ways.record.get(self.column, {})
        unit = "sentence" if self.column != "label" else "word" if between(record) else "character"
        found, notes = of_texts(list(compress(self._truth, chosen)), list(compress(self._told, chosen)), unit)
        self._note(notes)
        return found


class Pictures(_Judge):
    """Of a picture that is restored."""

    def __init__(self, model: Model, name: str, answer: Answer) -> None:
        super().__init__(model, name, answer)
        self._of: dict[str, list[np.ndarray]] = {}
        """Metric -> of each picture."""

    def add(self, rows: Found, answers: Found) -> None:
        from distdl.data.asking.measures_of_media import notes_of_pictures, of_pictures

        truth = rows[self.column]
        truth = truth / 255 if truth.dtype.kind in "iu" else truth
        self._note(notes_of_pictures(min(truth.shape[2:])))
        for name, values in of_pictures(truth, answers[self.name]).items():
            self._of.setdefault(name, []).append(values)

    def tell(self, chosen: np.ndarray) -> dict[str, float]:
        from distdl.data.asking.measures import finite
        from distdl.data.asking.measures_of_media import in_decibels

        self._of = {name: [joined(parts)] for name, parts in self._of.items()}
        of = {name: parts[0][chosen] for name, parts in self._of.items()}
        found = {"psnr": in_decibels(float(of.pop("squared_error").mean()))}
        return finite({**found, **{name: float(values.mean()) for name, values in of.items()}})


class Masks(_Judge):
    """Of a class for each pixel."""

    def add(self, rows: Found, answers: Found) -> None:
        import numpy as np

        truth, told = rows[self.column].astype(np.int64), answers[self.name].astype(np.int64)
        high = self.model.columns[self.column].high
        count = int(high or 1) + 1
        for one, other in zip(truth, told, strict=True):
            real = one >= 0
            pairs = np.bincount(one[real] * count + other[real], minlength=count * count)
            self._truth.append(pairs.reshape(count, count))

    def tell(self, chosen: np.ndarray) -> dict[str, float]:
        from itertools import compress

        from distdl.data.asking.measures_of_media import of_masks

        return of_masks(sum(compress(self._truth, chosen)))
