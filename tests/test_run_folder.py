"""A run's folder: which one a config continues, what may change on the way, and that only one process is at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distdl.config import Config
from distdl.config_load import config_from_dict
from distdl.errors import InputError
from distdl.run_folder import RunFolder, find_run, open_run, saved_config
from tests.small import small_config


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
