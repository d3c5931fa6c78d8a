"""The plan: every decided number of a run, computed once, before any process starts.

`make_plan` is a pure function of the config and of what `survey.py` found out: it opens no file, asks no GPU, imports
no torch. A worker needs the plan and its rank, nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from distdl.config import Config
from distdl.errors import InputError, Problem
from distdl.plan.batch import BatchSplit, split_batch
from distdl.plan.deepspeed_json import deepspeed_json
from distdl.plan.facts import DataFacts, Hardware, ModelFacts


@dataclass(frozen=True)
class Plan:
    """The decided numbers. JSON-serialisable; a run folder holds it as plan.json."""

    config: dict[str, Any]
    """The resolved config that was planned."""
    model: ModelFacts
    data: DataFacts
    world: int
    """Workers, all of them data-parallel."""
    device: str
    layout: str
    """`torch` or `zeroN`: what the numbers of this run are proven to be equal on."""
    global_batch: int
    micro_batch: int
    accumulate: int
    eval_batch: int
    """Samples of one held-out forward on one worker."""
    steps: int
    """Optimizer steps in all."""
    steps_per_epoch: float
    evaluate_every_steps: int
    """0: only at the end."""
    checkpoint_every_steps: int
    """0: only at the end."""
    threads_per_worker: int
    state_bytes_per_worker: dict[str, int]
    """Memory of weights, gradients and optimizer state on one worker; activations are not in it."""
    deepspeed: dict[str, Any] | None
    """DeepSpeed's JSON, or None under the torch engine."""
    notes: tuple[str, ...] = ()
    """What a user should know before starting."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Plan:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["model"].items()}
        model = ModelFacts(**fields)
        data = DataFacts(**values["data"])
        return Plan(**{**values, "model": model, "data": data, "notes": tuple(values["notes"])})


def make_plan(config: Config, model: ModelFacts, data: DataFacts, hardware: Hardware) -> Plan:
    """Decides every number of the run. Raises InputError, with the reason, for what cannot or must not run."""
    train, world = config.train, config.runtime.workers
    layout = "torch" if config.parallel.engine == "torch" else f"zero{config.parallel.zero}"
    split = split_batch(train.global_batch, world, train.micro_batch)
    _refuse(config, model, data, hardware, layout, split)
    steps, steps_per_epoch = _steps(config, data)
    once_an_epoch = max(1, min(steps, round(steps_per_epoch)))
    evaluate, checkpoint = config.evaluate.every_steps, config.checkpoint.every_steps
    return Plan(
        config=config.model_dump(mode="json"),
        model=model,
        data=data,
        world=world,
        device=hardware.device,
        layout=layout,
        global_batch=train.global_batch,
        micro_batch=split.micro_batch,
        accumulate=split.accumulate,
        eval_batch=config.evaluate.batch or split.micro_batch,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        evaluate_every_steps=once_an_epoch if evaluate is None else evaluate,
        checkpoint_every_steps=once_an_epoch if checkpoint is None else checkpoint,
        threads_per_worker=train.threads_per_worker or max(1, hardware.cores // world),
        state_bytes_per_worker=state_bytes(config, model, world),
        deepspeed=deepspeed_json(config, split, model.trainable) if config.parallel.engine == "deepspeed" else None,
        notes=tuple(_notes(config, model, data, hardware, steps, split)),
    )


def _refuse(
    config: Config, model: ModelFacts, data: DataFacts, hardware: Hardware, layout: str, split: BatchSplit
) -> None:
    problems = []
    if layout not in model.layouts:
        proven = ", ".join(sorted(model.layouts))
        why = f"the family {model.family} is not proven on the layout {layout}"
        problems.append(Problem(why, allowed=proven, fix="set parallel.engine and parallel.zero to one of these"))
    if (config.optimizer.name == "none") != (model.trainable == 0):
        if model.trainable:
            why = f"the family {model.family} has {model.trainable:,} trainable parameters and optimizer.name is none"
            problems.append(Problem(why, fix="optimizer: {name: adamw, lr: 1e-3}, for example"))
        else:
            why = f"the family {model.family} learns without a gradient: nothing would use the {config.optimizer.name}"
            problems.append(Problem(why, fix="optimizer: {name: none}"))
    if not model.trainable and split.accumulate > 1:
        why = f"the family {model.family} learns from sums over a whole batch, which is not cut into micro-batches"
        problems.append(Problem(why, fix="train.micro_batch: null"))
    if config.train.global_batch > data.train_rows and config.data.last_batch != "wrap":
        why = f"a global batch of {config.train.global_batch} is more than the {data.train_rows} samples of an epoch"
        problems.append(Problem(why, fix="a smaller train.global_batch, or data.last_batch: wrap"))
    gpus = config.runtime.workers * max(1, getattr(config.runtime, "gpus_per_worker", None) or 1)
    if hardware.device == "cuda" and not hardware.workers_elsewhere and gpus > hardware.gpus:
        why = f"{config.runtime.workers} workers need {gpus} GPUs and this machine has {hardware.gpus}"
        cpus = ", or runtime.gpus_per_worker=0 to train on CPUs" if config.runtime.kind == "ray" else ""
        problems.append(Problem(why, fix=f"runtime.workers={hardware.gpus}{cpus}"))
    if data.train_rows == 0:
        problems.append(Problem(f"the split {config.data.train_split!r} of {data.path} has no samples"))
    if problems:
        raise InputError(*problems)


def _steps(config: Config, data: DataFacts) -> tuple[int, float]:
    """Optimizer steps of the run and of an epoch."""
    batch, rows = config.train.global_batch, data.train_rows
    whole_steps = {"wrap": rows / batch, "drop": rows // batch, "pad": math.ceil(rows / batch)}
    steps_per_epoch = float(whole_steps[config.data.last_batch])
    if config.train.steps is not None:
        return config.train.steps, steps_per_epoch
    assert config.train.epochs is not None  # the config's check
    return max(1, math.ceil(config.train.epochs * steps_per_epoch - 1e-9)), steps_per_epoch


STATES_PER_WEIGHT = {"none": 0, "sgd": 0, "adam": 2, "adamw": 2, "rmsprop": 1, "adagrad": 1, "lion": 1}
"""fp32 numbers that each optimizer keeps for a trainable weight; one more with momentum for sgd and rmsprop."""


def state_bytes(config: Config, model: ModelFacts, world: int) -> dict[str, int]:
    """Bytes of model state on one worker, from ZeRO's own accounting (Rajbhandari et al. 2020, table 1)."""
    zero = config.parallel.zero if config.parallel.engine == "deepspeed" else 0
    bf16_weights = config.train.precision == "bf16" and zero > 0
    width = 2 if bf16_weights else 4
    states = STATES_PER_WEIGHT[config.optimizer.name] + bool(getattr(config.optimizer, "momentum", 0))
    per_weight = 4 * states + (4 if bf16_weights else 0)  # optimizer states, and fp32 master weights beside bf16 ones
    shard = {stage: world if zero >= stage else 1 for stage in (1, 2, 3)}
    return {
        "weights": math.ceil(width * model.parameters / shard[3]),
        "gradients": math.ceil(width * model.trainable / shard[2]),
        "optimizer": math.ceil(per_weight * model.trainable / shard[1]),
    }


def _notes(
    config: Config, model: ModelFacts, data: DataFacts, hardware: Hardware, steps: int, split: BatchSplit
) -> list[str]:
    notes, world = [], config.runtime.workers
    warmup = config.schedule.warmup_steps
    if warmup >= steps:
        notes.append(f"the warm-up of {warmup} steps lasts the whole run of {steps} steps")
    if hardware.device == "cpu" and config.runtime.workers > hardware.cores:
        notes.append(f"{config.runtime.workers} workers share {hardware.cores} cores: expect them to take turns")
    if model.batch_coupled and split.accumulate > 1:
        notes.append(
            f"the family {model.family} couples the {split.micro_batch * world} samples that the workers take at a time: "
            "another accumulation gives other numbers"
        )
    if data.eval_rows == 0:
        notes.append("nothing is evaluated: data.eval_split is null")
    return notes
