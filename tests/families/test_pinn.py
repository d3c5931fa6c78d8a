"""The counts, the equations against finite differences and exact solutions, and the reference solutions of the source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distdl.data.generators import pde
from distdl.families.pinn import EQUATION, PERIODIC, VALUE
from tests.families.common import Small, made, parameters


def test_the_counts() -> None:
    assert parameters("pinn") == 3_021
    assert parameters("pinn", equation="schrodinger", layers=5, width=100) == 40_902
    assert parameters("pinn", equation="navier_stokes") == 3_062 + 2  # and the two coefficients


def small(equation: str) -> Any:
    return made({"family": "pinn", "equation": equation, "layers": 2, "width": 7}).double()


def differences(learner: Any, x: Tensor, h: float = 1e-4) -> tuple[Tensor, list[Tensor], Tensor]:
    """The network's values, slopes along each input, and second slopes along the first, by central differences."""
    steps = torch.eye(x.shape[1], dtype=torch.float64) * h
    with torch.no_grad():
        u = learner.net(x)
        slopes = [(learner.net(x + step) - learner.net(x - step)) / (2 * h) for step in steps]
        bend = (learner.net(x + steps[0]) - 2 * u + learner.net(x - steps[0])) / h**2
    return u, slopes, bend


def test_the_residuals_are_those_of_finite_differences() -> None:
    x = torch.rand(6, 2, dtype=torch.float64)
    learner = small("burgers")
    u, (u_x, u_t), u_xx = differences(learner, x)
    expected = (u_t + u * u_x - 0.01 / math.pi * u_xx).square()[:, 0]
    assert torch.allclose(learner.residual(x, u), expected, rtol=1e-5, atol=1e-7)
    learner = small("schrodinger")
    u, (_, u_t), u_xx = differences(learner, x)
    h, h_t, h_xx = (torch.view_as_complex(v.contiguous()) for v in (u, u_t, u_xx))
    expected = (1j * h_t + h_xx / 2 + h.abs() ** 2 * h).abs().square()
    assert torch.allclose(learner.residual(x, u), expected, rtol=1e-5, atol=1e-7)


def give(learner: Any, solution: Any) -> None:
    """A solution in the place of the network."""
    learner.net = solution


def test_the_exact_vortices_have_no_residual_with_their_coefficients_only() -> None:
    """Taylor & Green: psi = cos x cos y decay, so that u = psi_y and v = -psi_x, and their pressure."""
    learner = small("navier_stokes")

    def vortices(x: Tensor) -> Tensor:
        a, b, t = x.unbind(1)
        decay = torch.exp(-2 * pde.VORTEX_VISCOSITY * t)
        pressure = -((2 * a).cos() + (2 * b).cos()) / 4 * decay**2
        return torch.stack([a.cos() * b.cos() * decay, pressure], 1)

    give(learner, vortices)
    x = torch.rand(9, 3, dtype=torch.float64) * 6
    known = torch.from_numpy(pde.navier_stokes_solution(x.numpy()))
    assert torch.allclose(learner.solution(x), known, atol=1e-12)
    with torch.no_grad():
        learner.coefficients.copy_(torch.tensor([1.0, pde.VORTEX_VISCOSITY], dtype=torch.float64))
    assert float(learner.residual(x, known).max().detach()) < 1e-24
    with torch.no_grad():
        learner.coefficients[1] += 0.01
    assert float(learner.residual(x, known).max().detach()) > 1e-6


def test_the_soliton_has_no_residual() -> None:
    learner = small("schrodinger")

    def soliton(x: Tensor) -> Tensor:
        place, time = x.unbind(1)
        above = 4 * torch.exp(0.5j * time) * (torch.cosh(3 * place) + 3 * torch.exp(4j * time) * torch.cosh(place))
        return torch.view_as_real(above / (torch.cosh(4 * place) + 4 * torch.cosh(2 * place) + 3 * torch.cos(4 * time)))

    give(learner, soliton)
    x = torch.rand(9, 2, dtype=torch.float64) * torch.tensor([4.0, 1.5]) - torch.tensor([2.0, 0.0])
    assert np.allclose(soliton(x).numpy(), pde.schrodinger_solution(x.numpy()), atol=1e-12)
    assert float(learner.residual(x, soliton(x)).max().detach()) < 1e-20
    start = np.stack([np.linspace(-5, 5, 11), np.zeros(11)], 1)
    assert np.allclose(pde.schrodinger_solution(start)[:, 0], 2 / np.cosh(start[:, 0]), atol=1e-12)


def test_burgers_reference_satisfies_the_equation_and_its_edges() -> None:
    def u(x: float, t: float) -> float:
        return float(pde.burgers_solution(np.array([[x, t]]))[0])

    h = 1e-3
    for x, t in ((0.3, 0.4), (-0.6, 0.9), (0.05, 0.2)):
        slope_t, slope_x = ((u(x, t + h) - u(x, t - h)) / (2 * h), (u(x + h, t) - u(x - h, t)) / (2 * h))
        bend = (u(x + h, t) - 2 * u(x, t) + u(x - h, t)) / h**2
        assert slope_t + u(x, t) * slope_x == pytest.approx(pde.BURGERS_VISCOSITY * bend, abs=1e-3)
    assert u(0.5, 0.0) == -1 and abs(u(1.0, 0.7)) < 1e-9 and abs(u(-1.0, 0.3)) < 1e-9
    assert u(-0.02, 0.9) > 0.5 > -0.5 > u(0.02, 0.9)  # the shock


def test_a_loss_is_the_sum_of_the_means_over_each_kind() -> None:
    options = pde.Options("schrodinger", values=10, collocation=13, grid=3)
    rows = dict(pde.prepare(options).chunks)["train"]
    batch = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in rows.items()}
    learner = small("schrodinger")
    loss, _ = learner.loss(batch, 0)
    x, u, kind = batch["x"], batch["u"], batch["kind"]
    assert [int((kind == k).sum()) for k in (VALUE, EQUATION, PERIODIC)] == [5, 13, 5]
    known = (learner.net(x[kind == VALUE]) - u[kind == VALUE]).square().sum(1).mean()
    inside = learner.residual(x[kind == EQUATION], u[kind == EQUATION]).mean()
    assert float(loss.detach()) == pytest.approx(
        float((known + inside + learner.periodic(x[kind == PERIODIC]).mean()).detach()), rel=1e-12
    )
    for part in (slice(0, 7), slice(7, None)):  # the parts of a batch add up, some without a point of a kind
        assert torch.isfinite(learner.loss({k: v[part] for k, v in batch.items()}, 0)[0])


def test_what_is_periodic_has_no_gap() -> None:
    learner = small("schrodinger")
    give(learner, lambda x: torch.stack([(math.pi / 5 * x[:, 0]).sin() * x[:, 1], (math.pi / 5 * x[:, 0]).cos()], 1))
    x = torch.tensor([[5.0, 0.3], [5.0, 1.1]], dtype=torch.float64)
    assert float(learner.periodic(x).max().detach()) < 1e-24
    give(learner, lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 0] ** 2], 1))
    assert torch.allclose(learner.periodic(x), torch.tensor([100 * 0.09 + 400, 100 * 1.21 + 400], dtype=x.dtype))


@pytest.mark.slow
def test_lbfgs_in_fp64_goes_far_beyond_adam(small_data: Any) -> None:
    changes = {"train__clip_norm": None, "train__global_batch": 80, "data__shuffle": "none"}
    lbfgs = {"optimizer": {"name": "lbfgs", "iterations": 20, "history": 20}, "schedule": {"name": "constant"}}
    run = Small("pinn", small_data, **changes, **lbfgs, train__precision="fp64")
    assert {p.dtype for p in run.learner.parameters()} == {torch.float64}
    run.train(10)
    assert all(later <= earlier for earlier, later in zip(run.losses, run.losses[1:]))  # a line search never goes up
    adam = Small("pinn", small_data, **changes)
    adam.train(20)
    assert run.losses[-1] < 0.3 * min(adam.losses)
