"""A checkpoint is written beside the training: it is that of its step, whole, one at a time, and nothing of it is lost."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distdl.checkpoint import save as saving
from distdl.checkpoint.layout import checkpoints, files_of
from distdl.checkpoint.load import Checkpoint
from distdl.checkpoint.save import Copies, Saving
from distdl.config.load import config_from_dict
from distdl.driver import room_left
from distdl.errors import DistdlError, TrainingFailed
from distdl.plan.memory import checkpoint_bytes
from distdl.run.folder import RunFolder
from distdl.train.hooks.log import Log
from tests.checkpoint.test_checkpoint_folder import bits, equal, learn, new_engine, restored, state_of
from tests.ranks import run_ranks
from tests.resumed import events
from tests.small import layout, small_config

WAIT_S = 60


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that takes no tensors until it is set."""
    opened, write = threading.Event(), saving.write_safetensors

    def slow(*args: Any) -> str:
        assert opened.wait(WAIT_S)
        return write(*args)

    monkeypatch.setattr(saving, "write_safetensors", slow)
    return opened


def test_it_is_the_state_of_its_step_whatever_is_learned_meanwhile(tmp_path: Path, gate: threading.Event) -> None:
    engine, copies = new_engine(), Copies()
    learn(engine, 0, 3)
    then = bits(engine)
    under_way = Saving(tmp_path, engine, state_of(3), copies=copies)
    learn(engine, 3, 3)
    assert not under_way.published and checkpoints(tmp_path) == []
    assert not equal(bits(engine), then)
    gate.set()
    path, size = under_way.finish()
    assert under_way.published and size == under_way.bytes > 0 and under_way.seconds > 0
    assert equal(bits(restored(Checkpoint(path), new_engine(9))), then)


def test_the_memory_of_the_copies_is_kept(tmp_path: Path) -> None:
    engine, copies = new_engine(), Copies()
    Saving(tmp_path, engine, state_of(1), copies=copies).finish()
    places = {name: tensor.data_ptr() for name, tensor in copies._kept.items()}
    learn(engine, 0, 1)
    Saving(tmp_path, engine, state_of(2), copies=copies).finish()
    again = {name: tensor.data_ptr() for name, tensor in copies._kept.items()}
    assert {name: again[name] for name in places} == places
    assert equal(bits(restored(Checkpoint(tmp_path / "step_00000002"), new_engine(9))), bits(engine))


def run(digits: str, folder: Path, asynchronous: bool = True, steps: int = 20, **changes: Any) -> RunFolder:
    """So many steps in this process, with a checkpoint every 5."""
    from distdl.layout.process import alone
    from distdl.train import worker
    from distdl.train.survey import survey

    values = small_config("mlp", digits, "", track__every_steps=1, train__steps=steps, **changes)
    values["checkpoint"] = {"every_steps": 5, "keep_last": 9, "keep_best": 0, "asynchronous": asynchronous}
    folder.mkdir(exist_ok=True)
    run_ = RunFolder(folder)
    run_.begin()
    with alone:
        worker.run(survey(config_from_dict(values)), run_, 0)
    return run_


def test_another_precision_is_said_and_goes_on_from_the_same_numbers(digits: str, tmp_path: Path) -> None:
    """Half of the run in fp32, half of it in bf16: the weights and states are those of fp32, and a warning says so."""
    folder = run(digits, tmp_path / "run", steps=10)
    saved = Checkpoint(checkpoints(folder.checkpoints)[-1][1])
    again = run(digits, tmp_path / "run", steps=10, train__precision="bf16")  # takes no step
    warned = [event["text"] for event in events(again.path, "message")]
    assert any("of a run in fp32, and goes on in bf16" in text and "taken as they are" in text for text in warned)
    assert events(again.path, "restart")[-1]["step"] == 10
    run(digits, tmp_path / "run", train__precision="bf16")
    end = Checkpoint(checkpoints(folder.checkpoints)[-1][1])
    assert (saved.manifest["precision"], end.manifest["precision"], end.step) == ("fp32", "bf16", 20)
    assert {str(end.read(name).dtype) for name in end.tensors} == {"torch.float32"}


def order(folder: Path) -> list[str]:
    """Steps and checkpoints as they were told."""
    names = {"metrics": "", "checkpoint": "checkpoint "}
    return [f"{names[e['kind']]}{e['step']}" for e in events(folder, *names)]


def test_training_goes_on_until_the_next_one(
    digits: str, tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes the first one in step 8; a next one waits for the one before, and the end for the last."""
    after = Log.after_step

    def opens(self: Log, step: int, metrics: Any) -> None:
        after(self, step, metrics)
        if step == 8:
            assert not checkpoints(tmp_path / "run" / "checkpoints")
            gate.set()

    monkeypatch.setattr(Log, "after_step", opens)
    folder = run(digits, tmp_path / "run")
    told = order(folder.path)
    assert told.index("8") < told.index("checkpoint 5") < told.index("11")
    assert told[-1] == "checkpoint 20" and [s for s, _ in checkpoints(folder.checkpoints)] == [5, 10, 15, 20]
    (first,) = [e for e in events(folder.path, "checkpoint") if e["step"] == 5]
    assert first["seconds"] < first["durable_s"]  # what the training stood still for, and how long the disk took


def test_or_stands_still_where_that_is_asked_for(digits: str, tmp_path: Path) -> None:
    told = order(run(digits, tmp_path / "run", asynchronous=False).path)
    assert [told[told.index(f"checkpoint {step}") - 1] for step in (5, 10, 15, 20)] == ["5", "10", "15", "20"]


def test_what_could_not_be_written_ends_the_run_at_the_next_one(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_safetensors", full)
    with pytest.raises(TrainingFailed, match="the checkpoint of step 5 could not be written: rank 0: No space left"):
        run(digits, tmp_path / "run")
    assert "10" in order(tmp_path / "run") and not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_failure_leaves_the_one_under_way_whole(
    digits: str, tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the failure's message calls the last checkpoint is the one that was being written."""
    after, wait = Log.after_step, Saving.wait

    def fails(self: Log, step: int, metrics: Any) -> None:
        after(self, step, metrics)
        if step == 7:
            raise TrainingFailed("the loss of step 7 is nan")

    def waits(self: Saving, seconds: float) -> None:
        gate.set()
        wait(self, seconds)

    monkeypatch.setattr(Log, "after_step", fails)
    monkeypatch.setattr(Saving, "wait", waits)
    with pytest.raises(TrainingFailed, match="step 7 is nan"):
        run(digits, tmp_path / "run")
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")] == [5]
    assert order(tmp_path / "run")[-1] == "checkpoint 5"


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "lr": 1e-3}, {"name": "sgd", "lr": 0.1, "momentum": 0.9}])
def test_the_disk_is_looked_at_before_anything_starts(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, Any]
) -> None:
    """What a checkpoint takes is known: so much must be free, and more for those that are kept."""
    from distdl.train.survey import survey

    values = small_config("mlp", digits, "") | {"optimizer": optimizer}
    plan = survey(config_from_dict(values))
    each = checkpoint_bytes(plan.settings, plan.model)
    engine = new_engine(0, optimizer)
    learn(engine, 0, 1)
    assert each == sum(tensor.nbytes for _, tensor in engine.tensors())

    def free(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=size))

    free(4 * each)
    assert room_left(plan, tmp_path) == []
    free(4 * each - 1)
    assert "of which 4 may lie there at a time" in room_left(plan, tmp_path)[0]
    free(each - 1)
    with pytest.raises(TrainingFailed, match=r"and a checkpoint takes .* GB"):
        room_left(plan, tmp_path)


def cut_off(rank: int, world: int, values: dict[str, Any], folder: str, broken: int) -> str:
    """A run in which one rank's disk is full from step 10 on. What ended it on this rank."""
    from distdl.train import worker
    from distdl.train.survey import survey

    write = saving.write_safetensors

    def full(path: Path, *args: Any) -> str:
        if rank == broken and "step_00000010" in str(path):
            raise OSError(28, "No space left on device")
        return write(path, *args)

    saving.write_safetensors = full
    torch.distributed.barrier()
    try:
        worker.run(survey(config_from_dict(values)), RunFolder(Path(folder)), rank)
    except DistdlError as error:
        return str(error)
    return "its end"


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1])
def test_every_rank_ends_where_one_cannot_write(digits: str, tmp_path: Path, broken: int) -> None:
    values = layout(small_config("mlp", digits, ""), "zero1", 2)
    values["checkpoint"] = {"every_steps": 5, "keep_last": 9, "keep_best": 0}
    RunFolder(tmp_path).begin()
    for told in run_ranks(cut_off, 2, values, str(tmp_path), broken):
        assert f"the checkpoint of step 10 could not be written: rank {broken}: No space left" in told
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [5]
    assert Checkpoint(checkpoints(tmp_path / "checkpoints")[0][1]).step == 5
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_the_first_rank_waits_for_every_part(digits: str, tmp_path: Path) -> None:
    """The parts of a rank whose disk is slow are in the checkpoints that are published, all of them."""
    values = layout(small_config("mlp", digits, ""), "zero3", 2)
    values["checkpoint"] = {"every_steps": 5, "keep_last": 9, "keep_best": 0}
    RunFolder(tmp_path).begin()
    assert run_ranks(slow_disk, 2, values, str(tmp_path)) == ["its end", "its end"]
    found = checkpoints(tmp_path / "checkpoints")
    assert [step for step, _ in found] == [5, 10, 15, 20]
    for _, path in found:
        told = json.loads((path / "manifest.json").read_text())["tensors"].values()
        files = {file[:13] for meta in told for file in files_of(meta)}
        assert files == {"tensors-00000", "tensors-00001"} and Checkpoint(path).tensors


def slow_disk(rank: int, world: int, values: dict[str, Any], folder: str) -> str:
    """The second rank's disk takes half a second for a file."""
    import time

    write = saving.write_safetensors

    def slow(*args: Any) -> str:
        time.sleep(0.5 * rank)
        return write(*args)

    saving.write_safetensors = slow
    return cut_off(rank, world, values, folder, broken=-1)
