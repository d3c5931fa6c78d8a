"""Bilinear deep belief network: matrices of units, begun by a discriminant projection (Zhong, Liu & Liu 2011).

    Y_l = s(A_l : Y_{l-1} + B_l),  Y_0 = the picture, Y_l of p x q units; A_l holds a weight for every pair of units of two
          layers (second order), learned by contrastive divergence as in dbn
    A_1 begins as the bilinear projection A_1 : X = U^T X V, that is as the Kronecker product U x V, where U, V maximise
          J(U, V) = sum_{iji'j'} D_{iji'j'} (U U^T)_{ii'} (V V^T)_{jj'},    U^T U = V^T V = 1
          D = alpha S_b / tr S_b - (1 - alpha) S_w / tr S_w                 scatter between and within the labelled classes
          by turns: the eigenvectors U of the largest eigenvalues given V, then V given U; B_1 centres the projections
    logits = W_out Y_L + b_out,  fine-tuned by cross entropy through all layers

Three phases: `gather_steps` that only add up the scatter of the labelled rows; `pretrain_steps` for each of the players
`layer0`, `layer1`, ... without labels; then the player `classifier`, whose hidden layers begin as they are. The turns and
losses of the last two are in learner/greedy.py, as those of dbn: that of the second phase, a gap of free energies, is no
measure of progress. The paper makes the first layer as large as J has positive eigenvalues; here `hidden` is the size, and
`positive_rows` and `positive_columns` are logged to choose it by.
784-576-441-361-10 (24 x 24, 21 x 21, 19 x 19): the classifier has 869,799 parameters, the machines 452,944, 255,033 and
160,003.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, Pair, Several, Share
from distdl.learner import Batch, Column, Verbs
from distdl.learner.greedy import GreedyStack
from distdl.learner.labels import known
from distdl.metrics import Metrics, mean


@dataclass(frozen=True)
class Config:
    image: Pair = (28, 28)
    """Height and width of a picture of one channel."""
    hidden: Annotated[tuple[Pair, ...], Field(min_length=1)] = ((24, 24), (21, 21), (19, 19))
    """Rows and columns of units of each hidden layer; the first has no more of them than the picture."""
    classes: Several = 10
    """Number of classes."""
    gather_steps: CountOrZero = 120
    """Steps that gather the scatter for the first layer's projection; 0: it begins with small random weights as in dbn."""
    between: Share = 0.5
    """Share alpha of the scatter between classes in J; the rest is that within."""
    pretrain_steps: CountOrZero = 720
    """Steps that each layer learns without labels before the next; 0: fine-tune from random weights at once."""
    k: Count = 1
    """Steps of Gibbs sampling in contrastive divergence."""
    label_every: Count = 1
    """Use the label of one row in so many (row numbers it divides), to learn from few labels; 1: all."""

    def __post_init__(self) -> None:
        (height, width), (rows, columns) = self.image, self.hidden[0]
        if self.gather_steps and (rows > height or columns > width):
            raise ValueError(
                f"hidden begins with {rows} x {columns} units, but a picture of {height} x {width} has no more projections"
                " than pixels each way; choose fewer, or gather_steps: 0"
            )


class BilinearDBN(GreedyStack):
    players: tuple[str, ...] = ("layer0", "layer1", "layer2", "classifier")  # of the default depth
    counts: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, config: Config) -> None:
        planes = [config.image, *config.hidden]  # of matrices, which the machines see row by row
        super().__init__(config, [math.prod(plane) for plane in planes], "image")
        self.planes = planes
        self.gather_steps = config.gather_steps if config.pretrain_steps else 0
        # What the labelled pictures add up to: each class's number and sum, and the products of all.
        pixels = math.prod(config.image)
        self.register_buffer("counts", torch.zeros(config.classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(config.classes, pixels, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(pixels, pixels, dtype=torch.float64))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample((1, *config.image), 0, 1), "label": Column.label(config.classes)}

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if step < self.gather_steps:
            return self.gather(batch, engine)
        told: Metrics = {}
        if step == self.gather_steps > 0:  # again in each micro-batch, which changes nothing: the optimizer steps last
            weights, told = self.projected()
            engine.assign("layer0", weights)
        return {**super().update(batch, engine, step - self.gather_steps), **told}

    @torch.no_grad()
    def gather(self, batch: Batch, engine: Verbs) -> Metrics:
        """Adds the labelled pictures of all ranks to the scatter; no weight moves."""
        v, chosen = self.samples(batch), self.labelled(batch) & known(batch["label"])
        x = v[chosen].double()  # (b, V); b may be 0
        member = F.one_hot(batch["label"][chosen].long(), self.config.classes).double()  # (b, K)
        self.counts += engine.all_sum(member.sum(0))
        self.sums += engine.all_sum(member.T @ x)
        self.products += engine.all_sum(x.T @ x)
        machine = self.machines()[0]
        return {"loss": mean((v - machine.down(machine.up(v))).square())}

    @torch.no_grad()
    def projected(self) -> tuple[dict[str, Tensor], Metrics]:
        """The first machine as the discriminant projection of pictures less their mean, and how many would do."""
        scatter = discriminant(self.counts, self.sums, self.products, self.config.between)
        u, v, positive = projection(scatter.view(*self.planes[0], *self.planes[0]), self.planes[1])
        weight = torch.kron(u, v).T  # (p * q, m * n)
        centre = weight @ self.sums.sum(0) / self.counts.sum().clamp(min=1)
        machine = self.machines()[0]
        told = {
            f"positive_{name}": mean(self.counts.new_tensor(float(n))) for name, n in zip(("rows", "columns"), positive)
        }
        return {"weight": weight.to(machine.weight), "hidden_bias": -centre.to(machine.weight)}, told


def discriminant(counts: Tensor, sums: Tensor, products: Tensor, between: float) -> Tensor:
    """D (V, V) of each class's number (K,) and sum (K, V), and the products of all rows (V, V)."""
    seen = counts > 0
    number = counts[seen, None]
    means = sums[seen] / number  # (K, V)
    away = means - sums.sum(0) / counts.sum()
    among, within = away.T @ (away * number), products - means.T @ (means * number)
    share = [scatter / scatter.trace().clamp(min=1e-12) for scatter in (among, within)]
    return between * share[0] - (1 - between) * share[1]


def projection(d: Tensor, size: tuple[int, int], rounds: int = 10) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """U (m, p), V (n, q) with orthonormal columns that make J of D (m, n, m, n) large, and its positive eigenvalues."""
    v = torch.eye(d.shape[1], dtype=d.dtype, device=d.device)
    for _ in range(rounds):
        u, rows = leading(torch.einsum("ijkl,jl->ik", d, v @ v.T), size[0])
        v, columns = leading(torch.einsum("ijkl,ik->jl", d, u @ u.T), size[1])
    return u, v, (rows, columns)


def leading(matrix: Tensor, count: int) -> tuple[Tensor, int]:
    """Eigenvectors of the largest eigenvalues as columns, each with its largest entry positive; how many are positive."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    vectors = vectors.flip(-1)[:, :count]
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return vectors * signs, int((values > 1e-12).sum())
