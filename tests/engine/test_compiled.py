"""`train.compile`: each piece is one graph, compiled once for training and once for evaluations, and changes no number."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.data.source import EvalSource
from distdl.engine import nonfinite
from distdl.layout.process import ProcessState
from distdl.metrics import Metrics, values
from distdl.nn.watch import watching
from distdl.train import worker
from distdl.train.hooks.hook import Hook
from distdl.train.loop import evaluate, train
from distdl.train.survey import survey
from tests.engine.test_memory import compare_compiled
from tests.ranks import run_ranks
from tests.small import SOME_STEPS, contract_config, curves, layout

PIECES = {"gpt": 8, "vit": 7, "mamba": 4, "unet": 2, "lstm": 2}
"""Graphs of a family: embedding, block, head and criterion, each for training and for evaluations, in which a classifier
has no criterion (mamba's embedding and norm are kernels of torch's own); or its loss and its evaluation."""


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """torch's own, of graphs that nobody writes machine code for."""
    import torch._dynamo.utils

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield torch._dynamo.utils.counters
    torch._dynamo.reset()


class Losses(Hook):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_step(self, step: int, metrics: Metrics) -> None:
        self.seen.append(values(metrics)["loss"])


def rounds(case: dict[str, Any], count: int = 2) -> Iterator[tuple[list[float], dict[str, float]]]:
    """Three steps and an evaluation whose last batch is a short one, again and again: the losses and what was measured."""
    config = config_from_dict(case)
    with ProcessState():
        plan = survey(config)
        worker.set_up_torch(plan)
        engine = worker.make_engine(worker.build_learner(config, None), plan, 0)
        source, losses = worker.make_source(plan, 0), Losses()
        rows = worker.make_dataset(plan, "test")
        batch = next(n for n in range(min(rows.rows - 1, 48), 1, -1) if rows.rows % n)
        held_out = EvalSource(rows, batch=batch, rank=0, world=1)
        assert len({len(found["id"]) for found, _ in held_out}) == 2
        for turn in range(count):
            train(engine.learner, engine, source, [losses], start=3 * turn, steps=3 * turn + 3)
            yield losses.seen, evaluate(engine.learner, engine, held_out)
        source.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", PIECES)
def test_each_piece_is_one_graph_compiled_once(family: str, small_data: Path, counters: Any) -> None:
    case = contract_config(family, small_data)
    want = list(rounds(case))
    case["train"]["compile"] = True
    got = []
    for each in rounds(case):
        got.append(each)
        assert not counters["graph_break"], counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == PIECES[family]
    for (losses, measured), (other, also) in zip(want, got):
        assert other == pytest.approx(losses, abs=1e-5)
        assert also == pytest.approx(measured, abs=1e-5)


@pytest.mark.slow
def test_the_same_numbers_on_two_ranks(small_data: Path) -> None:
    """One family on each layout. gpt is in test_memory.py, on every axis."""
    families = [family for family in PIECES if family != "gpt"]
    compare_on_two_ranks(small_data, list(zip(families, itertools.cycle(("zero2", "zero1", "torch")))))


@pytest.mark.slow
@pytest.mark.long
def test_the_same_numbers_on_two_ranks_of_every_family_on_every_layout(small_data: Path) -> None:
    families = [family for family in PIECES if family != "gpt"]
    compare_on_two_ranks(small_data, list(itertools.product(families, ("torch", "zero1", "zero2"))))


def compare_on_two_ranks(small_data: Path, cells: list[tuple[str, str]]) -> None:
    cases = {family: contract_config(family, small_data, train__steps=SOME_STEPS) for family, _ in cells}
    reference = run_ranks(curves, 1, cases)[0]
    runs = {f"{family} {name}": layout(cases[family], name, 2) for family, name in cells}
    compare_compiled(
        reference, 2, runs, "aot_eager", norm=1e-3
    )  # as uncompiled (tests/parity): Adam moves on noise, too


# -- who looks on ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_who_looks_on_sees_what_happens_within(small_data: Path, counters: Any) -> None:
    """Hooks and watchers of answers, which compiled code would not call."""
    case = contract_config("lstm", small_data, train__compile=True)
    with ProcessState():
        plan = survey(config_from_dict(case))
        engine = worker.make_engine(worker.build_learner(plan.settings, None), plan, 0)
        source = worker.make_source(plan, 0)
        train(engine.learner, engine, source, [], start=0, steps=1)
        batch = next(source)
        source.close()
        engine.evaluate(batch)
        graphs = counters["stats"]["unique_graphs"]
        told: list[str] = []
        with watching(lambda kind, told_, true: told.append(kind)):
            engine.evaluate(batch)
        assert told == ["classes"]
        engine.learner.stack[0].weight_hh_l0.detach().fill_(torch.nan)
        assert nonfinite.first_bad(engine.learner, plan, batch, 0) == "the weight stack.0.weight_hh_l0"
        with torch.no_grad():
            for weight in engine.learner.stack[-1].parameters():
                weight.fill_(1.0 if weight.ndim == 1 else 0.0)  # every unit is far above 0
            engine.learner.head.weight.fill_(3e38)
        engine.learner.stack[0].weight_hh_l0.detach().fill_(0.0)
        assert nonfinite.first_bad(engine.learner, plan, batch, 0) == "the output of head (Linear)"
    assert counters["stats"]["unique_graphs"] == graphs


# -- what is kept ------------------------------------------------------------------------------------------------------


def started(rank: int, world: int, values: dict[str, Any], steps: int, cache: str, home: str) -> dict[str, Any]:
    """The run started once more, to a step, with a folder of torch's for compiled code and a home of the user's. -> torch's
    counters, and the run's warnings."""
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "DISTDL_HOME": home}
    os.environ.pop("DISTDL_TRUSTED", None)
    import torch._dynamo.utils

    from distdl.run.folder import open_run

    config = config_from_dict(values | {"train": values["train"] | {"steps": steps}})
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    except Exception as error:  # no working C++ compiler
        return {"skip": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    folder = open_run(config, None)
    worker.run(survey(config), folder, rank)
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    warnings = [event["text"] for event in events if event["kind"] == "message" and event["level"] == "warning"]
    told = torch._dynamo.utils.counters["inductor"] + torch._dynamo.utils.counters["aot_autograd"]
    hits, misses = (sum(n for key, n in told.items() if key.endswith(f"cache_{what}")) for what in ("hit", "miss"))
    return {"hits": hits, "misses": misses, "warnings": warnings}


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_a_strangers_code_is_not_loaded(small_data: Path, tmp_path: Path) -> None:
    values = contract_config("mlp", small_data, train__compile=True, runs=str(tmp_path / "runs"))
    values["checkpoint"] = {"every_steps": 2}

    def start(steps: int, name: str, home: str) -> dict[str, Any]:
        told = run_ranks(started, 1, values, steps, str(tmp_path / name), str(tmp_path / home))[0]
        if "skip" in told:
            pytest.skip(f"torch.compile does not run here: {told['skip']}")
        return told

    first = start(2, "one", "mine")
    assert first["misses"] and not first["hits"]
    again = start(4, "two", "mine")
    assert again["hits"] and not again["misses"] and not again["warnings"]
    stranger = start(6, "three", "another")
    assert stranger["misses"] and "was compiled elsewhere" in stranger["warnings"][-1]
