"""A run's folder: which one a config continues, what may change on the way, and that only one process is at it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.errors import InputError
from distdl.run.folder import DRAFT, RunFolder, existing_run, find_run, open_run, saved_config
from distdl.track.run import update
from distdl.track.spool import SpoolWriter
from tests.conftest import Result
from tests.small import small_config


def named(tmp_path: Path, name: str, **changes: Any) -> Config:
    """The config of a run of this name."""
    return config(tmp_path, **changes).model_copy(update={"name": name})


def config(tmp_path: Path, **changes: Any) -> Config:
    return config_from_dict(small_config("mlp", "data/digits", "", **changes) | {"runs": str(tmp_path / "runs")})


def test_the_same_config_opens_the_same_folder_and_fresh_a_new_one(tmp_path: Path) -> None:
    first = open_run(config(tmp_path), None)
    assert first.path == tmp_path / "runs" / "mlp"
    assert open_run(config(tmp_path), None).path == first.path
    second = open_run(config(tmp_path), None, fresh=True)
    assert second.path.name == "mlp-2"
    assert open_run(config(tmp_path), None).path == second.path  # the newest is the one that goes on
    assert open_run(config(tmp_path), None, fresh=True).path.name == "mlp-3"
    assert first.path.is_dir()


def test_what_is_learned_may_not_change_and_where_it_runs_may(tmp_path: Path) -> None:
    open_run(config(tmp_path), None)
    for section, key, value in (
        ("train", "steps", 90),
        ("train", "micro_batch", 4),
        ("runtime", "workers", 4),
        ("data", "path", "elsewhere"),
        ("track", "every_steps", 1),
    ):
        open_run(config(tmp_path, **{f"{section}__{key}": value}), None)
    for section, key, value in (
        ("train", "global_batch", 32),
        ("optimizer", "lr", 0.5),
        ("model", "hidden", [3]),
        ("data", "shuffle", "none"),
        ("schedule", "warmup_steps", 9),
    ):
        with pytest.raises(InputError, match=rf"{section}\.{key}") as error:
            open_run(config(tmp_path, **{f"{section}__{key}": value}), None)
        assert "--fresh" in str(error.value) and error.value.exit_code == 2


def test_a_saved_config_takes_overrides_even_of_another_kind(tmp_path: Path) -> None:
    folder = open_run(config(tmp_path), None)
    ray = saved_config(folder, ["runtime.kind=ray", "runtime.workers=2", "runtime.address=auto"])
    assert (ray.runtime.kind, ray.runtime.workers) == ("ray", 2)
    folder.write("config.json", ray.model_dump(mode="json"))
    assert saved_config(folder, ["runtime.kind=local"]).runtime.kind == "local"
    assert saved_config(folder, ["optimizer.name=sgd"]).optimizer.name == "sgd"
    with pytest.raises(InputError, match=r"argument 'optimizer\.betas="):
        saved_config(folder, ["optimizer.name=sgd", "optimizer.betas=[0.1, 0.2]"])


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = open_run(config(tmp_path), None)
    again = RunFolder(folder.path).locked()
    with folder.locked(), pytest.raises(InputError, match="is being trained by another process"), again:
        pass
    with folder.locked():
        pass  # free again


def test_an_unknown_run_lists_those_there_are(tmp_path: Path) -> None:
    open_run(config(tmp_path), None)
    assert find_run("mlp", str(tmp_path / "runs")).path == tmp_path / "runs" / "mlp"
    with pytest.raises(InputError, match="runs there are: mlp"):
        find_run("mpl", str(tmp_path / "runs"))


def test_a_name_that_ends_in_a_number_is_its_own(tmp_path: Path) -> None:
    numbered = config_from_dict(small_config("mlp", "d", "") | {"runs": str(tmp_path / "runs"), "name": "mlp-5"})
    assert open_run(numbered, None).path.name == "mlp-5"
    assert open_run(config(tmp_path), None).path.name == "mlp"
    assert open_run(config(tmp_path), None, fresh=True).path.name == "mlp-2"


# -- a folder is one run's ----------------------------------------------------------------------------------------------


def test_fresh_never_takes_the_folder_of_another_run(tmp_path: Path) -> None:
    first, other = open_run(config(tmp_path), None), open_run(named(tmp_path, "mlp-2", model__hidden=[3]), None)
    assert (first.path.name, other.path.name) == ("mlp", "mlp-2")
    fresh = open_run(config(tmp_path, optimizer__lr=0.5), None, fresh=True)
    assert fresh.path.name == "mlp-3"
    assert saved_config(other).name == "mlp-2" and saved_config(other).model["hidden"] == [3]
    assert open_run(named(tmp_path, "mlp-2", model__hidden=[3]), None).path == other.path  # the name still means it
    assert existing_run(config(tmp_path)) and open_run(config(tmp_path, optimizer__lr=0.5), None).path == fresh.path


def test_a_name_whose_folder_is_a_later_start_of_another_run_is_refused(tmp_path: Path) -> None:
    open_run(config(tmp_path), None)
    second = open_run(config(tmp_path), None, fresh=True)  # mlp-2, of the run mlp
    for call in (lambda: open_run(named(tmp_path, "mlp-2"), None), lambda: existing_run(named(tmp_path, "mlp-2"))):
        with pytest.raises(InputError, match="mlp-2 belongs to the run 'mlp', not to one that is named 'mlp-2'"):
            call()
    assert saved_config(second).name == "mlp"
    assert open_run(named(tmp_path, "mlp-2"), None, fresh=True).path.name == "mlp-2-2"


def test_starts_at_the_same_instant_get_a_folder_each(tmp_path: Path) -> None:
    together = Barrier(8)

    def start(_: int) -> Path:
        together.wait()
        return open_run(config(tmp_path), None, fresh=True).path

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 8
    assert not list((tmp_path / "runs").glob(".*"))  # no draft is left


def test_a_second_start_of_the_same_run_continues_the_first_ones_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, others = RunFolder.keep, []

    def meanwhile(folder: RunFolder, values: Config) -> Config:
        if not others:
            others.append(folder)  # first: what follows comes here again
            others[0] = open_run(config(tmp_path), None)
        return keep(folder, values)

    monkeypatch.setattr(RunFolder, "keep", meanwhile)
    assert open_run(config(tmp_path), None).path == others[0].path == tmp_path / "runs" / "mlp"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlp"]


def test_what_a_killed_start_has_left_is_mended_or_passed_over(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "mlp").mkdir(parents=True)
    (runs / f"{DRAFT}mlp-x").mkdir()
    os.utime(runs / f"{DRAFT}mlp-x", (0, 0))
    assert open_run(config(tmp_path), None).path == runs / "mlp"
    assert not list(runs.glob(f"{DRAFT}*"))
    (runs / "mlp-2").mkdir()
    (runs / "mlp-2" / "events.jsonl").write_text("")
    assert open_run(config(tmp_path), None, fresh=True).path.name == "mlp-3"
    (runs / "begun" / "checkpoints" / "step_00000000").mkdir(parents=True)  # as `distdl checkpoint convert` leaves it
    begun = open_run(named(tmp_path, "begun"), None)
    assert begun.path == runs / "begun" and saved_config(begun).name == "begun"
    assert open_run(named(tmp_path, "begun"), None).path == begun.path
    (runs / "mine").mkdir()
    (runs / "mine" / "notes").write_text("")
    with pytest.raises(InputError, match="is there already, and is no run"):
        open_run(named(tmp_path, "mine"), None)
    assert [path.name for path in (runs / "mine").iterdir()] == ["notes"]


@pytest.mark.parametrize(("above", "folder", "file"), [(0o755, 0o700, 0o600), (0o2775, 0o2750, 0o640)])
def test_a_run_is_for_its_owner_alone_but_where_its_group_shares_the_folder(
    tmp_path: Path, above: int, folder: int, file: int
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(above)
    (tmp_path / "a.yaml").write_text("name: mlp\n")
    before = os.umask(0o022)
    try:
        run = open_run(config(tmp_path), str(tmp_path / "a.yaml"))
        with run.private():
            run.begin()
            run.write("plan.json", {})
            SpoolWriter(run.events).close()
            update(run.path, tracking_uri="sqlite:///x", experiment="x", run_name="x")
    finally:
        os.umask(before)
    assert run.path.stat().st_mode & 0o7777 == folder
    assert {path.stat().st_mode & 0o777 for path in run.path.rglob("*") if path.is_file()} == {file}
    assert {"config.json", "config.yaml", "plan.json", "tracking.json"} <= {path.name for path in run.path.iterdir()}


@pytest.mark.slow
def test_a_fresh_run_beside_one_that_is_named_like_its_number_trains_from_the_start(
    tmp_path: Path, digits: str, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(json.dumps(small_config("mlp", digits, "") | {"name": "a"}))
    for words in (["train.steps=1"], ["name=a-2", "train.steps=2"]):
        assert command("train", "a.yaml", "--plain", *words).code == 0
    before = {path: path.read_bytes() for path in Path("runs/a-2").rglob("*") if path.is_file()}
    told = command("train", "a.yaml", "--fresh", "--plain", "train.steps=4")
    assert told.code == 0 and "runs/a-3" in told.stdout
    assert json.loads(Path("runs/a-3/summary.json").read_text())["steps_this_time"] == 4
    assert before == {path: path.read_bytes() for path in Path("runs/a-2").rglob("*") if path.is_file()}
    told = command("train", "--resume", "a-2", "name=b", "train.steps=3")
    assert told.code == 2 and "a run keeps its name" in told.stderr
