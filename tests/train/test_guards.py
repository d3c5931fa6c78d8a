"""The guards against silent damage: each is shown a run with exactly that damage and must name it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.config.load import config_from_dict
from distdl.errors import InputError, TrainingFailed
from distdl.families import mlp
from distdl.run.folder import RunFolder
from distdl.train import worker
from distdl.train.hooks.early_stopping import EarlyStopping
from distdl.train.hooks.hook import Run
from distdl.train.hooks.parity import digest
from distdl.train.survey import survey
from tests.ranks import run_ranks
from tests.small import curve, layout, small_config, trained


def unsynchronised(rank: int, world: int, values: dict[str, Any]) -> str:
    """Trains with weights that a rank changes by itself after its step; returns what the parity hook says."""
    from distdl.engine.torch import TorchEngine

    minimize = TorchEngine._minimize

    def changed(self: Any, loss: torch.Tensor, player: str) -> None:
        minimize(self, loss, player)
        self.learner.net[0].weight.data[0, 0] += 1e-3 * rank

    TorchEngine._minimize = changed  # type: ignore[method-assign]
    try:
        curve(rank, values)
    except TrainingFailed as error:
        return str(error)
    return "nothing noticed"


def same_samples(rank: int, world: int, values: dict[str, Any]) -> str:
    """Gives both ranks the first one's share."""
    from distdl.data import source

    whole = source.BatchSource.__init__
    source.BatchSource.__init__ = lambda self, *a, **k: whole(self, *a, **{**k, "rank": 0})  # type: ignore[method-assign]
    try:
        curve(rank, values)
    except TrainingFailed as error:
        return str(error)
    return "nothing noticed"


@pytest.mark.slow
def test_replicas_that_drift_apart_are_found_after_the_first_step(digits: str) -> None:
    values = layout(small_config("mlp", digits, ""), "torch", 2)
    for said in run_ranks(unsynchronised, 2, values):
        assert "after step 1 the replicas differ" in said and "net.0.weight" in said


@pytest.mark.slow
def test_ranks_with_the_same_samples_are_found(digits: str) -> None:
    values = layout(small_config("mlp", digits, ""), "zero1", 2)
    for said in run_ranks(same_samples, 2, values):
        assert "in step 1 two ranks were given the same sample" in said


def test_digest_sees_one_bit_and_the_order() -> None:
    tensor = torch.randn(1000)
    changed = tensor.clone()
    changed.view(torch.int32)[617] ^= 1
    swapped = tensor.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert torch.equal(digest(tensor), digest(tensor.clone()))
    assert not torch.equal(digest(tensor), digest(changed))
    assert not torch.equal(digest(tensor), digest(swapped))


@pytest.fixture
def run(digits: str, tmp_path: Path) -> Any:
    """Trains a small perceptron in this process; returns the message that it ended with and the run's folder."""
    values = small_config("mlp", digits, "", train__steps=8)
    values["checkpoint"] = {"every_steps": 1, "keep_last": 9}
    plan = survey(config_from_dict(values))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()

    def go() -> str:
        with pytest.raises(TrainingFailed) as caught:
            worker.run(plan, folder, 0)
        return str(caught.value)

    return go, folder


@pytest.mark.slow
def test_a_loss_that_is_not_a_number(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that breaks in the fifth step: named with its step and samples, before it reaches the weights."""
    go, folder = run
    forward = mlp.MLP.logits

    def logits(self: Any, batch: Any) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + self.training
        if self.calls >= 5:
            self.net[3].forward = lambda x: x * float("nan")
        return forward(self, batch)

    monkeypatch.setattr(mlp.MLP, "logits", logits)
    said = go()
    assert "the loss of step 5 is nan" in said and "the output of net.3 (Dropout)" in said
    samples = [int(n) for n in said.split("row numbers): ")[1].split("\n")[0].split(", ")]
    assert len(samples) == len(set(samples)) == 16
    assert sorted(p.name for p in folder.checkpoints.iterdir())[-1] == "step_00000004"


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_while_the_loss_is(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """sqrt at zero: a finite loss with an infinite slope. The optimizer does not take the step."""
    go, folder = run
    loss = mlp.MLP.loss

    def broken(self: Any, batch: Any, step: int) -> Any:
        value, metrics = loss(self, batch, step)
        return (value + (self.net[0].weight.sum() * 0).sqrt() if step == 2 else value), metrics

    monkeypatch.setattr(mlp.MLP, "loss", broken)
    said = go()
    assert "the gradient of step 3 is not finite" in said and "net.0.weight" in said
    assert sorted(p.name for p in folder.checkpoints.iterdir())[-1] == "step_00000002"


@pytest.mark.slow
def test_the_guard_can_be_left_out(digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = small_config("mlp", digits, "", train__steps=3, guard__nonfinite=False)
    monkeypatch.setattr(mlp.MLP, "loss", lambda self, batch, step: (self.logits(batch).mean() * float("nan"), {}))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    worker.run(survey(config_from_dict(values)), folder, 0)
    assert folder.read("summary.json")["steps"] == 3


def broken_gradient(rank: int, world: int, runs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Several runs whose third step has a finite loss and an infinite gradient; name -> what ended each."""
    loss = mlp.MLP.loss

    def broken(self: Any, batch: Any, step: int) -> Any:
        value, metrics = loss(self, batch, step)
        return (
            value + (self.net[0](batch["image"].flatten(1).float()).sum() * 0).sqrt() if step == 2 else value
        ), metrics

    mlp.MLP.loss = broken  # type: ignore[method-assign]
    return trained(rank, world, runs)


@pytest.mark.slow
def test_the_same_under_deepspeed(digits: str, tmp_path: Path) -> None:
    """Every ZeRO stage stops with the step's number, and the last checkpoint holds finite weights."""
    runs = {}
    for zero in range(4):
        values = layout(small_config("mlp", digits, "", train__steps=8), f"zero{zero}", 2)
        values["checkpoint"] = {"every_steps": 1, "keep_last": 9}
        runs[f"zero{zero}"] = {"values": values, "folder": str(tmp_path / f"zero{zero}")}
    for said in run_ranks(broken_gradient, 2, runs):
        for name, run_ in runs.items():
            assert "the gradient of step 3 is not finite" in said[name], name
            step, path = checkpoints(Path(run_["folder"]) / "checkpoints")[-1]
            checkpoint = Checkpoint(path)
            assert step == 2 and all(bool(checkpoint.read(n).isfinite().all()) for n in checkpoint.tensors)


def test_an_evaluation_that_is_not_a_number_does_not_stop_what_improves_after_it() -> None:
    run_ = Run(SimpleNamespace(model=SimpleNamespace(primary="loss", better="lower"), steps=99), 0, *[None] * 4)  # type: ignore[arg-type]
    hook = EarlyStopping(run_, patience=2, min_delta=0.0)
    for step, value in enumerate([float("nan"), 3.0, 2.0, 2.5], start=1):
        run_.evaluation = (step, {"loss": value})
        hook.after_step(step, {})
    assert (hook.best, hook.waited, hook.wants_stop) == (-2.0, 1, False)
    run_.evaluation = (5, {"loss": 2.5})
    hook.after_step(5, {})
    assert hook.wants_stop and run_.stopping


@pytest.mark.slow
def test_a_run_beyond_the_new_last_step_is_refused(digits: str, tmp_path: Path) -> None:
    values = small_config("mlp", digits, "", train__steps=6)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    worker.run(survey(config_from_dict(values)), folder, 0)
    values["train"]["steps"] = 4
    with pytest.raises(InputError, match="the run is at step 6 already, and the plan ends at step 4"):
        worker.run(survey(config_from_dict(values)), folder, 0)
