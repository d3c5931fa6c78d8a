"""How the columns of a data set came from raw values: applied to new ones, and undone for answers.

A manifest's `preparation` has a record for each column that was made of something else (manifest.py). A checkpoint carries
the same as `preparation.json`, so that a model is asked in the units of its users' files wherever it goes:

    {"format": "distdl-preparation", "version": 1, "data": FINGERPRINT, "columns": {"y": {"kind": "number", ...}, ...}}

Plain values: nothing in it can run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distdl.data.manifest import Manifest, read_manifest
from distdl.errors import DistdlError, InputError

if TYPE_CHECKING:
    import numpy as np

    from distdl.data.table.reader import Table

FORMAT, VERSION = "distdl-preparation", 1
FILE = "preparation.json"
KNOWN = {"features": 2, "class": 1, "number": 1, "words": 1}
"""Kind of a record -> its newest version that is understood here. Others are applied by the sources that wrote them."""


READING = ("names", "header", "delimiter", "encoding", "decimal", "thousands")
"""Options that say how a file is written: a new one is read by them, too."""


def record_of(manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint keeps of a data set. One of an older version says its classes in `info` alone."""
    columns = {name: dict(record) for name, record in manifest.preparation.items()}
    classes = manifest.info.get("classes")
    if "label" not in columns and "label" in manifest.columns and isinstance(classes, list):
        columns["label"] = {"kind": "class", "version": 1, "classes": classes}
    reading = {key: manifest.options[key] for key in READING if manifest.options.get(key) not in (None, "", (), [])}
    told = {"source": manifest.source, "reading": reading}
    return {"format": FORMAT, "version": VERSION, "data": manifest.fingerprint, **told, "columns": columns}


def recorded(path: str) -> dict[str, Any]:
    """What a checkpoint keeps of the data set at `path`; nothing but the form where none is there."""
    try:
        return record_of(read_manifest(path))
    except DistdlError:
        return {"format": FORMAT, "version": VERSION, "data": "", "columns": {}}


def columns_of(record: Any, where: str) -> dict[str, dict[str, Any]]:
    """Column -> its record, of a `preparation.json`. InputError: it is none, or of a newer version."""
    if not (isinstance(record, dict) and record.get("format") == FORMAT and isinstance(record.get("columns"), dict)):
        raise InputError(f"{where} is no record of a preparation", fix="give the file that distdl wrote")
    version = record.get("version")
    if type(version) is not int or version > VERSION:
        what = f"{where} has version {version}, and this distdl reads up to {VERSION}"
        raise InputError(what, fix="update distdl")
    found: dict[str, dict[str, Any]] = record["columns"]
    for name, column in found.items():
        check_version(column, f"{where}: column '{name}'")
    return found


def check_version(record: Any, where: str) -> None:
    """InputError for a column's record that this version cannot read."""
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("kind"), str)
        or type(record.get("version")) is not int
    ):
        raise InputError(
            f"{where}: the record of a preparation has no kind and version", fix="prepare the data set again"
        )
    newest = KNOWN.get(record["kind"])
    if newest is not None and record["version"] > newest:
        what = f"{where}: the record '{record['kind']}' has version {record['version']}"
        raise InputError(f"{what}, and this distdl reads up to {newest}", fix="update distdl")


def apply(
    columns: Mapping[str, Mapping[str, Any]], table: Table, answers: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a new table, made into `x` as those that were trained on; with `answers` into `label` and `y`, too, where
    it has their columns.

    `columns`: the records by column. A pass over the table, some thousand rows at a time. InputError names the row and the
    value that does not fit, or the column that is missing.
    """
    from distdl.data.table.pixels import small_parts
    from distdl.data.table.prepare import encoded
    from distdl.data.table.stream import whole_split

    table, preparation, names = ready_table(columns, table, answers)
    for part in whole_split(table, names, ""):
        for piece in small_parts(part, preparation.get("image", {})):
            yield encoded(preparation, piece, table)


def ready_table(
    columns: Mapping[str, Mapping[str, Any]], table: Table, answers: bool = True
) -> tuple[Table, dict[str, Any], list[str]]:
    """A new table under the names of the one that was trained on, the records by which its rows are made, and the columns
    that these read. InputError: it lacks one of them."""
    from distdl.data.table.prepare import needed_columns
    from distdl.data.table.stream import Renamed, Undotted, dotted_word
    from distdl.data.table.values import label_na
    from distdl.data.table.vectors import as_vectors

    for name, record in columns.items():
        check_version(record, f"column '{name}'")
    if columns.get("x", {}).get("kind") != "features":
        raise InputError("the record of this preparation is not that of a table", allowed="x of the kind features")
    renamed = columns["x"].get("rename", {})
    present = {old: new for old, new in renamed.items() if old in table.names}
    if present:
        table = Renamed(table, present)
    told = [key for key in ("label", "y") if answers and columns.get(key, {}).get("name") in table.names]
    told += ["image"] if "name" in columns.get("image", {}) else []
    preparation = {key: columns[key] for key in ("x", *told)}
    names = needed_columns(preparation)
    have = set(table.names)
    if missing := [name for name in names if name not in have]:
        what = f"{table.path} has no column '{missing[0]}', of which the model was told"
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(what + more, allowed=", ".join(names[:50]))
    label = preparation.get("label", {})
    if label.get("undotted") and dotted_word(table, label["name"], label["classes"], label_na(columns["x"]["na"])):
        table = Undotted(table, label["name"])
    vectors = [feature["name"] for feature in columns["x"]["features"] if feature["kind"] == "vector"]
    return as_vectors(table, vectors), preparation, list(dict.fromkeys(names))


def undo(record: Mapping[str, Any], values: Sequence[Any] | np.ndarray) -> list[Any]:
    """Values of a column of the data set as its file had them: names of classes, numbers in their units, of a row of `x` a
    mapping of what has a way back, sentences. A class number below 0 is None. InputError: a record of another kind."""
    import numpy as np

    check_version(record, "undo")
    if record["kind"] == "class":
        classes = record["classes"]
        return [classes[int(i)] if i >= 0 else None for i in np.asarray(values).tolist()]
    if record["kind"] == "number":
        from distdl.data.table.scale import from_scale

        found: list[float] = from_scale(np.asarray(values), record["scale"]).tolist()
        return found
    if record["kind"] == "words":
        from distdl.data.vocabulary import sentence

        return [sentence(record, row) for row in np.asarray(values).tolist()]
    if record["kind"] == "features":
        from distdl.data.table.decode import decoded

        return decoded(record, np.asarray(values))
    raise InputError(f"there is no way back from the kind '{record['kind']}'", allowed="class, number, words, features")
