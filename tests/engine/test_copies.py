"""The next batch travels to a GPU on a stream of its own, from pinned memory, and nobody waits for it but the GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distdl.config.load import config_from_dict
from distdl.engine.copies import BatchCopies
from distdl.layout.process import ProcessState
from distdl.train import worker
from distdl.train.loop import train
from distdl.train.survey import survey
from tests.pretended_gpu import GPU, PretendedGPU
from tests.small import contract_config


class Streams:
    """torch.cuda's, whose doings are listed in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.done = "main", list[str]()
        outer = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.name = "copies" if device else "main"

            def record_event(self) -> str:
                outer.done.append("all of it has set off")
                return "event"

            def wait_event(self, event: str) -> None:
                outer.done.append(f"{self.name} waits")

        @contextlib.contextmanager
        def stream(of: Stream) -> Iterator[None]:
            outer.now = of.name
            yield
            outer.now = "main"

        patch.setattr(Tensor, "record_stream", lambda tensor, of: self.done.append(f"kept for {of.name}"))
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream())


class WithStreams(PretendedGPU):
    """A GPU that tells them what is asked of it."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "to" and (kwargs or {}).get("non_blocking"):
            self.streams.done.append(f"a copy on {self.streams.now}")
        return super().__torch_function__(func, types, args, kwargs)


def test_a_batch_that_set_off_is_waited_for_by_the_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    with WithStreams(streams) as gpu:
        copies, following, other = BatchCopies(GPU), {"x": torch.ones(3), "y": torch.zeros(2)}, {"x": torch.ones(4)}
        copies.begin(following)
        copies.begin(following)  # it is on its way already
        assert streams.done == ["a copy on copies"] * 2 + ["all of it has set off"]
        streams.done.clear()
        assert copies.of(other)["x"].is_cuda and streams.done == ["a copy on main"]
        streams.done.clear()
        there = copies.of({**following, "mean": torch.ones(1)})  # with something that was computed since
        assert streams.done == ["main waits", "kept for main", "kept for main", "a copy on main"]
    assert torch.equal(there["x"], following["x"]) and not gpu.reads and not gpu.wrong


def losses(data: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> tuple[list[float], list[str], PretendedGPU]:
    """Of four steps in two micro-batches each; what the streams did after the first step; the GPU."""
    values = contract_config("mlp", data, train__micro_batch=8)
    values["train"]["steps"] = 4
    plan, found = survey(config_from_dict(values)), list[float]()
    with ProcessState(), monkeypatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        patch.setattr(torch.cuda, "manual_seed", lambda seed: None)
        worker.set_up_torch(plan)
        learner = worker.build_learner(plan.settings, None)
        engine, source = worker.make_engine(learner, plan, 0), worker.make_source(plan, 0)
        assert engine._copies is None  # on a CPU
        streams = Streams(patch)
        with WithStreams(streams) as gpu:
            to_device = engine.to_device
            gpu.take(engine)
            if ahead:
                engine._copies = BatchCopies(GPU)
                engine.to_device = to_device  # type: ignore[method-assign]
            forward = engine.forward

            def noted(batch: Any, step: int) -> Any:
                streams.done.append("forward")
                loss, metrics = forward(batch, step)
                found.append(loss.detach())  # type: ignore[arg-type]
                return loss, metrics

            engine.forward = noted  # type: ignore[method-assign]
            train(learner, engine, source, [], start=0, steps=1)
            streams.done.clear(), gpu.reads.clear()
            train(learner, engine, source, [], start=1, steps=4)
        state = source.state_dict()
        source.close()
    assert state["position"] == 4 * plan.global_batch  # a batch that has set off is not one that was taken
    return [float(loss) for loss in found], streams.done, gpu


@pytest.mark.slow
def test_while_a_step_is_computed_the_next_batch_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across steps, too; with the same losses, and the one read a step that the guard has without it."""
    whole, nothing, bare = losses(tmp_path, monkeypatch, False)
    found, done, gpu = losses(tmp_path, monkeypatch, True)
    assert found == whole and gpu.wrong == {} and sum(gpu.reads.values()) == sum(bare.reads.values()) == 3
    assert "main waits" not in nothing
    columns = done.index("all of it has set off") - done.index("a copy on copies")
    one = [
        "main waits",
        *["kept for main"] * columns,
        *["a copy on copies"] * columns,
        "all of it has set off",
        "forward",
    ]
    assert done == one * 6


def test_a_look_at_the_next_batch_takes_none_and_slabs_are_pinned_by_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = contract_config("mlp", tmp_path)
    values["data"]["threads"] = 1
    plan, by = survey(config_from_dict(values)), list[str]()
    empty = torch.empty

    def pinned(*shape: Any, pin_memory: bool = False, **rest: Any) -> Tensor:
        by.extend([threading.current_thread().name] * pin_memory)
        return empty(*shape, **rest)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(Tensor, "pin_memory", lambda slab: by.append(threading.current_thread().name) or slab)
    source = worker.make_source(plan, 0)
    assert source.peek() is None  # nothing has been asked for
    next(source)
    assert by == []  # on a CPU
    state, following = source.state_dict(), source.peek()
    assert following is not None and source.state_dict() == state and next(source) is following
    source.close()
    source = worker.make_source(plan, 0)
    source.pin = True
    batch = next(source)
    source.close()
    assert len(by) >= len(batch) and all(name.startswith("distdl-data") for name in by)
