"""How long NCCL waits for a collective: long at the start and beside the steps, a few steps within them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import distributed_c10d

from distdl.config.load import config_from_dict
from distdl.engine import patience
from distdl.engine.patience import Patience
from distdl.layout.process import ProcessState
from distdl.run.heartbeat import Pulse
from distdl.train import worker
from distdl.train.hooks.hook import Hook
from distdl.train.loop import train
from distdl.train.survey import survey
from tests.small import contract_config


def plan(hang_s: float | None = None, device: str = "cuda", world: int = 8) -> Any:
    settings = SimpleNamespace(guard=SimpleNamespace(hang_s=hang_s), runtime=SimpleNamespace(timeout_s=600.0))
    return SimpleNamespace(settings=settings, device=device, world=world)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """(seconds, group) of every setting."""
    found: list[tuple[float, str]] = []

    def set_timeout(timeout: timedelta, group: str) -> None:
        found.append((timeout.total_seconds(), group))

    monkeypatch.setattr(distributed_c10d, "_set_pg_timeout", set_timeout)
    monkeypatch.setattr(patience, "groups", lambda: ["all", "data"])
    return found


def pulse(*steps_s: float) -> Pulse:
    """Of a run whose steps so far, the first one among them, took that long."""
    found = Pulse()
    found._steps.extend(steps_s)
    return found


def test_short_after_the_first_step_and_long_beside_the_steps(told: list[tuple[float, str]]) -> None:
    waits = Patience(plan())
    waits.in_step(pulse())
    waits.beside_steps()
    waits.in_step(pulse(240.0))  # the first step compiled: it says nothing of the others
    assert told == [(600, "all"), (600, "data")]
    waits.in_step(pulse(240.0, 0.5))
    waits.beside_steps()
    assert told[2:] == [(120, "all"), (120, "data"), (600, "all"), (600, "data")]


def test_long_steps_have_longer_but_never_more_than_the_config_says(told: list[tuple[float, str]]) -> None:
    for seconds, wanted in ((8.0, 320.0), (60.0, 600.0)):
        told.clear()
        waits = Patience(plan())
        waits.in_step(pulse(1.0, seconds))
        assert told[0] == (wanted, "all")


@pytest.mark.parametrize("given", [{"device": "cpu"}, {"world": 1}])
def test_nothing_is_set_on_cpus_and_on_one_rank(given: dict[str, Any], told: list[tuple[float, str]]) -> None:
    waits = Patience(plan(**given))
    waits.in_step(pulse(1.0, 1.0))
    waits.beside_steps()
    assert told == []


def test_where_nobody_shall_be_ended_the_timeout_stays(told: list[tuple[float, str]]) -> None:
    waits = Patience(plan(hang_s=0))
    waits.in_step(pulse(1.0, 1.0))
    assert told == [(600, "all"), (600, "data")]


def test_an_engine_has_short_ones_in_its_steps_and_long_ones_while_hooks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    planned = survey(config_from_dict(contract_config("mlp", tmp_path, train__micro_batch=8)))

    class After(Hook):
        def after_step(self, step: int, metrics: Any) -> None:
            order.append(f"hook {step}")

    with ProcessState():
        learner = worker.build_learner(planned.settings, None)
        engine = worker.make_engine(learner, planned, 0)
        monkeypatch.setattr(engine.patience, "in_step", lambda pulse: order.append("in a step"))
        monkeypatch.setattr(engine.patience, "beside_steps", lambda: order.append("beside"))
        source = worker.make_source(planned, 0)
        train(learner, engine, source, [After()], start=0, steps=2)
        source.close()
    assert order == ["in a step", "beside", "hook 1", "in a step", "beside", "hook 2"]
