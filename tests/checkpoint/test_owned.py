"""What every rank writes and reads of a checkpoint, on real ranks: its own, once, alone, and as much as the others."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distdl.checkpoint import stream
from distdl.checkpoint.layout import checkpoints
from distdl.checkpoint.load import Checkpoint
from tests.checkpoint.test_checkpoint_folder import flip
from tests.ranks import run_ranks
from tests.resumed import events, train
from tests.small import layout, small_config, trained

LAYOUTS = ["torch", "zero1", "zero2+tensor2", "zero1+pipeline2"]
BLOCK = 512


def cases(digits: str, text: str) -> dict[str, dict[str, Any]]:
    values = small_config("gpt", digits, text)
    experts = {**values, "model": {**values["model"], "experts": 4, "experts_every": 1, "experts_top_k": 2}}
    found = {name: layout(values, name, 2) for name in LAYOUTS}
    found["zero3"] = layout({**values, "train": {**values["train"], "precision": "bf16"}}, "zero3", 2)
    return found | {"experts": layout(experts, "zero1+expert2", 2)}


@contextlib.contextmanager
def engine_of(plan: Any, rank: int, checkpoint: Checkpoint | None) -> Any:
    from distdl.layout.process import ProcessState
    from distdl.train import worker

    with ProcessState(), contextlib.closing(worker.make_source(plan, rank)) as source:
        learner = worker.build_learner(plan.settings, checkpoint)
        engine = worker.make_engine(learner, plan, rank)
        yield learner, engine, source


def one_after_the_other(rank: int, key: str, act: Any) -> Any:
    """A rank begins when the one before it has ended: whoever waited for another in it would wait for ever."""
    store = torch.distributed.distributed_c10d._get_default_store()
    if rank:
        store.wait([f"{key}-{rank - 1}"])
    value = act()
    store.set(f"{key}-{rank}", "done")
    return value


def of_every_layout(rank: int, world: int, values: dict[str, dict[str, Any]], folder: str) -> dict[str, Any]:
    """Two steps, a save, and a resume on the same layout: what this rank wrote and read."""
    from distdl.checkpoint.save import save
    from distdl.config.load import config_from_dict
    from distdl.train.survey import survey
    from tests.checkpoint.test_checkpoint_folder import state_of

    stream.BLOCK = BLOCK
    told = {}
    for name, of in values.items():
        plan = survey(config_from_dict(of))
        with engine_of(plan, rank, None) as (learner, engine, source):
            for step in range(2):
                for batch in engine.feed(source, step):
                    learner.update(batch, engine, step)
            owned = one_after_the_other(rank, name, partial(copied, engine))
            if name == "zero1":  # in fp32 there is none
                engine.engines["learner"].optimizer.loss_scaler = scaler(2.0**7, 40, 31)
            state = dataclasses.replace(state_of(2), loss_scales=engine.loss_scales())
            path, _ = save(Path(folder) / name, engine, state)
            gathered = {n: t.detach().clone() for n, t in engine.tensors()}
        checkpoint = Checkpoint(path, verify=False)
        same = all(torch.equal(checkpoint.read(n), t) for n, t in gathered.items())
        asked: list[tuple[str, Any]] = []
        with engine_of(plan, rank, checkpoint) as (_, engine, _):
            one_after_the_other(rank, f"{name} again", partial(taken_up, engine, checkpoint, asked))
            again = all(torch.equal(gathered[n], t) for n, t in engine.tensors())
            again &= scales_go_on(name, engine, checkpoint)
        told[name] = {"same": same, "again": again, "written": sum(owned), **bytes_read(path, asked)}
    return told


def scaler(scale: float, iterations: int, overflow: int) -> Any:
    """DeepSpeed's dynamic loss scale of fp16."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    made = DynamicLossScaler(scale, 1000, 1, 2, False)
    made.cur_iter, made.last_overflow_iter = iterations, overflow
    return made


def scales_go_on(name: str, engine: Any, checkpoint: Checkpoint) -> bool:
    """Whether a dynamic loss scale goes on where it was; an engine without one has none afterwards."""
    expected = {"cur_scale": 2.0**7, "cur_iter": 40, "last_overflow_iter": 31, "cur_hysteresis": 2}
    engine.load_loss_scales(checkpoint.state.loss_scales)
    if name != "zero1":
        return engine.loss_scales() == checkpoint.state.loss_scales == {}
    without = engine.loss_scales() == {}
    engine.engines["learner"].optimizer.loss_scaler = scaler(2.0**16, 0, -1)
    engine.load_loss_scales(checkpoint.state.loss_scales)
    return without and engine.loss_scales() == checkpoint.state.loss_scales == {"learner": expected}


def copied(engine: Any) -> list[int]:
    """Bytes of each piece that the rank would write."""
    return [owned.tensor.clone().nbytes for owned in engine.owned()]


def taken_up(engine: Any, checkpoint: Checkpoint, asked: list[tuple[str, Any]]) -> None:
    """The optimizer goes on; `asked`: what it was read from."""

    def read(name: str, box: Any = None) -> torch.Tensor:
        asked.append((name, box))
        return checkpoint.read(name, box)

    engine.load_optimizer(read, set(checkpoint.tensors), {"learner": 2})


def bytes_read(path: Path, asked: list[tuple[str, Any]]) -> dict[str, int]:
    """What these are, what a fresh reader takes from the disk for them, and what it may take besides: two blocks for each
    piece that a box touches, and the headers."""
    from distdl.layout.boxes import whole

    checkpoint, need = Checkpoint(path, verify=False), 0
    rounding = sum(2 * BLOCK + 8 + int.from_bytes(f.read_bytes()[:8], "little") for f in path.glob("tensors-*"))
    for name, box in asked:
        box = box or whole(checkpoint.reader.shape(name))
        rounding += sum(2 * BLOCK for region in checkpoint.regions(name) if region.box.common(box))
        need += checkpoint.read(name, box).nbytes
    return {"need": need, "read": checkpoint.reader.bytes_read, "rounding": rounding}


@pytest.mark.slow
def test_each_rank_writes_and_reads_its_own(digits: str, text: str, tmp_path: Path) -> None:
    """On every layout the checkpoint is what the ranks would have gathered, to the bit; no rank waits for another while it
    copies, or while it takes the optimizer up again; each element is written once, by ranks that write alike much; and a
    resumed optimizer costs the bytes that the rank has of it, and its loss scale goes on."""
    ranks = run_ranks(of_every_layout, 2, cases(digits, text), str(tmp_path))
    for name in ranks[0]:
        here = [told[name] for told in ranks]
        assert all(of["same"] and of["again"] for of in here), name
        checkpoint = Checkpoint(next(path for _, path in checkpoints(tmp_path / name)))
        size = sum(checkpoint.read(n).nbytes for n in checkpoint.tensors)
        assert sum(of["written"] for of in here) == size, name
        uneven = 1.0 if name == "zero1+pipeline2" else 0.02  # stages hold what they hold
        assert max(of["written"] for of in here) <= size / 2 * (1 + uneven), (name, here)
        kinds = ("optimizer/", "weights/") if name == "zero3" else ("optimizer/",)  # in bf16 the fp32 weights, too
        state = sum(checkpoint.read(n).nbytes for n in checkpoint.tensors if n.startswith(kinds))
        for of in here:
            assert of["need"] <= of["read"] <= of["need"] + of["rounding"], name
            if name in ("zero1", "zero3"):
                assert of["need"] <= state / 2 * 1.02, name


@pytest.mark.slow
def test_damage_that_one_rank_meets_sends_all_to_the_checkpoint_before(digits: str, text: str, tmp_path: Path) -> None:
    """In a tensor of the optimizer's, which is read when the engine stands; the newest is said to be damaged, and the run
    ends as it would have."""
    values = layout(small_config("mlp", digits, text), "zero3", 2)
    values["checkpoint"] = {"every_steps": 5, "keep_best": 0}
    whole, cut = ({"values": values, "folder": str(tmp_path / name)} for name in ("whole", "cut"))
    train(2, {"whole": whole}, {"cut": cut})
    newest = checkpoints(tmp_path / "cut" / "checkpoints")[-1][1]
    file = sorted(newest.glob("tensors-*"))[-1]
    flip(file, 8 + int.from_bytes(file.read_bytes()[:8], "little") + 40)
    assert run_ranks(trained, 2, {"cut": cut}) == [{"cut": ""}] * 2
    told = [event["text"] for event in events(tmp_path / "cut", "message")]
    assert any(f"{newest} is damaged: {file.name} is not what was written" in text for text in told), told
    assert [event["step"] for event in events(tmp_path / "cut", "restart")] == [5]
    a, b = (Checkpoint(checkpoints(tmp_path / name / "checkpoints")[-1][1]) for name in ("whole", "cut"))
    assert a.step == b.step == 20 and all(torch.equal(a.read(name), b.read(name)) for name in a.tensors)
