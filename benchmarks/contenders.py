"""The training loops that `overhead.py` compares. Each one takes a Task and trains its model for `task.steps` steps.

Every contender has the same work: the weights, the loss, the optimizer (distdl's `make_optimizer`: AdamW over two
parameter groups), fp32, no clipping, one torch thread, the same rows in a new order each epoch. It may reach that work
only in the way that its own documentation shows. `Tiny.loss` tells the clock that a step begins.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler

from distdl.cli.display import Display
from distdl.config.load import load_config
from distdl.config.schema import Config
from distdl.data.read import Dataset
from distdl.data.source import BatchSource
from distdl.engine.optimizers import make_optimizer
from distdl.families import mlp, model_config
from distdl.learner import Batch
from distdl.plan.plan import Plan
from distdl.run.folder import open_run
from distdl.runtime import group
from distdl.track.client import Tracker
from distdl.track.run import load
from distdl.train import worker
from distdl.train.hooks import pictures
from distdl.train.loop import train
from distdl.train.survey import survey

LOG_EVERY_STEPS = 10
STORE_TIMEOUT_S = 120.0


class Pace:
    """Cuts a contender's run into blocks of steps, from the start of one forward pass to the start of another."""

    def __init__(self) -> None:
        self.block_steps, self.left = 1, 1
        self.pause: Callable[[float, float], None] = lambda wall_s, cpu_s: None
        """Called between two blocks with the seconds of the last one: by the clock, and of this process's CPU time."""
        self._began = (time.perf_counter(), time.process_time())

    def start(self, warmup_steps: int, block_steps: int, pause: Callable[[float, float], None]) -> None:
        """The first block begins with the forward pass of step `warmup_steps` (0-based)."""
        self.block_steps, self.left, self.pause = block_steps, warmup_steps + 1, pause

    def forward_begins(self) -> None:
        self.left -= 1
        if self.left:
            return
        self.left = self.block_steps
        wall, cpu = self._began
        self.pause(time.perf_counter() - wall, time.process_time() - cpu)
        self._began = (time.perf_counter(), time.process_time())


PACE = Pace()


class Tiny(mlp.MLP):
    """distdl's own perceptron, without the accuracy: what a hand-written loop would compute."""

    def loss(self, batch: Batch, step: int) -> Any:
        PACE.forward_begins()
        return F.cross_entropy(self.logits(batch), batch["label"]), {}


@dataclass(frozen=True)
class Task:
    """What one contender is to train."""

    folder: Path
    """Holds config.yaml and the data set; the contender may write here."""
    steps: int
    rank: int = 0
    world: int = 1
    name: str = ""
    """Where several ranks are one contender: its own."""

    def plan(self, *overrides: str) -> tuple[Config, Plan]:
        """The config and the plan of this task, as `distdl train` makes them."""
        changes = [f"train.steps={self.steps}", f"runtime.workers={self.world}", *overrides]
        config = load_config(str(self.folder / "config.yaml"), changes).config
        return config, survey(config)

    def model(self, kind: type[Tiny] = Tiny) -> Any:
        """A learner with the same fresh weights for everyone."""
        torch.manual_seed(0)
        return kind(model_config(self.plan()[0].model)).train()

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(self.plan()[0], model)

    def loader(self) -> DataLoader[Any]:
        """The fastest shuffling DataLoader that we know: whole batches are indexed out of tensors in memory, by
        torch's protocol `__getitems__`. With the default collation of single rows it costs several times more."""
        config, plan = self.plan()
        rows = Rows(config)
        order = RandomSampler(rows, num_samples=self.steps * plan.global_batch)  # wraps around without a gap
        return DataLoader(rows, batch_size=plan.global_batch, sampler=order, collate_fn=_as_it_is)

    def source(self) -> Iterator[Batch]:
        """distdl's own data, as its worker opens it."""
        config, plan = self.plan()
        source = batch_source(config, plan, self.rank)
        try:
            for _ in range(self.steps):
                yield next(source)
        finally:
            source.close()


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The training split as tensors in memory."""

    def __init__(self, config: Config) -> None:
        split = Dataset(config.data.path, config.data.train_split)
        self.columns = {k: torch.from_numpy(v) for k, v in split.gather(np.arange(split.rows)).items()}

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """A whole batch at once."""
        return {name: column[rows] for name, column in self.columns.items()}


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def batch_source(config: Config, plan: Plan, rank: int = 0) -> BatchSource:
    return BatchSource(
        Dataset(config.data.path, config.data.train_split),
        seed=config.seed,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        accumulate=plan.accumulate,
        rank=rank,
        world=plan.world,
        threads=0 if config.data.threads == "auto" else min(1, config.data.threads),
    )


# -- bare loops ----------------------------------------------------------------------------------------------------------


def _torch_loop(task: Task, batches: Iterable[Batch]) -> None:
    model = task.model()
    optimizer = task.optimizer(model)
    for step, batch in enumerate(batches):
        loss, _ = model(batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _deepspeed_loop(task: Task, batches: Iterable[Batch], json: dict[str, Any] | None = None) -> None:
    _, plan = task.plan()
    _process_group(plan, task)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would compile for a minute, and is of no use
    model = task.model()
    optimizer, json = task.optimizer(model), json or dict(plan.deepspeed or {})
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=json)[0]
    for step, batch in enumerate(batches):
        loss, _ = engine(batch, step)
        engine.backward(loss)
        engine.step()


def bare_torch(task: Task) -> None:
    _torch_loop(task, task.loader())


def bare_torch_distdl_data(task: Task) -> None:
    _torch_loop(task, task.source())


def bare_deepspeed(task: Task) -> None:
    _deepspeed_loop(task, task.loader())


def bare_deepspeed_distdl_data(task: Task) -> None:
    _deepspeed_loop(task, task.source())


# -- distdl --------------------------------------------------------------------------------------------------------------


def _distdl_off(task: Task, engine_name: str, *changes: str) -> None:
    """The worker's own pieces, without hooks and guard."""
    config, plan = task.plan(f"parallel.engine={engine_name}", "guard.nonfinite=false", *changes)
    _process_group(plan, task)
    worker.set_up_torch(plan)
    learner = task.model()
    engine, source = worker.make_engine(learner, plan, task.rank), batch_source(config, plan, task.rank)
    train(learner, engine, source, [], start=0, steps=plan.steps)
    source.close()


def distdl_torch_off(task: Task) -> None:
    _distdl_off(task, "torch")


def distdl_deepspeed_off(task: Task) -> None:
    _distdl_off(task, "deepspeed")


def distdl_deepspeed_on(task: Task) -> None:
    """What `distdl train` does, with display, tracker and uploader; the accuracy of every step comes on top."""
    _distdl_on(task)


def distdl_deepspeed_evaluated(task: Task) -> None:
    """The same with an evaluation in every block, of which no picture is made."""
    _evaluated(task, drawn=False)


def distdl_deepspeed_drawn(task: Task) -> None:
    """The same with pictures of every evaluation, where a run makes them of ten; the process that draws is beside it."""
    _evaluated(task, drawn=True)


def _evaluated(task: Task, drawn: bool) -> None:
    due = pictures.Pictures.due
    pictures.Pictures.due = lambda self, step: drawn  # type: ignore[method-assign]
    try:
        _distdl_on(task, f"evaluate.every_steps={PACE.block_steps}")
    finally:
        pictures.Pictures.due = due  # type: ignore[method-assign]


def _distdl_on(task: Task, *overrides: str) -> None:
    config, plan = task.plan("data.eval_split=test", f"track.every_steps={LOG_EVERY_STEPS}", *overrides)
    _process_group(plan)
    folder = open_run(config, None, fresh=True)
    tracker = Tracker(folder.path, config.track.uri, config.track.experiment, folder.path.name)
    plain_loss = mlp.MLP.loss
    tracker.start()
    try:
        _wait_for_store(folder.path)
        mlp.MLP.loss = _timed(plain_loss)  # type: ignore[method-assign]
        with Display(folder.path, plan.steps, folder.path.name, plain=False):
            worker.run(plan, folder, 0)
    finally:
        mlp.MLP.loss = plain_loss  # type: ignore[method-assign]
        statement = tracker.finish("FINISHED")
    if not statement.startswith("tracked in MLflow run") or not folder.finished:
        raise RuntimeError(f"the run was not tracked to its end: {statement}")


def _timed(loss: Callable[..., Any]) -> Callable[..., Any]:
    def timed(self: mlp.MLP, batch: Batch, step: int) -> Any:
        PACE.forward_begins()
        return loss(self, batch, step)

    return timed


def _wait_for_store(run_dir: Path) -> None:
    """Until the uploader has opened the MLflow run: importing MLflow is not what is measured."""
    deadline_s = time.monotonic() + STORE_TIMEOUT_S
    while not ((info := load(run_dir)) and info.mlflow_run_id):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the uploader did not open an MLflow run within {STORE_TIMEOUT_S:.0f} s")
        time.sleep(0.2)


def _process_group(plan: Plan, task: Task | None = None) -> None:
    if torch.distributed.is_initialized():
        return
    if task is None or task.world == 1:
        group.init_process_group(plan, 0, 60.0)
        return
    os.environ |= {"LOCAL_RANK": str(task.rank), "RANK": str(task.rank), "WORLD_SIZE": str(task.world)}
    store = torch.distributed.FileStore(str(task.folder / f"store of {task.name}"), task.world)
    torch.distributed.init_process_group("gloo", store=store, rank=task.rank, world_size=task.world)


# -- several ranks -------------------------------------------------------------------------------------------------------


def bare_on_ranks(task: Task, zero: int) -> None:
    """What DeepSpeed does by itself: the batch, the stage, no clipping, and the optimizer is torch's."""
    _, plan = task.plan()
    batch = {"train_batch_size": plan.global_batch, "train_micro_batch_size_per_gpu": plan.micro_batch}
    rest = {"gradient_clipping": 0.0, "zero_optimization": {"stage": zero}, "zero_allow_untested_optimizer": True}
    _deepspeed_loop(task, task.source(), {**batch, **rest})


def distdl_on_ranks(task: Task, zero: int, guard: bool) -> None:
    _distdl_off(task, "deepspeed", f"parallel.zero={zero}", f"guard.nonfinite={str(guard).lower()}")


# -- peers ---------------------------------------------------------------------------------------------------------------


def fabric(task: Task) -> None:
    from lightning.fabric import Fabric

    peer = Fabric(accelerator="cpu", devices=1)
    model = task.model()
    model, optimizer = peer.setup(model, task.optimizer(model))
    for step, batch in enumerate(peer.setup_dataloaders(task.loader())):
        loss, _ = model(batch, step)
        peer.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def _lightning(task: Task, log: bool, **options: Any) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.learner = task.model()

        def training_step(self, batch: Batch, step: int) -> Tensor:
            loss, _ = self.learner(batch, step)
            if log:
                self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return task.optimizer(self.learner)

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        default_root_dir=str(task.folder),
        enable_model_summary=False,
        enable_checkpointing=False,
        enable_progress_bar=log,
        log_every_n_steps=LOG_EVERY_STEPS,
        **options,
    )
    trainer.fit(Module(), task.loader())


def lightning_minimal(task: Task) -> None:
    _lightning(task, log=False, logger=False)


def lightning_csv(task: Task) -> None:
    from lightning.pytorch.loggers import CSVLogger

    _lightning(task, log=True, logger=CSVLogger(tempfile.mkdtemp(dir=task.folder)))


def lightning_mlflow(task: Task) -> None:
    from lightning.pytorch.loggers import MLFlowLogger

    _lightning(task, log=True, logger=MLFlowLogger(tracking_uri=f"sqlite:///{task.folder}/lightning.db"))


def accelerate(task: Task) -> None:
    from accelerate import Accelerator

    peer = Accelerator(cpu=True)
    model = task.model()
    model, optimizer, loader = peer.prepare(model, task.optimizer(model), task.loader())
    for step, batch in enumerate(loader):
        loss, _ = model(batch, step)
        peer.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


class _KeywordTiny(Tiny):
    """HF Trainer passes a batch as keywords, wants a dict back, and writes to `model.config`."""

    def __init__(self, config: mlp.Config) -> None:
        super().__init__(config)
        self.config = SimpleNamespace(**vars(config))  # type: ignore[assignment]

    def forward(self, image: Tensor, label: Tensor) -> Any:  # type: ignore[override]
        return {"loss": self.loss({"image": image, "label": label}, 0)[0]}


def hf_trainer(task: Task) -> None:
    from transformers import Trainer, TrainingArguments

    class Peer(Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return task.loader()

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=task.folder),
        max_steps=task.steps,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = task.model(_KeywordTiny)
    Peer(
        model=model, args=arguments, train_dataset=Rows(task.plan()[0]), optimizers=(task.optimizer(model), None)
    ).train()


CONTENDERS: dict[str, Callable[[Task], None]] = {
    "bare torch": bare_torch,
    "bare torch + distdl data": bare_torch_distdl_data,
    "bare deepspeed": bare_deepspeed,
    "bare deepspeed + distdl data": bare_deepspeed_distdl_data,
    "distdl torch, telemetry off": distdl_torch_off,
    "distdl deepspeed, telemetry off": distdl_deepspeed_off,
    "distdl deepspeed, everything on": distdl_deepspeed_on,
    "distdl deepspeed, evaluated, no pictures": distdl_deepspeed_evaluated,
    "distdl deepspeed, evaluated, every one drawn": distdl_deepspeed_drawn,
    "lightning fabric": fabric,
    "lightning trainer, minimal": lightning_minimal,
    "lightning trainer, CSV + bar": lightning_csv,
    "lightning trainer, MLflow + bar": lightning_mlflow,
    "accelerate": accelerate,
    "hf trainer": hf_trainer,
}
"""Row of the table -> its loop."""

ON_RANKS: dict[str, Callable[[Task], None]] = {
    f"{name}, ZeRO-{zero}": partial(loop, zero=zero, **more)
    for zero in (1, 2)
    for name, loop, more in (
        ("bare deepspeed", bare_on_ranks, {}),
        ("distdl, guard on", distdl_on_ranks, {"guard": True}),
        ("distdl, guard off", distdl_on_ranks, {"guard": False}),
    )
}
"""The same where several ranks are one contender."""
