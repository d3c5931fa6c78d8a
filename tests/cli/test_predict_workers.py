"""`distdl predict --workers`: several processes answer, and what is written does not tell how many there were."""

from __future__ import annotations

import csv
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.data import workers
from distdl.data.asking import tables
from distdl.data.asking.told import Wish
from distdl.data.prepare import prepare_dataset
from distdl.model import asked
from distdl.model.asked import Asker, Counter, Portion, one_thread, own_device
from distdl.model.model import Model
from distdl.run.folder import find_run
from tests.cli.test_predict import houses, trained, written
from tests.conftest import Result

Command = Callable[..., Result]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        written(place / "train.csv", houses(200), "size", "town", "class")
        prepare_dataset("csv", "houses", {"path": "train.csv", "label": "class"})
        model = {"family": "mlp", "column": "x", "inputs": [4], "hidden": [64, 64], "classes": 2}
        trained("houses", model, place / "houses", steps=40)
        new = houses(3000, seed=1)
        new[0]["size"] = new[1801]["size"] = "big"
        new[2500]["town"] = "Paris"
        lines = written(place / "new.csv", new, "size", "town").read_text().splitlines()
        (place / "new.csv").write_text("\n".join([*lines[:900], "12,Rome,3", *lines[900:]]) + "\n")
    return place


@pytest.fixture(autouse=True)
def in_parts(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tables, "TOGETHER", 300)  # of which the test has more than one


def told(command: Command, out: str, *more: object) -> tuple[bytes, bytes, str]:
    """What is written, what is written of bad rows, and what is said."""
    done = command("predict", "houses", "new.csv", "-o", out, "--probabilities", "--embeddings", "--quiet", *more)
    assert done.code == 1, done.stderr
    return Path(out).read_bytes(), Path(f"{out}.bad.jsonl").read_bytes(), done.stderr.replace(out, "OUT")


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(command: Command) -> None:
    one = told(command, "one.csv", "--workers", 1)
    assert told(command, "two.csv", "--workers", 2) == one
    assert "a worker" not in one[2] and "new.csv:2: " in one[2] and "new.csv:1804: " in one[2]
    assert "2,998 of 3,001 rows are answered in OUT; 2 could not be read and are empty rows; 1 lines" in one[2]
    rows = list(csv.DictReader(io.StringIO(one[0].decode())))
    assert [int(row["row"]) for row in rows] == list(range(3000))
    assert [int(row["row"]) for row in rows if not row["class"]] == [0, 1801]


@pytest.mark.slow
def test_what_a_killed_worker_was_doing_is_done_by_another(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = told(command, "whole.csv", "--workers", 1)

    def killing(self: Counter, asking: Any) -> Iterator[Portion]:
        for i, portion in enumerate(portions(self, asking)):
            if i == 4:
                os.kill(workers.current()._processes[0]._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            yield portion

    portions = Counter.portions
    monkeypatch.setattr(Counter, "portions", killing)
    found = told(command, "killed.csv", "--workers", 2)
    assert found[:2] == one[:2] and "ended by signal 9" in found[2] and "another does again" in found[2]
    monkeypatch.setattr(asked, "LOST", 0)
    done = command("predict", "houses", "new.csv", "-o", "lost.csv", "--workers", 2, "--quiet")
    assert done.code == 1 and "ended by signal 9" in done.stderr and not Path("lost.csv").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_actors_of_a_ray_cluster_write_the_same_bytes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    one = told(command, "alone.csv", "--workers", 1)

    def killing(self: Counter, asking: Any) -> Iterator[Portion]:
        import ray

        for i, portion in enumerate(portions(self, asking)):
            if i == 4:
                ray.kill(workers.current()._actors[0], no_restart=False)  # type: ignore[attr-defined]
            yield portion

    portions = Counter.portions
    monkeypatch.setattr(Counter, "portions", killing)
    assert told(command, "ray.csv", "--workers", 2, "--ray", "local") == one


@pytest.mark.slow
def test_a_worker_reads_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(find_run("houses", "runs"))

    with workers.using(2):
        found = [pid for pids in workers.current().each(Loads(model), range(8)) for pid in [pids]]
    assert len({pid for pid, _ in found}) <= 2 and os.getpid() not in {pid for pid, _ in found}
    assert {times for _, times in found} == {1}


class Loads:
    """Asks a worker how often it has read the model."""

    def __init__(self, model: Model) -> None:
        self.asker = Asker(model, iter, Wish())

    def __call__(self, item: int) -> Iterator[tuple[int, int]]:
        list(self.asker(Portion(item, [])))
        yield os.getpid(), asked.loaded.cache_info().misses


def test_workers_that_cannot_be_are_refused(command: Command) -> None:
    for more, text in (
        (("--workers", 0), "--workers is 0"),
        (("--workers", 2, "--device", "cuda:1"), "each takes the next GPU"),
        (("--device", "cuda:99"), "--device is 'cuda:99', and torch sees"),
        (("--device", "gpu"), "--device is 'gpu'"),
    ):
        done = command("predict", "houses", "new.csv", *more)
        assert done.code == 2 and text in done.stderr, done.stderr


def test_each_process_takes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("cpu", 0) == "cpu" and own_device("cuda", 1) == "cuda"
    monkeypatch.setenv(workers.NUMBER, "5")
    assert own_device("cuda", 4) == "cuda:1"


def test_one_worker_computes_with_one_thread() -> None:
    import torch

    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_what_fails_in_reading_is_raised_after_the_rows_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("torn")

    coming = workers.Coming(items())
    found = [coming.next() for _ in range(5)]
    assert found == [(0, 0), (1, 1), (2, 2), None, None]
    with pytest.raises(ValueError, match="torn"):
        coming.end()
    assert np.array_equal([n for n, _ in filter(None, found)], [0, 1, 2])
