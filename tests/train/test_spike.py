"""A loss that jumps a million times: said with its step and samples, and where asked for, nothing is learned from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from distdl.config.load import config_from_dict
from distdl.config.schema import Spike
from distdl.data.prepare import prepare_dataset
from distdl.errors import InputError, TrainingFailed
from distdl.run.folder import RunFolder
from distdl.run.heartbeat import Pulse
from distdl.train import worker
from distdl.train.hooks.spike import SKIPPED, Median, Rollback, SpikeGuard
from distdl.train.survey import survey
from tests.checkpoint.test_resume import differing, last
from tests.resumed import events, go_on, train
from tests.small import layout, small_config

BAD = 15
"""The step whose batch has the row below: read in stored order, 16 rows a step."""
ROW = 16 * (BAD - 1) + 9


@pytest.fixture(scope="module")
def spiked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """320 points of a plane, one of which has a target that is ten thousand times too large."""
    folder, draw = tmp_path_factory.mktemp("spiked"), np.random.default_rng(0)
    x = draw.normal(size=(320, 8)).astype("f4")
    y = (x @ draw.normal(size=(8, 1)))[:, 0].astype("f4") + 3
    y[ROW] = 3e4
    np.savez(folder / "a.npz", x=x, y=y)
    prepare_dataset("npz", folder / "set", {"path": str(folder / "a.npz"), "columns": ["x", "y"], "train": ["x", "y"]})
    return str(folder / "set")


def config(data: str, action: str, **parallel: Any) -> dict[str, Any]:
    values = small_config("mlp", data, "", train__micro_batch=4)
    values["model"] = {"family": "mlp", "inputs": [8], "column": "x", "hidden": [8], "target": "value"}
    values["data"] |= {"eval_split": None, "shuffle": "none"}
    values |= {"guard": {"spike": {"action": action}, "parity_every_steps": 5}, "checkpoint": {"every_steps": 5}}
    return values | {"parallel": {"engine": "torch", **parallel}}


def trained(values: dict[str, Any], folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.path.mkdir()
    worker.run(survey(config_from_dict(values)), run, 0)
    return run


@pytest.mark.slow
def test_it_is_said_by_default(spiked: str, tmp_path: Path) -> None:
    values = config(spiked, "warn")
    del values["guard"]["spike"]
    run = trained(values, tmp_path / "run")
    (told,) = events(run.path, "message")
    assert (
        told["level"] == "warning" and f"the loss of step {BAD} is 5.6" in told["text"] and f" {ROW}," in told["text"]
    )
    assert Checkpoint(checkpoints(run.checkpoints)[-1][1]).state.optimizer_steps == {"learner": 20}


@pytest.mark.slow
def test_stop_ends_before_a_checkpoint_holds_it(spiked: str, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingFailed, match=rf"the loss of step {BAD} is 5\.6.* {ROW},(.|\n)*guard\.spike\.action=skip"
    ):
        trained(config(spiked, "stop"), tmp_path / "run")
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1][0] == BAD - 5


@pytest.mark.slow
def test_nobody_looks_where_it_is_null(spiked: str, tmp_path: Path) -> None:
    values = config(spiked, "warn") | {"guard": {"spike": None}}
    assert events(trained(values, tmp_path / "run").path, "message") == []


@pytest.mark.slow
def test_a_step_that_is_left_out_is_left_out_on_every_layout_and_in_a_replay(spiked: str, tmp_path: Path) -> None:
    """Adam's moments and its count of steps stay, too: the same weights as one process has, also by a run that was cut off
    before the spike and judges it by the losses that its checkpoint kept."""
    names = ["torch", "zero0", "zero1", "zero2", "zero3", "zero1+pipeline2"]
    cases = {name: layout(config(spiked, "skip"), name, 2) for name in names}
    cases["bf16"] = layout(config(spiked, "skip"), "zero1", 2)
    cases["bf16"]["train"] = cases["bf16"]["train"] | {"precision": "bf16"}
    whole = {name: {"values": values, "folder": str(tmp_path / name / "whole")} for name, values in cases.items()}
    cut = {name: {"values": values, "folder": str(tmp_path / name / "cut")} for name, values in cases.items()}
    train(2, {f"{name} whole": run for name, run in whole.items()}, {f"{name} cut": run for name, run in cut.items()})
    go_on(2, {f"{name} cut": run for name, run in cut.items()})
    one = trained(config(spiked, "skip"), tmp_path / "one")
    want = last(one.path)
    assert want.state.optimizer_steps == {"learner": 19}
    for name in cases:
        for run in (whole[name], cut[name]):
            (told,) = events(Path(run["folder"]), "message")
            assert f"the loss of step {BAD} is" in told["text"] and f" {ROW}," in told["text"], name
            assert told["text"].endswith("the step was left out")
        got = last(Path(whole[name]["folder"]))
        assert differing(got, last(Path(cut[name]["folder"]))) == [], name
        assert got.state.optimizer_steps == {"learner": 19}
        limit = 5e-3 if name == "bf16" else 1e-5
        for tensor in want.tensors:
            assert torch.allclose(got.read(tensor), want.read(tensor), atol=limit), (name, tensor)


@pytest.fixture(scope="module")
def without(spiked: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The end of a run that never had the five batches between the checkpoint of step 10 and the spike."""
    from distdl.train.worker import make_dataset

    folder = tmp_path_factory.mktemp("without")
    rows = np.r_[: 16 * (BAD - 5), 16 * BAD : 320, : 16 * 5]
    columns = make_dataset(survey(config_from_dict(config(spiked, "warn"))), "train").gather(rows)
    np.savez(folder / "a.npz", **{name: np.asarray(columns[name]) for name in ("x", "y")})
    prepare_dataset("npz", folder / "set", {"path": str(folder / "a.npz"), "columns": ["x", "y"], "train": ["x", "y"]})
    return trained(config(str(folder / "set"), "stop"), folder / "run").path


def same_as_without(run: Path, without: Path) -> None:
    got, want = last(run), last(without)
    assert got.state.optimizer_steps == {"learner": 20} and got.state.data["position"] == 16 * 25
    for tensor in want.tensors:
        assert torch.allclose(got.read(tensor), want.read(tensor), atol=1e-5), tensor
    told = [event["text"] for event in events(run, "message")]
    assert len(told) == 1 and told[0].endswith("back to step 10, and on with the batches that follow")


@pytest.mark.slow
def test_rollback_goes_on_from_the_checkpoint_with_the_batches_that_follow(
    spiked: str, without: Path, tmp_path: Path
) -> None:
    same_as_without(trained(config(spiked, "rollback"), tmp_path / "run").path, without)


@pytest.mark.slow
def test_rollback_under_deepspeed(spiked: str, without: Path, tmp_path: Path) -> None:
    cases = {name: layout(config(spiked, "rollback"), name, 2) for name in ("zero1", "zero3", "zero1+pipeline2")}
    train(2, {name: {"values": values, "folder": str(tmp_path / name)} for name, values in cases.items()})
    for name in cases:
        same_as_without(tmp_path / name, without)


def test_after_a_return_to_the_start_the_first_steps_are_judged_too(spiked: str, tmp_path: Path) -> None:
    """Else the same rows, should they come again within ten steps, are learned from without a word."""
    from distdl.train.hooks.spike import Rollback, SpikeGuard

    run = SimpleNamespace(engine=Engine(), event=lambda *_, **__: None)
    guard = SpikeGuard(run, config_from_dict(config(spiked, "rollback")).guard.spike, 1)  # type: ignore[arg-type]
    assert not guard.median.spikes(1e6)
    guard.go_on_from(Rollback("jumped", {}, [1.0] * 12))
    assert guard.median.spikes(1e6)
    guard.go_on_from(Rollback("jumped", {}, [1e9] * 12))  # its own losses go before those of the way it came
    assert guard.median.spikes(1e6)


@pytest.mark.slow
def test_rollback_has_an_end(spiked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that jumps in the fifteenth step, whatever batch it has."""
    from distdl.families import mlp

    loss = mlp.MLP.loss

    def high(self: Any, batch: Any, step: int) -> Any:
        value, metrics = loss(self, batch, step)
        return (value + 1e7 if step == BAD - 1 else value), metrics

    monkeypatch.setattr(mlp.MLP, "loss", high)
    with pytest.raises(TrainingFailed, match="went back to step 10 3 times already"):
        trained(config(spiked, "rollback"), tmp_path / "run")


def test_what_counts_as_a_spike() -> None:
    def judged(recent: list[float], loss: float) -> bool:
        median = Median(10.0, 20)
        median.recent.extend(recent)
        return median.spikes(loss)

    assert not judged([1.0] * 9, 1e6)  # too few to say
    assert judged([1.0] * 10, 10.1) and not judged([1.0] * 10, 10.0)
    assert judged([1.0] * 10, float("nan")) and judged([1.0] * 10, float("inf"))
    assert judged([-1.0] * 10, 8.1) and not judged([-1.0] * 10, 7.9)  # nine times its size above it
    assert not judged([0.0] * 10, 1e6)  # a median of nothing is no measure
    assert judged([1.0] * 15 + [1e6] * 5, 11.0)  # spikes do not move it


class Engine(SimpleNamespace):
    device = torch.device("cpu")

    def all_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def own_loss(self) -> float:
        return 1.0


def guard(action: str, losses: list[float]) -> tuple[Any, list[str]]:
    """A guard that has seen these losses, and what it said."""
    said: list[str] = []
    plan = SimpleNamespace(world=1)
    engine = Engine(rows=[torch.tensor([7])], judge=None)
    run: Any = SimpleNamespace(plan=plan, engine=engine, due=lambda step, every: step % every == 0)
    run.event = lambda kind, **fields: said.append(fields["text"])
    hook = SpikeGuard(run, Spike(factor=10.0, window=20, action=action), every_steps=3)  # type: ignore[arg-type]
    for step, loss in enumerate(losses, start=1):
        hook.after_step(step, {"loss": (torch.tensor(loss), 1.0)})  # type: ignore[dict-item]
    return hook, said


def test_a_loss_that_stays_high_is_told_once_and_becomes_the_measure() -> None:
    hook, said = guard("warn", [1.0] * 12 + [1e3] * 30 + [1e6] * 3)
    assert [text.split(" is ")[0] for text in said] == ["the loss of step 13", "the loss of step 43"]
    assert hook.state_dict()["recent"] == [1e3] * 17 + [1e6] * 3


def test_skipping_has_an_end() -> None:
    hook, said = guard("skip", [])
    judge = hook.run.engine.judge
    assert not any(judge(step, 1.0) for step in range(1, 12))
    assert all(judge(12 + i, 1e3) for i in range(SKIPPED)) and len(said) == SKIPPED
    with pytest.raises(TrainingFailed, match=f"the {SKIPPED} steps before were left out as well"):
        judge(12 + SKIPPED, 1e3)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gan", {"guard": {"spike": {"action": "skip"}}}, "the family gan is more than a loss and its gradient"),
        ("mlp", {"guard": {"spike": {"action": "skip"}}, "optimizer": {"name": "lbfgs"}}, "a step of lbfgs is more"),
    ],
)
def test_what_cannot_be_done_is_refused(family: str, changes: dict[str, Any], words: str, small_data: Path) -> None:
    from tests.small import contract_config

    values = contract_config(family, small_data) | changes
    with pytest.raises(InputError, match=words):
        survey(config_from_dict(values))


@pytest.mark.slow
def test_who_goes_back_has_the_time_of_a_start(spiked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads and checks a checkpoint and builds its engine anew, while others may wait: that is no hang."""
    pulse, tries = Pulse(), []
    for step in range(1, 40):
        pulse.at("after the step", step)
    assert pulse.limit_s(30.0, 600.0) == 30.0

    def train(*_: Any) -> None:
        tries.append(pulse.limit_s(30.0, 600.0))
        if len(tries) < 3:
            raise Rollback("a jump", {}, [])

    monkeypatch.setattr(worker, "_train_from_checkpoint", train)
    worker._train(survey(config_from_dict(config(spiked, "rollback"))), RunFolder(Path("x")), 0, None, pulse)
    assert tries == [30.0, 600.0, 600.0]
