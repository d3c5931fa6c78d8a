"""What a search shows, and where its runs are tracked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from distdl.cli.trials import Table
from distdl.config.load import load_config
from distdl.errors import InputError
from distdl.track.run import artifact_location, default_tracking_uri
from distdl.tune.record import Record, Trial
from distdl.tune.search import _refuse_other, _verdict

SECTION = {
    "space": {"optimizer.lr": {"log_uniform": [1e-4, 1e-1]}},
    "algorithm": "tpe",
    "scheduler": "asha",
    "seed": None,
}


def record(folder: Path, better: str = "higher") -> Record:
    found = Record(folder, SECTION, {"seed": 0, "optimizer": {"lr": 0.1}}, 0, "accuracy", better, 40)
    found.trials = [
        Trial(1, "s-001", {"optimizer.lr": 0.01}, "finished", 40, 0.9, [(40, 0.9)]),
        Trial(2, "s-002", {"optimizer.lr": 0.02}, "failed", 3, None, [], "loss is not a finite number\n    fix: less"),
        Trial(3, "s-003", {"optimizer.lr": 0.03}, "running", 10, 0.5, [(10, 0.5)]),
    ]
    return found


def test_plain_lines_say_each_thing_once(tmp_path: Path) -> None:
    file = io.StringIO()
    found = record(tmp_path / "s-search")
    with Table(found, 5, plain=True, file=file) as table:
        table.waits_for("Ray to start")
        for _ in range(2):
            for trial in found.trials:
                table.tell(trial)
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["s-search: 5 trials by tpe, asha; the accuracy that is highest", "waiting for Ray to start"]
    assert lines[2] == "s-001 finished accuracy 0.9 at step 40 (optimizer.lr=0.01)"
    assert lines[3] == "s-002 failed: loss is not a finite number (optimizer.lr=0.02)"
    assert lines[4:] == ["s-003 running accuracy 0.5 at step 10 (optimizer.lr=0.03)"]


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_table_has_what_runs_and_then_the_best(tmp_path: Path, better: str) -> None:
    found = record(tmp_path, better)
    found.trials.append(Trial(4, "s-004", {"optimizer.lr": 0.04}, "finished", 40, 0.95, [(40, 0.95)]))
    names = [trial.name for trial in Table(found, 5, plain=False)._shown()]
    best = ["s-004", "s-001"] if better == "higher" else ["s-001", "s-004"]
    assert names == ["s-003", *best, "s-002"]
    console = Console(file=io.StringIO(), width=120)
    console.print(Table(found, 5, plain=False)._table())
    assert "4 of 5 trials (1 failed, 2 finished, 1 running)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_trials_are_tracked_beside_the_runs_that_the_search_lies_among(tmp_path: Path) -> None:
    search = tmp_path / "s-search"
    search.mkdir()
    alone = default_tracking_uri(search)
    assert alone == f"sqlite:///{search}/mlflow.db"
    (search / "search.json").write_text(json.dumps({}))
    assert default_tracking_uri(search) == default_tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location(default_tracking_uri(search), search) == (tmp_path / "mlartifacts").as_uri()


def test_a_search_goes_on_with_what_it_was_started_with(tmp_path: Path) -> None:
    """More trials, more at once and another place are no other search; a config of searched keys alone is none, either."""
    before, now = record(tmp_path), record(tmp_path)
    now.search = {**SECTION, "trials": 50, "at_once": 3}
    now.config = {"seed": 0, "optimizer": {"lr": 0.2}, "runtime": {"workers": 2}}
    _refuse_other(before, now)
    now.search = {**SECTION, "algorithm": "random"}
    now.config = {"seed": 1, "optimizer": {"lr": 0.1}}
    with pytest.raises(InputError) as error:
        _refuse_other(before, now)
    assert "search.algorithm: 'tpe' there, 'random' now" in str(error.value) and "seed: 0 there, 1 now" in str(
        error.value
    )


def test_a_search_has_failed_where_all_trials_have(tmp_path: Path) -> None:
    found = record(tmp_path)
    assert _verdict(found) == ("FINISHED", "")
    found.trials = [Trial(n, f"s-{n}", {}, "failed", 0, None, [], "no memory\nmore") for n in (1, 2)]
    status, words = _verdict(found)
    assert status == "FAILED" and words == "all 2 trials of the search failed\n    2 of them: no memory"


def test_the_shipped_search_is_one(tmp_path: Path) -> None:
    from distdl.tune.check import checked
    from distdl.tune.values import given
    from tests.forks import REPOSITORY

    path = str(REPOSITORY / "configs" / "ways" / "tune.yaml")
    loaded = load_config(path)
    search = checked(loaded, given(path, [], loaded.config))
    assert search.count() == 20 and search.scheduler == "asha"
