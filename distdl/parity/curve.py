"""What a run was, in numbers: the loss and the gradient norm of every step, and the evaluation at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distdl.config.load import config_from_dict
from distdl.data.source import EvalSource
from distdl.layout.process import ProcessState
from distdl.metrics import Metrics
from distdl.parity.movement import held, keep
from distdl.plan import birth
from distdl.train import worker
from distdl.train.hooks.hook import Hook, Run
from distdl.train.hooks.parity import ReplicaParity
from distdl.train.loop import evaluate, train
from distdl.train.survey import survey

NUDGE = 1e-7
"""Of a weight: about a rounding in fp32."""


def curve(rank: int, values: dict[str, Any], file: Path | None = None, nudge: int = 0) -> dict[str, Any]:
    """Trains in this process group. -> {loss, norm: per step, means over ranks; positions seen; evaluation}. Collective.

    `file`: where this rank's part of the weights is kept, those of the start and of the end. `nudge`: the seed of changes
    as small as a rounding, with which the initial weights differ; 0: they do not.
    """
    with ProcessState():
        return _curve(rank, values, file, nudge)


def _curve(rank: int, values: dict[str, Any], file: Path | None, nudge: int) -> dict[str, Any]:
    plan = survey(config_from_dict(values))
    config = plan.settings
    worker.set_up_torch(plan)
    torch.set_num_threads(1)
    learner = worker.build_learner(config, None, birth.WHOLE if nudge else plan.born)
    if nudge:
        generator = torch.Generator().manual_seed(nudge)
        with torch.no_grad():
            for weight in learner.parameters():
                weight.mul_(1 + NUDGE * torch.randn(weight.shape, generator=generator))
    engine = worker.make_engine(learner, plan, rank)
    source = worker.make_source(plan, rank)
    out: dict[str, Any] = {"loss": [], "norm": [], "positions": []}

    class Record(Hook):
        def after_step(self, step: int, metrics: Metrics) -> None:
            total, count = metrics["loss"]
            sums = engine.all_sum(torch.tensor([float(total), count], dtype=torch.float64)).tolist()
            out["loss"].append(sums[0] / sums[1])
            out["norm"].append(None if engine.grad_norm is None else float(engine.grad_norm))
            out["positions"] += engine.batch["position"].tolist()

    hooks: list[Hook] = [Record()]
    if config.guard.parity_every_steps:
        hooks.append(ReplicaParity(Run(plan, rank, learner, engine, source, None), config.guard.parity_every_steps))
    start = held(engine) if file else {}
    train(learner, engine, source, hooks, start=0, steps=plan.steps)
    if file:
        keep(file, start, held(engine))
    if config.data.eval_split:
        held_out = worker.make_dataset(plan, config.data.eval_split)
        batches = EvalSource(held_out, batch=plan.eval_batch, rank=plan.mesh.place(rank)["data"], world=plan.mesh.data)
        out["evaluation"] = evaluate(learner, engine, batches)
    source.close()
    return out
