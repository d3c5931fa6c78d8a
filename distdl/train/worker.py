"""One worker of a run: builds everything from the plan, calls the loop, writes the summary. It alone knows everyone.

`run` is the same function under every runtime. torch.distributed must be initialised before it is called.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distdl.checkpoint.load import Checkpoint, latest_sound, refuse_other_model
from distdl.config.schema import Config
from distdl.data.balance import Labels
from distdl.data.fit import conversions
from distdl.data.manifest import VARIABLE, Manifest, read_manifest
from distdl.data.preparation import record_of, recorded
from distdl.data.read import Dataset
from distdl.data.source import BatchSource, EvalSource
from distdl.engine import nonfinite
from distdl.engine.base import Engine
from distdl.errors import DistdlError, InputError, TrainingFailed
from distdl.layout.process import ProcessState
from distdl.learner import Batch
from distdl.learner.units import Units
from distdl.own_process import memory_kept
from distdl.parallel.record import built
from distdl.plan.plan import Plan
from distdl.run.attempts import TakenOver
from distdl.run.folder import RunFolder
from distdl.run.gate import Gate
from distdl.run.heartbeat import DEFAULT_HANG_S, Pulse, Who, beating
from distdl.track.machine import sampling
from distdl.track.spool import SpoolWriter
from distdl.train.failures import in_words, is_consequence, is_lasting
from distdl.train.hooks.checkpoint import CheckpointHook
from distdl.train.hooks.compiled import KeepCompiled, Kept
from distdl.train.hooks.early_stopping import EarlyStopping
from distdl.train.hooks.evaluate import Evaluate, at_the_end
from distdl.train.hooks.gate import GateHook
from distdl.train.hooks.hook import Hook, Run
from distdl.train.hooks.log import Log
from distdl.train.hooks.parity import ReplicaParity
from distdl.train.hooks.progress import Progress
from distdl.train.hooks.spike import Rollback, SpikeGuard
from distdl.train.hooks.stop import Stop
from distdl.train.kernels import missing_kernel, set_up_torch, settled
from distdl.train.loop import evaluate, train
from distdl.train.resume import Unsound, agreed, together
from distdl.ways import assemble, columns_read, learner_class
from distdl.ways.start import carry_over, checkpoint_of
from distdl.ways.way import Way


def run(plan: Plan, folder: RunFolder, rank: int, node: str = "") -> None:
    """Trains from the latest checkpoint (or from the start) to the end, and leaves summary.json.

    Ends earlier, with a checkpoint, where the folder's attempt is asked to stop. Whatever goes wrong is written to
    failures/rank-N.json, for the process that started the workers to tell. Raises TakenOver in an older attempt.
    """
    spool = SpoolWriter(folder.events, taken_over=folder.attempt.taken_over) if rank == 0 else None
    pulse, config = Pulse(), plan.settings
    hang_s = DEFAULT_HANG_S if config.guard.hang_s is None else config.guard.hang_s
    heart = beating(pulse, folder.attempt.ranks, Who(rank, node), hang_s, config.runtime.timeout_s, plan.world == 1)
    with folder.private():
        try:
            with heart, missing_kernel(), sampling(folder.path, config.track, folder.attempt.taken_over):
                _train(plan, folder, rank, spool, pulse)
        except BaseException as error:
            with contextlib.suppress(OSError, TakenOver):  # a full disk must not hide its own message
                _note_failure(folder, rank, error, pulse.step, config)
            raise
        finally:
            if spool:
                spool.close()


ROLLBACKS = 3
"""Times that a run goes back to the same checkpoint."""


class Tried(NamedTuple):
    """Where the run has begun before, and gone back."""

    back: list[Rollback]
    damaged: dict[Path, str]
    """Checkpoint that turned out to be, and what was wrong with it."""


def _train(plan: Plan, folder: RunFolder, rank: int, spool: SpoolWriter | None, pulse: Pulse) -> None:
    """Until the end, from one checkpoint or, where the loss jumps and the config says so, from the last one again.

    Nothing of it need be kept: a run that is cut off before its next checkpoint meets the same spike and goes back as it
    did, and from then on the checkpoint says where in the samples it is.
    """
    tried = Tried([], {})
    while True:
        try:
            with ProcessState():
                return _train_from_checkpoint(plan, folder, rank, spool, pulse, tried)
        except Rollback as spike:
            tried.back.append(spike.with_traceback(None))  # whose frames hold the engine
        except Unsound as found:  # the next newest is tried
            tried.damaged[found.folder] = str(found)
        times = len(tried.back) + len(tried.damaged)
        pulse.at(f"going back ({times})")  # its first time: checkpoint and engine may take as long as at the start
        gc.collect()
        if plan.device == "cuda":
            torch.cuda.empty_cache()


def _train_from_checkpoint(
    plan: Plan, folder: RunFolder, rank: int, spool: SpoolWriter | None, pulse: Pulse, tried: Tried
) -> None:
    back = tried.back
    tell = functools.partial(spool.write, "start-up") if spool else lambda **_: None
    tell(text="the workers to agree on where to begin" if plan.world > 1 else "the last checkpoint to be looked for")
    set_up_torch(plan)
    checkpoint, warnings = agreed(plan, folder, rank, tried.damaged)
    if back:
        back[-1].to = checkpoint.step if checkpoint else 0
        if [spike.to for spike in back].count(back[-1].to) > ROLLBACKS:
            what = f"{back[-1]}\n    the run went back to step {back[-1].to} {ROLLBACKS} times already"
            raise TrainingFailed(f"{what}\n    fix: {nonfinite.ADVICE}")
        warnings += [f"{back[-1]}; back to step {back[-1].to}, and on with the batches that follow"]
    tell(text="the model to be made")
    manifest = read_manifest(plan.data.path)  # once: files on a shared disk are dear
    preparation = record_of(manifest)
    warnings += Kept(plan, folder, rank).load()
    learner = build_learner(plan.settings, checkpoint, plan.born)
    learner.file_units = Units.of(preparation)
    tell(text="the engine to be made" if plan.deepspeed is None else "DeepSpeed to be loaded and the engine to be made")
    engine = make_engine(learner, plan, rank)
    together(plan, checkpoint)
    engine.pulse = pulse
    source = make_source(plan, rank, manifest)
    run_ = Run(plan, rank, learner, engine, source, spool, preparation=preparation, attempt=folder.attempt)
    for text in warnings:
        run_.event("message", level="warning", text=text)
    hooks = _hooks(run_, folder)
    start = _go_on(run_, source, hooks, checkpoint) if checkpoint else 0
    if back:
        source.load_state_dict(back[-1].data)
        if isinstance(guard := hooks.get("spike"), SpikeGuard):
            guard.go_on_from(back[-1])
    if start > plan.steps:
        fix = f"train.steps={start} or more"
        raise InputError(f"the run is at step {start} already, and the plan ends at step {plan.steps}", fix=fix)
    begin = time.time()
    clock = time.perf_counter()
    run_.event("world", step=start, workers=plan.world, layout=plan.layout)
    run_.event("phase", name="training", text=f"from step {start}" if start else "")
    stopping = hooks.get("early_stopping")
    stopping = stopping if isinstance(stopping, EarlyStopping) else None
    saves = hooks["checkpoint"]
    assert isinstance(saves, CheckpointHook)
    with contextlib.closing(source), settled(), memory_kept(plan.device if plan.born == "whole" else ""), saves.whole():
        if checkpoint and checkpoint.state.stopped and stopping and stopping.exhausted:
            end = start
        else:
            end = train(learner, engine, source, list(hooks.values()), start=start, steps=plan.steps)
        last_word: dict[str, float] = {}
        if (split := plan.settings.data.test_split) and not run_.paused:
            last_word = at_the_end(run_, _eval_source(plan, split, rank, manifest), split, end)
    if rank == 0:
        spent = time.perf_counter() - clock
        _write_summary(run_, folder, (start, end), (begin, spent), stopping, last_word)


def _go_on(run_: Run, source: BatchSource, hooks: dict[str, Hook], checkpoint: Checkpoint) -> int:
    """Collective. Puts all that is beside the weights where it was; returns the step that it was at."""
    checkpoint.state.restore(run_.engine, source, hooks, checkpoint.read, checkpoint.tensors)
    together(run_.plan, checkpoint)
    run_.event("restart", step=checkpoint.step)
    return checkpoint.step


def _eval_source(plan: Plan, split: str, rank: int, manifest: Manifest) -> EvalSource:
    data_rank = plan.mesh.place(rank)["data"]
    return EvalSource(make_dataset(plan, split, manifest), batch=plan.eval_batch, rank=data_rank, world=plan.mesh.data)


def build_learner(config: Config, checkpoint: Checkpoint | None, born: str = "whole", averaged: bool = False) -> Any:
    """A learner with the checkpoint's weights (`averaged`: as it is judged by), or with those that the config starts from:
    fresh ones depend on the seed alone. `born`: what the plan says (plan/birth.py); the engine makes what is promised."""
    torch.manual_seed(config.seed)
    learner = built(functools.partial(assemble, config), born, config.seed)
    if isinstance(learner, Way):
        learner.ready(config)
    if config.train.precision == "fp64":
        learner.double()
    if checkpoint:
        refuse_other_model(checkpoint.manifest.get("model"), config, f"the checkpoint {checkpoint.path}")
        checkpoint.load_weights(learner, averaged)
    elif config.start and config.start.weights:
        carry_over(learner, config)
    return learner


def make_engine(learner: Any, plan: Plan, rank: int) -> Engine:
    """The engine that the plan names."""
    if plan.mesh.pipeline > 1:
        from distdl.engine.pipeline import PipelineEngine

        return PipelineEngine(learner, plan, rank, lambda: _sample(plan))
    if plan.deepspeed is not None:
        from distdl.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(learner, plan, rank)
    from distdl.engine.torch import TorchEngine

    return TorchEngine(learner, plan, rank)


def _sample(plan: Plan) -> Batch:
    """The first micro-batch of the first rank."""
    with contextlib.closing(make_source(plan, 0)) as source:
        return next(source)


def make_source(plan: Plan, rank: int, manifest: Manifest | None = None) -> BatchSource:
    """The training batches of this rank."""
    config = plan.settings
    dataset, threads = make_dataset(plan, config.data.train_split, manifest), config.data.threads
    if threads == "auto":
        any_length = any(column.dtype == VARIABLE for column in dataset.columns.values())
        threads = int(plan.device == "cuda" or any_length)
    source = BatchSource(
        dataset,
        seed=config.seed,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        accumulate=plan.accumulate,
        rank=plan.mesh.place(rank)["data"],
        world=plan.mesh.data,
        shuffle=config.data.shuffle,
        last_batch=config.data.last_batch,
        threads=threads,
        labels=Labels(plan.data.unlabelled, dict(plan.data.class_weights), plan.data.balanced),
    )
    source.pin = plan.device == "cuda"
    if config.data.quarantine:
        source.leave_out(config.data.quarantine)
    return source


def make_dataset(plan: Plan, split: str, manifest: Manifest | None = None) -> Dataset:
    """A split of the run's data set, its columns in the types that the family computes with. `manifest`: that of the data
    set, where it was read before."""
    config, data, path = plan.settings, plan.settings.data, plan.data.path
    manifest = manifest or read_manifest(path)
    read_as = conversions(manifest, columns_read(config), learner_class(config).fp64)
    again_bytes_per_s = data.verify_again_mb_per_s * 1e6
    return Dataset(path, split, data.verify, data.cache, again_bytes_per_s, read_as, manifest)


def _hooks(run_: Run, folder: RunFolder) -> dict[str, Hook]:
    """The hooks in the order of their effects."""
    plan, config = run_.plan, run_.plan.settings
    hooks: dict[str, Hook] = {}
    if config.guard.spike:  # before an evaluation or a checkpoint of what it would stop
        hooks["spike"] = SpikeGuard(run_, config.guard.spike, config.track.every_steps)
    if config.data.eval_split:
        source = _eval_source(plan, config.data.eval_split, run_.rank, run_.source.dataset.manifest)
        hooks["evaluate"] = Evaluate(run_, source, plan.evaluate_every_steps)
    if config.early_stopping:
        stopping = config.early_stopping
        hooks["early_stopping"] = EarlyStopping(run_, stopping.patience, stopping.min_delta)
    if Gate(folder.path).there:
        hooks["gate"] = GateHook(run_, folder.path)
    hooks["stop"] = Stop(run_)
    # After what may end the run, so that its last step is logged and compared like any other.
    hooks |= {"log": Log(run_, config.track.every_steps), "progress": Progress(run_)}
    if config.guard.parity_every_steps:
        hooks["parity"] = ReplicaParity(run_, config.guard.parity_every_steps)
    checkpoint = CheckpointHook(run_, folder.checkpoints, plan.checkpoint_every_steps, dict(hooks))
    return hooks | {"compiled": KeepCompiled(Kept(plan, folder, run_.rank)), "checkpoint": checkpoint}


def _write_summary(
    run_: Run,
    folder: RunFolder,
    steps: tuple[int, int],
    times: tuple[float, float],
    stopping: EarlyStopping | None,
    last_word: dict[str, float],
) -> None:
    (start, end), (began, train_s) = steps, times
    launch = folder.read_derived("launch.json") or {"started": began}
    plan, spent = run_.plan, run_.seconds
    seconds = {
        "start-up": max(0.0, began - launch["started"]),
        "data": run_.engine.data_s,
        "compute": max(0.0, train_s - run_.engine.data_s - sum(spent.values())),
        **spent,
    }
    folder.write(
        "summary.json",
        {
            "finished": not run_.paused,
            "steps": end,
            "steps_this_time": end - start,
            "stopped_early": end < plan.steps and not run_.paused,
            "evaluations_without_improvement": stopping.waited if stopping else 0,
            "metrics": {**(run_.evaluation[1] if run_.evaluation else {}), **last_word},
            "primary": plan.model.primary,
            "samples_per_s": (end - start) * plan.global_batch / max(seconds["data"] + seconds["compute"], 1e-9),
            "seconds": seconds,
        },
    )


def evaluate_checkpoint(plan: Plan, folder: RunFolder, which: str) -> tuple[int, dict[str, float]]:
    """Evaluates the latest or the best checkpoint of a run in this process. Returns its step and the metrics."""
    with ProcessState():
        return _evaluate_checkpoint(plan, folder, which)


def _evaluate_checkpoint(plan: Plan, folder: RunFolder, which: str) -> tuple[int, dict[str, float]]:
    config = plan.settings
    set_up_torch(plan)
    checkpoint = chosen_checkpoint(folder, which)
    if not config.data.eval_split:
        raise TrainingFailed(f"the run in {folder.path} has no data.eval_split; train it first")
    learner = build_learner(config, checkpoint, averaged=True)
    learner.file_units = Units.of(recorded(plan.data.path))
    from distdl.engine.torch import TorchEngine

    engine = TorchEngine(learner, plan, 0)
    source = EvalSource(make_dataset(plan, config.data.eval_split), batch=plan.eval_batch, rank=0, world=1)
    return checkpoint.step, evaluate(learner, engine, source)


def chosen_checkpoint(folder: RunFolder, which: str) -> Checkpoint:
    """The `latest` sound checkpoint of a run, its `best`, or the one in the folder of this name. Raises a DistdlError."""
    if which == "best":
        return Checkpoint(checkpoint_of(folder, which))
    if which != "latest":
        if not Path(which).exists():
            raise InputError(f"there is no checkpoint {which!r}", allowed="latest, best, or the folder of a checkpoint")
        return Checkpoint(Path(which))
    if (found := latest_sound(folder.checkpoints)) is None:
        raise InputError(f"the run in {folder.path} has no checkpoint yet", fix="train it first")
    return found


def check_visible(folder: RunFolder) -> None:
    """Raises InputError on a machine that does not see the run's folder."""
    if not folder.attempt.visible:
        fix = "put `runs` on a file system that every node mounts at the same place"
        raise InputError(f"this node ({os.uname().nodename}) does not see the run folder {folder.path}", fix=fix)


def _note_failure(
    folder: RunFolder, rank: int, error: BaseException, step: int = 0, config: Config | None = None
) -> None:
    folder.failures.mkdir(exist_ok=True)
    record = {
        "rank": rank,
        "time": time.time(),
        "message": in_words(error, config),
        "exit_code": error.exit_code if isinstance(error, DistdlError) else 1,
        "known": isinstance(error, DistdlError),
        "type": type(error).__name__,
        "step": step,
        "consequence": is_consequence(error),
        "lasting": is_lasting(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    folder.write(f"failures/rank-{rank}.json", record)
