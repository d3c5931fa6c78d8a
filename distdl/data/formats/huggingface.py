"""Data sets of Hugging Face, by the library `datasets`: a folder of `save_to_disk`, or a name on the hub."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distdl.data.advice import ADVISED_SIDE, SURE, Advice, Wish, look_advice, table_advice
from distdl.data.raw import Prepared
from distdl.data.table.options import TableOptions
from distdl.data.table.sources import prepare_splits
from distdl.errors import InputError

LOOKED_AT = 500
"""Pictures that a guess is made from."""


@dataclass(frozen=True)
class Options(TableOptions):
    """Options of the source `huggingface`. Without label, target and features all columns are taken as they are."""

    path: str
    """The folder, or the name on the hub, as `stanfordnlp/imdb`; $HF_ENDPOINT, $HF_TOKEN and $HF_HOME are heeded."""
    config: str = ""
    """Which of the configurations, where a name on the hub has several."""
    revision: str = ""
    """Branch, tag or commit on the hub; a commit gives the same rows for ever."""
    split: str = ""
    """The split to learn from, where it is not called `train`. Splits called test and validation (valid, val, dev) become
    those; without a split test rows are held out."""


def prepare(options: Options) -> Prepared:
    """`x` and `label` or `y` as for CSV; or all columns: numbers, lists of one length, text and files, pictures."""
    _need_datasets()
    from distdl.data.table.hf_table import open_splits

    train, others = open_splits(options.path, options.config, options.revision, options.split)
    return prepare_splits(options, train, others)


def _need_datasets() -> None:
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            "the source huggingface needs the library datasets, which is not installed",
            fix="pip install 'distdl[huggingface]'",
        )


def recognise(path: Path) -> float:
    """A folder of `save_to_disk`."""
    return (
        SURE if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")) else 0.0
    )


def advise(path: str, wish: Wish) -> Advice:
    """What to predict of a table; or its pictures and their class, for `distdl init`."""
    _need_datasets()
    from distdl.data.table.hf_table import open_splits

    table, _ = open_splits(path, "", "", "")
    media: dict[str, str] = getattr(table, "media", {})
    pictures = [name for name in table.names if media.get(name) == "Image"]
    if len(pictures) != 1 or wish.target:
        return table_advice(table, wish, {"path": path})
    label = wish.label or next((name for name in table.names if name in table.classes), "")
    if label and (label not in table.names or label not in table.classes):
        raise InputError(
            f"{path} holds pictures, and the column '{label}' has no names of classes",
            allowed=", ".join(table.classes) or "a column of ClassLabel",
            fix=f"dataset.class_encode_column('{label}') gives it some",
        )
    kept = {pictures[0]: "image", **({label: "label"} if label else {})}
    options: dict[str, Any] = {"path": path}
    because = {"drop": "a picture and its class are learned"}
    if drop := [name for name in table.names if name not in kept]:
        options["drop"] = drop
    if rename := [f"{old}:{new}" for old, new in kept.items() if old != new]:
        options["rename"] = rename
    look = look_advice(*_headers(table, pictures[0]))
    options |= {"size": f"{ADVISED_SIDE}x{ADVISED_SIDE}", **look.options}
    return Advice(options, {**because, "size": "pictures become pixels of one size", **look.because})


def _headers(table: Any, column: str) -> tuple[Counter[str], Counter[tuple[int, int]]]:
    """The modes and sizes of the first pictures."""
    from distdl.data.pictures import need_pillow, read_header

    need_pillow("of tables with pictures")
    modes, sizes = Counter[str](), Counter[tuple[int, int]]()
    batch = next(table.batches([column]))
    for row, content in enumerate(batch.column(0)[:LOOKED_AT].to_pylist()):
        header = read_header(io.BytesIO(content or b""), f"the picture in {table.place(row)}")
        modes[header.mode] += 1
        sizes[header.height, header.width] += 1
    return modes, sizes
