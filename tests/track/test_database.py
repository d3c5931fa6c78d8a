"""The embedded store appears whole or not at all, and a half-made one of before bricks no runs folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distdl.errors import DistdlError
from distdl.track import database
from distdl.track.run import STORE_NAME, default_tracking_uri, load
from distdl.track.uploader import Uploader
from tests.track.conftest import drain, make_run, mlflow_run, spool, steps_of


def query(file: Path, *statements: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = [connection.execute(statement).fetchall() for statement in statements][-1]
        connection.commit()
        return rows


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch, store_template: Path) -> list[Path]:
    """Making a store takes no time; the drafts that were made."""
    made: list[Path] = []

    def migrate(file: Path, folder: Path) -> None:
        made.append(file)
        shutil.copyfile(store_template, file)

    monkeypatch.setattr(database, "_migrate", migrate)
    return made


def test_the_newest_schema_is_known_without_mlflow(store_template: Path) -> None:
    assert query(store_template, "SELECT version_num FROM alembic_version") == [(database.head_revision(),)]


def test_a_store_gets_its_name_when_it_is_complete(tmp_path: Path, making: list[Path]) -> None:
    file = tmp_path / STORE_NAME
    for left in (
        f"{STORE_NAME}-journal",
        f".{STORE_NAME}.making-there-1",
    ):  # of a store that was deleted, of a killed process
        (tmp_path / left).write_bytes(b"x" * 512)
    file.touch()
    assert database.ready(file) == "" and making[0].name != file.name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f".{STORE_NAME}.lock", STORE_NAME])
    inode = file.stat().st_ino
    assert database.ready(file) == "" and len(making) == 1 and file.stat().st_ino == inode


@pytest.mark.parametrize("damage", ["one table", "cut", "a revision before"])
def test_a_half_made_store_is_made_anew(tmp_path: Path, making: list[Path], store_template: Path, damage: str) -> None:
    """As a kill in the middle of MLflow's migrations left them before: no migration takes them."""
    run = make_run(tmp_path, "r")
    file = tmp_path / STORE_NAME
    if damage == "one table":
        query(file, "CREATE TABLE experiments (experiment_id INTEGER)")
    else:
        shutil.copyfile(store_template, file)
        revision = "'451aebb31d03'" if damage == "a revision before" else "NULL"
        query(
            file,
            "DELETE FROM alembic_version"
            if damage == "cut"
            else f"UPDATE alembic_version SET version_num = {revision}",
        )
    spool(run, range(3))
    assert drain(run, "FINISHED") == 0
    assert steps_of(run, "train/loss") == [0, 1, 2] and mlflow_run(run)[1].info.status == "FINISHED"
    assert (tmp_path / f"{STORE_NAME}.half-made-1").is_file(), "the file of before is kept"


def test_a_store_with_runs_is_never_made_anew(run_dir: Path, making: list[Path]) -> None:
    """One that this MLflow cannot read is named with what to do, and left as it is; so is a file that is none."""
    spool(run_dir, range(3))
    assert drain(run_dir, "FINISHED") == 0
    file = run_dir.parent / STORE_NAME
    known = load(run_dir)
    query(file, "UPDATE alembic_version SET version_num = 'of_tomorrow'")
    for _ in range(2):
        with pytest.raises(
            DistdlError, match=r"holds 2 runs in the schema of_tomorrow.*\n    fix: track with the MLflow"
        ):
            database.ready(file)
    query(file, f"UPDATE alembic_version SET version_num = '{database.head_revision()}'")
    assert database.ready(file) == "" and not making
    assert mlflow_run(run_dir)[1].info.run_id == (known and known.mlflow_run_id)
    file.write_bytes(b"no database at all, but a long enough text " * 50)
    with pytest.raises(DistdlError, match=r"is no MLflow store.*\n    fix: move it away"):
        database.ready(file)


# -- kills -------------------------------------------------------------------------------------------------------------


def in_a_process(act: Callable[[], object]) -> int:
    """Does it in a fork of this process, which has MLflow imported already. Returns its process id."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return child


def ended_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def killed_while(run: Path, when: Callable[[], bool]) -> None:
    """Starts the uploader of a run and kills it at a moment, if it has not ended before."""
    child = in_a_process(lambda: Uploader(run, 0, 0, True, 60.0).follow())
    while not when() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def a_good_store(run: Path) -> None:
    """The next uploader tracks the run, and another run beside it."""
    beside = new_run(run.parent, f"{run.name}-beside")
    for folder in (run, beside):
        assert ended_well(in_a_process(lambda: (drain(folder, "FINISHED") == 0) or 1 / 0))  # noqa: B023
        info = load(folder)
        assert info is not None and info.mlflow_run_id and not info.last_error
        [(status,)] = query(run.parent / STORE_NAME, f"SELECT status FROM runs WHERE run_uuid = '{info.mlflow_run_id}'")
        assert status == "FINISHED"
    [(found,)] = query(run.parent / STORE_NAME, "SELECT version_num FROM alembic_version")
    assert found == database.head_revision()
    assert not list(run.parent.glob(f".{STORE_NAME}.making-*")), "a draft is left behind"


def new_run(runs: Path, name: str) -> Path:
    from distdl.track.run import update

    folder = make_run(runs, name)
    spool(folder, range(3))
    uri = default_tracking_uri(runs)
    update(folder, tracking_uri=uri, experiment="e", run_name=name)
    return folder


@pytest.fixture
def warm(store_template: Path) -> Iterator[None]:
    """MLflow is imported here: what is forked from this process need not wait for it."""
    yield


def tables(runs: Path) -> int:
    """Of the store or of its draft, whichever is there."""
    for file in (*runs.glob(STORE_NAME), *runs.glob(f".{STORE_NAME}.making-*[0-9]")):
        with contextlib.suppress(sqlite3.Error):
            [(found,)] = query(file, "SELECT count(*) FROM sqlite_master WHERE type = 'table'")
            return int(str(found))
    return 0


@pytest.mark.slow
def test_a_store_whose_maker_was_killed_is_good(tmp_path: Path, warm: None) -> None:
    """After its first tables."""
    run = new_run(tmp_path / "runs", "r")
    killed_while(run, lambda: tables(run.parent) >= 3)
    assert not (run.parent / STORE_NAME).exists(), "half of a store has its name"
    a_good_store(run)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_random_kills_leave_thirty_good_stores(tmp_path: Path, warm: None) -> None:
    run = new_run(tmp_path / "first", "r")
    began_s = time.monotonic()
    assert ended_well(in_a_process(lambda: Uploader(run, 0, 0, True, 600.0).follow()))
    takes_s, chance = time.monotonic() - began_s, random.Random(12)
    for number in range(30):
        run = new_run(tmp_path / f"runs-{number}", "r")
        end_s = time.monotonic() + chance.uniform(0, takes_s)
        killed_while(run, lambda: time.monotonic() >= end_s)  # noqa: B023
        a_good_store(run)
