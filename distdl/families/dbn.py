"""Deep belief network: restricted Boltzmann machines stacked greedily, then fine-tuned (Hinton, Osindero & Teh 2006).

    layer l learns P(v) of its input by contrastive divergence, v_0 = pixels, v_{l+1} = P(h=1|v_l) = s(W_l v_l + b_l)
    logits = W_out v_L + b_out,     fine-tuned by cross entropy through all layers (Hinton & Salakhutdinov 2006)

Players: `layer0`, `layer1`, ... learn `pretrain_steps` steps each, one after the other, without labels. Then their weights
become the hidden layers of the player `classifier`, which learns to the end of the run. As in rbm, the loss of the first
phase (a gap of free energies) is no measure of progress; `reconstruction` goes up and down the whole stack. `accuracy` is
that of random weights until the classifier learns.
784-500-500-2000-10: the classifier has 1,665,010 parameters, the three machines 393,284 + 251,000 + 1,002,500.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, Several, Shape, SomeCounts
from distdl.learner import Batch, Column, Learner, Verbs, bare
from distdl.learner.labels import filled, known, mean_known, of_classes, share
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.rbm import RBM


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


class DBN(Learner):
    players: tuple[str, ...] = ("layer0", "layer1", "layer2", "classifier")  # of the default depth
    primary, better = "accuracy", "higher"
    learns = "contrastive divergence, then back-propagation"
    # Not zero3: machines below the one that learns are called outside their wrapper, where their weights are sharded.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        sizes = [math.prod(config.inputs), *config.hidden]
        self.stack = tuple(f"layer{i}" for i in range(len(config.hidden)))
        self.players = (*self.stack, "classifier")
        hidden: list[nn.Module] = []
        for name, (n_in, n_out) in zip(self.stack, itertools.pairwise(sizes)):
            setattr(self, name, RBM(n_in, n_out, config.k))
            hidden += [nn.Linear(n_in, n_out), nn.Sigmoid()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(sizes[-1], config.classes))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs, 0, 1), "label": Column.label(config.classes)}

    def machines(self) -> list[RBM]:
        """The stack, from the pixels up, without the engine's wrappers."""
        return [bare(getattr(self, name)) for name in self.stack]  # type: ignore[misc]

    def samples(self, batch: Batch) -> Tensor:
        return to_unit(batch[self.config.column]).flatten(1).to(self.machines()[0].weight.dtype)  # (B, V)

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        depth, steps = len(self.stack), self.config.pretrain_steps
        if step < depth * steps:
            return self.pretrain(self.samples(batch), step // steps, engine)
        if (
            steps and step == depth * steps
        ):  # again in each micro-batch, which changes nothing: the optimizer steps last
            engine.assign("classifier", self.unrolled())
        return self.fine_tune(batch, engine)

    def pretrain(self, v: Tensor, layer: int, engine: Verbs) -> Metrics:
        """Contrastive divergence in one machine, on what those below make of the samples."""
        machines = self.machines()
        with torch.no_grad():
            for machine in machines[:layer]:
                v = machine.up(v)
            error = (v - machines[layer].down(machines[layer].up(v))).square()
        gap = getattr(self, self.stack[layer])(v)
        engine.minimize(gap, self.stack[layer])
        return {"loss": mean(gap), f"reconstruction_{self.stack[layer]}": mean(error)}

    def unrolled(self) -> dict[str, Tensor]:
        """The machines' recognition weights under the names of the classifier's hidden layers."""
        weights: dict[str, Tensor] = {}
        for i, machine in enumerate(self.machines()):
            weights[f"{2 * i}.weight"] = machine.weight.detach()
            weights[f"{2 * i}.bias"] = machine.hidden_bias.detach()
        return weights

    def fine_tune(self, batch: Batch, engine: Verbs) -> Metrics:
        """Cross entropy of the labelled rows: an unbiased mean over them, whatever part of them this batch has."""
        chosen = batch["id"] % self.config.label_every == 0
        logits = self.classifier(self.samples(batch)[chosen])  # (b, K); b may be 0
        # Divided by the expected number, not the number here: the sum over parts is then the same however they are cut.
        labelled = len(chosen) / self.config.label_every * share(logits, batch)
        label = batch["label"][chosen]
        loss = F.cross_entropy(logits, filled(label), reduction="none")[known(label)].sum() / labelled
        engine.minimize(loss, "classifier")
        return {"loss": mean(loss)}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        v, label = self.samples(batch), batch["label"]
        logits = bare(self.classifier)(v)
        losses, metrics = of_classes(logits, label)
        return {
            **metrics,
            "cross_entropy": mean_known(losses, label),
            "reconstruction": mean((v - self.reconstruct(v)).square()),
        }

    def reconstruct(self, v: Tensor) -> Tensor:
        """Up through all machines and down again, without sampling: (B, V)."""
        machines = self.machines()
        for machine in machines:
            v = machine.up(v)
        for machine in reversed(machines):
            v = machine.down(v)
        return v
