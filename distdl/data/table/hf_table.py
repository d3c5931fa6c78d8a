"""Data sets of the library `datasets` as tables."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from distdl.data.store import shown
from distdl.data.table.reader import Table, grouped
from distdl.data.table.typed import TypedTable, pieces
from distdl.errors import InputError, did_you_mean
from distdl.trust import leads_out

STATE, SPLITS = "state.json", "dataset_dict.json"
CALLED = {"test": "test", **dict.fromkeys(("validation", "valid", "val", "dev"), "validation")}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def open_splits(path: str, config: str, revision: str, split: str) -> tuple[Table, dict[str, Table]]:
    """The table to learn from, and the others by their splits. InputError: there is no such data set or split."""
    found = _from_disk(path) if Path(path).exists() else _from_hub(path, config, revision)
    if not isinstance(found, dict):
        if split not in ("", str(found.split)):
            raise InputError(f"{path} is one table and has no split '{split}'", fix="leave split out")
        return HuggingFaceTable(path, found), {}
    train = split or ("train" if "train" in found or len(found) != 1 else next(iter(found)))
    if train not in found:
        raise InputError(
            f"{path} has no split '{train}'", allowed=", ".join(found), fix=did_you_mean(train, found) or "split=..."
        )
    table = HuggingFaceTable(f"{path}[{train}]", found[train])
    others: dict[str, Table] = {}
    for name, rows in found.items():
        if name != train and name in CALLED and CALLED[name] not in others:
            others[CALLED[name]] = HuggingFaceTable(f"{path}[{name}]", rows)
        elif name != train:
            table.notes.append(
                f"{path}: the split '{name}' is left out ({len(rows):,} rows); split={name} reads it alone"
            )
    return table, others


def _from_disk(path: str) -> Any:
    import datasets

    folder = Path(path)
    if not (folder / STATE).is_file() and not (folder / SPLITS).is_file():
        raise InputError(
            f"{path} was not written by save_to_disk: it has neither {STATE} nor {SPLITS}",
            fix="for a folder of Parquet files use the source parquet, of Arrow files arrow, of pictures images",
        )
    parts = [folder]
    try:
        if (folder / SPLITS).is_file():
            parts = [folder / name for name in json.loads((folder / SPLITS).read_text())["splits"]]
        for part in parts:
            names = [entry["filename"] for entry in json.loads((part / STATE).read_text())["_data_files"]]
            for file in [part, *(part / name for name in names)]:
                if leads_out(folder, file):
                    raise InputError(f"{path} names the file {file}, which is outside of it: it is not read")
        return datasets.load_from_disk(path)
    except InputError:
        raise
    except Exception as error:  # whatever the library meets in a damaged folder
        raise InputError(f"{path} cannot be read: {error}", fix="it may be damaged: save it again") from None


def _from_hub(name: str, config: str, revision: str) -> Any:
    import datasets

    if not _NAME.fullmatch(name):
        raise InputError(f"there is no folder {name}, nor is that a name on the hub", allowed="user/name, or a folder")
    try:
        return datasets.load_dataset(name, config or None, revision=revision or None)
    except Exception as error:  # of the network, of the hub, of what it holds
        raise InputError(
            f"there is no folder {name}, and the hub does not give a data set of that name: {shown(error)}",
            fix="check the name, config= and the network; $HF_TOKEN opens a private one",
        ) from None


class HuggingFaceTable(TypedTable):
    """One split, mapped into memory by `datasets`."""

    def __init__(self, path: str, rows: Any):
        self._rows = rows
        self._batches = slice(None)
        """Those of a section."""
        self.rows: int | None = None
        super().__init__(path, rows.features.arrow_schema)

    def cut(self) -> list[Table]:
        """Some batches on end each. A section that goes to another process is mapped there by `datasets`."""
        batches = self._rows.data.table.to_batches()
        groups = grouped([batch.nbytes for batch in batches]) if self._batches == slice(None) else []
        found: list[Table] = []
        above = 0
        for group in groups if len(groups) > 1 else ():
            section = copy.copy(self)
            section._batches = slice(group[0], group[-1] + 1)
            section.first_row, section.rows = above, sum(batch.num_rows for batch in batches[section._batches])
            above += section.rows
            found.append(section)
        return found or [self]

    def _stored_batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._rows.data.table.select(columns).to_batches()[self._batches]:
            batch.validate(full=True)  # offsets that lead out of a damaged buffer
            yield from pieces(batch)
