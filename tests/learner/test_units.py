"""Predicted numbers: errors in the units of the file, the same however a split is cut into batches and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distdl.learner.units import Units, of_numbers
from distdl.metrics import Metrics, add, named, values


def told(output: np.ndarray, target: np.ndarray, units: Units | None, cuts: list[int]) -> dict[str, float]:
    sums: Metrics = {}
    for a, b in zip(np.split(output, cuts), np.split(target, cuts), strict=True):
        add(sums, of_numbers(torch.from_numpy(a).float(), torch.from_numpy(b).float(), units))
    return named(values(sums))


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 90], list(range(1, 200))])
def test_errors_are_those_of_the_files_numbers_whatever_the_batches(cuts: list[int]) -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(0, 1, 200).astype(np.float32)
    output = (0.8 * target + 0.3 * rng.normal(size=200)).astype(np.float32)
    y, guess = (v.astype(float) * 70_000 + 250_000 for v in (target, output))
    found = told(output, target, Units(250_000, 70_000, center=250_000), cuts)
    assert found.keys() == {"rmse", "mae", "r2"}
    np.testing.assert_allclose(found["rmse"], np.sqrt(np.mean((y - guess) ** 2)), rtol=1e-9)
    np.testing.assert_allclose(found["mae"], np.mean(np.abs(y - guess)), rtol=1e-9)
    np.testing.assert_allclose(found["r2"], 1 - np.mean((y - guess) ** 2) / y.var(), rtol=1e-9)


def test_of_logarithms_and_without_units() -> None:
    target, output = np.array([0.0, 1.0, -0.5]), np.array([0.1, 0.8, -0.5])
    y, guess = (np.sign(s) * np.expm1(np.abs(s)) for s in (target * 2 + 1, output * 2 + 1))
    found = told(output, target, Units(1, 2, log=True), [])
    np.testing.assert_allclose(
        [found["rmse"], found["mae"]], [np.sqrt(np.mean((y - guess) ** 2)), np.abs(y - guess).mean()], rtol=1e-6
    )
    np.testing.assert_allclose(told(output, target, None, [])["mae"], np.abs(target - output).mean(), rtol=1e-6)


def test_large_numbers_that_differ_little_leave_digits_for_r2() -> None:
    """Seconds since 1970 within an hour: squares of 1e9 would leave none without a center."""
    rng = np.random.default_rng(1)
    target = rng.normal(size=500)
    output = target + 0.5 * rng.normal(size=500)
    found = told(output, target, Units(1.7e9, 600.0, center=1.7e9), [100, 300])
    np.testing.assert_allclose(found["r2"], 1 - np.mean((target - output) ** 2) / target.var(), rtol=1e-6)


def test_a_model_of_the_mean_has_0_and_equal_numbers_have_none() -> None:
    target = np.arange(10.0)
    assert abs(told(np.full(10, 4.5), target, None, [])["r2"]) < 1e-12
    assert "r2" not in told(np.zeros(10), np.full(10, 3.0), None, []) and "r2" not in named({"loss": 1.0})


def test_units_of_a_record() -> None:
    scale = {"method": "standard", "shift": 3.0, "divide": 2.0}
    record = {"kind": "number", "version": 1, "name": "price", "scale": scale, "center": 3.0}
    assert Units.of({"columns": {"y": record}}) == Units(3.0, 2.0, False, 3.0)
    assert Units.of({"columns": {}}) is None and Units.of({}) is None
