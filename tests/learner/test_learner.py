"""What every learner inherits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distdl.learner import Learner
from distdl.metrics import Mean, add, mean, values


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


def test_losses_of_16_bits_are_not_added_up_in_16_bits() -> None:
    """512 micro-batches of 2.640625: in bf16 the sum would stop growing at 1,024, and show 2.0."""
    loss = torch.tensor(2.640625, dtype=torch.bfloat16)
    sums: dict[str, Any] = {}
    for _ in range(512):
        add(sums, {"loss": mean(loss), "whole": Mean(7 * loss, 7.0)})
    assert values(sums) == {"loss": 2.640625, "whole": pytest.approx(float(7 * loss) / 7)}
    half = Learner.evaluate(SimpleNamespace(loss=lambda *_: (loss, {})), {"id": torch.arange(3)})  # type: ignore[arg-type]
    assert float(half["loss"].total) == 3 * 2.640625
