"""litdata: a folder of chunks with an index.json, as `litdata.optimize` writes it.

    chunk:   items n (uint32), n + 1 places (uint32), the items
    item:    the size of each value (uint32), then the values; index.json says their types and where each belongs

An item may be packed by itself, with its neighbours (LDFZ) or with the whole chunk (.zstd.bin); rows of plain values lie in
an Arrow file behind the items; tokens follow each other without sizes. The layout has no hashes: a flipped bit in a value
cannot be seen, which is told; sizes and places are compared. The library reads pickles, and needs torch and the clients
of clouds: that is why a reader of the layout stands in its place.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distdl.data.advice import SURE, Advice, Wish
from distdl.data.manifest import Column
from distdl.data.raw import Prepared, Rows
from distdl.data.samples.advice import folder_advice, split_folders
from distdl.data.samples.fields import SampleOptions, prepare_samples
from distdl.data.samples.index import item, lists, plain_name, read_index
from distdl.data.samples.litdata_chunk import Chunk, open_chunk
from distdl.data.samples.raw_picture import raw_picture
from distdl.data.samples.values import Picture, Sample
from distdl.data.splits import Splitter
from distdl.errors import InputError

TENSORS = ["float32"] * 2 + ["float64"] * 2 + [""] * 4 + ["float16"] * 2 + ["", "uint8", "int8"] + ["int16"] * 2
TENSORS += ["int32"] * 2 + ["int64"] * 2 + ["bool", "uint16"]
"""Number of a torch type -> NumPy's name; "": complex or bfloat16."""
ARRAYS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
ARRAYS += ["", "", "bool"]
"""The same of NumPy types; "": complex."""
ADVISED_CONTEXT = 128
NO_HASHES = "litdata records no hashes, so only sizes and places are compared"
PICTURES = ("jpeg", "image", "tifffile", "tiff")
PLAIN = ("int", "float", "bool", "str", "text", "bytes", "pil", "numpy", "tensor", *PICTURES)
HEADLESS = ("no_header_numpy", "no_header_tensor")
WORN = (ValueError, KeyError, IndexError, TypeError, struct.error, RecursionError)
"""What decoding damaged bytes stumbles over."""


@dataclass(frozen=True)
class Options(SampleOptions):
    """Options of the source `litdata`."""

    path: str
    """The folder with index.json."""
    context: int = field(default=0, kw_only=True)
    """Tokens that a model sees at once, where the chunks hold tokens alone (TokensLoader); a row holds one more."""


def prepare(options: Options) -> Prepared:
    """Pictures uint8 (C, H, W), `label` int64, numbers and arrays as they are, text and bytes as bytes; or `tokens`."""
    train = _Folder(options.path)
    test = _Folder(options.test_path) if options.test_path else None
    if train.loader == "TokensLoader":
        return _tokens(train, test, options)
    if options.context:
        raise InputError(f"{options.path} holds samples, not tokens alone", fix="leave context= out")
    return prepare_samples("litdata", options, train.read, test.read if test else None, {}, [NO_HASHES])


class _Folder:
    """Chunks that can be read again and again."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.where = str(self.path / "index.json")
        index = read_index(self.path, "a folder of litdata")
        config = item(index, "config", dict, self.where)
        if config.get("encryption"):
            raise InputError(f"{path} is encrypted", fix="write it without encryption")
        self.loader = str(config.get("item_loader") or "PyTreeLoader")
        if self.loader not in ("PyTreeLoader", "TokensLoader"):
            what = f"the items are those of {self.loader}"
            raise InputError(what, where=self.where, allowed="PyTreeLoader, TokensLoader")
        self.formats: list[str] = item(config, "data_format", list, self.where)
        self.names = _names(config.get("data_spec"), len(self.formats), self.where)
        packing = (config.get("compression") or "", config.get("compression_level") or "")
        self.chunks = [self._chunk(record, packing) for record in item(index, "chunks", list, self.where)]
        if not self.chunks:
            raise InputError(f"{self.where} names no chunks")

    def _chunk(self, record: Any, packing: tuple[str, str]) -> Chunk:
        name = plain_name(item(record, "filename", str, self.where), self.where)
        items, size_bytes = (item(record, key, int, self.where) for key in ("chunk_size", "chunk_bytes"))
        return Chunk(self.path / name, items, size_bytes, *packing)

    def read(self, wanted: Sequence[str]) -> Iterator[Sample]:
        """The samples of all chunks, of which only the fields that `wanted` names (or holds parts of) are decoded."""
        chosen = {n for n in self.names if not wanted or any(w == n or w.startswith(f"{n}.") for w in wanted)}
        checked = False  # once: the formats say nothing of rows in Arrow
        for chunk in self.chunks:
            for i, content in enumerate(open_chunk(chunk)):
                where = f"{chunk.path}, sample {i}"
                if isinstance(content, dict):
                    yield Sample(where, content)
                    continue
                for name, form in zip(self.names, self.formats) if not checked else ():
                    if name in chosen:
                        _check_format(name, str(form), self.where)
                checked = True
                yield Sample(where, self._fields(content, chosen, where))

    def _fields(self, content: bytes, chosen: set[str], where: str) -> dict[str, Any]:
        n = len(self.formats)
        sizes = struct.unpack_from(f"<{n}I", content) if len(content) >= 4 * n else ()
        if 4 * n + sum(sizes) != len(content) or not sizes:
            raise InputError(f"the sample has {len(content):,} bytes, its values do not fill them", where=where)
        fields, at = {}, 4 * n
        for name, form, size in zip(self.names, self.formats, sizes):
            if name in chosen:
                try:
                    fields[name] = _decoded(content[at : at + size], form)
                except WORN as error:
                    raise InputError(
                        f"the value cannot be read as {form}: {error}", where=f"{where}, {name}"
                    ) from error
            at += size
        return fields


def _names(spec: Any, leaves: int, where: str) -> list[str]:
    """The path to each value of a sample: keys of dicts and places of lists, with dots between them."""
    try:
        tree = json.loads(spec)[1]
        names = list(_leaves(tree, ""))
    except WORN as error:
        raise InputError(f"'data_spec' cannot be read: {error}", where=where) from error
    if len(names) != leaves:
        raise InputError(f"'data_spec' has {len(names)} values, 'data_format' {leaves}", where=where)
    return names


def _leaves(tree: Any, path: str) -> Iterator[str]:
    children = tree["children_spec"]
    if tree["type"] is None:
        yield path or "item"
        return
    context = json.loads(tree["context"]) if tree["context"] else None
    keys = context if isinstance(context, list) and len(context) == len(children) else range(len(children))
    for key, child in zip(keys, children):
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def _check_format(name: str, form: str, where: str) -> None:
    kind, _, number = form.partition(":")
    if "pickle" in form or kind == "graph":
        fix = "leave it out by fields=, or write it as numbers, text or arrays"
        raise InputError(f"the field {name} is pickled, and reading that runs what it says", where=where, fix=fix)
    if kind in HEADLESS and _dtype(TENSORS if kind == HEADLESS[1] else ARRAYS, number):
        return
    if kind not in PLAIN:
        raise InputError(
            f"the field {name} is stored as {form!r}",
            where=where,
            allowed=", ".join((*PLAIN, *HEADLESS)),
            fix="leave it out by fields=",
        )


def _dtype(names: list[str], number: int | str) -> str:
    """The name of a numbered type; "" for one that no data set holds."""
    place = int(number) if str(number).isdecimal() else -1
    return names[place] if 0 <= place < len(names) else ""


def _decoded(content: bytes, form: str) -> Any:
    kind, _, number = form.partition(":")
    if kind in ("int", "float"):
        return struct.unpack("<q", content)[0] if kind == "int" else np.float64(struct.unpack("<d", content)[0])
    if kind == "bool":
        return bool(content[0])
    if kind in ("str", "text"):
        return content.decode()
    if kind == "pil":
        return raw_picture(content)
    if kind in PICTURES:
        return Picture(content)
    if kind in HEADLESS:
        return np.frombuffer(content, _dtype(TENSORS if kind == HEADLESS[1] else ARRAYS, number))
    if kind in ("numpy", "tensor"):
        order, names = ("<", ARRAYS) if kind == "numpy" else (">", TENSORS)
        of_type, rank = struct.unpack_from(f"{order}2I", content)
        shape = struct.unpack_from(f"{order}{rank}I", content, 8)
        if not _dtype(names, of_type):
            raise ValueError("complex numbers and bfloat16 are not read")
        return np.frombuffer(content, _dtype(names, of_type), offset=8 + 4 * rank).reshape(shape)
    return content


def _tokens(train: _Folder, test: _Folder | None, options: Options) -> Prepared:
    """Chunks of tokens alone -> rows `tokens` (context + 1,), each beginning with the last token of the one before it."""
    kind, _, number = train.formats[0].partition(":")
    dtype = _dtype(TENSORS if kind == HEADLESS[1] else ARRAYS, number) if kind in HEADLESS else ""
    if np.dtype(dtype or "f4").kind not in "iu" or (test and test.formats != train.formats):
        raise InputError(f"the tokens are stored as {train.formats[0]!r}", where=train.where, allowed="whole numbers")
    if options.context < 1:
        raise InputError(f"{train.path} holds tokens alone", fix="say how many a model sees at once: context=1024")
    width = options.context + 1
    splitter = Splitter(options, where=str(train.path), tested=test is not None)

    def rows(folder: _Folder) -> Iterator[Rows]:
        rest = np.empty(0, dtype)
        for chunk in folder.chunks:
            for content in open_chunk(chunk):
                rest = np.concatenate([rest, np.frombuffer(content, dtype)])  # type: ignore[arg-type]
                if (count := (len(rest) - 1) // options.context) > 0:
                    every = np.lib.stride_tricks.sliding_window_view(rest, width)[:: options.context][:count]
                    yield {"tokens": every}
                    rest = rest[count * options.context :]

    def chunks() -> Iterator[tuple[str, Rows]]:
        yield from splitter.share(rows(train))
        for some in rows(test) if test else ():
            yield "test", some

    record = {"kind": "tokens", "version": 1, "tokenizer": None, "context": options.context}
    return Prepared(
        {"tokens": Column(dtype, (width,))},
        chunks(),
        {"split": splitter.record(), "notes": [NO_HASHES]},
        {"tokens": record},
    )


def recognise(path: Path) -> float:
    """A folder of litdata, or one with such a folder for each split."""
    index = Path(split_folders(path, "index.json")[0]) / "index.json"
    return SURE if path.is_dir() and lists(index, "chunks") else 0.0


def advise(path: str, wish: Wish) -> Advice:
    """What to learn of each sample, for `distdl init`."""
    train, test = split_folders(Path(path), "index.json")
    if _Folder(train).loader == "TokensLoader":
        if wish.options():
            raise InputError(f"{path} holds tokens alone: there is no column to predict")
        options = {"path": train, "context": ADVISED_CONTEXT} | ({"test_path": test} if test else {})
        return Advice(options, {"context": "tokens that the model sees at once"})
    return folder_advice("litdata", path, wish, _Folder)
