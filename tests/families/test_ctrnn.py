"""The continuous-time network against scipy's integrator, and the orders of its own two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.families.common import made, parameters

MODEL = {"family": "ctrnn", "task": "values", "inputs": 2, "steps": 5, "units": 6, "step_time": 2.0, "slowest": 6.0}


def states(**model: Any) -> np.ndarray:
    """(T, N) of one sample; all with the same weights."""
    torch.manual_seed(0)
    learner = made(MODEL | {"substeps": 4}).double()
    weights = dict(learner.named_parameters())
    other = made(MODEL | model).double()
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(weights[name].clamp_min(1.5) if name == "tau" else weights[name])
        return other.states(inputs())[0].numpy()


def inputs() -> torch.Tensor:
    return torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exact() -> np.ndarray:
    from scipy.integrate import solve_ivp

    learner = made(MODEL | {"substeps": 4}).double()
    w, u, theta, tau = (p.detach().numpy() for p in (learner.w, learner.u, learner.theta, learner.tau))
    tau = np.maximum(tau, 1.5)
    rates = lambda v: 1 / (1 + np.exp(-(v + theta)))  # noqa: E731
    v, out = np.zeros(6), []
    for x in inputs()[0].numpy():  # the input is constant within a step
        slope = lambda t, v, x=x: (-v + w @ rates(v) + u @ x) / tau  # noqa: E731
        v = solve_ivp(slope, (0, 2.0), v, rtol=1e-12, atol=1e-13, method="DOP853").y[:, -1]
        out.append(rates(v))
    return np.array(out)


def error(**model: Any) -> float:
    return float(np.abs(states(**model) - exact()).max())


def test_eulers_error_halves_with_the_step() -> None:
    errors = [error(solver="euler", substeps=n) for n in (100, 200, 400)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05) and errors[1] / errors[2] == pytest.approx(2, rel=0.03)
    assert errors[-1] < 1e-2 and np.ptp(exact()) > 0.3


def test_runge_kuttas_error_falls_with_the_fourth_power() -> None:
    errors = [error(solver="rk4", substeps=n) for n in (8, 16, 32)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.3) and errors[1] / errors[2] == pytest.approx(16, rel=0.2)
    assert errors[-1] < 1e-6
    assert error(solver="rk4", substeps=400) < 1e-10


def test_no_time_constant_is_shorter_than_an_integration_step() -> None:
    learner = made(MODEL | {"substeps": 4}).double()
    x = inputs()
    with torch.no_grad():
        learner.tau.fill_(0.5)  # 2.0 / 4
        expected = learner.states(x)
        learner.tau[:3] = 0.01
        assert torch.equal(learner.states(x), expected)
        learner.tau[:3] = 0.6
        assert not torch.allclose(learner.states(x), expected, atol=1e-3)
        # With tau = dt Euler's step forgets v: the discrete network v' = W sigma(v + theta) + U x.
        learner.tau.fill_(0.5)
        v = torch.zeros(1, 6, dtype=torch.float64)
        for _ in range(4):
            v = torch.sigmoid(v + learner.theta) @ learner.w.T + x[:, 0] @ learner.u.T
        assert torch.allclose(learner.states(x)[:, 0], torch.sigmoid(v + learner.theta), atol=1e-14)


def test_parameters() -> None:
    head = 10 * (128 + 1)
    assert parameters("ctrnn") == 128**2 + 2 * 128 + 128 * 28 + head == 21_514
    assert parameters("ctrnn", task="values", inputs=1, units=16) == 16**2 + 2 * 16 + 16 + 17


def test_the_washout_is_not_counted() -> None:
    rows = {"x": torch.randn(3, 6, 2), "id": torch.arange(3)}
    whole, later = made(MODEL), made(MODEL | {"washout": 2})
    assert torch.equal(whole.losses(rows)[0][:, 2:], later.losses(rows)[0])
    assert later.evaluate(rows)["loss"].count == 3 * 3 * 2
    for bad in ({"washout": 5}, {"washout": 1, "task": "rows"}, {"slowest": 0.1}):
        with pytest.raises(ValueError, match=r"set it to 0|raise it"):
            made(MODEL | bad)
