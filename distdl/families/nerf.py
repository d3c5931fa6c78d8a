"""Neural radiance field, NeRF (Mildenhall, Srinivasan, Tancik, Barron, Ramamoorthi & Ng 2020, arXiv 2003.08934).

    (c, sigma) = F(gamma(x), gamma(d))       colour and density at a point x seen from a direction d
    gamma(p) = p, sin 2^0 p, cos 2^0 p, ..., sin 2^(L-1) p, cos 2^(L-1) p                    (eq. 4, as in their program)
    C = sum_i T_i (1 - exp(-sigma_i delta_i)) c_i,   T_i = exp(-sum_{j<i} sigma_j delta_j)   (eq. 3), before white
    loss = |C_coarse - C|^2 + |C_fine - C|^2                                                 (eq. 6), mean over the values

Coarse points are drawn one in each of equal parts of the ray; fine ones from the distribution of the coarse weights (sec.
5.2), and the fine network sees both. Evaluations take the middles instead of draws.

The default, 8 layers of 256, the point again at the 5th, L = 10 and 4, has 595,844 parameters, coarse and fine 1,191,688.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distdl.config.fields import Amount, AmountOrZero, Count, CountOrZero, Several
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Mean, Metrics
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    layers: Count = 8
    """Layers before the density."""
    width: Several = 256
    """Units of each; half as many see the direction."""
    skip: CountOrZero = 5
    """After which layer the point enters again; 0: nowhere."""
    point_frequencies: CountOrZero = 10
    """Octaves L of sines and cosines of a point's coordinates."""
    direction_frequencies: CountOrZero = 4
    """Octaves of a direction's."""
    coarse: Several = 64
    """Points of a ray that the coarse network sees."""
    fine: CountOrZero = 128
    """Further points that the fine network sees; 0: there is none."""
    near: AmountOrZero = 2.0
    """Where the scene begins, in lengths of the ray's direction."""
    far: Amount = 6.0
    """Where it ends."""

    def __post_init__(self) -> None:
        if self.near >= self.far:
            raise ValueError(f"near is {self.near} and far is {self.far}; far must be more")
        if self.skip >= self.layers:
            raise ValueError(
                f"skip is {self.skip} and there are {self.layers} layers; the point enters before the last"
            )


def encode(p: Tensor, frequencies: int) -> Tensor:
    """gamma: (..., 3) -> (..., 3 + 6L)"""
    octaves = 2.0 ** torch.arange(frequencies, device=p.device, dtype=p.dtype)
    angles = p.unsqueeze(-2) * octaves[:, None]  # (..., L, 3)
    return torch.cat([p, torch.stack([angles.sin(), angles.cos()], -2).flatten(-3)], -1)


class Field3D(nn.Module):
    """Colour and density at points seen from directions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, half = config.width, config.width // 2
        point, direction = 3 + 6 * config.point_frequencies, 3 + 6 * config.direction_frequencies
        sizes = [point] + [width + point * (config.skip == i) for i in range(1, config.layers)]
        self.trunk = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.density = nn.Linear(width, 1)
        self.feature = nn.Linear(width, width)
        self.view = nn.Linear(width + direction, half)
        self.colour = nn.Linear(half, 3)
        for linear in (*self.trunk, self.density, self.feature, self.view, self.colour):
            nn.init.xavier_uniform_(linear.weight)  # as in their program; smaller ones leave the density dead too often
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Points (R, S, 3), unit directions (R, 3) -> colours (R, S, 3) from 0 to 1, densities (R, S)."""
        point = encode(x, self.config.point_frequencies)
        h = point
        for i, layer in enumerate(self.trunk):
            if i and i == self.config.skip:
                h = torch.cat([point, h], -1)
            h = layer(h).relu()  # (R, S, H)
        density = self.density(h).squeeze(-1).relu()
        seen = encode(direction, self.config.direction_frequencies)[:, None].expand(-1, x.shape[1], -1)
        view = self.view(torch.cat([self.feature(h), seen], -1)).relu()
        return self.colour(view).sigmoid(), density


def weights_of(density: Tensor, lengths: Tensor) -> Tensor:
    """T_i (1 - exp(-sigma_i delta_i)) of eq. 3: the share of a ray's light that each piece of it gives. (R, S)"""
    depth = density * lengths
    before = torch.cat([torch.zeros_like(depth[:, :1]), depth[:, :-1].cumsum(1)], 1)
    return (-before).exp() * -torch.expm1(-depth)


def render(colour: Tensor, density: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (R, 3) of rays before white, and the weights (R, S)."""
    weights = weights_of(density, lengths)
    return (weights.unsqueeze(-1) * colour).sum(1) + (1 - weights.sum(1, keepdim=True)), weights


def draw(edges: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Inverts the distribution that is even within the pieces between edges (R, S+1), of weights (R, S), at u (R, F)."""
    share = weights + 1e-5  # no piece is left out for good
    cumulated = torch.cat([torch.zeros_like(share[:, :1]), share.cumsum(1)], 1)
    cumulated = cumulated / cumulated[:, -1:]  # (R, S+1) from 0 to 1
    if torch.compiler.is_exporting():  # the same number by counting: not every format has a search
        behind = (cumulated[:, None, :] <= u[:, :, None]).sum(-1)
    else:
        behind = torch.searchsorted(cumulated, u.contiguous(), right=True)
    piece = (behind - 1).clamp(0, weights.shape[1] - 1)
    low, high = cumulated.gather(1, piece), cumulated.gather(1, piece + 1)
    left, right = edges.gather(1, piece), edges.gather(1, piece + 1)
    return left + (right - left) * (u - low) / (high - low)  # (R, F)


class NeRF(Learner):
    targets = frozenset({"rgb"})
    primary, better = "mse", "lower"  # psnr = -10 log10(mse) dB
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor"})
    tensor_plan = {"*.trunk.*": "gather", "*.feature": "gather", "*.view": "gather"}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.coarse = Field3D(config)
        self.fine = Field3D(config) if config.fine else None

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        places = {name: Column.numbers((3,), meaning=f"{name} of a ray") for name in ("origin", "direction")}
        return {**places, "rgb": Column.numbers((3,), 0, 1, meaning="colour of a ray")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"rgb": Answer("values", "the colour of the ray, from 0 to 1", of="rgb")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"rgb": self.pictures(batch["origin"], batch["direction"])[-1]}

    def pictures(self, origin: Tensor, direction: Tensor) -> list[Tensor]:
        """Colours (R, 3) of rays by the coarse and, where there is one, the fine network."""
        config, rays = self.config, origin.shape[0]
        scale = direction.norm(dim=1, keepdim=True)
        looking = direction / scale
        edges = torch.linspace(config.near, config.far, config.coarse + 1, device=origin.device).expand(rays, -1)
        t = edges[:, :-1] + (edges[:, 1:] - edges[:, :-1]) * self.within(rays, config.coarse, origin)  # (R, S)
        colour, weights = self.look(self.coarse, origin, direction, looking, t)
        if self.fine is None:
            return [colour]
        u = (torch.arange(config.fine, device=t.device) + self.within(rays, config.fine, origin)) / config.fine
        further = draw(edges, weights.detach(), u)
        both = torch.cat([t, further], 1).sort(1).values
        return [colour, self.look(self.fine, origin, direction, looking, both)[0]]

    def within(self, rays: int, pieces: int, like: Tensor) -> Tensor:
        """Where in its piece of a ray each point lies, from 0 to 1: drawn, or the middle in evaluations. (R, S)"""
        if self.training:
            return noise.uniform(rays, pieces, device=like.device)
        return torch.full((rays, pieces), 0.5, device=like.device)

    def look(
        self, field: nn.Module, origin: Tensor, direction: Tensor, looking: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Colour (R, 3) and weights (R, S) of rays at distances t (R, S), in lengths of the direction; the last piece of a
        ray goes on for ever."""
        x = origin[:, None] + t.unsqueeze(-1) * direction[:, None]
        colour, density = field(x, looking)
        lengths = torch.cat([t[:, 1:] - t[:, :-1], torch.full_like(t[:, :1], 1e10)], 1)
        return render(colour.float(), density.float(), lengths * direction.norm(dim=1, keepdim=True))

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        pictures = self.pictures(batch["origin"], batch["direction"])
        return torch.stack([(picture - batch["rgb"]).square().mean() for picture in pictures]).sum(), {}

    def evaluate(self, batch: Batch) -> Metrics:
        rays = {name: batch[name] for name in ("origin", "direction")}
        told = self.pictures(**rays)[-1]
        shown("view", lambda: {**rays, "told": told, "true": batch["rgb"]})
        errors = (told - batch["rgb"]).square().mean(1)
        return {"mse": Mean(errors.detach().sum(), float(len(errors)))}
