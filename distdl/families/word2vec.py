"""word2vec, vectors of words from the words around them (Mikolov, Sutskever, Chen, Corrado & Dean 2013).

    skipgram   -sum_o [ log s(v_o' . v_c) + sum_k log s(-v_k' . v_c) ]      c a word, o each word around it, s the sigmoid
    cbow       -[ log s(v_c' . h) + sum_k log s(-v_k' . h) ],               h the mean of v_o over the words around c

Around a word are r words on either side, r uniform in 1..window. First, a word of frequency f stays with the probability
sqrt(t/f) + t/f only (as word2vec.c has it; the paper: sqrt(t/f)), and what is left moves together. The noise words k are
drawn with a probability in proportion to count^0.75; one that is the right answer counts nothing, and the pairs of a word c
share theirs (Ji et al. 2016). cbow has the true gradient of the mean, which word2vec.c has not (Irsoy, Benton & Stratos
2021).

The counts are those of the stream so far (Kaji & Kobayashi 2017), so a data set holds words and nothing else: one more for
each word at the start, and what a step has seen counts from the next step on. The loss is the sum over a row by the answers
that are expected of its length. The parameters are 2 V D: 3,000,000 words of width 300 have 1,800,000,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import AmountOrZero, Count, Several, Share
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner, Verbs
from distdl.metrics import Mean, Metrics
from distdl.nn.watch import as_filters, shown


@dataclass(frozen=True)
class Config:
    vocabulary: Several = 30000
    """Number of different words."""
    context: Several = 128
    """Words of a row, which are next to each other in the text."""
    width: Count = 300
    """Size of a word's vector."""
    method: Literal["skipgram", "cbow"] = "skipgram"
    """A word tells the words around it, or they tell the word."""
    window: Count = 5
    """Most words on either side that are around a word."""
    negatives: Count = 5
    """Noise words that are told apart from the right one."""
    power: Share = 0.75
    """Noise words are drawn in proportion to their counts to this power."""
    subsample: AmountOrZero = 1e-3
    """Frequency t above which words are left out at random; 0: none is."""

    def __post_init__(self) -> None:
        if self.window >= self.context:
            raise ValueError(f"window is {self.window} and a row has {self.context} words; take a smaller window")


class Word2Vec(Learner):
    any_length = frozenset({"tokens"})
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3"})
    counts: Tensor
    seen: Tensor
    at: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.answers = nn.Embedding(config.vocabulary, config.width)
        nn.init.uniform_(self.words.weight, -0.5 / config.width, 0.5 / config.width)
        nn.init.zeros_(self.answers.weight)
        self.register_buffer("counts", torch.ones(config.vocabulary, dtype=torch.long))
        self.register_buffer("seen", torch.zeros(config.vocabulary, dtype=torch.long))  # in the step `at`, on all ranks
        self.register_buffer("at", torch.full((), -1))

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"tokens": Column.tokens(config.vocabulary, (config.context,), meaning="word")}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"embedding": Answer("embedding", "the mean of the vectors of the row's words")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"embedding": self.words(batch["tokens"].long()).mean(1)}

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        return {**model, "width": min(model["width"], 32)}

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if step != int(self.at):
            self.counts += self.seen
            self.seen.zero_()
            self.at.fill_(step)
        metrics = super().update(batch, engine, step)
        tokens = batch["tokens"].long().flatten()
        self.seen += engine.all_sum(torch.bincount(tokens, minlength=self.config.vocabulary))
        return metrics

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        losses, answers = self.losses(batch["tokens"].long())
        of_word = self.config.window + 1 if self.config.method == "skipgram" else 1
        shown = Mean(losses.sum().detach(), float(answers.sum()))  # per answer, as in evaluation
        return losses.mean() / (self.config.context * of_word), {"loss": shown}

    def evaluate(self, batch: Batch) -> Metrics:
        losses, answers = self.losses(batch["tokens"].long())
        shown("heat: likeness of the first words", self.likeness)
        return {"loss": Mean(losses.sum(), float(answers.sum()))}

    def likeness(self) -> dict[str, Tensor]:
        """Cosines of the angles between the vectors of the first words."""
        first = F.normalize(as_filters(self.words.weight, (self.config.width,)).float(), dim=-1)
        return {"values": first @ first.mT}

    def losses(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row: the sum of its losses (B,), and how many right answers they are for (B,)."""
        config, (B, T), K = self.config, tokens.shape, self.config.negatives
        keep, reach, other = noise.uniform(B, T, 2 + K, device=tokens.device).split([1, 1, K], -1)
        words, length = self.subsampled(tokens, keep.squeeze(-1))  # (B, T), (B, 1)
        drawn = self.noise_words(other)  # (B, T, K)
        steps = [n for n in range(-config.window, config.window + 1) if n]
        offsets, index = torch.tensor(steps, device=tokens.device), torch.arange(T, device=tokens.device)
        places = index[:, None] + offsets  # (T, 2W)
        radius = 1 + (reach * config.window).long()  # (B, T, 1)
        there = (places >= 0) & (places < length[..., None]) & (offsets.abs() <= radius)  # (B, T, 2W)
        there &= (index < length)[..., None]
        places = places.clamp(0, T - 1)
        if config.method == "cbow":
            return self.of_means(words, drawn, places, there)
        return self.of_pairs(words, drawn, places, there)

    def of_pairs(self, words: Tensor, drawn: Tensor, places: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.words(words)  # (B, T, D)
        right = torch.einsum("btd,btwd->btw", vector, self.answers(words)[:, places])
        wrong = torch.einsum("btd,btkd->btk", vector, self.answers(drawn))
        others = words[:, places][..., None] != drawn[:, :, None]  # (B, T, 2W, K)
        weight = (others & there[..., None]).sum(2)  # (B, T, K): pairs that a noise word is noise for
        losses = (there * F.softplus(-right)).sum((1, 2)) + (weight * F.softplus(wrong)).sum((1, 2))
        return losses, there.sum((1, 2))

    def of_means(self, words: Tensor, drawn: Tensor, places: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        count = there.sum(-1)  # (B, T)
        around = torch.einsum("btw,btwd->btd", there.float(), self.words(words)[:, places])
        mean = around / count.clamp(min=1)[..., None]  # (B, T, D)
        right = (mean * self.answers(words)).sum(-1)  # (B, T)
        wrong = torch.einsum("btd,btkd->btk", mean, self.answers(drawn))
        others = words[..., None] != drawn  # (B, T, K)
        losses = F.softplus(-right) + (others * F.softplus(wrong)).sum(-1)
        return ((count > 0) * losses).sum(1), (count > 0).sum(1)

    def subsampled(self, tokens: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The words that stay, moved together (B, T), and how many they are (B, 1)."""
        if not self.config.subsample:
            return tokens, torch.full_like(tokens[:, :1], tokens.shape[1])
        rare = self.config.subsample * self.counts.sum() / self.counts  # (V,): t / f
        stays = drawn < (rare.sqrt() + rare)[tokens]
        order = (~stays).int().argsort(dim=1, stable=True)
        return tokens.gather(1, order), stays.sum(1, keepdim=True)

    def noise_words(self, drawn: Tensor) -> Tensor:
        """Numbers from 0 to 1 -> words."""
        ends = self.counts.double().pow(self.config.power).cumsum(0)
        return torch.searchsorted(ends, drawn.double() * ends[-1], right=True).clamp(max=len(ends) - 1)
