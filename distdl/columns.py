"""What a family asks of a column of the data set: shape, type, range, missing value and meaning.

    Column.label(10)                    class numbers 0 to 9, -100 for "no label"
    Column.mask(2, (64, 64))            the same of every pixel
    Column.tokens(256, (33,))           token numbers 0 to 255
    Column.whole(0, 1, (32,))           other whole numbers
    Column.sample((1, 28, 28))          a picture, or other numbers of which bytes are scaled to 0..1 (see nn/images.py)
    Column.numbers((8,))                real numbers as they are
    Column.answers((12,))               0, 1 or missing

`Column(shape)` asks for the shape alone. Bounds come from the config, so that the message of a value outside them can name
the key. Checked before a run starts, against what the data set's manifest tells of its values (data/fit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NO_LABEL = -100
"""The class number that says "no label": in no loss and in no metric, as torch and its relatives have it."""
PICTURE_LIMIT = 20.0
"""What a pixel of another type than uint8 may be away from 0: more than standardised pictures reach, less than bytes do."""

Shape = tuple[int | None, ...]


def in_digits(value: float) -> str:
    """A number in a message: a whole one to its last digit."""
    return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class Column:
    """What a family asks of a column. Most are made by one of the named constructors below."""

    shape: Shape
    """Shape of one sample, leading dimensions (None: any length)."""
    kind: Literal["any", "class", "whole", "real", "sample", "answer"] = "any"
    """class: the number of one, read as int64. whole: an integer type. real: numbers, read as floating point. sample: the
    same, but bytes are scaled to 0..1. answer: 0 or 1, else missing. any: not asked."""
    low: float | None = None
    """Smallest value allowed (of a sample: after scaling); None: any."""
    high: float | None = None
    """Largest value allowed; None: any."""
    missing: int | None = None
    """The value that stands for "not known" and counts nowhere; None: every value must be there."""
    meaning: str = ""
    """What a value is, such as `class`; messages say it."""
    key: str = ""
    """Key of the `model:` section that sets `high`."""
    within: str = ""
    """Another column, of whose first dimension this one is a number of places: it may not be larger."""
    filler: int | None = None
    """A value that fills up a row of fewer places, where nobody reads it: it may lie outside the range."""
    lengths: str = ""
    """Another column, which says how many of the steps (the dimension before the last) count, where the data set has it: a
    family that takes one step after the other must read that one, too, or have rows without padding."""

    @staticmethod
    def label(
        classes: int,
        shape: Shape = (),
        *,
        key: str = "classes",
        missing: int | None = NO_LABEL,
        meaning: str = "class",
        filler: int | None = None,
    ) -> Column:
        """Numbers of classes, from 0. `missing=None` for a family that cannot do without one."""
        return Column(shape, "class", 0, classes - 1, missing, meaning, key, filler=filler)

    @staticmethod
    def mask(classes: int, shape: Shape, *, key: str = "classes") -> Column:
        """The class of every pixel; with one class 1 is that class and 0 is what is not."""
        key = key if classes > 1 else ""  # the key says 1, and no other number of it is the cure
        return Column(shape, "whole", 0, max(classes, 2) - 1, NO_LABEL, "class of a pixel", key)

    @staticmethod
    def tokens(vocabulary: int, shape: Shape, *, key: str = "vocabulary", meaning: str = "token") -> Column:
        """Numbers of tokens or words, from 0."""
        return Column(shape, "whole", 0, vocabulary - 1, None, meaning, key)

    @staticmethod
    def whole(
        low: int | None, high: int | None, shape: Shape = (), *, meaning: str = "whole number", within: str = ""
    ) -> Column:
        """Whole numbers of another kind: lengths, places, flags."""
        return Column(shape, "whole", low, high, None, meaning, "", within)

    @staticmethod
    def numbers(
        shape: Shape = (), low: float | None = None, high: float | None = None, *, meaning: str = "number"
    ) -> Column:
        """Real numbers, taken as they are. Whole ones are read as floating point, where that keeps them exactly."""
        return Column(shape, "real", low, high, None, meaning)

    @staticmethod
    def sample(shape: Shape, low: float | None = None, high: float | None = None) -> Column:
        """What `to_unit` takes: bytes, which become 0..1, or real numbers as they are. Three dimensions are a picture,
        whose numbers must be scaled already; `low` and `high` where the family needs a narrower range."""
        picture = len(shape) == 3
        if picture and low is None and high is None:
            low, high = -PICTURE_LIMIT, PICTURE_LIMIT
        return Column(shape, "sample", low, high, None, "pixel" if picture else "number")

    @staticmethod
    def answers(shape: Shape = ()) -> Column:
        """0 and 1, in integers or reals; whatever is neither is missing, and counts nowhere."""
        return Column(shape, "answer", 0, 1, None, "answer")

    def allowed(self) -> str:
        """The values that it takes, in words."""
        low, high = (in_digits(bound) if bound is not None else None for bound in (self.low, self.high))
        of_range = (
            f"{low} to {high}"
            if low and high
            else f"{low} or more"
            if low
            else f"{high} or less"
            if high
            else "any number"
        )
        told = f" (model.{self.key}: {int(self.high) + 1})" if self.key and self.high is not None else ""
        absent = f", or {self.missing} for no {self.meaning or 'value'}" if self.missing is not None else ""
        scaled = ", or bytes (uint8), which are divided by 255" if self.kind == "sample" else ""
        return of_range + told + absent + scaled


def recording(shape: Shape) -> dict[str, Column]:
    """The columns of a recording: features (frames, bands), and how many of the frames are no padding."""
    return {
        "x": Column.numbers(shape, meaning="feature of a frame"),
        "frames": Column.whole(1, None, meaning="frames of a recording", within="x"),
    }


def sentences(vocabulary: int, places: int) -> dict[str, Column]:
    """The columns of one or two sentences in a row: tokens, and to which of the two each belongs."""
    return {
        "tokens": Column.tokens(vocabulary, (places,)),
        "segments": Column.whole(0, 1, (places,), meaning="segment (0: the first sentence, 1: the second)"),
    }


def language_columns(
    vocabulary: int, context: int, labels: bool, documents: bool, key: str = "vocabulary"
) -> dict[str, Column]:
    """The columns of text that is to be continued: tokens, which of them count, and of which document each is."""
    shape = (context + 1,)
    columns = {"tokens": Column.tokens(vocabulary, shape, key=key)}
    if labels:
        columns["labels"] = Column(shape, "whole", 0, vocabulary - 1, NO_LABEL, "token", key)
    if documents:
        columns["documents"] = Column.whole(0, None, shape, meaning="number of the document in its row")
    return columns
