"""Data sets of Hugging Face, by the library `datasets`: a folder of `save_to_disk`, or a name on the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from distdl.data.raw import Prepared
from distdl.data.table.options import TypedOptions
from distdl.data.table.sources import prepare_splits
from distdl.errors import InputError


@dataclass(frozen=True)
class Options(TypedOptions):
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
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            "the source huggingface needs the library datasets, which is not installed",
            fix="pip install 'distdl[huggingface]'",
        )
    from distdl.data.table.hf_table import open_splits

    train, others = open_splits(options.path, options.config, options.revision, options.split)
    return prepare_splits(options, train, others)
