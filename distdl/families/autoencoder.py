"""Autoencoder, which restores a sample from a small code (Hinton & Salakhutdinov 2006, Science 313:504).

    h_0 = x~,   h_l = act(W_l h_{l-1} + b_l),   code = h_L,   the decoder mirrors the encoder,   loss = error(x, x^)

784-1000-500-250-30 and back has 2,837,314 parameters. The options are later forms, and can be combined:

    corruption      x~ is a damaged x, the clean x must be restored (Vincent et al. 2008)
    tied            the decoder uses the encoder's matrices transposed; linear and undamaged, its optimum is PCA
    penalty: kl     sum_j KL(rho || mean over the batch of code_j)       (Ng 2011, sparse autoencoder)
    penalty: l1     mean over the batch of sum_j |code_j|
    penalty: contractive    mean over the batch of |d code / d x|_F^2    (Rifai et al. 2011)
    variational     q(z|x) = N(mu, sigma^2), loss = -ELBO = error(x, x^(z)) + KL(q || N(0, 1)), z = mu + sigma eps
                    (Kingma & Welling 2014); 784-400-20 has 652,824 parameters
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F

from distdl.config.fields import AmountOrZero, Count, Counts, Shape, StrictShare
from distdl.config.marks import INVISIBLE
from distdl.errors import InputError
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import Kind
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import FEW, shown


@dataclass(frozen=True)
class Config:
    inputs: Shape = (1, 28, 28)
    """Shape of one sample; it is flattened."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to 0..1) or float32."""
    hidden: Counts = (1000, 500, 250)
    """Units of the encoder's hidden layers; the decoder has the same in reverse."""
    code: Count = 30
    """Units of the code."""
    activation: Annotated[Literal["linear", "sigmoid", "tanh", "relu"], INVISIBLE] = "sigmoid"
    """Non-linearity of the hidden layers."""
    code_activation: Annotated[Literal["linear", "sigmoid", "tanh", "relu"], INVISIBLE] = "linear"
    """Non-linearity of the code."""
    output: Literal["linear", "sigmoid"] = "sigmoid"
    """Non-linearity of the restored sample."""
    error: Literal["cross_entropy", "squared"] = "cross_entropy"
    """What is minimised, summed over a sample's values: cross entropy of values in 0..1, or the squared error."""
    tied: bool = False
    """Decode with the encoder's matrices, transposed."""
    corruption: Literal["none", "mask", "gaussian"] = "none"
    """Damage to the input in training: some values set to 0, or Gaussian noise added."""
    corruption_strength: AmountOrZero = 0.3
    """Probability that a value is masked, or standard deviation of the Gaussian noise."""
    penalty: Literal["none", "kl", "l1", "contractive"] = "none"
    """What the code pays for beside the error."""
    penalty_weight: AmountOrZero = 0.1
    """Weight of the penalty."""
    sparsity: StrictShare = 0.05
    """Mean activation rho that the penalty kl asks of every unit of the code."""
    variational: bool = False
    """Learn a distribution of codes; the code's mean and log-variance come from one layer of twice the units."""

    def __post_init__(self) -> None:
        if self.error == "cross_entropy" and self.output != "sigmoid":
            raise ValueError("error: cross_entropy needs output: sigmoid; for linear outputs choose error: squared")
        if self.penalty == "kl" and self.code_activation != "sigmoid":
            raise ValueError("penalty: kl compares activations between 0 and 1; set code_activation: sigmoid")
        if self.variational and (self.tied or self.penalty != "none" or self.code_activation != "linear"):
            raise ValueError("variational goes with tied: false, penalty: none and code_activation: linear")
        if self.corruption == "mask" and self.corruption_strength >= 1:
            raise ValueError(f"corruption_strength {self.corruption_strength} masks everything; choose one below 1")


VARIATIONAL = "train with model.variational=true"
ACTIVATIONS = {"linear": lambda x: x, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
SLOPES = {  # d act(a) / d a, from the activation's value h
    "linear": torch.ones_like,
    "sigmoid": lambda h: h * (1 - h),
    "tanh": lambda h: 1 - h * h,
    "relu": lambda h: (h > 0).to(h.dtype),
}


class Autoencoder(Learner):
    better = "lower"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.primary = "loss" if config.variational else "squared_error"
        self.batch_coupled = config.penalty == "kl"
        sizes = [math.prod(config.inputs), *config.hidden, config.code]
        outputs = [*sizes[1:-1], 2 * config.code if config.variational else config.code]
        self.encoder = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in zip(sizes, outputs))
        if config.tied:
            self.biases = nn.ParameterList(torch.zeros(n) for n in sizes[-2::-1])
        else:
            self.decoder = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in itertools.pairwise(sizes[::-1]))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # sigmoid layers upon each other learn nothing from torch's narrower start
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs, *((0, 1) if config.error == "cross_entropy" else ()))}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        kind: Kind = "picture" if len(config.inputs) == 3 else "values"
        restored = Answer(kind, "the sample, restored from its code", of=config.column)
        return {"restored": restored, "embedding": Answer("embedding", "the code, of a variational one its mean")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        code = self.encode(self.samples(batch))[-1][:, : self.config.code]
        return {"restored": self.restored(code), "embedding": code.float()}

    @classmethod
    def draws(cls, config: Config) -> bool:
        return config.variational

    def draw(self, n: int) -> Tensor:
        if not self.config.variational:
            raise InputError(
                "an autoencoder has samples only where it learned a distribution of codes", fix=VARIATIONAL
            )
        return self.restored(noise.normal(n, self.config.code, device=next(self.parameters()).device))

    def restored(self, code: Tensor) -> Tensor:
        """(B, k) -> (B, *inputs)"""
        out = self.decode(code).float()
        return self.shaped(out.sigmoid() if self.config.output == "sigmoid" else out)

    def shaped(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, *inputs)"""
        return x.view(-1, *self.config.inputs)

    def samples(self, batch: Batch) -> Tensor:
        """(B, D)"""
        return to_unit(batch[self.config.column]).flatten(1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B, D) -> the outputs of the encoder's layers; the last is the code, or its mean and log-variance."""
        outputs: list[Tensor] = []
        for place, layer in enumerate(self.encoder, start=1):
            last = place == len(self.encoder)
            x = ACTIVATIONS[self.config.code_activation if last else self.config.activation](layer(x))
            outputs.append(x)
        return outputs

    def decode(self, code: Tensor) -> Tensor:
        """(B, k) -> (B, D), before the output's non-linearity."""
        x = code
        for place in range(len(self.encoder)):
            if place:
                x = ACTIVATIONS[self.config.activation](x)
            if self.config.tied:
                mirror = cast(nn.Linear, self.encoder[-1 - place])
                x = F.linear(x, mirror.weight.T, self.biases[place])
            else:
                x = self.decoder[place](x)
        return x

    def corrupted(self, x: Tensor) -> Tensor:
        strength = self.config.corruption_strength
        if self.config.corruption == "mask":
            return x * noise.bernoulli(torch.full_like(x, 1 - strength))
        if self.config.corruption == "gaussian":
            return x + strength * noise.normal(*x.shape, device=x.device)
        return x

    def errors(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """The error that is minimised and the squared error of every sample, (B,) each."""
        out = self.decode(code).to(x.dtype)  # (B, D)
        restored = out.sigmoid() if self.config.output == "sigmoid" else out
        squared = (restored - x).square().sum(-1)
        shown("reconstructions", lambda: {"given": self.shaped(x), "told": self.shaped(restored)})
        if self.config.error == "squared":
            return squared, squared
        return F.binary_cross_entropy_with_logits(out, x, reduction="none").sum(-1), squared

    def posterior(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """A code drawn from q(z|x), and KL(q || N(0, 1)) in nats, (B,)."""
        mu, log_variance = encoded.chunk(2, -1)  # (B, k) each
        z = mu + (log_variance / 2).exp() * noise.normal(*mu.shape, device=mu.device)
        return z, (mu.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        x = self.samples(batch)
        outputs = self.encode(self.corrupted(x))
        if self.config.variational:
            code, kl = self.posterior(outputs[-1])
            error, squared = self.errors(x, code)
            return (error + kl).mean(), {"squared_error": mean(squared), "kl": mean(kl)}
        error, squared = self.errors(x, outputs[-1])
        loss = error.mean()
        if self.config.penalty != "none":
            loss = loss + self.config.penalty_weight * self.penalty(outputs)
        return loss, {"squared_error": mean(squared)}

    def penalty(self, outputs: list[Tensor]) -> Tensor:
        code = outputs[-1]
        if self.config.penalty == "l1":
            return code.abs().sum(-1).mean()
        if self.config.penalty == "contractive":
            return self.jacobian(outputs).square().sum((1, 2)).mean()
        rho, active = self.config.sparsity, mean_over_ranks(code)  # (k,)
        return (rho * (rho / active).log() + (1 - rho) * ((1 - rho) / (1 - active)).log()).sum()

    def jacobian(self, outputs: list[Tensor]) -> Tensor:
        """(B, k, D): d code / d input = S_L W_L ... S_1 W_1 with the slopes S_l of each layer on a diagonal.

        From the code backwards the products stay narrow; no second derivative of the network is taken."""
        product = SLOPES[self.config.code_activation](outputs[-1])[:, :, None] * self.encoder[-1].weight
        for layer, h in zip(reversed(self.encoder[:-1]), reversed(outputs[:-1])):
            product = (product * SLOPES[self.config.activation](h)[:, None]) @ layer.weight
        return product

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """Of undamaged samples: the error (variational: -ELBO, with one code drawn), and the squared error."""
        x = self.samples(batch)
        code = self.encode(x)[-1]
        if self.config.variational:
            shown("samples", lambda: {"made": self.sample(FEW)})
            code, kl = self.posterior(code)
            error, squared = self.errors(x, code)
            return {"loss": mean(error + kl), "squared_error": mean(squared), "kl": mean(kl)}
        error, squared = self.errors(x, code)
        return {"loss": mean(error), "squared_error": mean(squared)}


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over the samples of all ranks, (B, k) -> (k,). The divergence of a part's mean is not that of the whole."""
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return all_reduce(x.sum(0)) / (len(x) * ranks) if ranks > 1 else x.mean(0)
