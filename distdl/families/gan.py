"""Generative adversarial network: a generator and a discriminator play against each other (Goodfellow et al. 2014).

    D:  min  E[-log D(x)] + E[-log(1 - D(G(z)))]          x real, z ~ N(0, 1), D = sigmoid(discriminator)
    G:  min  E[-log D(G(z))]                              the non-saturating form of the paper's section 3

For a fixed generator the best D is p_data / (p_data + p_G). The discriminator steps first; the same fakes then meet the new
discriminator, and the gradient runs through it to the generator.

`dcgan` is the convolutional form (Radford, Metz & Chintala 2015): strided convolutions without biases, batch norm except at
the pixels, real and fake pictures normalised apart. For 64x64 pixels the generator has 3,576,704 parameters and the
discriminator 2,765,568. `dense` is the fully connected form, for small pictures and for points.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, Counts, Shape
from distdl.layout import noise
from distdl.learner import Batch, Column, Learner, Verbs, bare, frozen
from distdl.metrics import Metrics, mean
from distdl.nn.batch_norm import BatchNorm
from distdl.nn.images import to_unit
from distdl.nn.watch import FEW, shown


@dataclass(frozen=True)
class Config:
    architecture: Literal["dcgan", "dense"] = "dcgan"
    """dcgan: convolutions, for square pictures; dense: fully connected layers, for anything."""
    inputs: Shape = (3, 64, 64)
    """Shape of one sample; dcgan: channels, and an even side, halved while it is and above 7."""
    column: str = "image"
    """Column of the data set that holds the sample: uint8 (scaled to -1..1) or float32."""
    latent: Count = 100
    """Size of z."""
    generator_width: Count = 64
    """dcgan: maps of the generator's last hidden layer; each layer before has twice as many."""
    discriminator_width: Count = 64
    """dcgan: maps of the discriminator's first layer; each layer after has twice as many."""
    hidden: Counts = (256, 256)
    """dense: units of the hidden layers of both players."""
    output: Literal["tanh", "linear"] = "tanh"
    """dense: non-linearity of what is generated; tanh for values in -1..1."""
    parzen_samples: Count = 1000
    """Generated samples on which an evaluation sets its Parzen windows."""
    parzen_sigma: Amount = 0.5
    """Standard deviation of a window, the paper's was chosen on held-out data: too wide, and a mean picture scores well."""

    def __post_init__(self) -> None:
        if self.architecture == "dcgan" and (len(self.inputs) != 3 or self.inputs[1] != self.inputs[2]):
            raise ValueError(f"dcgan makes square pictures (channels, side, side), not {self.inputs}; try dense")
        if self.architecture == "dcgan" and (self.inputs[1] % 2 or self.inputs[1] < 8):
            raise ValueError(f"dcgan halves the side, and {self.inputs[1]} is odd or below 8; try dense")


def stages(side: int) -> tuple[int, int]:
    """The side of the smallest maps, and how often it doubles: 64 -> (4, 4), 32 -> (4, 3), 28 -> (7, 2)."""
    doublings = 0
    while side % 2 == 0 and side > 7:
        side, doublings = side // 2, doublings + 1
    return side, doublings


def dense(sizes: list[int], activation: nn.Module) -> list[nn.Module]:
    """Linear layers with the non-linearity between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation]
    return layers[:-1]


class Generator(nn.Module):
    """z (B, Z) -> samples (B, *inputs)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = config.inputs
        if config.architecture == "dense":
            layers = dense([config.latent, *config.hidden, math.prod(config.inputs)], nn.ReLU())
            layers += [nn.Tanh()] if config.output == "tanh" else []
        else:
            smallest, doublings = stages(config.inputs[1])
            maps = config.generator_width * 2 ** (doublings - 1)
            layers = [nn.Unflatten(1, (config.latent, 1, 1))]
            layers += [nn.ConvTranspose2d(config.latent, maps, smallest, bias=False), BatchNorm(maps), nn.ReLU()]
            for _ in range(doublings - 1):
                layers += [nn.ConvTranspose2d(maps, maps // 2, 4, stride=2, padding=1, bias=False)]
                maps //= 2
                layers += [BatchNorm(maps), nn.ReLU()]
            layers += [nn.ConvTranspose2d(maps, config.inputs[0], 4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).view(-1, *self.shape)


class Discriminator(nn.Module):
    """Samples (B, *inputs) -> logits (B,) of being real."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.architecture == "dense":
            layers = [nn.Flatten(), *dense([math.prod(config.inputs), *config.hidden, 1], nn.LeakyReLU(0.2))]
        else:
            smallest, halvings = stages(config.inputs[1])
            maps = config.discriminator_width
            layers = [nn.Conv2d(config.inputs[0], maps, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2)]
            for _ in range(halvings - 1):
                layers += [nn.Conv2d(maps, 2 * maps, 4, stride=2, padding=1, bias=False)]
                maps *= 2
                layers += [BatchNorm(maps), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(maps, 1, smallest, bias=False)]
        self.net = nn.Sequential(*layers)

    def forward(self, *samples: Tensor) -> tuple[Tensor, ...]:
        """Logits of each given batch, normalised by itself: in one call, as there is one backward pass."""
        return tuple(self.net(x).flatten() for x in samples)


class GAN(Learner):
    players = ("generator", "discriminator")
    primary, better = "parzen", "higher"
    # Batch norm; and within an accumulated step the discriminator moves before the last micro-batch of the generator.
    batch_coupled = True
    # ZeRO-3 gathers weights in the forward pass of their own engine only, and the generator learns through the other's.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
        for module in self.modules():  # Radford et al. 2015, section 4
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, BatchNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)
        self.latents: Tensor  # the same in every evaluation, so that two of them differ by the generator alone
        self.register_buffer("latents", torch.randn(config.parzen_samples, config.latent))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {config.column: Column.sample(config.inputs)}

    def real(self, batch: Batch) -> Tensor:
        """(B, *inputs), pictures in -1..1."""
        x = batch[self.config.column]
        return 2 * to_unit(x) - 1 if x.dtype == torch.uint8 else x

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        real = self.real(batch)
        fake = self.generator(noise.normal(len(real), self.config.latent, device=real.device))

        real_logit, fake_logit = self.discriminator(real, fake.detach())  # (B,) each
        d_loss = F.softplus(-real_logit.float()).mean() + F.softplus(fake_logit.float()).mean()
        engine.minimize(d_loss, "discriminator")

        with frozen(self.discriminator) as critic:
            (fooled_logit,) = critic(fake)
            g_loss = F.softplus(-fooled_logit.float()).mean()
        engine.minimize(g_loss, "generator")
        return {
            "loss": mean(d_loss),  # 2 log 2 = 1.386 where the discriminator cannot tell
            "generator_loss": mean(g_loss),
            "real_score": mean(real_logit.sigmoid()),
            "fake_score": mean(fake_logit.sigmoid()),
        }

    def draw(self, n: int) -> Tensor:
        made = self.made(noise.normal(n, self.config.latent, device=self.latents.device)).float()
        return (made + 1) / 2 if len(self.config.inputs) == 3 else made

    @torch.no_grad()
    def made(self, z: Tensor) -> Tensor:
        """(M, Z) -> (M, *inputs)"""
        return bare(self.generator)(z)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """Nats of held-out samples under Gaussian windows on generated ones, as in the paper's section 5.

        It is a mean over samples, so it adds up; it falls when a mode is missing as well as when samples are poor. It says
        little about sharpness, and depends on sigma and on the number of windows: compare runs with equal ones only."""
        real, fake = self.real(batch).flatten(1), self.made(self.latents).float().flatten(1)  # (B, D), (M, D)
        shown("samples", lambda: {"made": self.sample(FEW)})
        squared = torch.cdist(real, fake, compute_mode="donot_use_mm_for_euclid_dist").square()  # (B, M)
        sigma, (windows, dimensions) = self.config.parzen_sigma, fake.shape
        constant = math.log(windows) + dimensions * math.log(sigma * math.sqrt(2 * math.pi))
        return {"parzen": mean(torch.logsumexp(-squared / (2 * sigma**2), 1) - constant)}
