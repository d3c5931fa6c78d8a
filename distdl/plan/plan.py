"""The plan: every decided number of a run, computed once, before any process starts.

`make_plan` is a pure function of the config and of what `train/survey.py` found out: it opens no file, asks no GPU, imports
no torch. A worker needs the plan and its rank, nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distdl.config.load import config_from_dict
from distdl.config.schema import Config
from distdl.errors import InputError, Problem
from distdl.plan import arithmetic, birth, memory
from distdl.plan.batch import BatchSplit, split_batch
from distdl.plan.deepspeed_json import deepspeed_json
from distdl.plan.facts import DataFacts, Hardware, ModelFacts
from distdl.plan.mesh import Mesh, balanced
from distdl.plan.refuse import layout_name, layout_problems, memory_problems, sequence_attention, with_engine


@dataclass(frozen=True)
class Plan:
    """The decided numbers. JSON-serialisable; a run folder holds it as plan.json."""

    config: dict[str, Any]
    """The resolved config that was planned, in plain values; of its family's file the name alone."""
    model: ModelFacts
    data: DataFacts
    mesh: Mesh
    """The workers laid out over the axes."""
    device: str
    layout: str
    """`torch`, or the ZeRO stage and the axes that are cut, such as zero1+tensor2."""
    attention: str
    """How a cut sequence attends: ulysses or ring."""
    stages: tuple[int, ...]
    """Bounds of the pipeline stages in the model's layers, by their parameters: stage s has layers stages[s] to
    stages[s + 1]."""
    global_batch: int
    micro_batch: int
    accumulate: int
    eval_batch: int
    """Samples of one held-out forward on one worker."""
    steps: int
    """Optimizer steps in all."""
    steps_per_epoch: float
    evaluate_every_steps: int | None
    """0: only at the end; None: with the step that ends an epoch."""
    checkpoint_every_steps: int | None
    """0: only at the end; None: with the step that ends an epoch."""
    threads_per_worker: int
    state_bytes_per_worker: dict[str, int]
    """Memory of weights, gradients and optimizer state on one worker; activations are not in it."""
    deepspeed: dict[str, Any] | None
    """DeepSpeed's JSON, or None under the torch engine."""
    notes: tuple[str, ...] = ()
    """What a user should know before starting."""
    born: str = birth.WHOLE
    """How the weights come to be (plan/birth.py)."""
    beside: Path = field(default=Path(), compare=False)
    """The folder that the family's file lies in: the user's where it was planned, the run's where it is carried out. Not in
    plan.json, which moves with the run."""

    @cached_property
    def settings(self) -> Config:
        """The config that was planned, typed; parsed once. The only one beside a plan."""
        return config_from_dict(self.config, beside=self.beside)

    @property
    def world(self) -> int:
        """Workers in all."""
        return self.mesh.world

    def due(self, step: int, every_steps: int | None) -> bool:
        """Whether something done every so many steps (0: never, None: at each epoch's end) is due after `step`."""
        if every_steps is None:
            return self.epochs(step) > self.epochs(step - 1)
        return every_steps > 0 and step % every_steps == 0

    def epochs(self, step: int) -> int:
        """Epochs that are over after `step` steps: the step that takes an epoch's last sample ends it."""
        return int(step / self.steps_per_epoch + 1e-9) if self.steps_per_epoch else 0

    def to_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "beside"}
        return {**values, "world": self.world}

    @staticmethod
    def from_dict(values: dict[str, Any], beside: Path = Path()) -> Plan:
        """The plan of `to_dict`; `beside`: where its family lies, if that is a file."""
        model = ModelFacts(**{key: _tuples(value) for key, value in values["model"].items()})
        data = DataFacts(**{key: _tuples(value) for key, value in values["data"].items()})
        parts = {"model": model, "data": data, "mesh": Mesh(**values["mesh"])}
        values = {key: value for key, value in values.items() if key != "world"}  # it follows from the mesh
        parts |= {"notes": tuple(values["notes"]), "stages": tuple(values["stages"]), "beside": beside}
        return Plan(**{**values, **parts})


def _tuples(value: Any) -> Any:
    """What JSON made lists of."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def make_plan(config: Config, model: ModelFacts, data: DataFacts, hardware: Hardware) -> Plan:
    """Decides every number of the run. Raises InputError, with the reason, for what cannot or must not run."""
    asked, config = config, arithmetic.decided(with_engine(config), model, hardware)
    train, world = config.train, config.runtime.workers
    if problems := layout_problems(config, model):  # then there is no mesh to split a batch over
        raise InputError(*problems, *_problems(config, model, data, hardware, accumulate=1))
    mesh = make_mesh(config)
    split = split_batch(train.global_batch, mesh.data, train.micro_batch, mesh.world // mesh.data)
    problems = _problems(config, model, data, hardware, split.accumulate)
    problems = problems or birth.problems(config, model, mesh)
    if problems := problems or memory.too_large(config, model, mesh, hardware):
        raise InputError(*problems)
    steps, steps_per_epoch = _steps(config, data)
    file = config.family_name.file
    plan = Plan(
        config=config.portable(),
        beside=file.parent if file else Path(),
        model=model,
        data=data,
        mesh=mesh,
        device=hardware.device,
        layout=layout_name(config),
        attention=sequence_attention(config, model),
        stages=tuple(balanced([parameters for _, parameters in model.layers], mesh.pipeline)) if model.layers else (),
        global_batch=train.global_batch,
        micro_batch=split.micro_batch,
        accumulate=split.accumulate,
        eval_batch=config.evaluate.batch or split.micro_batch,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        evaluate_every_steps=config.evaluate.every_steps,
        checkpoint_every_steps=config.checkpoint.every_steps,
        threads_per_worker=train.threads_per_worker or max(1, hardware.cores // world),
        state_bytes_per_worker=memory.state_bytes(config, model, mesh, hardware.device),
        deepspeed=deepspeed_json(config, split, mesh, model, hardware.device)
        if config.parallel.engine == "deepspeed"
        else None,
        born=birth.born(config, model, mesh),
        notes=(
            *_notes(config, model, data, hardware, steps, split),
            *arithmetic.notes(asked, config, model, hardware),
        ),
    )
    vars(plan)["settings"] = config  # which is parsed already
    return plan


def make_mesh(config: Config) -> Mesh:
    """Lays the workers over the axes. Raises InputError where they do not come out even."""
    parallel, world = config.parallel, config.runtime.workers
    of_model = parallel.tensor * parallel.pipeline * parallel.sequence
    if world % of_model:
        axes = ("tensor", "pipeline", "sequence")
        product = " x ".join(f"{axis} {getattr(parallel, axis)}" for axis in axes if getattr(parallel, axis) > 1)
        near = [n for n in (world // of_model * of_model, (world // of_model + 1) * of_model) if n]
        fix = f"runtime.workers={' or '.join(map(str, near))}"
        raise InputError(f"{world} workers cannot be laid out as {product} = {of_model} ranks a replica", fix=fix)
    data = world // of_model
    if data % parallel.expert:
        divisors = [n for n in range(1, data + 1) if data % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - parallel.expert))[:2])
        what = f"{data} data-parallel workers cannot be split into sets of parallel.expert={parallel.expert}"
        raise InputError(what, fix=f"parallel.expert={' or '.join(map(str, near))}")
    return Mesh(data, parallel.tensor, parallel.pipeline, parallel.sequence, parallel.expert)


def _problems(config: Config, model: ModelFacts, data: DataFacts, hardware: Hardware, accumulate: int) -> list[Problem]:
    """What is wrong beside the layout."""
    problems = memory_problems(config, model, hardware)
    if (config.optimizer.name == "none") != (model.trainable == 0):
        if model.trainable:
            why = f"the family {model.family} has {model.trainable:,} trainable parameters and optimizer.name is none"
            problems.append(Problem(why, fix="optimizer: {name: adamw, lr: 1e-3}, for example"))
        else:
            why = f"the family {model.family} learns without a gradient: nothing would use the {config.optimizer.name}"
            problems.append(Problem(why, fix="optimizer: {name: none}"))
    if not model.trainable and accumulate > 1:
        why = f"the family {model.family} learns from sums over a whole batch, which is not cut into micro-batches"
        problems.append(Problem(why, fix="train.micro_batch: null"))
    if config.train.global_batch > data.train_rows and config.data.last_batch != "wrap":
        why = f"a global batch of {config.train.global_batch} is more than the {data.train_rows} samples of an epoch"
        problems.append(Problem(why, fix="a smaller train.global_batch, or data.last_batch: wrap"))
    gpus = config.runtime.workers * max(1, getattr(config.runtime, "gpus_per_worker", None) or 1)
    if (each := getattr(config.runtime, "gpus_per_worker", None) or 0) > 1:
        why = f"runtime.gpus_per_worker is {each}, and a worker computes on one GPU: the others would stand idle"
        workers = f"runtime.gpus_per_worker=1 and runtime.workers={config.runtime.workers * each}"
        return [*problems, Problem(why, fix=f"{workers}, or runtime.gpus_per_worker=1")]
    if hardware.device == "cuda" and not hardware.workers_elsewhere and gpus > hardware.gpus:
        why = f"{config.runtime.workers} workers need {gpus} GPUs and this machine has {hardware.gpus}"
        cpus = ", or runtime.gpus_per_worker=0 to train on CPUs" if config.runtime.kind == "ray" else ""
        problems.append(Problem(why, fix=f"runtime.workers={hardware.gpus}{cpus}"))
    if data.train_rows == 0:
        problems.append(Problem(f"the split {config.data.train_split!r} of {data.path} has no samples"))
    return problems


def _steps(config: Config, data: DataFacts) -> tuple[int, float]:
    """Optimizer steps of the run and of an epoch."""
    batch, rows = config.train.global_batch, data.train_rows
    whole_steps = {"wrap": rows / batch, "drop": rows // batch, "pad": math.ceil(rows / batch)}
    steps_per_epoch = float(whole_steps[config.data.last_batch])
    if config.train.steps is not None:
        return config.train.steps, steps_per_epoch
    assert config.train.epochs is not None  # the config's check
    return max(1, math.ceil(config.train.epochs * steps_per_epoch - 1e-9)), steps_per_epoch


def _notes(
    config: Config, model: ModelFacts, data: DataFacts, hardware: Hardware, steps: int, split: BatchSplit
) -> list[str]:
    notes = []
    warmup = config.schedule.warmup_steps
    if warmup >= steps and (data.fingerprint or config.train.steps):
        notes.append(f"the warm-up of {warmup} steps lasts the whole run of {steps} steps")
    if hardware.device == "cpu" and config.runtime.workers > hardware.cores:
        notes.append(f"{config.runtime.workers} workers share {hardware.cores} cores: expect them to take turns")
    stages = config.parallel.pipeline
    if stages > 1:
        idle = (stages - 1) / (split.accumulate + stages - 1)
        notes.append(
            f"a pipeline of {stages} stages with {split.accumulate} micro-batches stands idle {idle:.0%} of the time: "
            "a smaller train.micro_batch fills it"
        )
    if model.batch_coupled and split.accumulate > 1:
        notes.append(
            f"the family {model.family} couples the {split.micro_batch * split.world} samples that the workers take at a "
            "time: another accumulation gives other numbers"
        )
    for column, have, to in data.read_as:
        if to == "float32":
            how = "rounded to it" if have == "float64" else "which has all its values exactly"
            notes.append(f"the column {column!r} holds {have} and is read as float32, {how}")
    if data.unlabelled:
        names = ", ".join(map(repr, data.unlabelled))
        notes.append(f"some values of {names} are missing (-100): they count in no loss and no metric")
    if data.class_rows:
        notes += _class_notes(data)
    notes += data.notes
    if quarantined := len(set(config.data.quarantine)):
        notes.append(
            f"{quarantined:,} rows are in quarantine: others of the same epoch are learned from in their place"
        )
    if data.eval_rows == 0:
        notes.append("nothing is evaluated: data.eval_split is null")
    return notes


def _class_notes(data: DataFacts) -> list[str]:
    """What weighing and balancing do to the classes there are."""
    there = [rows for rows in data.class_rows if rows]
    found = f"{len(there)} classes of {min(there):,} to {max(there):,} rows" if there else "no class has a row"
    notes = []
    for column, weights in data.class_weights:
        used = [weight for weight, rows in zip(weights, data.class_rows) if rows]
        notes.append(
            f"{found}: the losses of {column!r} weigh {min(used, default=0):.3g} to {max(used, default=0):.3g}"
        )
    if data.balanced:
        often = sum(data.class_rows) / max(len(there), 1) / max(min(there, default=1), 1)
        notes.append(f"{found}, drawn equally often: the rows of the rarest come {often:.3g} times an epoch")
    if data.balanced and data.class_weights:
        notes.append("rare classes count twice: they are drawn as often as the others, and their losses weigh more")
    return notes
