"""Limited-memory BFGS (Liu & Nocedal 1989): several iterations on one batch, each with a line search.

    d = -H g                       H from the last pairs s = moves, y = changes of the gradient (the two-loop recursion)
    w <- w + t d                   t meets the strong Wolfe conditions (Nocedal & Wright 2006, algorithms 3.5 and 3.6)

Both gradients of a pair are of the same batch, so that steps over different batches share their history (Schraudolph, Yu &
Guenter 2007). The state is the history alone, in pieces of each parameter's shape: `s000`, `y000`, ..., the oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lbfgs import _strong_wolfe

from distdl.engine.base import Engine
from distdl.learner import Batch

Pairs = list[tuple[Tensor, Tensor]]  # (s, y), flat, the oldest first


class LBFGS(torch.optim.Optimizer):
    """`iterations` a step; `lr` is the first length that the line search tries."""

    def __init__(
        self, params: Iterable[Tensor] | list[dict[str, Any]], lr: float = 1.0, iterations: int = 20, history: int = 50
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.iterations, self.history = iterations, history
        self.members: list[Tensor] = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float], loss: float | None = None) -> float:  # type: ignore[override]
        """`closure` leaves the gradient of the whole batch in the parameters and returns its loss. `loss`: what it would
        return, where the gradient at the present weights is there already."""
        if loss is None:
            loss = closure()
        pairs, gradient = self._pairs(), self._gradient()
        for _ in range(self.iterations):
            direction = downhill(gradient, pairs)
            slope = float(gradient.dot(direction))
            if not slope < 0:  # the minimum, to the precision of the arithmetic, or not a number
                break
            length = self.param_groups[0]["lr"] * (1.0 if pairs else min(1.0, 1.0 / float(gradient.abs().sum())))
            start = [p.clone() for p in self.members]

            def at(start: list[Tensor], length: float, direction: Tensor) -> tuple[float, Tensor]:
                self._move(start, length * direction)
                return closure(), self._gradient()

            loss, following, length, _ = _strong_wolfe(at, start, length, direction, loss, gradient, slope)
            move, turn = length * direction, following - gradient
            self._move(start, move)
            if float(turn.dot(move)) > 1e-10 * float(turn.dot(turn)):  # else H would not stay positive
                pairs = [*pairs, (move, turn)][-self.history :]
            gradient = following
            if not float(move.abs().max()) > 0:
                break
        self._keep(pairs)
        return loss

    def _gradient(self) -> Tensor:
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.members])

    def _move(self, start: list[Tensor], by: Tensor) -> None:
        for p, origin, piece in zip(self.members, start, self._pieces(by)):
            p.copy_(origin + piece)

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([p.numel() for p in self.members])
        return [part.view_as(p) for part, p in zip(parts, self.members)]

    def _pairs(self) -> Pairs:
        names = sorted(name for name in self.state[self.members[0]] if name[0] in "sy" and name[1:].isdigit())
        flat = [torch.cat([self.state[p][name].flatten() for p in self.members]) for name in names]
        return list(zip(flat[: len(flat) // 2], flat[len(flat) // 2 :]))  # s... come before y...

    def _keep(self, pairs: Pairs) -> None:
        for i, pair in enumerate(pairs):
            for name, flat in zip((f"s{i:03}", f"y{i:03}"), pair):
                for p, piece in zip(self.members, self._pieces(flat)):
                    self.state[p][name] = piece


def downhill(gradient: Tensor, pairs: Pairs) -> Tensor:
    """-H g by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4)."""
    q, shares = -gradient, []
    for s, y in reversed(pairs):
        share = s.dot(q) / y.dot(s)
        shares.append(share)
        q = q - share * y
    if pairs:
        s, y = pairs[-1]
        q = q * (y.dot(s) / y.dot(y))
    for (s, y), share in zip(pairs, reversed(shares)):
        q = q + (share - y.dot(q) / y.dot(s)) * s
    return q


class Replay:
    """An engine's step again: the loss and the gradient of the step's batch at other weights, as often as LBFGS asks."""

    def __init__(self, engine: Engine, backward: Callable[[Tensor], None]) -> None:
        self.engine, self.backward = engine, backward
        self.batches: list[Batch] = []

    def keep(self, batch: Batch, micro: int) -> None:
        """Keeps one of the step's micro-batches; the first of a step takes the place of those before."""
        self.batches = [*self.batches[:micro], batch]

    def step(self, optimizer: LBFGS, net: nn.Module, step: int) -> None:
        """The optimizer's step, the last micro-batch's gradient having been summed."""

        def closure() -> float:
            net.zero_grad()
            for micro, batch in enumerate(self.batches):
                self.engine.begin(batch, micro)
                with torch.enable_grad():
                    loss, _ = self.engine.forward(batch, step)
                    self.engine.add_loss(loss)
                    self.backward(loss)
            return self.engine.step_loss()

        optimizer.step(closure, self.engine.step_loss())
        net.zero_grad()  # of the last trial
