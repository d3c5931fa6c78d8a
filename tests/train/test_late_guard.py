"""The guard as it reads on a GPU: once a step, when the backward passes are queued. Here a CPU is read as late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.config.load import config_from_dict
from distdl.engine.base import Engine
from distdl.errors import TrainingFailed
from distdl.families import mlp
from distdl.run.folder import RunFolder
from distdl.train import worker
from distdl.train.survey import survey
from tests.ranks import run_ranks
from tests.small import layout, small_config


def late() -> None:
    Engine._reads_late = property(lambda self: self.judge is None)  # type: ignore[assignment,method-assign]


@pytest.fixture
def reads_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_reads_late", property(lambda self: self.judge is None))


def ended(values: dict[str, Any], folder: Path) -> str:
    folder.mkdir()
    with pytest.raises(TrainingFailed) as caught:
        worker.run(survey(config_from_dict(values)), RunFolder(folder), 0)
    return str(caught.value)


def four_micro_batches(digits: str) -> dict[str, Any]:
    values = small_config("mlp", digits, "", train__steps=4, train__micro_batch=4)
    values["checkpoint"] = {"every_steps": 1, "keep_last": 9}
    return values


@pytest.mark.slow
@pytest.mark.parametrize(("call", "micro"), [(2, 3), (3, 4)])
def test_a_loss_that_is_no_number_ends_the_run_with_the_samples_of_its_micro_batch(
    digits: str, tmp_path: Path, reads_late: None, monkeypatch: pytest.MonkeyPatch, call: int, micro: int
) -> None:
    seen: list[list[int]] = []
    loss = mlp.MLP.loss

    def broken(self: Any, batch: Any, step: int) -> Any:
        value, metrics = loss(self, batch, step)
        if self.training and step == 2:
            seen.append(batch["id"].tolist())
            if len(seen) == call + 1:
                return value * float("nan"), metrics
        return value, metrics

    monkeypatch.setattr(mlp.MLP, "loss", broken)
    said = ended(four_micro_batches(digits), tmp_path / "run")
    assert f"the loss of step 3 is nan in micro-batch {micro} of 4" in said
    assert f"(row numbers): {', '.join(map(str, seen[call]))}\n" in said
    assert ("the first tensor that is not finite is" in said) == (micro == 4)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step_00000002"


@pytest.mark.slow
def test_a_gradient_alone_that_is_not_finite(
    digits: str, tmp_path: Path, reads_late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = mlp.MLP.loss

    def broken(self: Any, batch: Any, step: int) -> Any:
        value, metrics = loss(self, batch, step)
        return (value + (self.net[0].weight.sum() * 0).sqrt() if step == 2 else value), metrics

    monkeypatch.setattr(mlp.MLP, "loss", broken)
    said = ended(four_micro_batches(digits), tmp_path / "run")
    assert "the gradient of step 3 is not finite" in said and "net.0.weight" in said


def test_the_norm_is_read_once_and_the_losses_with_it(
    digits: str, reads_late: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, ...]] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(tuple(self.shape)) or tolist(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a number was read on its own"))
    values = four_micro_batches(digits)
    values["train"]["steps"] = 3
    values["optimizer"] = {"name": "sgd", "lr": 0.1}  # on CPUs torch's Adam reads its count of steps
    plan = survey(config_from_dict(values))
    engine = worker.make_engine(worker.build_learner(plan.settings, None), plan, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("a tensor was asked for yes or no"))
        source = worker.make_source(plan, 0)
        for step in range(3):
            for batch in engine.feed(source, step):
                engine.learner.update(batch, engine, step)
        source.close()
    assert [shape for shape in read if shape == (5,)] == 3 * [(5,)]  # the norm and four losses
    assert engine.optimizer_steps == {"learner": 3}


def one_rank_breaks(rank: int, world: int, values: dict[str, Any]) -> list[str]:
    """What each rank says of a loss that is no number on the second rank only."""
    late()
    loss = mlp.MLP.loss

    def broken(self: Any, batch: Any, step: int) -> Any:
        value, metrics = loss(self, batch, step)
        return (value * float("nan") if rank == 1 and step == 1 else value), metrics

    mlp.MLP.loss = broken  # type: ignore[method-assign]
    from tests.small import curve

    try:
        curve(rank, values)
    except TrainingFailed as error:
        return [str(error)]
    return ["nothing noticed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "zero1"])
def test_all_ranks_say_whose_loss_it_was(digits: str, name: str) -> None:
    values = layout(small_config("mlp", digits, "", train__micro_batch=4), name, 2)
    one, other = run_ranks(one_rank_breaks, 2, values)
    assert one == other and "the loss of step 2 is nan in micro-batch 1 of 2" in one[0]
