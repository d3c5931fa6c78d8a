"""The reference of a long step in bf16 where weights are 16-bit copies of fp32 masters, as those of ZeRO 1-3 are.

By hand, in one process: each micro-batch's gradient is a 16-bit one, their sum is not, and SGD moves the masters by it.
ZeRO-3 has a linear function of its own, which rounds the product before the bias is added, where torch's rounds the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distdl.config.load import config_from_dict
from distdl.layout.process import ProcessState
from distdl.metrics import Metrics
from distdl.parity.movement import keep
from distdl.train import worker
from distdl.train.hooks.hook import Hook
from distdl.train.loop import train
from distdl.train.survey import survey


def rounded_curve(values: dict[str, Any], file: Path, twice: bool = False) -> dict[str, Any]:
    """One step of SGD without decay or clipping. -> {loss, norm, evaluation, rounded}; start and end of the weights that
    a gradient has reached are kept in `file`, and nothing else: what follows the weights would follow 16-bit ones.

    `twice`: with ZeRO-3's linear function.
    """
    with ProcessState(), _linear(_rounded_twice if twice else torch.nn.functional.linear):
        return _rounded_curve(values, file)


def summed_in_parts(count: int) -> AbstractContextManager[None]:
    """Within it a linear layer adds up so many products, and so does the gradient of its input: each is rounded to 16 bits,
    as on ranks that share the layer along the tensor axis."""
    whole = torch.nn.functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = []
        for rows in weight.chunk(count, 0):
            products = [whole(a, b) for a, b in zip(x.chunk(count, -1), rows.chunk(count, -1), strict=True)]
            parts.append(sum(products[1:], products[0]))
        y = torch.cat(parts, -1)
        return y if bias is None else y + bias.to(y.dtype)

    return _linear(linear)


@contextmanager
def _linear(function: Callable[..., Tensor]) -> Iterator[None]:
    functions: Any = torch.nn.functional
    before = functions.linear
    try:
        functions.linear = function
        yield
    finally:
        functions.linear = before


def _rounded_twice(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is None or x.ndim == 2:
        return torch.matmul(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
    return torch.matmul(x, weight.t()) + bias


def _rounded_curve(values: dict[str, Any], file: Path) -> dict[str, Any]:
    plan = survey(config_from_dict(values))
    config = plan.settings
    worker.set_up_torch(plan)
    torch.set_num_threads(1)
    learner = worker.build_learner(config, None)
    engine, source = worker.make_engine(learner, plan, 0), worker.make_source(plan, 0)
    masters = {name: p.detach().clone() for _, name, p in engine.named() if p.requires_grad}
    sums: dict[str, Tensor] = {}

    def added(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        sums[name] = sums.get(name, 0.0) + parameter.grad.float()
        parameter.grad = None

    for _, name, p in engine.named():
        p.data = p.data.bfloat16()
        if name in masters:
            p.register_post_accumulate_grad_hook(lambda parameter, name=name: added(name, parameter))
    losses: list[float] = []

    class Record(Hook):
        def after_step(self, step: int, metrics: Metrics) -> None:
            total, count = metrics["loss"]
            losses.append(float(total) / float(count))

    train(learner, engine, source, [Record()], start=0, steps=plan.steps)
    source.close()
    start = {name: masters[name] for name in sums}
    moved = {name: master - config.optimizer.lr * sums[name] for name, master in start.items()}
    keep(file, *({f"weights/{name}": t for name, t in part.items()} for part in (start, moved)))
    norm = float(torch.nn.utils.get_total_norm(list(sums.values())))
    return {"loss": losses, "norm": [norm], "evaluation": {}, "rounded": True}
