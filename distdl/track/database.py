"""The embedded store, `mlflow.db`: it appears whole or not at all, and one that is not whole is mended or named.

MLflow makes its tables by some sixty migrations in the file itself. A process that dies in the middle of them leaves a file
that no later migration takes. So they run in a draft beside it, which gets its name when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from distdl.errors import DistdlError
from distdl.files import sync, sync_folder
from distdl.track.run import artifact_location, file_lock

SIDECARS = ("-journal", "-wal", "-shm")
"""Files of SQLite beside a database: a journal that is left over would be played back into whatever has the name."""
DRAFT = "making"


class Found(NamedTuple):
    """What a file that should be a store is."""

    revision: str
    """Its last complete migration; '' where it has none."""
    runs: int
    """Runs, and experiments beside the default one, that it holds."""


def path_of(tracking_uri: str) -> Path | None:
    """The file of an SQLite store; None for every other kind of store."""
    if not tracking_uri.startswith("sqlite:"):
        return None
    return Path(unquote(urlsplit(tracking_uri).path)[1:])


def ready(database: Path) -> str:
    """Makes a store where there is none, and mends one that was left half-made. Returns what was mended, '' for nothing.

    One process at a time does so, under a lock. Raises DistdlError for a file that holds runs and cannot be mended.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.with_name(f".{database.name}.lock")):
        for left in database.parent.glob(f".{database.name}.{DRAFT}-*"):  # of a process that was killed
            left.unlink(missing_ok=True)
        if not database.exists() or database.stat().st_size == 0:
            _make(database)
            return ""
        found, newest = _look(database), head_revision()
        if found.revision and found.revision == newest:
            return ""
        if not found.runs:
            aside = _move_aside(database)
            _make(database)
            return f"{database} was half-made and held no run: made anew, the old file is {aside.name}"
        return _upgrade(database, found, newest)


def head_revision() -> str:
    """The last migration of the MLflow that is installed, read from its files: importing MLflow takes seconds."""
    spec = find_spec("mlflow")
    [folder] = (spec and spec.submodule_search_locations) or [""]
    known, before = set[str](), set[str]()
    for file in Path(folder, "store", "db_migrations", "versions").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        known.update(re.findall(r"^revision\b[^=]*= *['\"](\w+)['\"]", text, re.MULTILINE))
        for line in re.findall(r"^down_revision\b[^=]*= *(.+)", text, re.MULTILINE):
            before.update(re.findall(r"['\"](\w+)['\"]", line))
    heads = known - before
    return heads.pop() if len(heads) == 1 else ""


def _look(database: Path) -> Found:
    """Reads a store without MLflow. Raises DistdlError for a file that is no database."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=10.0)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            counts = {
                "runs": "SELECT count(*) FROM runs",
                "experiments": "SELECT max(count(*) - 1, 0) FROM experiments",
            }
            runs = sum(connection.execute(query).fetchone()[0] for table, query in counts.items() if table in tables)
            rows = (
                connection.execute("SELECT version_num FROM alembic_version").fetchall()
                if "alembic_version" in tables
                else []
            )
    except sqlite3.OperationalError:
        raise  # locked: it is asked again later
    except sqlite3.DatabaseError as error:
        fix = "move it away; what its runs have in their spools is sent again to the store that is then made"
        raise DistdlError(f"{database} is no MLflow store: {error}\n    fix: {fix}") from None
    return Found(str(rows[0][0]) if rows else "", int(runs))


def _make(database: Path) -> None:
    """A complete store, under its name in one step."""
    draft = database.with_name(f".{database.name}.{DRAFT}-{os.uname().nodename}-{os.getpid()}")
    try:
        _migrate(draft, database.parent)
        sync(draft)
        for path in (database, *_sidecars(database)):  # an empty file, or a journal whose database was deleted
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # a file system without locks: another process was faster
            try:
                os.link(draft, database)
            except FileExistsError:
                raise
            except OSError:  # or without hard links
                os.rename(draft, database)
        sync_folder(database.parent)
    finally:
        for path in (draft, *_sidecars(draft)):
            path.unlink(missing_ok=True)


def _migrate(file: Path, folder: Path) -> None:
    """All of MLflow's migrations in a file, and its default experiment, whose artifacts lie in `folder`."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri = f"sqlite:///{file.as_posix()}"
    store: Any = SqlAlchemyStore(uri, artifact_location(uri, folder))
    store._dispose_engine()  # or a connection to the draft's name would outlive it


def _upgrade(database: Path, found: Found, newest: str) -> str:
    """Brings a store that holds runs to the schema of this MLflow. A copy of it is kept."""
    copy = database.with_name(f"{database.name}.{found.revision or 'half-made'}")
    if not copy.exists():
        _copy(database, copy)
    try:
        from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

        engine: Any = create_sqlalchemy_engine(f"sqlite:///{database.as_posix()}")
        try:
            _upgrade_db(engine)
        finally:
            engine.dispose()
    except Exception as error:
        _copy(copy, database)
        why = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"{database} holds {found.runs} runs in the schema {found.revision or 'of no version'}"
        fix = (
            "track with the MLflow that wrote it, or a newer one; or move it away: what waits in the spools is sent to the "
            "store that is then made"
        )
        raise DistdlError(f"{what}; MLflow here needs {newest} and cannot change it: {why}\n    fix: {fix}") from None
    return f"{database} was brought from the schema {found.revision} to {newest}; {copy.name} is what it was"


def _copy(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _move_aside(database: Path) -> Path:
    number = 1
    while (aside := database.with_name(f"{database.name}.half-made-{number}")).exists():
        number += 1
    os.rename(database, aside)
    for path in _sidecars(database):
        if path.exists():
            os.rename(path, path.with_name(path.name.replace(database.name, aside.name, 1)))
    return aside


def _sidecars(database: Path) -> list[Path]:
    return [database.with_name(f"{database.name}{ending}") for ending in SIDECARS]
