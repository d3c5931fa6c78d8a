"""Physics-informed neural network, PINN (Raissi, Perdikaris & Karniadakis 2019, J. Comput. Phys. 378:686).

A perceptron of tanh units is the solution u(x, t). Automatic differentiation gives its derivatives, and the loss asks
that they satisfy the equation:

    loss = mean |u - known|^2 over points of known values + mean |f|^2 over collocation points
    burgers         f = u_t + u u_x - (0.01/pi) u_xx                                                        (eq. A.1)
    schrodinger     f = i h_t + h_xx/2 + |h|^2 h;   h and h_x agree at x = -5 and x = 5                     (eq. 8)
    navier_stokes   (u, v) = (psi_y, -psi_x);  f = u_t + a (u u_x + v u_y) + p_x - b (u_xx + u_yy), g for v (eq. 15)
                    u and v are known, p is not; a and b are found with the solution

2-20x8-1 for burgers has 3,021 parameters, 2-100x5-2 for schrodinger 40,902, 3-20x8-2 for navier_stokes 3,062 and a and b. A
sample is a point, its kind in the column `kind` and its share in `weight` (the source `pde` makes them).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distdl.config.fields import Count
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Mean, Metrics
from distdl.nn.watch import shown

DOMAINS = {  # (low, high) of each input, the time last
    "burgers": ((-1.0, 1.0), (0.0, 1.0)),
    "schrodinger": ((-5.0, 5.0), (0.0, math.pi / 2)),
    "navier_stokes": ((0.0, 2 * math.pi), (0.0, 2 * math.pi), (0.0, 10.0)),
}
OUTPUTS = {"burgers": 1, "schrodinger": 2, "navier_stokes": 2}
"""Of the network, and values of the solution at a point: u; real and imaginary part of h; psi and p, and u and v."""
VALUE, EQUATION, PERIODIC = 0, 1, 2  # kinds of points


@dataclass(frozen=True)
class Config:
    equation: Literal["burgers", "schrodinger", "navier_stokes"] = "burgers"
    """The differential equation."""
    layers: Count = 8
    """Hidden layers."""
    width: Count = 20
    """Units of each."""


def derivatives(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """dy/dx_1, ..., dy/dx_D, (N,) each, of y (N,) at the points x (N, D)."""
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return gradient.unbind(1)


class PINN(Learner):
    targets = frozenset({"u", "kind", "weight"})
    learns = "back-propagation through an equation"
    primary, better = "relative_l2_squared", "lower"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})
    fp64 = True
    low: Tensor
    high: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        domain = DOMAINS[config.equation]
        self.register_buffer("low", torch.tensor([low for low, _ in domain]))
        self.register_buffer("high", torch.tensor([high for _, high in domain]))
        sizes = [len(domain), *[config.width] * config.layers, OUTPUTS[config.equation]]
        maps = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        for linear in maps:
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.maps = nn.ModuleList(maps)
        if config.equation == "navier_stokes":
            self.coefficients = nn.Parameter(torch.zeros(2))  # a and b

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        inputs, outputs = len(DOMAINS[config.equation]), OUTPUTS[config.equation]
        return {
            "x": Column.numbers((inputs,), meaning="place and time"),
            "u": Column.numbers((outputs,), meaning="value of the solution"),
            "kind": Column.whole(0, None, meaning="kind of a point"),
            "weight": Column.numbers((), 0, meaning="weight of a point"),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"u": Answer("values", "of the solution at the point", of="u")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        u = self.solution(batch["x"].to(self.low.dtype))
        return {"u": u if torch.is_grad_enabled() else u.detach()}  # a solution of navier_stokes is a slope itself

    def net(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, K)"""
        h = 2 * (x - self.low) / (self.high - self.low) - 1
        *hidden, last = self.maps
        for linear in hidden:
            h = linear(h).tanh()
        return last(h)

    def solution(self, x: Tensor) -> Tensor:
        """What is compared with the column `u`: (N, D) -> (N, K)"""
        if self.config.equation != "navier_stokes":
            return self.net(x)
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            psi_x, psi_y, _ = derivatives(self.net(x)[:, 0], x)
        return torch.stack([psi_y, -psi_x], 1)

    def residual(self, x: Tensor, u: Tensor) -> Tensor:
        """|f|^2 at points x (N, D) with known values u (N, K, of navier_stokes) -> (N,)"""
        x = x.detach().requires_grad_()
        return {"burgers": self.burgers, "schrodinger": self.schrodinger, "navier_stokes": self.navier_stokes}[
            self.config.equation
        ](x, u)

    def burgers(self, x: Tensor, _: Tensor) -> Tensor:
        u = self.net(x)[:, 0]
        u_x, u_t = derivatives(u, x)
        u_xx, _ = derivatives(u_x, x)
        return (u_t + u * u_x - 0.01 / math.pi * u_xx).square()

    def schrodinger(self, x: Tensor, _: Tensor) -> Tensor:
        real, imaginary = self.net(x).unbind(1)
        (real_x, real_t), (imaginary_x, imaginary_t) = derivatives(real, x), derivatives(imaginary, x)
        (real_xx, _), (imaginary_xx, _) = derivatives(real_x, x), derivatives(imaginary_x, x)
        size = real.square() + imaginary.square()  # |h|^2
        f_real = -imaginary_t + real_xx / 2 + size * real
        f_imaginary = real_t + imaginary_xx / 2 + size * imaginary
        return f_real.square() + f_imaginary.square()

    def navier_stokes(self, x: Tensor, known: Tensor) -> Tensor:
        psi, p = self.net(x).unbind(1)
        (psi_x, psi_y, _), (p_x, p_y, _) = derivatives(psi, x), derivatives(p, x)
        u, v = psi_y, -psi_x
        (u_x, u_y, u_t), (v_x, v_y, v_t) = derivatives(u, x), derivatives(v, x)
        (u_xx, _, _), (_, u_yy, _), (v_xx, _, _), (_, v_yy, _) = (derivatives(d, x) for d in (u_x, u_y, v_x, v_y))
        a, b = self.coefficients
        f = u_t + a * (u * u_x + v * u_y) + p_x - b * (u_xx + u_yy)
        g = v_t + a * (u * v_x + v * v_y) + p_y - b * (v_xx + v_yy)
        return f.square() + g.square() + (torch.stack([u, v], 1) - known).square().sum(1)

    def periodic(self, x: Tensor) -> Tensor:
        """How far values and slopes at x (N, D) differ from those at the other end of the first dimension -> (N,)"""
        right = x.detach().requires_grad_()
        left = torch.cat([(self.low + self.high - x)[:, :1], x[:, 1:]], 1).detach().requires_grad_()
        at_right, at_left = self.net(right), self.net(left)
        gaps = [(at_right - at_left).square().sum(1)]
        for a, b in zip(at_right.unbind(1), at_left.unbind(1)):
            gaps.append((derivatives(a, right)[0] - derivatives(b, left)[0]).square())
        return torch.stack(gaps).sum(0)

    def points(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """x, u and weight in the type of the weights."""
        x, u, weight = (batch[name].to(self.low.dtype) for name in ("x", "u", "weight"))
        return x, u, weight

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        (x, u, weight), kind = self.points(batch), batch["kind"]
        known, inside, ends = kind == VALUE, kind == EQUATION, kind == PERIODIC
        total = (weight[known] * (self.solution(x[known]) - u[known]).square().sum(1)).sum()
        total = total + (weight[inside] * self.residual(x[inside], u[inside])).sum()
        if self.config.equation == "schrodinger":
            total = total + (weight[ends] * self.periodic(x[ends])).sum()
        return total / len(x), {}

    def evaluate(self, batch: Batch) -> Metrics:
        x, u, weight = self.points(batch)
        told, n = self.solution(x), float(len(x))
        shown("field", lambda: {"place": x, "told": told, "true": u})
        errors = weight * (told - u).square().sum(1)
        metrics = {"relative_l2_squared": Mean(errors.detach().sum(), n)}
        if self.config.equation == "navier_stokes":
            a, b = self.coefficients.detach()
            metrics |= {"a": Mean(a * n, n), "b": Mean(b * n, n)}
        return metrics
