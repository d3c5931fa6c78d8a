"""What a run folder knows about its MLflow run: `<run_dir>/tracking.json`, and where the store is.

The file has two writers: the driver sets what is wanted (store, experiment, name), the uploader what has happened (run
id, how far the spool was sent). Both go through `update`, which changes only the named fields, under a short lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, urlsplit

from distdl import trust
from distdl.config.secret_text import QUERY_KEYS
from distdl.errors import DistdlError, InputError
from distdl.track.points import NAMING

SPOOL_NAME = "events.jsonl"
INFO_NAME = "tracking.json"
LOG_NAME = "tracking.log"
STORE_NAME = "mlflow.db"
ARTIFACTS_NAME = "mlartifacts"
SEARCH_NAME = "search.json"
"""In a folder of runs that are the trials of one search."""

TRAINING_MODE = "workflowType=machine_learning"
"""Of an address of MLflow's pages: they are those for training, not for language models in use."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


@dataclass(frozen=True)
class RunInfo:
    """The tracking record of one run folder. One MLflow run for the life of the job."""

    tracking_uri: str
    experiment: str
    run_name: str
    run_key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Also a tag of the MLflow run: finds the run again if we crash between creating it and writing its id down."""
    mlflow_run_id: str | None = None
    experiment_id: str | None = None
    spool_offset: int = 0
    """Bytes of the spool that MLflow has accepted."""
    last_steps: dict[str, int] = field(default_factory=dict)
    """Last step sent of every metric: a restart replays steps, and they must not be doubled."""
    naming: int = NAMING
    """Of the metrics in MLflow (points.py)."""
    worlds: list[list[int]] = field(default_factory=list)
    """(step, time in ms, workers) of every start that was sent."""
    system_offsets: dict[str, int] = field(default_factory=dict)
    """Bytes of each node's spool that MLflow has accepted."""
    tags: dict[str, str] = field(default_factory=dict)
    """Where the run came from, gathered when it started: it may be sent much later, from another machine."""
    status: str = ""
    """What the MLflow run was last set to: RUNNING, or how it ended."""
    last_error: str = ""
    """Why the store could not be reached last time; empty when all is well."""

    @property
    def link(self) -> str:
        """Where the MLflow run is looked at; '' while there is none. A store without a page is named with the run's id."""
        if not self.mlflow_run_id or not self.experiment_id:
            return ""
        if urlsplit(self.tracking_uri).scheme in ("http", "https"):
            page = f"{self.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.mlflow_run_id}"
            return f"{page}?{TRAINING_MODE}"
        return f"MLflow run {self.mlflow_run_id} in {self.tracking_uri}"


def load(run_dir: Path) -> RunInfo | None:
    """The record of this run folder, or None if it was never tracked.

    Raises DistdlError when the file is not readable as a record.
    """
    path = Path(run_dir) / INFO_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(RunInfo)}
        record.setdefault("naming", 0)  # of a version that had others
        return RunInfo(**{key: value for key, value in record.items() if key in known})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise DistdlError(
            f"{path} is not a tracking record ({error}).\n"
            "    fix: delete it; the spool is sent again then, to a new MLflow run"
        ) from error


def save(run_dir: Path, info: RunInfo) -> None:
    """Writes the record in one step: a reader sees the old file or the new one, never half. May raise OSError."""
    handle, temporary = tempfile.mkstemp(dir=run_dir, prefix=f".{INFO_NAME}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(info), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode_of(run_dir))
        os.replace(temporary, Path(run_dir) / INFO_NAME)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def mode_of(run_dir: Path) -> int:
    """The rights of a file in this folder: it is open to those whom the folder is open to."""
    return Path(run_dir).stat().st_mode & 0o666


def update(run_dir: Path, **changes: Any) -> RunInfo:
    """Changes fields of the record and returns it; a new one needs tracking_uri, experiment and run_name."""
    with file_lock(Path(run_dir) / f".{INFO_NAME}.lock"):
        old = load(run_dir)
        info = replace(old, **changes) if old else RunInfo(**changes)
        save(run_dir, info)
    return info


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds an advisory lock between processes; yields False if `wait` is off and another process has it.

    A file system without locks (some NFS mounts) yields True: everything that is locked here is also safe, if slower,
    when two do it at once.
    """
    with open(path, "a", encoding="utf-8") as file:
        got = _try_lock(file, wait)
        try:
            yield got
        finally:
            if got:
                _unlock(file)


def _try_lock(file: IO[str], wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _unlock(file: IO[str]) -> None:
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def store_folder(runs_dir: Path) -> Path:
    """The folder whose store the runs of a folder are in: its own, or for a search's trials the one that the search lies
    in, beside all other runs."""
    here = Path(runs_dir)
    return here.resolve().parent if (here / SEARCH_NAME).is_file() else here


def default_tracking_uri(runs_dir: Path) -> str:
    """The project's own store: an SQLite file in the runs folder."""
    return f"sqlite:///{(store_folder(runs_dir).resolve() / STORE_NAME).as_posix()}"


def artifact_location(tracking_uri: str, runs_dir: Path) -> str | None:
    """Where a new experiment keeps its files, as a URI; None leaves it to the server."""
    if urlsplit(tracking_uri).scheme in ("http", "https", "databricks"):
        return None
    return (store_folder(runs_dir).resolve() / ARTIFACTS_NAME).as_uri()


def check_tracking_uri(uri: str) -> str:
    """Returns `uri` if it can be used and holds no secret.

    Raises InputError for an unknown kind of store, and for a password or token in the URI: it would end up in
    tracking.json and in logs. The message does not repeat the secret.
    """
    where = "track.uri"
    try:
        parts = urlsplit(uri)
        password, user = parts.password, parts.username
    except ValueError as error:
        raise InputError("the tracking URI is not a valid URI", where=where, fix="http://HOST:PORT") from error
    scheme = parts.scheme.split("+")[0]
    secret_in_query = any(key.lower() in QUERY_KEYS for key, _ in parse_qsl(parts.query))
    if password or secret_in_query or (user and scheme in ("http", "https")):
        raise InputError(
            "the tracking URI holds a password or a token",
            where=where,
            allowed="a URI without credentials",
            fix="take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN "
            "(for a database, its own means, like PGPASSFILE)",
        )
    if scheme not in SCHEMES:
        raise InputError(
            f"'{scheme or uri}' is not a kind of MLflow store",
            where=where,
            allowed=", ".join(f"{name}:" for name in SCHEMES),
            fix="leave track.uri out: the run is tracked in mlflow.db in the runs folder "
            "(MLflow itself no longer takes plain folders)",
        )
    if scheme in ("http", "https") and not parts.hostname:
        raise InputError(f"{uri!r} names no host", where=where, fix="http://HOST:PORT")
    return uri


def refuse_unconfigured(uri: str, run_dir: Path, fix: str) -> None:
    """Raises InputError where only the files of a run name this store: whoever made them would get this user's credentials,
    or a database of this user's would be written to. The store beside the run is always meant."""
    if uri == default_tracking_uri(Path(run_dir).resolve().parent) or trust.is_configured(uri):
        return
    place = trust.server(uri)
    raise InputError(
        f"the files of the run in {run_dir} name the tracking store {place}, which you have not named yourself: nothing is "
        "sent there, your credentials least of all",
        fix=f"{fix}; or set MLFLOW_TRACKING_URI to it",
    )
