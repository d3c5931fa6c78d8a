"""Show and Tell, a convolutional network that sees and an LSTM that says what (Vinyals, Toshev, Bengio & Erhan 2015, CVPR).

    x_{-1} = CNN(I)                       the picture enters once, as the first word (equation 10)
    x_t    = W_e S_t,   t = 0 ... N - 1   S_0 begins the caption                    (11)
    p_{t+1} = softmax(W LSTM(x_t))                                                  (12)
    loss   = - sum_t log p_t(S_t)                                                   (13)

The loss is summed over a caption and divided by the places that a row has for it: padding counts as no loss, so that no
micro-batch weighs more than another. Evaluation is per word. Captions are written greedily, or by a beam search that keeps
the k likeliest beginnings. BLEU-4 (Papineni et al. 2002) compares them with what people wrote:

    BLEU = min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4)     p_n clipped n-gram precision, r and c lengths of both corpora

With the default config, GoogLeNet, 512 units and 12,000 words, it has 20,525,952 parameters: 5,599,904 of the trunk,
524,800 that project its features, 2,101,248 of the LSTM and 12,300,000 of words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, Counts, ImageShape, OpenShare, Several
from distdl.config.marks import TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Learner
from distdl.learner.answers import NOTHING
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.images import to_unit
from distdl.nn.trunk import Trunk
from distdl.nn.watch import shown

PAD, BEGIN, END = 0, 2, 3
State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Config:
    image: ImageShape = (3, 224, 224)
    """Shape of one picture (channels, height, width); uint8 or float32 of 0 to 1."""
    vocabulary: Annotated[int, Field(gt=4)] = 12000
    """Number of different words, the marks included: 0 pads, 2 begins and 3 ends a caption."""
    length: Several = 20
    """Words that are predicted for a caption, its end and padding included; a row holds one more, the mark that begins."""
    widths: Counts = ()
    """Maps of the trunk's convolutions, each of which halves height and width; empty: GoogLeNet."""
    units: Count = 512
    """Memory cells of the LSTM, and the length of the vectors of words and of the picture."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.3
    """Probability of dropping what enters the LSTM and what leaves it."""


class Captioner(Learner):
    targets = frozenset({"caption"})
    primary, better = "loss", "lower"  # nats per word
    batch_coupled = True  # batch normalisation in the trunk
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.image, config.widths)
        self.see = nn.Linear(self.trunk.features, config.units)
        self.words = nn.Embedding(config.vocabulary, config.units)
        self.lstm = nn.LSTM(config.units, config.units, batch_first=True)
        self.head = nn.Linear(config.units, config.vocabulary)
        self.drop = Dropout(config.dropout)
        forget = slice(config.units, 2 * config.units)
        nn.init.constant_(self.lstm.get_parameter("bias_ih_l0")[forget], 1.0)  # these gates open at the start

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {
            "image": Column.sample(config.image),
            "caption": Column.tokens(config.vocabulary, (config.length + 1,), meaning="word"),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"caption": Answer("tokens", "the likeliest word at each place", of="caption")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        words = self.greedy(batch["image"])
        return {"caption": words.masked_fill((words == PAD) | (words == END), NOTHING)}

    def picture(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, D): what stands in for the first word."""
        return self.see(self.trunk.vector(to_unit(image)))[:, None]

    def scores(self, batch: Batch) -> Tensor:
        """(B, T, V): logits of each word, given the picture and the words before it."""
        x = torch.cat([self.picture(batch["image"]), self.words(batch["caption"][:, :-1].long())], 1)  # (B, 1 + T, D)
        states, _ = self.lstm(self.drop(x))
        return self.logits(self.drop(states[:, 1:]))

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V) in fp32; padding is no word."""
        scores = self.head(states).float()
        return F.pad(scores[..., PAD + 1 :], (PAD + 1, 0), value=-torch.inf)

    def losses(self, batch: Batch) -> Tensor:
        """(B, T): -log p of each word in nats, 0 where there is none."""
        targets = batch["caption"][:, 1:].long()
        scores = self.scores(batch).flatten(0, 1)
        return F.cross_entropy(scores, targets.flatten(), ignore_index=PAD, reduction="none").view_as(targets)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses = self.losses(batch)
        return losses.mean(), {"loss": self.per_word(losses, batch)}

    def per_word(self, losses: Tensor, batch: Batch) -> Mean:
        """What is shown, of training and of held-out samples alike."""
        return Mean(losses.sum().detach(), float((batch["caption"][:, 1:] != PAD).sum()))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        losses, targets = self.losses(batch), batch["caption"][:, 1:].long()
        shown("places", lambda: {"losses": losses})
        same = (self.greedy(batch["image"]) == targets).all(1)
        return {"loss": self.per_word(losses, batch), "exact_match": mean(same.float())}

    @torch.no_grad()
    def greedy(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T): the likeliest word at each place, given those before it; padding behind the end."""
        _, state = self.lstm(self.picture(image))
        word = torch.full((image.shape[0], 1), BEGIN, device=image.device)
        going, caption = torch.ones_like(word, dtype=torch.bool), []
        for _ in range(self.config.length):
            log_p, state = self.next_word(word, state)
            word = log_p.argmax(-1, keepdim=True).where(going, PAD)  # (B, 1)
            caption.append(word)
            going &= word != END
        return torch.cat(caption, 1)

    @torch.no_grad()
    def beam(self, image: Tensor, k: int = 20) -> tuple[Tensor, Tensor]:
        """One picture (1, C, H, W) -> its k likeliest captions (k, T), best first, and their log-probabilities (k,)."""
        _, state = self.lstm(self.picture(image))
        captions, log_p = torch.full((1, 1), BEGIN, device=image.device), torch.zeros(1, device=image.device)
        for _ in range(self.config.length):
            log_next, state = self.next_word(captions[:, -1:], state)  # (k, V)
            ended = (captions[:, -1] == END) | (captions[:, -1] == PAD)
            log_next[ended] = -torch.inf
            log_next[ended, PAD] = 0.0  # nothing follows, and surely so
            total = (log_p[:, None] + log_next).flatten()  # (k V)
            log_p, best = total.topk(min(k, int((total > -torch.inf).sum())))
            parent, word = best // log_next.shape[1], best % log_next.shape[1]
            captions = torch.cat([captions[parent], word[:, None]], 1)
            state = (state[0][:, parent], state[1][:, parent])
        return captions[:, 1:], log_p

    def next_word(self, word: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities (B, V) of what follows the words (B, 1), and the state after them."""
        states, state = self.lstm(self.words(word), state)
        return self.logits(states[:, 0]).log_softmax(-1), state


def spoken(captions: Tensor) -> list[list[int]]:
    """(B, T) -> the words of each caption, without its marks."""
    return [[word for word in row if word not in (PAD, BEGIN, END)] for row in captions.tolist()]


def bleu(found: Sequence[list[int]], references: Sequence[Sequence[list[int]]], longest: int = 4) -> float:
    """BLEU of a corpus: what was written for each picture, against one or more captions that people wrote for it."""
    right, total = [0] * longest, [0] * longest
    for words, known in zip(found, references, strict=True):
        for n in range(1, longest + 1):
            counts = grams(words, n)
            most: Counter[tuple[int, ...]] = Counter()
            for reference in known:
                most |= grams(reference, n)
            right[n - 1] += (counts & most).total()
            total[n - 1] += counts.total()
    if 0 in right:
        return 0.0
    c = sum(map(len, found))
    r = sum(min((abs(len(ref) - len(words)), len(ref)) for ref in known)[1] for words, known in zip(found, references))
    precision = sum(math.log(a / b) for a, b in zip(right, total)) / longest
    return math.exp(min(0.0, 1 - r / c) + precision)


def grams(words: list[int], n: int) -> Counter[tuple[int, ...]]:
    """How often each run of n words occurs."""
    return Counter(zip(*(words[i:] for i in range(n))))
