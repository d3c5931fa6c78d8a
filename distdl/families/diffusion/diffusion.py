"""Denoising diffusion probabilistic model, DDPM (Ho, Jain & Abbeel 2020; the idea: Sohl-Dickstein et al. 2015).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps          abar_t = prod_{s <= t} (1 - beta_s),  eps ~ N(0, 1)   (eq. 4)
    loss = E |eps - eps_theta(x_t, t)|^2                   t uniform in 1..T, mean over the values               (eq. 14)
    x_{t-1} = mu(x_t, x_0^) + sigma_t z                    x_0^ is what eps_theta makes of x_t, within -1..1     (eq. 7)

T = 1000 and beta from 1e-4 to 0.02 in a straight line. Samples are drawn with, and evaluations made of, a moving average of
the weights (decay 0.9999). The paper's U-Net for 32x32 pictures (128 maps x 1, 2, 2, 2, two residual blocks each, attention
at 16x16) has 35,746,307 parameters; `mlp` is a perceptron, for small data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from distdl.config.fields import Count, Counts, OpenShare, Several, Shape, StrictShare
from distdl.config.marks import TRAINING_ONLY
from distdl.families.diffusion.unet import UNet, time_embedding
from distdl.layout import noise
from distdl.learner import Batch, Column, Learner, Verbs
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import FEW, shown


@dataclass(frozen=True)
class Config:
    network: Literal["unet", "mlp"] = "unet"
    """unet: for pictures; mlp: fully connected, for anything small."""
    inputs: Shape = (3, 32, 32)
    """Shape of one sample; unet: (channels, height, width)."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to -1..1) or float32 in -1..1."""
    steps: Several = 1000
    """Steps T from data to noise."""
    beta_first: StrictShare = 1e-4
    """Variance of the noise that the first step adds."""
    beta_last: StrictShare = 0.02
    """Variance of the noise that the last step adds; together they must leave nothing of the data."""
    variance: Literal["large", "small"] = "large"
    """sigma_t^2 in sampling: beta_t, or that of the posterior q(x_{t-1} | x_t, x_0)."""
    ema: OpenShare = 0.9999
    """Share of the moving average of the weights that a step keeps."""
    width: Count = 128
    """unet: maps at full size; both: size of the time's embedding."""
    multipliers: Counts = (1, 2, 2, 2)
    """unet: maps at each size, in multiples of `width`; the side halves from one to the next."""
    blocks: Count = 2
    """unet: residual blocks at each size on the way down; one more on the way up."""
    attention: Counts = (16,)
    """unet: sides of the maps that get self-attention."""
    groups: Count = 32
    """unet: groups of the group norm; must divide every number of maps."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.1
    """unet: probability that a value in a residual block is dropped in training."""
    hidden: Count = 512
    """mlp: units of each layer."""
    layers: Count = 3
    """mlp: residual layers."""

    def __post_init__(self) -> None:
        if self.network == "unet":
            halvings = len(self.multipliers) - 1
            if len(self.inputs) != 3 or any(side % 2**halvings for side in self.inputs[1:]):
                raise ValueError(f"unet halves pictures {halvings} times and {self.inputs} does not allow it; try mlp")
            if self.width % self.groups:
                raise ValueError(f"width {self.width} cannot be split into {self.groups} groups; choose a divisor")


class MLP(nn.Module):
    """eps_theta of flattened samples: h <- h + W silu(norm(h) + time), `layers` times."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, width, layers = math.prod(config.inputs), config.hidden, config.layers
        self.time_width = config.width
        self.first = nn.Linear(size, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.times = nn.ModuleList(nn.Linear(config.width, width) for _ in range(layers))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.last_norm, self.last = nn.LayerNorm(width), nn.Linear(width, size)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.first(x.flatten(1))  # (B, H)
        embedding = time_embedding(t, self.time_width).to(h.dtype)  # (B, E)
        for norm, time, layer in zip(self.norms, self.times, self.layers):
            h = h + layer(F.silu(norm(h) + time(embedding)))
        return self.last(F.silu(self.last_norm(h))).view(x.shape)


class Diffusion(Learner):
    primary, better = "loss", "lower"
    # Under ZeRO-3 a weight is an empty shell outside the forward pass, where the moving average reads it.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})
    beta: Tensor
    abar: Tensor
    averaged_step: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.net = MLP(config) if config.network == "mlp" else unet(config)
        beta = torch.linspace(config.beta_first, config.beta_last, config.steps, dtype=torch.float64)
        self.register_buffer("beta", beta)  # (T,) in fp64, as 1 - abar is small at first
        self.register_buffer("abar", (1 - beta).cumprod(0))
        for name, weight in self.net.named_parameters():
            self.register_buffer(average_name(name), weight.detach().clone())
        self.register_buffer("averaged_step", torch.tensor(-1))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs)}

    def data(self, batch: Batch) -> Tensor:
        """(B, *inputs) in -1..1."""
        x = batch[self.config.column]
        return 2 * to_unit(x) - 1 if x.dtype == torch.uint8 else x

    def diffuse(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t of eq. 4, for t = 0..T-1 as an index (B,)."""
        abar = self.abar[t].view(-1, *(1,) * (x.ndim - 1))
        return abar.sqrt().to(x.dtype) * x + (1 - abar).sqrt().to(x.dtype) * eps

    def noisy(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (B, *inputs), t (B,) and the noise in it, drawn for each sample."""
        x = self.data(batch)
        t = (noise.uniform(len(x), device=x.device) * self.config.steps).long()  # (B,)
        eps = noise.normal(*x.shape, device=x.device)
        return self.diffuse(x, t, eps), t, eps

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        x, t, eps = self.noisy(batch)
        return F.mse_loss(self.net(x, t).float(), eps), {}

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if int(self.averaged_step) < step:  # once a step, before it: all its micro-batches see the same weights
            self.average()
            self.averaged_step.fill_(step)
        return super().update(batch, engine, step)

    @torch.no_grad()
    def average(self) -> None:
        for name, weight in self.net.named_parameters():
            self.get_buffer(average_name(name)).lerp_(weight.to(torch.float32), 1 - self.config.ema)

    def averaged(self, x: Tensor, t: Tensor) -> Tensor:
        """eps_theta with the averaged weights."""
        weights = {name: self.get_buffer(average_name(name)) for name, _ in self.net.named_parameters()}
        return functional_call(self.net, weights, (x, t))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        x, t, eps = self.noisy(batch)
        found = self.averaged(x, t).float()
        shown("reconstructions", lambda: self.cleaned(self.data(batch), x, t, found))
        shown("samples", lambda: {"made": self.hasty(FEW)})
        return {"loss": mean((found - eps).square())}

    def cleaned(self, data: Tensor, x: Tensor, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
        """Data, what noise has made of them, and what is left of that without the noise found in it."""
        abar = self.abar[t].view(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
        told = ((x - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
        return {"given": self.unit(data), "damaged": self.unit(x.clamp(-1, 1)), "told": self.unit(told)}

    def unit(self, x: Tensor) -> Tensor:
        """Pictures of -1..1 as 0..1; all else as it is."""
        return (x + 1) / 2 if len(self.config.inputs) == 3 else x

    def hasty(self, rows: int, steps: int = 20) -> Tensor:
        """Samples in few steps without noise on the way (Song, Meng & Ermon 2021, eq. 12, with sigma = 0): a glimpse of
        the model while it learns; `draw` takes all T steps."""
        device = self.abar.device
        with noise.apart(0, torch.arange(rows, device=device)):
            x = noise.normal(rows, *self.config.inputs, device=device)
        places = torch.linspace(self.config.steps - 1, 0, min(steps, self.config.steps)).long().tolist()
        for t, before in zip(places, [*places[1:], None]):
            abar, left = self.abar[t], self.abar[before] if before is not None else torch.ones_like(self.abar[t])
            eps = self.averaged(x, torch.full((rows,), t, device=device)).float()
            x0 = ((x - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
            x = (left.sqrt() * x0 + (1 - left).sqrt() * eps).to(x.dtype)
        return self.unit(x)

    def previous(self, x: Tensor, t: int, eps: Tensor, z: Tensor) -> Tensor:
        """x_{t-1} from x_t (M, *inputs), the noise found in it and fresh noise; t = T-1..0 as an index."""
        beta, abar = self.beta[t], self.abar[t]
        before = self.abar[t - 1] if t else torch.ones_like(abar)  # numbers in fp64; the samples keep their type
        x0 = ((x - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
        mu = before.sqrt() * beta / (1 - abar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - abar) * x
        variance = beta if self.config.variance == "large" else beta * (1 - before) / (1 - abar)
        return mu + variance.sqrt() * z if t else mu

    def draw(self, n: int) -> Tensor:
        return self.unit(self.denoised(n))

    @torch.no_grad()
    def denoised(self, rows: int) -> Tensor:
        """(rows, *inputs) in -1..1, from noise in T steps (algorithm 2)."""
        shape, device = (rows, *self.config.inputs), self.abar.device
        x = noise.normal(*shape, device=device)
        for t in reversed(range(self.config.steps)):
            eps = self.averaged(x, torch.full((rows,), t, device=device))
            x = self.previous(x, t, eps, noise.normal(*shape, device=device))
        return x


def average_name(weight: str) -> str:
    """The buffer with the moving average of a weight; a name of a buffer may not hold a dot."""
    return "average_" + weight.replace(".", "_")


def unet(config: Config) -> UNet:
    return UNet(
        config.inputs,
        width=config.width,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention=config.attention,
        groups=config.groups,
        dropout=config.dropout,
    )
