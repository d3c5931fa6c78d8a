"""Acoustic model: a DNN or CNN says which state of a word's HMM a frame of speech is in (Hinton et al. 2012).

    x_t   = frames t - c .. t + c of log-mel features with their first and second derivatives
    p(s | x_t) = softmax of the trunk,     p(x_t | s) ~ p(s | x_t) / p(s)                        (Bourlard & Morgan 1994)
    word  = argmax over w of max over the paths s_1 <= s_2 <= ... <= s_T through w's states of sum_t ln p(x_t | s_t)

A word is `states` states, passed from left to right; with one, the trunk classifies frames and the best sum is the word.
Nobody says which frame belongs to which state: for `flat_steps` a word's states share its frames equally, then each batch
is aligned by the model itself (Viterbi's path). p(s) counts the aligned frames so far.

Trunk `dnn`: fully connected, logistic (Mohamed, Dahl & Hinton 2012) or rectified with dropout (Dahl, Sainath & Hinton
2013). Trunk `cnn`: one convolution along frequency, whose input maps are the frames of the context, and max pooling before
the fully connected layers. Its weights are shared by all bands, or only by those that are pooled together: limited weight
sharing, where every section of bands has maps of its own (Abdel-Hamid et al. 2014).

With `pretrain_steps` a logistic dnn begins as a deep belief network: each layer's weights are those of a restricted
Boltzmann machine for so many steps, one layer after the other, without labels (see dbn; the first one's visible units are
Gaussian with variance 1). One optimizer serves all phases: `pretrain_scale` keeps small what it remembers of the last one.

11 frames of 40 x 3 features, 5 layers of 2,048, 61 phones of 3 states: 19,865,783 parameters. 15 frames, 14 sections of 80
maps, two layers of 1,000: 2,709,503 = 14 x 80 x (45 x 8 + 1) + 1,121,000 + 1,001,000 + 183,183; 150 shared maps: 3,339,333.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.columns import recording
from distdl.config.fields import Amount, Count, CountOrZero, OpenShare, Several, SomeCounts
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.families.dnn_am.hmm import left_to_right, likeliest, uniform_path, viterbi
from distdl.layout.noise import Dropout, bernoulli
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.learner.answers import SCORES, of_scores
from distdl.learner.labels import accuracy
from distdl.metrics import Mean, Metrics, mean


@dataclass(frozen=True)
class Config:
    trunk: Literal["dnn", "cnn"] = "dnn"
    """dnn: fully connected; cnn: a convolution along frequency before the fully connected layers."""
    bands: Count = 40
    """Log-mel features of a frame."""
    deltas: Annotated[int, Field(ge=0, le=2)] = 2
    """How many derivatives over time are added to the features."""
    context: Count = 11
    """Frames that the trunk sees at once, an odd number."""
    hidden: SomeCounts = (2048,) * 5
    """Units of the fully connected layers."""
    activation: Annotated[Literal["sigmoid", "relu"], INVISIBLE] = "relu"
    """Of all layers; sigmoid is the logistic function."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.0
    """Share of the units of each fully connected layer that is dropped."""
    weight_sharing: Literal["full", "limited"] = "limited"
    """cnn: one set of maps for all frequencies, or one for each section of them that is pooled."""
    maps: Count = 80
    """cnn: feature maps, of each section where sharing is limited; the paper has 150 shared or 80."""
    filter: Count = 8
    """cnn: bands that a map's filter covers."""
    pool: Count = 6
    """cnn: neighbouring filter outputs of which the largest is taken."""
    pool_stride: Count = 2
    """cnn: bands from one pooling window to the next."""
    classes: Several = 61
    """Number of words (or phones)."""
    states: Count = 3
    """States of a word, passed from left to right; 1: a classifier of frames."""
    flat_steps: CountOrZero = 100
    """Steps (behind pre-training) with equally long states, before the model aligns its words itself."""
    pretrain_steps: CountOrZero = 0
    """Steps that each layer learns as a restricted Boltzmann machine before the next; 0: no pre-training."""
    pretrain_scale: Amount = 1e-3
    """Factor of the gap of free energies, whose gradients are far larger than those of fine-tuning: without it, Adam's
    memory of them would hold the layers still for a thousand steps."""

    def __post_init__(self) -> None:
        if self.context % 2 == 0:
            raise ValueError(f"context is {self.context}: choose an odd number, a frame and as many on either side")
        if self.pretrain_steps and (self.trunk, self.activation) != ("dnn", "sigmoid"):
            raise ValueError("pretrain_steps is for logistic layers: trunk: dnn, activation: sigmoid")
        if self.trunk == "cnn" and self.bands < self.filter + self.pool - 1:
            raise ValueError(f"{self.bands} bands are too few for a filter of {self.filter} and a pool of {self.pool}")


class Bands(nn.Module):
    """Convolution along frequency and max pooling: (N, C, F) -> (N, sections * maps)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.span, self.stride = config.filter + config.pool - 1, config.pool_stride  # bands that a section sees
        self.pool, self.limited = config.pool, config.weight_sharing == "limited"
        self.sections = (config.bands - self.span) // self.stride + 1
        own = self.sections if self.limited else 1  # sets of maps
        self.conv = nn.Conv1d(own * config.context * (1 + config.deltas), own * config.maps, config.filter, groups=own)
        self.outputs = self.sections * config.maps

    def forward(self, x: Tensor) -> Tensor:
        if not self.limited:
            return F.max_pool1d(self.conv(x), self.pool, self.stride).flatten(1)
        sections = x.unfold(2, self.span, self.stride).transpose(1, 2).flatten(1, 2)  # (N, sections * C, span)
        return self.conv(sections).amax(-1)


class DNNAcousticModel(Learner):
    primary, better = "accuracy", "higher"
    # Not zero3: pre-training uses a layer's matrix in both directions, outside the module that gathers it.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})
    counts: Tensor
    settled: Tensor
    settled_step: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        maps = config.context * (1 + config.deltas)
        self.bands = Bands(config) if config.trunk == "cnn" else None
        sizes = [self.bands.outputs if self.bands else maps * config.bands, *config.hidden]
        self.hidden = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in itertools.pairwise(sizes))
        self.head = nn.Linear(sizes[-1], config.classes * config.states)
        self.visible = nn.ParameterList(torch.zeros(n) for n in sizes[:-1] if config.pretrain_steps)
        self.act, self.dropout = getattr(torch, config.activation), Dropout(config.dropout)
        ones = torch.ones(config.classes * config.states, dtype=torch.int64)
        self.register_buffer("counts", ones)  # frames of each state so far
        self.register_buffer("settled", ones.clone())  # the same before this step: equal in all of its micro-batches
        self.register_buffer("settled_step", torch.tensor(-1))
        tables = left_to_right(config.states)
        self.log_start, self.log_step, self.log_end = (nn.Buffer(table, persistent=False) for table in tables)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {**recording((None, config.bands)), "label": Column.label(config.classes, missing=None)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return SCORES  # ln p of the likeliest path through the word, but for a constant

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return of_scores(self.decode(self.emissions(self.posteriors(batch["x"]), self.counts), batch["frames"]))

    # -- the trunk -----------------------------------------------------------------------------------------------------

    def stacked(self, x: Tensor) -> Tensor:
        """Features (B, T, F) -> each frame with its derivatives and neighbours (B*T, C, F)."""
        orders = [x]
        for _ in range(self.config.deltas):
            orders.append(slope(orders[-1]))
        c = self.config.context // 2
        maps = F.pad(torch.stack(orders, 2), (0, 0, 0, 0, c, c))  # (B, c + T + c, 1 + deltas, F)
        return torch.stack([maps[:, i : i + x.shape[1]] for i in range(2 * c + 1)], 2).flatten(2, 3).flatten(0, 1)

    def entered(self, x: Tensor) -> Tensor:
        """What the first fully connected layer sees, (B*T, D)."""
        x = self.stacked(x)
        return self.act(self.bands(x)) if self.bands else x.flatten(1)

    def posteriors(self, x: Tensor) -> Tensor:
        """ln p(s | x_t): (B, T, F) -> (B, T, K * S)."""
        h = self.entered(x)
        for layer in self.hidden:
            h = self.dropout(self.act(layer(h)))
        return self.head(h).float().log_softmax(-1).view(*x.shape[:2], -1)

    # -- the hidden Markov model ---------------------------------------------------------------------------------------

    def emissions(self, log_p: Tensor, counts: Tensor) -> Tensor:
        """ln p(x_t | s) + a constant, by word: (B, K, T, S)."""
        prior = (counts.double() / counts.sum()).log().float()
        B, T, _ = log_p.shape
        return (log_p - prior).view(B, T, self.config.classes, self.config.states).transpose(1, 2)

    def decode(self, emit: Tensor, frames: Tensor) -> Tensor:
        """The score of every word, (B, K)."""
        model = self.log_start, self.log_step, self.log_end
        return likeliest(*model, emit, frames[:, None].expand(emit.shape[:2]))

    def align(self, emit: Tensor, batch: Batch, flat: bool) -> Tensor:
        """The state (B, T) of each frame, among those of all words."""
        label, S = batch["label"], self.config.states
        if flat or S == 1:
            path = uniform_path(batch["frames"], emit.shape[2], S)
        else:
            own = emit[torch.arange(len(label), device=label.device), label]  # (B, T, S)
            path = viterbi(self.log_start, self.log_step, self.log_end, own, batch["frames"])[1]
        return label[:, None] * S + path

    # -- learning ------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if int(self.settled_step) != step:
            self.settled.copy_(self.counts)
            self.settled_step.fill_(step)
        loss, metrics = engine.forward(batch, step)
        engine.minimize(loss)
        if "frame_accuracy" in metrics:
            self.counts += engine.all_sum(self.aligned)
        return {"loss": mean(loss), **metrics}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        behind = step - len(self.visible) * self.config.pretrain_steps
        unused = sum((0.0 * p.sum() for p in self.parameters()), torch.zeros(())) if len(self.visible) else 0.0
        if behind < 0:
            return self.divergence(batch, step // self.config.pretrain_steps) + unused, {}
        losses, metrics = self.losses(batch, self.settled, behind < self.config.flat_steps)[:2]
        return losses.mean() + unused, metrics

    def losses(self, batch: Batch, counts: Tensor, flat: bool) -> tuple[Tensor, Metrics, Tensor]:
        """Cross entropy of the aligned states, a mean over each sample's frames (B,); and the emissions."""
        log_p = self.posteriors(batch["x"])
        emit = self.emissions(log_p.detach(), counts)
        states = self.align(emit, batch, flat)  # (B, T)
        real = self.real(batch)
        self.aligned = torch.bincount(states[real], minlength=len(counts))  # for update, behind the backward pass
        right = (log_p.argmax(-1) == states)[real].float()
        losses = -log_p.gather(2, states[:, :, None]).squeeze(2) * real  # (B, T)
        return losses.sum(1) / real.sum(1), {"frame_accuracy": Mean(right.sum(), float(right.numel()))}, emit

    def real(self, batch: Batch) -> Tensor:
        """(B, T): which frames are no padding."""
        return torch.arange(batch["x"].shape[1], device=batch["x"].device) < batch["frames"][:, None]

    def divergence(self, batch: Batch, layer: int) -> Tensor:
        """Contrastive divergence of one layer, given those below: the gap of free energies (see rbm)."""
        machine = cast(nn.Linear, self.hidden[layer])
        weight, hidden_bias, visible_bias = machine.weight, machine.bias, self.visible[layer]
        with torch.no_grad():
            v = self.entered(batch["x"])
            for below in self.hidden[:layer]:
                v = torch.sigmoid(below(v))
            h = bernoulli(torch.sigmoid(F.linear(v, weight, hidden_bias)))
            model = h @ weight + visible_bias  # (B*T, D), the mean of Gaussian units
            model = torch.sigmoid(model) if layer else model

        def energy(v: Tensor) -> Tensor:
            own = -(v @ visible_bias) if layer else (v - visible_bias).square().sum(-1) / 2
            return own - F.softplus(F.linear(v, weight, hidden_bias)).sum(-1)

        real = self.real(batch)
        gap = (energy(v) - energy(model)).view(real.shape) * real
        return self.config.pretrain_scale * (gap.sum(1) / real.sum(1)).mean()

    def evaluate(self, batch: Batch) -> Metrics:
        """`accuracy` of whole words; the loss is of frames aligned by the model."""
        losses, metrics, emit = self.losses(batch, self.counts, flat=False)
        right = accuracy(self.decode(emit, batch["frames"]), batch["label"])
        return {"loss": mean(losses), "accuracy": right, **metrics}


def slope(x: Tensor) -> Tensor:
    """Derivative over time by regression on two frames on either side, (B, T, F)."""
    p = F.pad(x.transpose(1, 2), (2, 2), mode="replicate").transpose(1, 2)
    return (p[:, 3:-1] - p[:, 1:-3] + 2 * (p[:, 4:] - p[:, :-4])) / 10
