"""What every learner inherits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distdl.learner import Learner
from distdl.metrics import add, mean, values


def test_the_default_evaluation_weighs_by_samples() -> None:
    class Plain(Learner):
        def loss(self, batch: Any, step: int) -> Any:
            return batch["x"].mean(), {"big": mean((batch["x"] > 4).float())}

    x = torch.arange(10.0)
    learner, sums = Plain(), {}  # type: ignore[var-annotated]
    for part in (x[:7], x[7:]):
        add(sums, learner.evaluate({"x": part, "id": part}))
    assert values(sums) == {"loss": pytest.approx(4.5), "big": pytest.approx(0.5)}  # the mean of means would be 5.5
    assert sums["loss"].count == 10 and learner({"x": x, "id": x}, -1, evaluate=True)["loss"].count == 10
