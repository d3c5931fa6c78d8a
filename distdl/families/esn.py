"""Echo state network, a fixed random reservoir with a linear readout (Jaeger 2001; Jaeger & Haas 2004, Science 304:78).

    x(t) = (1 - a) x(t-1) + a tanh(W_in [1; u(t)] + W x(t-1)),     y(t) = W_out [1; u(t); x(t)] = W_out h(t)
    W_out = (sum y h^T) (sum h h^T + ridge I)^-1

W and W_in are drawn once, W scaled to a spectral radius; only the readout learns, (1 + D + N) D numbers, by ridge
regression on the next value of the series. Its two sums are over time steps and rows, so that they are the same in any
order and over any number of workers; one pass over the data is the exact solution, a second only halves the ridge. All in
fp64: the sums are ill-conditioned, and a free-running network feeds its own errors back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distdl.config.fields import Amount, Count, CountOrZero, SomeShare
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Metrics, mean
from distdl.nn.recurrence import over_time
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    inputs: Count = 1
    """Values of a time step (D)."""
    steps: Count = 2000
    """Time steps of a row, which holds one more."""
    units: Count = 1000
    """Units of the reservoir (N)."""
    leak: SomeShare = 0.3
    """Share of a unit's state that is renewed in a step (a); 1: Jaeger's first form."""
    spectral_radius: Amount = 1.25
    """Largest absolute eigenvalue of W."""
    input_scale: Amount = 0.5
    """W_in is uniform between minus this and this."""
    density: SomeShare = 1.0
    """Share of the weights of W that are not zero."""
    ridge: Amount = 1e-8
    """Added to the diagonal of the sum of h h^T."""
    washout: CountOrZero = 100
    """First steps of a row that the readout does not learn from: they still remember the empty reservoir."""
    generate: CountOrZero = 500
    """Last steps of a held-out row that the network predicts from its own predictions; 0: it is given every value."""

    def __post_init__(self) -> None:
        if self.washout >= self.steps:
            raise ValueError(f"a washout of {self.washout} leaves nothing of {self.steps} steps; shorten it")
        if self.generate >= self.steps:
            raise ValueError(f"generate {self.generate} leaves no step of {self.steps} to start from; lower it")


class ESN(Learner):
    any_length = frozenset({"x"})
    learns = "ridge regression, one pass"
    layouts = frozenset({"torch"})  # there is no optimizer that ZeRO could shard
    w: Tensor
    w_in: Tensor
    gram: Tensor
    cross: Tensor
    readout: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        N, D = config.units, config.inputs
        w = (torch.rand(N, N, dtype=torch.float64) - 0.5) * (torch.rand(N, N) < config.density)
        if not w.is_meta:  # where only shapes count, there are no eigenvalues, and the seconds they cost are saved
            w = w * (config.spectral_radius / torch.linalg.eigvals(w).abs().max())
        self.register_buffer("w", w)
        self.register_buffer("w_in", config.input_scale * (2 * torch.rand(N, 1 + D, dtype=torch.float64) - 1))
        self.register_buffer("gram", torch.zeros(1 + D + N, 1 + D + N, dtype=torch.float64))
        self.register_buffer("cross", torch.zeros(1 + D + N, D, dtype=torch.float64))
        self.register_buffer("readout", torch.zeros(D, 1 + D + N, dtype=torch.float64))
        if config.generate:
            self.primary = "generated"

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        shape = (config.steps + 1, config.inputs)
        return {"x": Column(shape, "real", meaning="value of a series", lengths="frames")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"next": Answer("values", "those of the next steps, one after the other", of="x")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"next": self.generate(batch["x"].double(), max(1, self.config.generate))}

    def step(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input (B, D) and state (B, N) -> h (B, 1 + D + N) and the new state."""
        u = torch.cat([torch.ones_like(u[:, :1]), u], -1)  # (B, 1 + D)
        x = (1 - self.config.leak) * x + self.config.leak * torch.tanh(u @ self.w_in.T + x @ self.w.T)
        return torch.cat([u, x], -1), x

    def run(self, series: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> h of every step (B, T, 1 + D + N), and the last state."""

        def step(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            h, x = self.step(u, x)
            return x, h

        return over_time(step, x, series)

    def silence(self, series: Tensor) -> Tensor:
        """The state of an empty reservoir. (B, N)"""
        return self.w.new_zeros(series.shape[0], self.config.units)

    @torch.no_grad()
    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        series, washout = batch["x"].double(), self.config.washout
        h, _ = self.run(series[:, :-1], self.silence(series))
        h, y = h[:, washout:].flatten(0, 1), series[:, washout + 1 :].flatten(0, 1)  # (B*T, 1 + D + N), (B*T, D)
        self.gram += engine.all_sum(h.T @ h)
        self.cross += engine.all_sum(h.T @ y)
        penalty = self.config.ridge * torch.eye(len(self.gram), dtype=h.dtype, device=h.device)
        self.readout.copy_(torch.linalg.solve(self.gram + penalty, self.cross).T)
        return {"loss": mean((h @ self.readout.T - y).square())}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        series, washout, generate = batch["x"].double(), self.config.washout, self.config.generate
        h, _ = self.run(series[:, :-1], self.silence(series))
        told = h @ self.readout.T
        shown("series", lambda: {"told": told[0], "true": series[0, 1:]})
        error = told - series[:, 1:]  # (B, T, D)
        metrics = {"loss": mean(error[:, washout:].square())}
        if generate:
            own = self.generate(series[:, :-generate], generate)
            metrics["generated"] = mean((own - series[:, -generate:]).square())
        return metrics

    def generate(self, series: Tensor, steps: int) -> Tensor:
        """The series goes on by itself: (B, T, D) -> the next (B, steps, D), each the input of the one after."""
        h, x = self.run(series, self.silence(series))

        def step(state: tuple[Tensor, Tensor], _: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            u, x = state
            h, x = self.step(u, x)
            return (h @ self.readout.T, x), u

        nothing = series.new_zeros(1, steps)
        return over_time(step, (h[:, -1] @ self.readout.T, x), nothing)[0]
