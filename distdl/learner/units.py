"""Predicted numbers, measured in the units of the file that they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distdl.metrics import ABSOLUTE_ERROR, SQUARED, SQUARED_ERROR, TOLD, Mean, Metrics
from distdl.nn.watch import seen


@dataclass(frozen=True)
class Units:
    """How the numbers of a data set's column `y` become those of its file: y * divide + shift; and where their logarithms
    were taken, sign * (exp|.| - 1) of that."""

    shift: float = 0.0
    divide: float = 1.0
    log: bool = False
    center: float = 0.0
    """About the mean, in the file's units: squares are summed up from here, so that large numbers leave digits for R^2."""

    @staticmethod
    def of(preparation: Mapping[str, Any]) -> Units | None:
        """Those that a checkpoint's `preparation.json` says; None where it has none."""
        record = preparation.get("columns", {}).get("y", {})
        if record.get("kind") != "number":
            return None
        scale = record["scale"]
        return Units(scale["shift"], scale["divide"], scale["method"] == "log", record.get("center", 0.0))

    def restore(self, values: Tensor) -> Tensor:
        """Numbers of the data set -> numbers of the file, float64."""
        values = values.double() * self.divide + self.shift
        return values.sign() * values.abs().expm1() if self.log else values


def of_numbers(output: Tensor, target: Tensor, units: Units | None) -> Metrics:
    """(B,), (B,) -> what `metrics.named` makes rmse, mae and R^2 of, as sums that add up over batches and ranks."""
    units = units or Units()
    told, true = units.restore(output.detach()), units.restore(target)
    seen("numbers", told, true)
    error, apart = told - true, true - units.center
    count = float(target.numel())
    sums = {SQUARED_ERROR: error.square(), ABSOLUTE_ERROR: error.abs(), TOLD: apart, SQUARED: apart.square()}
    return {name: Mean(torch.sum(values), count) for name, values in sums.items()}
