"""What the tests of several families need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distdl.config.load import config_from_dict
from distdl.data.read import Dataset
from distdl.data.source import EvalSource
from distdl.engine.base import Engine
from distdl.families import build, load_family, model_config
from distdl.plan.plan import Plan
from distdl.train import worker
from distdl.train.hooks.hook import Hook
from distdl.train.loop import evaluate, train
from distdl.train.survey import survey
from tests.small import contract_config


def made(model: Mapping[str, Any], seed: int = 0) -> Any:
    """A learner in evaluation mode with fresh weights."""
    torch.manual_seed(seed)
    return build(model).eval()


def parameters(family: str, **model: Any) -> int:
    """Trainable parameters, counted on the meta device, of the family's defaults with some changes."""
    with torch.device("meta"):
        learner = load_family(family)(model_config({"family": family, **model}))
    return sum(p.numel() for p in learner.parameters() if p.requires_grad)


def rows_of(path: str, ids: range, split: str = "train") -> dict[str, Tensor]:
    """Rows of a data set as a batch."""
    rows = Dataset(path, split).gather(np.arange(ids.start, ids.stop))
    index = torch.arange(ids.start, ids.stop)
    return {
        **{name: torch.from_numpy(np.ascontiguousarray(c)) for name, c in rows.items()},
        "id": index,
        "position": index,
    }


class Rehearsal:
    """A run in this process, under the engine that its config names and the one loop."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.config = config_from_dict(self.values)
        self.plan: Plan = survey(self.config)
        self.learner = worker.build_learner(self.config, None)
        self.engine: Engine = worker.make_engine(self.learner, self.plan, 0)
        self.source = worker.make_source(self.plan, 0)
        self.step = 0
        self.losses: list[float] = []

    def train(self, steps: int) -> None:
        """Goes on for so many steps."""
        losses = self.losses

        class Record(Hook):
            def after_step(self, step: int, metrics: Any) -> None:
                losses.append(float(metrics["loss"].total) / metrics["loss"].count)

        self.step = train(self.learner, self.engine, self.source, [Record()], start=self.step, steps=self.step + steps)

    def evaluate(self, batch: int = 50) -> dict[str, float]:
        """Metrics of the held-out split."""
        self.learner.eval()
        held_out = worker.make_dataset(self.plan, "test")
        return evaluate(self.learner, self.engine, EvalSource(held_out, batch=batch, rank=0, world=1))


class Small(Rehearsal):
    """A family's small run."""

    def __init__(self, family: str, data: Path, **changes: Any) -> None:
        super().__init__(contract_config(family, data, **changes))
