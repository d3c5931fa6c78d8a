"""Answers as columns that people read: names of classes, numbers in their units, words, files of pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distdl.data.asking.series import restored
from distdl.data.text.tokens import Tokenizer
from distdl.data.vocabulary import KIND, sentence
from distdl.errors import InputError
from distdl.learner.answers import Answer

WIDEST = 1000
"""Values of an answer that become a column each; more become one column of lists."""
Found = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Wish:
    """What is to be told beside the answer itself."""

    top_k: int = 1
    """The so many likeliest of several classes."""
    probabilities: bool = False
    """Of every class, a column each."""
    embeddings: bool = False
    pictures: Path | None = None
    """Folder for answers that are pictures."""
    inline: bool = False
    """They come as PNG in base64 instead."""


class Teller:
    """Makes columns of answers. `tells`: what each means; `record`: how columns of the data set came from raw ones."""

    def __init__(
        self,
        tells: Mapping[str, Answer],
        record: Mapping[str, Mapping[str, Any]],
        wish: Wish,
        tokenizer: Tokenizer | None = None,
        tasks: Sequence[str] = (),
    ) -> None:
        self.tells, self.record, self.wish, self.tokenizer, self.tasks = tells, record, wish, tokenizer, tasks
        of_pictures = any(answer.kind in ("picture", "mask") for answer in tells.values())
        if wish.pictures is None and not wish.inline and of_pictures:
            raise InputError("this model answers with pictures", fix="--pictures FOLDER says where they go")

    def columns(self, found: Found, numbers: Sequence[int]) -> dict[str, pa.Array]:
        """The answers to rows of these numbers, which name the files of pictures."""
        columns: dict[str, pa.Array] = {}
        both = "class" in self.tells
        for name, answer in self.tells.items():
            if name not in found or (answer.kind == "embedding" and not self._asked_for(name)):
                continue
            values = found[name]
            if answer.kind in ("probabilities", "scores"):
                columns |= self._ranked(name, answer, values, with_class=both)
            elif answer.kind == "class" and values.ndim == 1 and {"probabilities", "scores"} & self.tells.keys():
                columns[self._name(name, answer)] = self._words(answer, values)
            elif answer.kind in ("picture", "mask"):
                columns[name] = self._pictures(name, answer, values, numbers)
            else:
                columns |= getattr(self, f"_of_{answer.kind}")(name, answer, values)
        if self.wish.embeddings and "embedding" in found and "embedding" not in self.tells:
            columns["embedding"] = _lists(found["embedding"])
        return columns

    def _asked_for(self, name: str) -> bool:
        return self.wish.embeddings or all(answer.kind == "embedding" for answer in self.tells.values())

    # -- kinds of answers --------------------------------------------------------------------------------------------------

    def _ranked(self, name: str, answer: Answer, values: np.ndarray, with_class: bool) -> dict[str, pa.Array]:
        """The likeliest classes with what speaks for each of them, and all of them where that is wished for."""
        one = "probability" if answer.kind == "probabilities" else "score"
        called = self._name("class" if with_class else name, answer)
        order = np.argsort(-values, axis=-1, kind="stable")[:, : self.wish.top_k]
        columns: dict[str, pa.Array] = {}
        for place in range(order.shape[1]):
            behind = "" if place == 0 else f" {place + 1}"
            if behind or not with_class:
                columns[called + behind] = self._words(answer, order[:, place])
            columns[one + behind] = pa.array(np.take_along_axis(values, order[:, place : place + 1], -1)[:, 0])
        if self.wish.probabilities:
            columns |= self._one_each(called, answer, values, "=")
        return columns

    def _one_each(self, name: str, answer: Answer, values: np.ndarray, joint: str) -> dict[str, pa.Array]:
        if values.shape[1] > WIDEST:
            return {f"{name} (all)": _lists(values)}
        words = self._words(answer, np.arange(answer.first, answer.first + values.shape[1])).to_pylist()
        return {f"{name}{joint}{word}": pa.array(values[:, i]) for i, word in enumerate(words)}

    def _of_class(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        if values.ndim == 1:
            return {self._name(name, answer): self._words(answer, values)}
        return {name: _lists(values)}

    def _of_chances(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        if values.shape[1] == 1:
            return {name: pa.array(values[:, 0])}
        if len(self.tasks) == values.shape[1]:
            return {task: pa.array(values[:, i]) for i, task in enumerate(self.tasks)}
        return self._one_each(name, answer, values, "=")

    def _of_values(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        called, values = self._name(name, answer), restored(self.record.get(answer.of, {}), values)
        if values.ndim == 1:
            return {called: pa.array(values)}
        if values.ndim == 2 and values.shape[1] <= WIDEST:
            return {f"{called}[{i}]": pa.array(values[:, i]) for i in range(values.shape[1])}
        return {called: _lists(values)}

    def _of_tokens(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        return {name: pa.array(spoken(answer, self.record, self.tokenizer, values), pa.string())}

    def _of_embedding(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        return {name: _lists(values)}

    def _of_cell(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        return {f"{name} row": pa.array(values[:, 0]), f"{name} column": pa.array(values[:, 1])}

    def _of_action(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        return {name: self._words(answer, values) if values.dtype.kind in "iu" else pa.array(values)}

    def _of_boxes(self, name: str, answer: Answer, values: np.ndarray) -> dict[str, pa.Array]:
        return {name: _lists(values)}

    _of_nodes = _of_boxes

    def _pictures(self, name: str, answer: Answer, values: np.ndarray, numbers: Sequence[int]) -> pa.Array:
        if self.wish.inline:
            return pa.array([base64.b64encode(png(pixels)).decode() for pixels in values], pa.string())
        assert self.wish.pictures is not None
        paths = []
        for number, pixels in zip(numbers, values, strict=True):
            path = self.wish.pictures / f"{number:06d}-{name}.png"
            write_picture(path, pixels)
            paths.append(str(path))
        return pa.array(paths, pa.string())

    # -- words -------------------------------------------------------------------------------------------------------------

    def _name(self, name: str, answer: Answer) -> str:
        """What the file called the column that is told."""
        return str(self.record.get(answer.of, {}).get("name") or name)

    def _words(self, answer: Answer, numbers: np.ndarray) -> pa.Array:
        """Names of classes or tokens by their numbers, where there are names; nothing for NOTHING."""
        if answer.of == "tokens" and self.tokenizer is not None:
            return pa.array([self.tokenizer.decode([i]) for i in numbers.tolist()], pa.string())
        classes = self.record.get(answer.of, {}).get("classes")
        blank = numbers < 0
        if classes and (not numbers.size or int(numbers.max()) < len(classes)):
            return pa.array(classes, pa.string()).take(pa.array(numbers, pa.int64(), mask=blank))
        return pa.array(numbers, pa.int64(), mask=blank)


def spoken(
    answer: Answer, record: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer | None, values: np.ndarray
) -> list[str]:
    """Rows of numbers of tokens, words or labels (n, T) as texts; what is below 0 is none."""
    rows = [row[row >= 0].tolist() for row in values]
    if tokenizer is not None and answer.of == "tokens":
        return [tokenizer.decode(row) for row in rows]
    of = record.get(answer.of, {})
    if of.get("kind") == KIND:
        return [sentence(of, row) for row in rows]
    classes = of.get("classes")
    return [between(of).join(classes[i] if classes else str(i) for i in row) for row in rows]


def between(record: Mapping[str, Any]) -> str:
    """What stands between two labels of a string: nothing between letters, a blank between words."""
    classes = record.get("classes")
    return "" if classes and all(len(word) == 1 for word in classes) else " "


def _lists(values: np.ndarray) -> pa.Array:
    """(n, D) as lists of one length; more dimensions as lists of lists."""
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values.tolist())


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """A picture (C, H, W) from 0 to 1, or classes of pixels (H, W) as grey levels, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))


def png(pixels: np.ndarray) -> bytes:
    """The same, as the bytes of a file."""
    from PIL import Image

    if pixels.dtype.kind == "f":
        pixels = np.round(np.clip(pixels, 0, 1) * 255)
    levels = pixels.astype(np.uint8)
    if levels.ndim == 3:
        levels = levels[0] if levels.shape[0] != 3 else levels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(levels)).save(file, "PNG")
    return file.getvalue()


def grid(pictures: np.ndarray) -> np.ndarray:
    """(n, C, H, W) -> one picture (C, rows H, columns W), as square as it gets."""
    n, channels, height, width = pictures.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    room = np.zeros((rows * columns, channels, height, width), pictures.dtype)
    room[:n] = pictures
    tiled = room.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return tiled.reshape(channels, rows * height, columns * width)


# -- one answer for a person or a program -------------------------------------------------------------------------------


def plain(column: pa.Array) -> list[Any]:
    """A column as Python's values. Numbers of single precision have the digits that they are known to."""
    of = column.type
    if column.null_count and (pa.types.is_float32(of) or pa.types.is_fixed_size_list(of)):
        there = iter(plain(column.drop_null()))
        return [next(there) if valid else None for valid in column.is_valid().to_pylist()]
    if pa.types.is_float32(of):
        return [float(text) for text in column.to_numpy(zero_copy_only=False).astype(str)]
    if pa.types.is_fixed_size_list(of) and pa.types.is_float32(of.value_type):
        values, size = plain(column.flatten()), of.list_size
        return [values[i : i + size] for i in range(0, len(values), size)]
    return column.to_pylist()


def in_a_cell(value: Any) -> Any:
    """A value as it stands in CSV."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | dict) else value


Columns = Callable[[Found, Sequence[int]], dict[str, pa.Array]]
