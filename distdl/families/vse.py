"""Visual-semantic embedding, pictures and sentences in one space (Kiros, Salakhutdinov & Zemel 2014, arXiv 1411.2539).

    x = W CNN(I) / |.|      v = LSTM(sentence)_last / |.|      s(x, v) = x . v

ranking: a pair is closer than any mismatch by a margin, from either side (section 2.2)

    sum_x sum_k max(0, margin - s(x, v) + s(x, v_k)) + sum_v sum_k max(0, margin - s(v, x) + s(v, x_k))

infonce: a pair is picked out among the mismatches (van den Oord, Li & Vinyals 2018; both sides as in Radford et al. 2021)

    -ln exp(s(x, v) / t) / sum_k exp(s(x, v_k) / t), the mean of both sides

The mismatches v_k, x_k are the other pairs of the global batch, whichever ranks hold them, except those of the same words.
The paper's decoder, a structure-content neural language model, is left out; `captioner` writes sentences.
Held-out pictures are compared with captions that the data set has put beside them, so that no number depends on how they
are batched. With the default config, GoogLeNet, 300 dimensions and 12,000 words, it has 10,229,804 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, Counts, ImageShape, Several
from distdl.layout.gather import gathered, rank
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.trunk import Trunk
from distdl.nn.watch import FEW, shown

PAD = 0


@dataclass(frozen=True)
class Config:
    image: ImageShape = (3, 224, 224)
    """Shape of one picture (channels, height, width); uint8 or float32 of 0 to 1."""
    vocabulary: Annotated[int, Field(gt=4)] = 12000
    """Number of different words, the marks included; 0 is padding."""
    length: Several = 20
    """Words of a caption beyond the mark that begins it, its end and padding included."""
    contrasts: Count = 9
    """Captions of other pictures that stand beside each in the data set; what is held out is ranked among them."""
    widths: Counts = ()
    """Maps of the trunk's convolutions, each of which halves height and width; empty: GoogLeNet."""
    units: Count = 300
    """Dimensions of the common space, of the vectors of words and of the LSTM."""
    objective: Literal["ranking", "infonce"] = "ranking"
    """What is minimised, as in the docstring of this file."""
    margin: Amount = 0.2
    """By how much a pair must beat a mismatch (ranking)."""
    temperature: Amount = 0.07
    """t, by which similarities are divided (infonce)."""


class VSE(Learner):
    targets = frozenset({"contrasts"})
    primary, better = "recall_at_1", "higher"
    batch_coupled = True  # the other pairs of a step are the mismatches; and batch normalisation
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.image, config.widths)
        self.see = nn.Linear(self.trunk.features, config.units)
        self.words = nn.Embedding(config.vocabulary, config.units)
        self.lstm = nn.LSTM(config.units, config.units, batch_first=True)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        words = config.length + 1
        return {
            "image": Column.sample(config.image),
            "caption": Column.tokens(config.vocabulary, (words,), meaning="word"),
            "contrasts": Column.tokens(config.vocabulary, (config.contrasts, words), meaning="word"),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {
            "picture": Answer("embedding", "of the picture, in the common space"),
            "sentence": Answer("embedding", "of the sentence, in the common space"),
        }

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """Of what there is: a picture, a sentence, or both."""
        of = {"picture": ("image", self.of_images), "sentence": ("caption", self.of_captions)}
        return {name: make(batch[column]).float() for name, (column, make) in of.items() if column in batch}

    def of_images(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> unit vectors (B, D)."""
        return F.normalize(self.see(self.trunk.vector(to_unit(image))), dim=-1)

    def of_captions(self, caption: Tensor) -> Tensor:
        """(B, T) -> unit vectors (B, D): the state after the last word."""
        states, _ = self.lstm(self.words(caption.long()))  # (B, T, D)
        last = (caption != PAD).sum(1) - 1
        return F.normalize(states[torch.arange(states.shape[0], device=states.device), last], dim=-1)

    def losses(self, scores: Tensor, own: Tensor, mismatch: Tensor) -> Tensor:
        """(B,), of similarities (B, N): candidate `own` (B,) is the right one, those in `mismatch` (B, N) are wrong."""
        right = scores.gather(1, own[:, None])  # (B, 1)
        if self.config.objective == "ranking":
            return ((self.config.margin - right + scores).relu() * mismatch).sum(1)
        counted = torch.cat([right, scores.masked_fill(~mismatch, -torch.inf)], 1) / self.config.temperature
        return counted.logsumexp(1) - counted[:, 0]

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        x, v = self.of_images(batch["image"]).float(), self.of_captions(batch["caption"]).float()  # (B, D)
        captions = batch["caption"].long()
        own = torch.arange(len(x), device=x.device) + rank() * len(x)
        mismatch = (captions[:, None] != gathered(captions)).any(-1)  # (B, N), N pairs of all ranks
        sides = (x @ gathered(v).T, v @ gathered(x).T)
        losses = torch.stack([self.losses(scores, own, mismatch) for scores in sides])  # (2, B)
        return (losses.sum(0) if self.config.objective == "ranking" else losses.mean(0)).mean(), {}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        x = self.of_images(batch["image"]).float()
        captions = torch.cat([batch["caption"][:, None], batch["contrasts"]], 1)  # (B, 1 + K, T)
        v = self.of_captions(captions.flatten(0, 1)).float().view(*captions.shape[:2], -1)
        scores = torch.einsum("bd,bkd->bk", x, v)
        shown("heat: likeness of pictures and captions", lambda: {"values": x[:FEW] @ v[:FEW, 0].mT})
        wrong = torch.ones_like(scores, dtype=torch.bool)
        wrong[:, 0] = False
        place = ranks(scores, ~wrong).float()
        losses = self.losses(scores, torch.zeros_like(place, dtype=torch.int64), wrong)
        return {"loss": mean(losses), "recall_at_1": mean((place == 1).float()), "rank": mean(place)}


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """(Q,): at which place, counted from 1, the best of the `right` (Q, N) candidates of each query stands; of equal
    similarities the wrong ones count as better."""
    best = scores.masked_fill(~right, -torch.inf).max(1).values  # (Q,)
    return 1 + ((scores >= best[:, None]) & ~right).sum(1)
