"""What a preparation has to tell is told wherever one begins: by a command, by a run, from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distdl.config.load import config_from_dict
from distdl.driver import prepare_if_missing
from tests.conftest import Result

Command = Callable[..., Result]


def test_a_run_tells_kinds_and_notes_as_the_command_does(command: Command, tmp_path: Path) -> None:
    rows = [f"{i},{i % 7 / 3},{'' if i == 5 else 'uv'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("row_id,a,y\n" + "\n".join(rows) + "\n")
    options = {"path": str(tmp_path / "t.csv"), "label": "y"}
    done = command("data", "prepare", "csv", str(tmp_path / "by_command"), *(f"{k}={v}" for k, v in options.items()))
    assert done.code == 0, done.stderr
    told = done.stdout.splitlines()[:-1]
    assert any(line.startswith("row_id  id") for line in told) and any(
        "note: 1 rows have no 'y'" in line for line in told
    )
    config = {
        "name": "t",
        "model": {"family": "mlp", "inputs": [1], "column": "x", "classes": 2},
        "data": {"path": str(tmp_path / "by_run"), "prepare": {"source": "csv", "options": options}},
        "train": {"steps": 1, "global_batch": 4},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }
    said: list[str] = []
    prepare_if_missing(config_from_dict(config), said.append)
    assert said[1:-1] == told and said[-1].startswith("prepared ")
