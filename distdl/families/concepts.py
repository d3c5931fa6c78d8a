"""Word detectors that learn from captions alone where in a picture a word is (Fang et al. 2015, CVPR, section 3).

A picture is a bag of regions j, the places of a fully convolutional network's maps phi. A word stands in the caption when
at least one region shows it: multiple-instance learning with a noisy OR (Viola, Platt & Zhang 2005),

    p_j(w) = sigmoid(u_w . phi_j + b_w)        p(w) = 1 - prod_j (1 - p_j(w))
    loss   = - sum_w [w in caption] ln p(w) + [w not in caption] ln(1 - p(w))

The paper goes on with a maximum-entropy language model and reranking, which are left out; `captioner` writes sentences.
No box is ever told; the regions' own probabilities show afterwards where a word is. With the default config, GoogLeNet and
1,000 words, it has the 6,624,904 parameters of that network's classifier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, Counts, ImageShape, StrictShare
from distdl.learner import Answer, Batch, Column, Learner
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.trunk import Trunk
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    image: ImageShape = (3, 224, 224)
    """Shape of one picture (channels, height, width); uint8 or float32 of 0 to 1."""
    vocabulary: Count = 1000
    """Words that are detected: those numbered from `first` on. Words beyond are ignored."""
    first: CountOrZero = 4
    """Number of the first of them; what comes before are the marks of the captions."""
    length: Count = 20
    """Words of a caption beyond the mark that begins it, its end and padding included."""
    widths: Counts = ()
    """Maps of the trunk's convolutions, each of which halves height and width; empty: GoogLeNet."""
    prior: StrictShare = 0.01
    """Probability that a region shows a word, before anything is learned."""


class Concepts(Learner):
    targets = frozenset({"caption"})
    primary, better = "f1", "higher"
    batch_coupled = True  # batch normalisation in the trunk
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.image, config.widths)
        self.head = nn.Conv2d(self.trunk.channels, config.vocabulary, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, math.log(config.prior / (1 - config.prior)))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {
            "image": Column.sample(config.image),
            "caption": Column.whole(
                0, None, (config.length + 1,), meaning="word (those beyond the vocabulary count nowhere)"
            ),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"words": Answer("chances", "that a caption would have the word", of="caption", first=config.first)}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"words": chance(self.regions(batch["image"]))}  # with a slope along the picture

    def regions(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, V, h, w): logits of each word in each region."""
        return self.head(self.trunk(to_unit(image))).float()

    def present(self, caption: Tensor) -> Tensor:
        """(B, T) -> (B, V): 1 for the words of a caption."""
        V, first = self.config.vocabulary, self.config.first
        word = caption.long() - first
        word = word.where((word >= 0) & (word < V), V)  # what is not detected goes to a last place, which is cut off
        return torch.zeros(len(word), V + 1, device=word.device).scatter_(1, word, 1.0)[:, :V]

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each word in nats, whether it is detected, and whether it is in the caption, (B, V) each."""
        log_absent = noisy_or(self.regions(batch["image"]))
        present = self.present(batch["caption"])
        losses = -torch.where(present > 0, log_one_minus_exp(log_absent), log_absent)
        return losses, log_absent < math.log(0.5), present > 0

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        return self.losses(batch)[0].sum(1).mean(), {}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        losses, found, present = self.losses(batch)
        shown("beside: words found beside those of the caption", lambda: {"told": found, "true": present})
        # F1: twice the hits over detections and words; the sums add up over batches, their quotients would not.
        f1 = Mean(2.0 * (found & present).sum(), float(found.sum() + present.sum()))
        return {"loss": mean(losses.sum(1)), "f1": f1}

    @torch.no_grad()
    def detect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> p(w) (B, V), and p_j(w) of the regions (B, V, h, w)."""
        regions = self.regions(image)
        return chance(regions), regions.sigmoid()


def noisy_or(logits: Tensor) -> Tensor:
    """(B, V, h, w) -> (B, V): ln(1 - p(w)), the sum of ln(1 - p_j(w)) over the regions."""
    return F.logsigmoid(-logits).sum((2, 3))


def chance(logits: Tensor) -> Tensor:
    """(B, V, h, w) -> (B, V): p(w), that a region at least has the word."""
    return 1 - noisy_or(logits).exp()


def log_one_minus_exp(x: Tensor) -> Tensor:
    """ln(1 - e^x) for x < 0, exact at either end (Maechler 2012); the gradient is finite where x is 0."""
    x = x.clamp(max=-1e-6)
    near = x > -0.6931
    return torch.where(near, (-x.where(near, -1.0).expm1()).log(), (-x.where(~near, -1.0).exp()).log1p())
