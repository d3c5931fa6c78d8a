"""What a stack of restricted Boltzmann machines does: one learns after the other, then a classifier made of them all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.learner import Answer, Batch, Learner, Verbs, bare
from distdl.learner.answers import CLASSES, last_linear, of_logits
from distdl.learner.labels import filled, known, mean_known, of_classes, share
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.rbm import RBM
from distdl.nn.watch import as_filters, shown


class GreedyStack(Learner):
    """Players `layer0`, `layer1`, ... learn `pretrain_steps` steps each without labels, on what those below make of the
    samples. Then their weights become the hidden layers of the player `classifier`, which learns to the end of the run.

    The family's Config has `classes`, `k`, `pretrain_steps` and `label_every`.
    """

    primary, better = "accuracy", "higher"
    learns = "contrastive divergence, then back-propagation"
    # Not zero3: machines below the one that learns are called outside their wrapper, where their weights are sharded.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})

    def __init__(self, config: Any, sizes: Sequence[int], column: str) -> None:
        """`sizes`: the visible units, and the hidden units of each layer; `column` holds the samples."""
        super().__init__()
        self.config, self.column = config, column
        self.stack = tuple(f"layer{i}" for i in range(len(sizes) - 1))
        self.players = (*self.stack, "classifier")
        hidden: list[nn.Module] = []
        for name, (n_in, n_out) in zip(self.stack, itertools.pairwise(sizes)):
            setattr(self, name, RBM(n_in, n_out, config.k))
            hidden += [nn.Linear(n_in, n_out), nn.Sigmoid()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(sizes[-1], config.classes))

    def machines(self) -> list[RBM]:
        """The stack, from the pixels up, without the engine's wrappers."""
        return [bare(getattr(self, name)) for name in self.stack]  # type: ignore[misc]

    def samples(self, batch: Batch) -> Tensor:
        return to_unit(batch[self.column]).flatten(1).to(self.machines()[0].weight.dtype)  # (B, V)

    def labelled(self, batch: Batch) -> Tensor:
        """Which rows are learned from with their label: (B,)."""
        return batch["id"] % self.config.label_every == 0

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
        chosen = self.labelled(batch)
        logits = self.classifier(self.samples(batch)[chosen])  # (b, K); b may be 0
        # Divided by the expected number, not the number here: the sum over parts is then the same however they are cut.
        expected = len(chosen) / self.config.label_every * share(logits, batch)
        label = batch["label"][chosen].long()
        loss = F.cross_entropy(logits, filled(label), reduction="none")[known(label)].sum() / expected
        engine.minimize(loss, "classifier")
        return {"loss": mean(loss)}

    @staticmethod
    def tells(config: Any) -> dict[str, Answer]:
        return CLASSES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return of_logits(bare(self.classifier)(self.samples(batch)))

    def read_out(self) -> nn.Module | None:
        return last_linear(bare(self.classifier))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        label = batch["label"].long()
        inputs = batch[self.column].shape[1:]
        if len(inputs) == 3:
            shown("filters", lambda: {"filters": as_filters(self.machines()[0].weight, inputs)})
        losses, metrics = of_classes(bare(self.classifier)(self.samples(batch)), label)
        return {**metrics, "cross_entropy": mean_known(losses, label)}
