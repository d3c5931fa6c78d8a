"""Deep belief network: restricted Boltzmann machines stacked greedily, then fine-tuned (Hinton, Osindero & Teh 2006).

    layer l learns P(v) of its input by contrastive divergence, v_0 = pixels, v_{l+1} = P(h=1|v_l) = s(W_l v_l + b_l)
    logits = W_out v_L + b_out,     fine-tuned by cross entropy through all layers (Hinton & Salakhutdinov 2006)

Players: `layer0`, `layer1`, ... learn `pretrain_steps` steps each, one after the other, without labels. Then their weights
become the hidden layers of the player `classifier`, which learns to the end of the run. Their turns and losses are in
learner/greedy.py. As in rbm, the loss of the first phase (a gap of free energies) is no measure of progress;
`reconstruction` goes up and down the whole stack. `accuracy` is that of random weights until the classifier learns.
784-500-500-2000-10: the classifier has 1,665,010 parameters, the three machines 393,284 + 251,000 + 1,002,500.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distdl.config.fields import Count, CountOrZero, Several, Shape, SomeCounts
from distdl.learner import Batch, Column
from distdl.learner.greedy import GreedyStack
from distdl.metrics import Metrics, mean
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 28, 28)
    """Shape of one sample; it is flattened into the visible units of the first layer."""
    column: str = "image"
    """Column that holds the sample: uint8 (scaled to 0..1) or float32 in 0..1, the probability of a unit to be on."""
    hidden: SomeCounts = (500, 500, 2000)
    """Hidden units of each layer."""
    classes: Several = 10
    """Number of classes."""
    pretrain_steps: CountOrZero = 3000
    """Steps that each layer learns without labels before the next; 0: fine-tune from random weights at once."""
    k: Count = 1
    """Steps of Gibbs sampling in contrastive divergence."""
    label_every: Count = 1
    """Fine-tune with the label of one row in so many (row numbers it divides), to learn from few labels; 1: all."""


class DBN(GreedyStack):
    players: tuple[str, ...] = ("layer0", "layer1", "layer2", "classifier")  # of the default depth

    def __init__(self, config: Config) -> None:
        super().__init__(config, [math.prod(config.inputs), *config.hidden], config.column)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs, 0, 1), "label": Column.label(config.classes)}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        v = self.samples(batch)
        told, inputs = self.reconstruct(v), self.config.inputs
        shown("reconstructions", lambda: {"given": v.view(-1, *inputs), "told": told.view(-1, *inputs)})
        return {**super().evaluate(batch), "reconstruction": mean((v - told).square())}

    def reconstruct(self, v: Tensor) -> Tensor:
        """Up through all machines and down again, without sampling: (B, V)."""
        machines = self.machines()
        for machine in machines:
            v = machine.up(v)
        for machine in reversed(machines):
            v = machine.down(v)
        return v
