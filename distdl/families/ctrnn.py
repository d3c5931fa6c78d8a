"""Continuous-time recurrent network, neurons as differential equations (Funahashi & Nakamura 1993; Beer 1995).

    tau_i dv_i/dt = -v_i + sum_j w_ij sigma(v_j + theta_j) + sum_k u_ik x_k(t),    v(0) = 0

Every step of the input holds x for `step_time`, in which the equation is integrated in `substeps` steps by Euler's method
(error of first order) or the classical one of Runge and Kutta (fourth order). A linear head reads the firing rates
sigma(v + theta). No time constant is shorter than an integration step, where Euler's method would overshoot.
N^2 + 2 N parameters, N D for the inputs, and the head.

The three tasks and their losses are in learner/sequence.py: the class of the last state or the next token of each, by cross
entropy, with their accuracy; or the next values, by their squared error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, CountOrZero, SequenceTask, Several
from distdl.config.marks import TRAINING_ONLY
from distdl.learner.sequence import SequenceLearner
from distdl.nn.recurrence import over_time


@dataclass(frozen=True)
class Config:
    task: SequenceTask = "rows"
    """rows: the class of a picture read row by row; tokens: the next of a text; values: the next of a series."""
    inputs: Count = 28
    """Pixels of a row, tokens of the vocabulary, or values of a step (D)."""
    steps: Count = 28
    """Steps of a sample."""
    classes: Several = 10
    """Classes of the task rows."""
    units: Count = 128
    """Neurons (N)."""
    solver: Literal["euler", "rk4"] = "euler"
    """How the equation is integrated."""
    step_time: Amount = 1.0
    """Time that a step of the input lasts, in the unit of the time constants."""
    substeps: Count = 1
    """Integration steps in a step of the input."""
    slowest: Amount = 4.0
    """Fresh time constants are uniform between an integration step and this."""
    washout: CountOrZero = 0
    """First steps of a sample whose predictions do not count, in the task values."""
    frames: Annotated[bool, TRAINING_ONLY] = False
    """The data set's column `frames` says how many steps of a row count; what follows them is padding (tasks rows and
    values)."""

    def __post_init__(self) -> None:
        if self.slowest < self.step_time / self.substeps:
            raise ValueError(f"slowest {self.slowest} is shorter than an integration step; raise it, or substeps")
        if self.washout and (self.task != "values" or self.washout >= self.steps):
            raise ValueError(f"a washout of {self.washout} is for the task values with more steps; set it to 0")
        if self.frames and self.task == "tokens":
            raise ValueError("frames is true, but rows of tokens are full: set it to false")


class CTRNN(SequenceLearner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.units)
        self.washout = config.washout
        N, D = config.units, config.inputs
        self.dt = config.step_time / config.substeps
        # A logistic unit passes on a quarter of a change, at its centre: hence the 4, and thresholds that put it there
        # ("centre-crossing", Mathayomchan & Beer 2002).
        self.w = nn.Parameter(torch.randn(N, N) * 4 / N**0.5)
        self.u = nn.Parameter(torch.randn(N, D) * 4 / D**0.5)
        self.theta = nn.Parameter(-self.w.detach().sum(1) / 2)
        self.tau = nn.Parameter(self.dt + (config.slowest - self.dt) * torch.rand(N))

    def states(self, x: Tensor) -> Tensor:
        tau, drive = self.tau.clamp_min(self.dt), x @ self.u.T  # (N,), (B, T, N)

        def step(v: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
            for _ in range(self.config.substeps):
                v = v + self.dt * self.change(v, now, tau)
            return v, torch.sigmoid(v + self.theta)

        return over_time(step, x.new_zeros(x.shape[0], self.config.units), drive)[0]

    def slope(self, v: Tensor, drive: Tensor, tau: Tensor) -> Tensor:
        """dv/dt. (B, N)"""
        return (F.linear(torch.sigmoid(v + self.theta), self.w) + drive - v) / tau

    def change(self, v: Tensor, drive: Tensor, tau: Tensor) -> Tensor:
        """The slope that leads from v to its value an integration step later. (B, N)"""
        k1 = self.slope(v, drive, tau)
        if self.config.solver == "euler":
            return k1
        k2 = self.slope(v + self.dt / 2 * k1, drive, tau)
        k3 = self.slope(v + self.dt / 2 * k2, drive, tau)
        return (k1 + 2 * k2 + 2 * k3 + self.slope(v + self.dt * k3, drive, tau)) / 6
