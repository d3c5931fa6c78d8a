"""One step after the other: a loop of Python, or one operator of a graph while a model is exported, so that a file that was
made of seven steps takes any number of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[Any, Tensor], tuple[Any, Tensor]]
"""(state, what a step sees) -> (the next state, what the step says). A state is a tensor, or a tuple of them. It changes
nothing in place."""


def over_time(step: Step, state: Any, x: Tensor) -> tuple[Tensor, Any]:
    """What each step says of x (B, T, ...), as (B, T, ...), and the state after the last."""
    if torch.compiler.is_exporting():
        return _scanned(step, state, x)
    told = []
    for now in x.unbind(1):
        state, out = step(state, now)
        told.append(out)
    return torch.stack(told, 1), state


def _scanned(step: Step, state: Any, x: Tensor) -> tuple[Tensor, Any]:
    """The same loop as one operator."""
    from torch._higher_order_ops.scan import scan

    def whole(state: Any, now: Tensor) -> tuple[Any, Tensor]:
        state, out = step(state, now)
        return state, out.clone()  # an operator's outputs may not share memory

    last, told = scan(whole, state, x.transpose(0, 1))
    return told.transpose(0, 1), last


def own(*parts: Tensor) -> tuple[Tensor, ...]:
    """Parts of one tensor that a step uses. While a model is exported each has memory of its own, which the operator asks
    for."""
    return tuple(part.clone() for part in parts) if torch.compiler.is_exporting() else parts


# -- torch's recurrent layers ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_out(module: nn.Module) -> Iterator[None]:
    """Within it torch's recurrent layers compute by `over_time`: exported as they are, they keep the example's length."""
    layers = [m for m in module.modules() if isinstance(m, nn.RNNBase) and type(m).forward in _FORWARDS]
    for layer in layers:
        layer.forward = _Written(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


_FORWARDS = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


class _Written:
    """The forward pass of one layer of torch.nn.RNN, LSTM or GRU in one direction, rows first."""

    def __init__(self, layer: nn.RNNBase) -> None:
        if layer.num_layers > 1 or layer.bidirectional or not layer.batch_first or layer.proj_size or not layer.bias:
            raise NotImplementedError(
                f"{layer}: only a layer in one direction, rows first and with biases, is written out"
            )
        self.layer = layer

    def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        layer: Any = self.layer
        lstm = isinstance(self.layer, nn.LSTM)
        if state is None:
            zeros = x.new_zeros(x.shape[0], layer.hidden_size)
            start: Any = (zeros, zeros.clone()) if lstm else zeros
        else:
            start = tuple(part[0] for part in state) if lstm else state[0]
        told, last = over_time(self.step, start, F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0))
        return told, tuple(part[None] for part in last) if lstm else last[None]

    def step(self, state: Any, sums: Tensor) -> tuple[Any, Tensor]:
        """`sums`: what comes from the input (B, gates * H)."""
        layer: Any = self.layer
        if isinstance(self.layer, nn.LSTM):
            h, c = state
            i, f, g, o = (sums + F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return (h, c), h
        back = F.linear(state, layer.weight_hh_l0, layer.bias_hh_l0)
        if isinstance(self.layer, nn.GRU):
            (r, z, n), (r_back, z_back, n_back) = sums.chunk(3, -1), back.chunk(3, -1)
            z = (z + z_back).sigmoid()
            n = (n + (r + r_back).sigmoid() * n_back).tanh()
            h = (1 - z) * n + z * state
        else:
            h = (sums + back).tanh() if layer.nonlinearity == "tanh" else (sums + back).relu()
        return h, h
