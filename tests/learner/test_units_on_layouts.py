"""Numbers to predict, on every layout of two ranks: metrics speak in the file's units, and are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distdl.config.load import config_from_dict
from distdl.data.preparation import recorded
from distdl.data.prepare import prepare_dataset
from distdl.data.source import EvalSource
from distdl.layout.process import ProcessState
from distdl.learner.units import Units
from distdl.train import worker
from distdl.train.loop import evaluate, train
from distdl.train.survey import survey
from tests.ranks import run_ranks
from tests.small import BASE, layout

LAYOUTS = ("zero1", "zero2", "zero3", "zero1+pipeline2")


def ends(rank: int, world: int, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each run's metrics of the held-out rows, as a worker trains and evaluates it. Collective."""
    found = {}
    for name, values in cases.items():
        with ProcessState():
            plan = survey(config_from_dict(values))
            worker.set_up_torch(plan)
            learner = worker.build_learner(plan.settings, None)
            learner.file_units = Units.of(recorded(plan.data.path))
            engine, source = worker.make_engine(learner, plan, rank), worker.make_source(plan, rank)
            train(learner, engine, source, [], start=0, steps=plan.steps)
            of_rank = plan.mesh.place(rank)["data"]
            held_out = EvalSource(worker.make_dataset(plan, "test"), batch=10, rank=of_rank, world=plan.mesh.data)
            found[name] = evaluate(learner, engine, held_out)
            source.close()
    return found


def houses(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    size, rooms = draw.uniform(20, 400, 200), draw.integers(1, 9, 200)
    lines = [f"{s:.1f},{r},{1500 * s + 20_000 * r:.0f}" for s, r in zip(size, rooms, strict=True)]
    (folder / "houses.csv").write_text("size,rooms,price\n" + "\n".join(lines) + "\n")
    return folder / "houses.csv"


@pytest.mark.slow
def test_metrics_in_the_files_units_are_equal_on_every_layout(tmp_path: Path) -> None:
    prepare_dataset("csv", tmp_path / "d", {"path": houses(tmp_path), "target": "price", "test_fraction": 0.2})
    values: dict[str, Any] = {
        **BASE,
        "name": "houses",
        "model": {"family": "mlp", "inputs": [2], "column": "x", "hidden": [16], "target": "value"},
        "data": {"path": str(tmp_path / "d"), "threads": 0},
        "train": {"global_batch": 16, "steps": 40, "deterministic": True},
        "guard": {"parity_every_steps": 10},
    }
    (alone,) = run_ranks(ends, 1, {"torch": layout(values, "torch", 1)}, timeout_s=500)
    expected = alone["torch"]
    assert expected["r2"] > 0.5 and 1_000 < expected["mae"] < expected["rmse"] < 200_000, "prices, not their scale"
    ranks = run_ranks(ends, 2, {name: layout(values, name, 2) for name in LAYOUTS}, timeout_s=900)
    for found in ranks:
        for name in LAYOUTS:
            assert found[name] == pytest.approx(expected, rel=1e-4), name
