"""Convolutional deep belief network (Lee, Grosse, Ranganath & Ng 2009): convolutional RBMs with probabilistic max-pooling.

    E(v, h) = -sum_k h_k . (W_k * v + b_k) - c . v,   at most one unit on in each C x C block of a map
    I = W_k * v + b_k,   P(h_ij=1|v) = exp(I_ij) / (1 + sum_block exp(I)),   P(pool on|v) = 1 - 1 / (1 + sum_block exp(I))
    P(v=1|h) = s(sum_k W_k' * h_k + c),   F(v) = -c . v - sum_blocks log(1 + sum_block exp(I))

Filters are shared over places; there is one bias for each map and one for each input channel. Contrastive divergence is
the gradient of mean[F(v) - F(v_k)] with the samples held fixed, here divided by the places of a map. Sparsity: each map's
bias is pushed until the map's mean activation is the target. That loss is no measure of progress; `reconstruction` is.
Each layer is a player and learns `pretrain_steps` steps on the pooling probabilities of the one below, the last one to the
end of the run. One layer of 24 filters of 9 x 9 has 1,969 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import AmountOrZero, Count, Counts, ImageShape, SomeCounts, StrictShare
from distdl.layout.noise import uniform
from distdl.learner import Answer, Batch, Column, Learner, Verbs, bare
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    image: ImageShape = (1, 28, 28)
    """Shape of one picture (channels, height, width): uint8 (scaled to 0..1) or float32 in 0..1."""
    maps: SomeCounts = (40, 40)
    """Filters of each layer."""
    filter: Counts = (11, 6)
    """Side of each layer's square filters; the paper's 12 and 6 would leave pixels over in the pooling of 28 x 28."""
    pool: Counts = (2, 2)
    """Side of each layer's square pooling blocks."""
    pretrain_steps: Count = 3000
    """Steps that each layer learns before the next; the last one learns to the end of the run."""
    k: Count = 1
    """Steps of Gibbs sampling in contrastive divergence."""
    sparsity: StrictShare = 0.01
    """Mean activation that every map is pushed to."""
    sparsity_cost: AmountOrZero = 1.0
    """Strength of that push, against the gradient of a map's bias; 0: none."""

    def __post_init__(self) -> None:
        if not len(self.maps) == len(self.filter) == len(self.pool):
            raise ValueError("maps, filter and pool must have one number for each layer")
        sides: tuple[int, ...] = self.image[1:]
        for layer, (size, pool) in enumerate(zip(self.filter, self.pool)):
            places = tuple(side - size + 1 for side in sides)
            if min(places) < 1 or any(n % pool for n in places):
                raise ValueError(
                    f"layer {layer} has maps of {places[0]} x {places[1]} places (input {sides[0]} x {sides[1]}, filter "
                    f"{size}), which blocks of {pool} x {pool} do not fill; choose another filter or pool"
                )
            sides = tuple(n // pool for n in places)


class ConvolutionalRBM(nn.Module):
    """One layer; its forward is the loss whose gradient is contrastive divergence, with the push to sparsity."""

    def __init__(self, channels: int, layer: int, config: Config) -> None:
        super().__init__()
        self.k, self.pool = config.k, config.pool[layer]
        self.target, self.cost = config.sparsity, config.sparsity_cost
        size = config.filter[layer]
        self.weight = nn.Parameter(0.01 * torch.randn(config.maps[layer], channels, size, size))  # (K, C, w, w)
        self.hidden_bias = nn.Parameter(torch.zeros(config.maps[layer]))
        self.visible_bias = nn.Parameter(torch.zeros(channels))

    def blocks(self, v: Tensor) -> Tensor:
        """I of every hidden unit, sorted into pooling blocks: (B, C, H, W) -> (B, K, h, w, pool * pool)."""
        x = F.conv2d(v, self.weight, self.hidden_bias)
        B, K, H, W = x.shape
        x = x.view(B, K, H // self.pool, self.pool, W // self.pool, self.pool)
        return x.permute(0, 1, 2, 4, 3, 5).flatten(4)

    def probabilities(self, v: Tensor) -> Tensor:
        """P(h=1|v) in blocks, (B, K, h, w, pool * pool): a softmax with one more choice, that no unit is on."""
        return F.pad(self.blocks(v), (0, 1)).softmax(-1)[..., :-1]

    def sampled(self, p: Tensor) -> Tensor:
        """At most one unit on in each block, drawn with the probabilities p of the same shape."""
        upto = p.cumsum(-1)
        u = uniform(*p.shape[:-1], device=p.device)[..., None]
        return ((upto - p <= u) & (u < upto)).to(p.dtype)

    def up(self, v: Tensor) -> Tensor:
        """P(pool on|v): (B, C, H, W) -> (B, K, h, w)."""
        return self.probabilities(v).sum(-1)

    def down(self, h: Tensor) -> Tensor:
        """P(v=1|h), h in blocks: (B, K, h, w, pool * pool) -> (B, C, H, W)."""
        B, K, H, W, _ = h.shape
        h = h.unflatten(-1, (self.pool, self.pool)).permute(0, 1, 2, 4, 3, 5)
        h = h.reshape(B, K, H * self.pool, W * self.pool)
        return torch.sigmoid(F.conv_transpose2d(h, self.weight, self.visible_bias))

    def free_energy(self, v: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,) nats."""
        field = (v.sum((2, 3)) * self.visible_bias).sum(1)
        return -field - F.pad(self.blocks(v), (0, 1)).logsumexp(-1).sum((1, 2, 3))

    def errors(self, v: Tensor) -> Tensor:
        """Squared error of every input after one way up and down without sampling."""
        return (v - self.down(self.probabilities(v))).square()

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the mean activation of each map (K,)."""
        with torch.no_grad():
            p = self.probabilities(v)
            active = p.mean((0, 2, 3, 4))  # (K,)
            for step in range(self.k):
                model = self.down(self.sampled(p))
                p = self.probabilities(model) if step < self.k - 1 else p
        places = p[0, 0].numel()
        gap = (self.free_energy(v) - self.free_energy(model)).mean() / places
        return gap + self.cost * (self.hidden_bias * (active - self.target)).sum(), active


class CDBN(Learner):
    players: tuple[str, ...] = ("layer0", "layer1")  # of the default depth
    primary, better = "reconstruction", "lower"  # squared error of an input, averaged over layers
    learns = "contrastive divergence"
    # Not zero3: layers below the one that learns are called outside their wrapper, where their weights are sharded.
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.players = tuple(f"layer{i}" for i in range(len(config.maps)))
        channels = config.image[0]
        for i, name in enumerate(self.players):
            setattr(self, name, ConvolutionalRBM(channels, i, config))
            channels = config.maps[i]

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image, 0, 1)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"embedding": Answer("embedding", "pooling probabilities of the last layer")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": self.features(batch["image"])[-1].flatten(1)}

    def stack(self) -> list[ConvolutionalRBM]:
        """From the pixels up, without the engine's wrappers."""
        return [bare(getattr(self, name)) for name in self.players]  # type: ignore[misc]

    @torch.no_grad()
    def features(self, image: Tensor) -> list[Tensor]:
        """Pooling probabilities of every layer: [(B, K, h, w), ...]."""
        x, found = self.pixels(image), []
        for layer in self.stack():
            x = layer.up(x)
            found.append(x)
        return found

    def pixels(self, image: Tensor) -> Tensor:
        return to_unit(image).to(self.stack()[0].weight.dtype)  # (B, C, H, W)

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        layers = self.stack()
        learning = min(step // self.config.pretrain_steps, len(layers) - 1)
        v = self.pixels(batch["image"])
        with torch.no_grad():
            for layer in layers[:learning]:
                v = layer.up(v)
        name = self.players[learning]
        loss, active = getattr(self, name)(v)
        engine.minimize(loss, name)
        return {"loss": mean(loss), f"activation_{name}": mean(active)}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        v = self.pixels(batch["image"])
        shown("filters", lambda: {"filters": self.stack()[0].weight})
        metrics: Metrics = {}
        for name, layer in zip(self.players, self.stack()):
            errors = layer.errors(v).mean((1, 2, 3))  # (B,)
            metrics[f"reconstruction_{name}"] = mean(errors)
            v = layer.up(v)
        n = len(batch["id"]) * len(self.players)
        total = torch.stack([metric.total for metric in metrics.values()]).sum()
        return {"reconstruction": Mean(total, float(n)), **metrics}
