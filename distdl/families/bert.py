"""BERT, a bidirectional Transformer encoder, pre-trained on hidden words and following sentences (Devlin et al. 2019).

    x = drop(ln(word + place + segment));   x = ln(x + attn(x));   x = ln(x + mlp(x))   (post-norm, L times)
    masked words: logits = ln(gelu(W x)) E^T + b   (E: the word embedding)       next sentence: W' tanh(W x_0)

15 % of the words of a sample are predicted: of these 80 % become [MASK], 10 % another word, 10 % stay. They are chosen
anew in each epoch, by the sample's noise. The loss is the mean over samples of the mean over a sample's chosen words, plus
that of the next sentence. `task: classify` puts a classifier on the pooled first place; shared parts keep their names.

BERT base is 109,482,240 parameters with pooler, 108,891,648 without, 110,106,428 with both heads (the default), 109,514,298
with the head of masked words alone; BERT large 335,141,888 with pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.columns import sentences
from distdl.config.fields import Count, CountOrZero, Counts, OpenShare, Several, StrictShare
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout import noise
from distdl.layout.axes import gathered, shard_of
from distdl.learner import Answer, Batch, Column, Layer, Learner
from distdl.learner.answers import CLASSES, EMBEDDING, of_logits
from distdl.learner.labels import mean_known, mean_loss, of_classes
from distdl.metrics import Metrics, mean
from distdl.nn.attention import SelfAttention, apart, together
from distdl.nn.language import logits, token_losses

PAD = 0


@dataclass(frozen=True)
class Config:
    task: Literal["pretrain", "mask", "classify"] = "pretrain"
    """Hidden words and next sentence, hidden words alone, or the class of a sample."""
    classes: Several = 2
    """Classes of the task classify."""
    vocabulary: Annotated[int, Field(gt=4)] = 30522
    """Number of different tokens; 0 is padding."""
    context: Annotated[int, Field(gt=3)] = 512
    """Tokens of a sample, padding included."""
    places: CountOrZero = 0
    """Places that have an embedding, where weights come with more than `context`; 0: `context`."""
    layers: Count = 12
    """Transformer blocks."""
    heads: Annotated[Count, INVISIBLE] = 12
    """Attention heads of a block; must divide `width`."""
    width: Count = 768
    """Size of a token's vector."""
    inner: CountOrZero = 0
    """Hidden units of a block's perceptron; 0: four times `width`."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.1
    """Probability of dropping in the embedding, the residual branches and before the classifier."""
    attention_dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.1
    """Probability of dropping in the attention shares."""
    mask: Count = 103
    """Token that stands for a hidden word, [MASK]."""
    marks: Counts = (101, 102)
    """Tokens that are never hidden: [CLS] and [SEP]."""
    hide: StrictShare = 0.15
    """Share of a sample's tokens that is predicted."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split over {self.heads} heads; choose a divisor of it")
        if max((self.mask, *self.marks)) >= self.vocabulary:
            raise ValueError(f"mask and marks must be below vocabulary, which is {self.vocabulary}")
        if 0 < self.places < self.context:
            raise ValueError(f"places is {self.places} and context is {self.context}; leave places out, or raise it")


class Embeddings(nn.Module):
    """Word, place and segment, added up. (B, T, 2) -> (B, T, D + 1), which says last what is no padding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocabulary, config.width)
        self.place = nn.Embedding(config.places or config.context, config.width)
        self.segment = nn.Embedding(2, config.width)
        self.ln = nn.LayerNorm(config.width, 1e-12)
        self.drop = noise.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        tokens, segments = x.unbind(-1)  # (B, T)
        places = torch.arange(x.shape[1], device=x.device)
        summed = self.word(tokens) + self.place(places) + self.segment(segments)
        return together(self.drop(self.ln(summed)), tokens != PAD)


class Block(nn.Module):
    """Attention and a two-layer perceptron; each is added to its input, and the sum is normed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D, inner = config.width, config.inner or 4 * config.width
        self.attn, self.ln1 = SelfAttention(D, config.heads, config.attention_dropout), nn.LayerNorm(D, 1e-12)
        self.up, self.down, self.ln2 = nn.Linear(D, inner), nn.Linear(inner, D), nn.LayerNorm(D, 1e-12)
        self.drop = noise.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x, real = apart(x)
        x = self.ln1(x + self.drop(self.attn(x, real)))
        return together(self.ln2(x + self.drop(self.down(F.gelu(self.up(x))))), real)  # (B, T, D + 1)


class Words(nn.Module):
    """What a place says about its word, before the vocabulary: (..., D) -> (..., D). `bias` is the vocabulary's."""

    parameter_kinds = {"bias": "bias"}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense, self.ln = nn.Linear(config.width, config.width), nn.LayerNorm(config.width, 1e-12)
        self.bias = nn.Embedding(config.vocabulary, 1)  # an embedding, so that it is cut as the words are

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(F.gelu(self.dense(x)))


class BERT(Learner):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    tensor_plan = {
        "embeddings.word": "vocab",
        "words.bias": "vocab",
        "blocks.*.attn.qkv": "column/3",
        "blocks.*.attn.out": "row",
        "blocks.*.up": "column",
        "blocks.*.down": "row",
    }
    class_column, chunks_loss = "label", True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pooler = None if config.task == "mask" else nn.Linear(config.width, config.width)
        self.words = None if config.task == "classify" else Words(config)
        classes = {"pretrain": 2, "mask": 0, "classify": config.classes}[config.task]
        self.head = nn.Linear(config.width, classes) if classes else None
        self.drop = noise.Dropout(config.dropout)
        if config.task == "classify":
            self.primary, self.better = "accuracy", "higher"
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name == "words.bias.weight":
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        follows = Column.label(2, key="", missing=None, meaning="whether the second sentence follows")
        label = {"classify": {"label": Column.label(config.classes)}, "pretrain": {"label": follows}, "mask": {}}
        return {**sentences(config.vocabulary, config.context), **label[config.task]}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        words = {"tokens": Answer("tokens", "the row, its hidden words filled in", of="tokens"), "embedding": EMBEDDING}
        follows = {"follows": Answer("chances", "that the second sentence follows the first")}
        return {"classify": CLASSES, "pretrain": words | follows, "mask": words}[config.task]

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        tokens = batch["tokens"].long()
        x = self.through_layers(torch.stack([tokens, batch["segments"].long()], -1))  # (B, K) or (B, T, D)
        if self.words is None:
            return of_logits(x)
        words = logits(F.pad(self.words(x), (0, 1), value=1.0), self.vocabulary()).argmax(-1)
        found = {"tokens": words.where(tokens == self.config.mask, tokens), "embedding": x[:, 0].float()}
        return found | ({"follows": self.classify(x).float().softmax(-1)[:, 1:]} if self.head is not None else {})

    def read_out(self) -> nn.Module | None:
        return self.head

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        full = Config(**{key: value for key, value in model.items() if key != "family"})
        heads = 4 if full.heads % 4 == 0 else full.heads
        small = {"layers": min(full.layers, 4), "heads": heads, "width": 8 * heads, "inner": 32 * heads}
        return {**model, **small, "context": min(full.context, 32), "places": 0}

    def splits(self) -> dict[str, dict[str, int]]:
        inner = self.config.inner or 4 * self.config.width
        return {"tensor": {"attention heads": self.config.heads, "units of a perceptron": inner}}

    def inputs(self, batch: Batch) -> Tensor:
        tokens = batch["tokens"].long() if self.words is None else self.chosen(batch)[2]
        return torch.stack([tokens, batch["segments"].long()], -1)  # (B, T, 2)

    def chosen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Places to predict (B, K), their shares of the sample's loss (B, K), and the tokens with these hidden (B, T).

        The same whenever it is asked for one batch: `inputs` and `criterion` may run on different ranks.
        """
        config, tokens = self.config, batch["tokens"].long()
        (B, T), device = tokens.shape, tokens.device
        if noise.active():
            noise.layer(-1)  # the draws before those of the first layer
            drawn = noise.uniform(B, 3, T, device=device)
        else:
            drawn = torch.rand(B, 3, T, generator=torch.Generator().manual_seed(0)).to(device)
        order, kind, other = drawn.unbind(1)  # (B, T) each
        for mark in (PAD, *config.marks):
            order = order.masked_fill(tokens == mark, 2.0)
        order, places = order.sort(dim=-1, stable=True)
        K, length = max(1, round(config.hide * T)), (tokens != PAD).sum(-1, keepdim=True)
        order, places = order[:, :K], places[:, :K]
        count = (config.hide * length).round().clamp(1, K)  # (B, 1)
        real = (torch.arange(K, device=device) < count) & (order < 1)  # (B, K)
        kind, other, words = (x.gather(1, places) for x in (kind, other, tokens))
        another = 1 + (other * (config.vocabulary - 1)).long()
        hidden = torch.where(kind < 0.8, config.mask, torch.where(kind < 0.9, another, words))
        shares = real / real.sum(-1, keepdim=True).clamp(min=1)
        return places, shares, tokens.scatter(1, places, torch.where(real, hidden, words))

    def layers(self) -> list[Layer]:
        modules = (self.pooler, self.head, self.words, self.embeddings.word if self.words else None)
        last = self.classify if self.config.task == "classify" else lambda x: x[..., :-1]  # (B, K) or (B, T, D)
        return [
            Layer("embedding", self.embeddings, (self.embeddings,)),
            *(Layer(f"block {i}", block, (block,)) for i, block in enumerate(self.blocks)),
            Layer("head", last, tuple(m for m in modules if m is not None)),
        ]

    def classify(self, x: Tensor) -> Tensor:
        """(B, T, D) or (B, T, D + 1) -> (B, K), by the first place."""
        assert self.pooler is not None and self.head is not None
        return self.head(self.drop(torch.tanh(self.pooler(x[:, 0, : self.config.width]))))

    def vocabulary(self) -> Tensor:
        """(V, D + 1): each word's embedding with its bias behind it, which a constant input of 1 meets."""
        assert self.words is not None
        word = self.embeddings.word.weight
        weight = torch.cat([word, self.words.bias.weight], 1)
        weight.distdl_shard = shard_of(word)  # type: ignore[attr-defined]
        return weight

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        if self.config.task == "classify":
            losses, metrics = of_classes(output.float(), batch["label"].long())
            return mean_loss(losses, batch), metrics
        assert self.words is not None
        places, shares, _ = self.chosen(batch)  # (B, K)
        at_places = output.gather(1, places[..., None].expand(-1, -1, output.shape[-1]))  # (B, K, D)
        x, weight = F.pad(self.words(at_places), (0, 1), value=1.0).flatten(0, 1), self.vocabulary()  # (B*K, D + 1)
        words = batch["tokens"].long().gather(1, places)  # (B, K)
        losses = token_losses(x, weight, words.flatten(), self.loss_chunk_tokens).view_as(shares)
        of_samples = (losses * shares).sum(-1)  # (B,)
        loss, metrics = of_samples.mean(), {"masked_loss": mean(of_samples)}
        if not self.training:
            guess = gathered(logits(x, weight), -1)[:, : self.config.vocabulary].argmax(-1)
            metrics["masked_accuracy"] = mean(((guess.view_as(words) == words) * shares).sum(-1))
        if self.config.task == "mask":
            return loss, metrics
        following, of_following = of_classes(self.classify(output).float(), batch["label"].long())
        return loss + following.mean(), metrics | {"next_accuracy": of_following["accuracy"]}

    def evaluate(self, batch: Batch) -> Metrics:
        if self.config.task != "classify":
            return super().evaluate(batch)
        losses, metrics = of_classes(self.through(batch).float(), batch["label"].long())
        return {"loss": mean_known(losses, batch["label"]), **metrics}
