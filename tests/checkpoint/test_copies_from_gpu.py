"""A checkpoint's copies are queued on a GPU, and only who writes them waits for them: once, for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distdl.checkpoint import save as saving
from distdl.checkpoint.load import Checkpoint
from distdl.checkpoint.save import Copies, Saving
from tests.checkpoint.test_checkpoint_folder import bits, equal, learn, new_engine, restored, state_of
from tests.pretended_gpu import PretendedGPU


class Queue(PretendedGPU):
    """A GPU whose one stream tells what is asked of it; memory that is asked for pinned is there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.done: list[str] = []
        event = SimpleNamespace(synchronize=lambda: self.done.append("wait"))
        stream = SimpleNamespace(record_event=lambda: self.done.append("event") or event)
        patch.setattr(torch.cuda, "current_stream", lambda *device: stream)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.pop("pin_memory", False):
            self.done.append("pinned")
        if getattr(func, "__name__", "") == "copy_" and kwargs.get("non_blocking"):
            self.done.append("copy")
        return super().__torch_function__(func, types, args, kwargs)


def saved(folder: Path, patch: pytest.MonkeyPatch, pinned: bool) -> tuple[Queue, int]:
    """What was asked of the GPU, and how many tensors the checkpoint has."""
    engine, write = new_engine(), saving.write_safetensors
    with Queue(patch) as gpu:
        patch.setattr(saving, "write_safetensors", lambda *given: gpu.done.append("write") or write(*given))
        gpu.take(engine)
        learn(engine, 0, 2)
        gpu.done.clear(), gpu.reads.clear()
        under_way = Saving(folder, engine, state_of(2), copies=Copies(pinned))
        reads, gpu.reads = gpu.reads, type(gpu.reads)()
        under_way.finish()
        gpu.reads = reads
    then, path = bits(engine), folder / "step_00000002"
    assert equal(bits(restored(Checkpoint(path), new_engine(9))), then) and gpu.wrong == {}
    return gpu, len(then)


def test_training_waits_for_no_copy_and_the_writer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, tensors = saved(tmp_path, monkeypatch, pinned=True)
    assert gpu.done == ["pinned", "copy"] * tensors + ["event", "wait", "write"] and gpu.reads == {}


def test_into_memory_that_is_not_pinned_each_copy_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And counted, so that the test above would see one."""
    gpu, tensors = saved(tmp_path, monkeypatch, pinned=False)
    assert gpu.done == ["write"] and sum(gpu.reads.values()) == tensors
