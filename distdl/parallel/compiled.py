"""`train.compile`: what a step computes, compiled by torch.compile (Ansel et al. 2024), each piece one graph.

    a family with layers     embedding, block, head, and the criterion with its logits and cross entropy. Blocks share their
                             code, so a model of 48 is compiled in the time of one of 2
    a family without         its loss as a whole, and its evaluation

Shapes are static, which makes the fastest code. Each piece is compiled twice, for training and for evaluations; batches of
another size, the last ones of an evaluation, go through the same function uncompiled: a few of thousands, and compiling one
takes as long as some hundred of them. The optimizer has its own kernel (engine/optimizers.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distdl.learner import Layer, Learner
from distdl.nn import watch


def compile_learner(learner: Learner) -> None:
    """Compiles what its passes consist of, in place. Nothing is compiled before it is first called."""
    torch._dynamo.config.allow_rnn = True  # torch's own LSTM and GRU, unrolled over the steps
    layers = [layer if _is_torchs(layer.run) else _compiled(layer) for layer in learner.layers()]
    if layers:
        vars(learner)["layers"] = lambda: layers
        if learner.static_criterion:
            vars(learner)["criterion"] = Compiled(learner.criterion)
    else:
        vars(learner).update({"loss": Compiled(learner.loss), "evaluate": Compiled(learner.evaluate)})


def _is_torchs(run: object) -> bool:
    """A module of torch's own, such as an embedding or a norm, is a kernel already: the compiler does not look into it."""
    return isinstance(run, nn.Module) and type(run).__module__.startswith("torch.")


def _compiled(layer: Layer) -> Layer:
    return dataclasses.replace(layer, run=Compiled(layer.run))


class Compiled:
    """A function of tensors, or of batches of them: compiled for the shapes that it first meets with gradients and for
    those that it first meets without, as it was written for all others."""

    made: ClassVar[int] = 0
    """Pieces that this process has had compiled, or taken from what an earlier one had."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.written = function
        self.compiled = compiled(function)
        self._shapes: dict[bool, Any] = {}

    def __call__(self, *inputs: Any) -> Any:
        if torch.compiler.is_compiling() or watch.looked_at():
            return self.written(*inputs)
        shapes, mode = [_shapes(value) for value in inputs], torch.is_grad_enabled()
        if mode not in self._shapes:
            self._shapes[mode] = shapes
            Compiled.made += 1
        return (self.compiled if self._shapes[mode] == shapes else self.written)(*inputs)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of a module that is called: the call without its wrapper, whose code all blocks have in common."""
    return torch.compile(function._call_impl if isinstance(function, nn.Module) else function, dynamic=False)


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape
    return {name: tensor.shape for name, tensor in value.items()} if isinstance(value, dict) else None
