"""Transformer, an encoder and a decoder of attention alone, for translation (Vaswani et al. 2017).

    encoder:  x = ln(x + attn(x));   x = ln(x + mlp(x))                                          (L times)
    decoder:  y = ln(y + causal attn(y));   y = ln(y + attn(y -> x));   y = ln(y + mlp(y))       (L times)
    logits = y E^T;   both start as sqrt(D) E[token] + P;   mlp(x) = W2 relu(W1 x + b1) + b2
    P[t, 2i] = sin(t / 10000^(2i/D)),   P[t, 2i+1] = cos(t / 10000^(2i/D))                       (section 3.5)

The loss is the cross entropy with smoothed labels (section 5.4), summed over a sentence and divided by the places that a
row has for it: padding counts as no loss, so that no micro-batch weighs more than another. Evaluation is per token.

The base model with one embedding of 37,000 tokens for both languages and the output (section 3.4) has 63,082,496
parameters, 44,138,496 of them in its 6 + 6 blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Count, CountOrZero, OpenShare
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Layer, Learner
from distdl.learner.answers import NOTHING
from distdl.metrics import Mean, Metrics
from distdl.nn.attention import CrossAttention, SelfAttention, apart, together
from distdl.nn.language import token_losses
from distdl.nn.recurrence import over_time

PAD, BEGIN, END = 0, 2, 3  # as the source `translation` numbers them


@dataclass(frozen=True)
class Config:
    vocabulary: Annotated[int, Field(gt=2)] = 37000
    """Number of different tokens of the language that is written; 0 is padding."""
    source_vocabulary: CountOrZero = 0
    """Number of different tokens of the language that is read; 0: both languages share one embedding."""
    source_length: Count = 128
    """Tokens of a sentence that is read, padding included."""
    target_length: Count = 128
    """Tokens that are predicted for a sentence, padding included; a row holds one more, the token it begins with."""
    layers: Count = 6
    """Blocks of the encoder, and as many of the decoder."""
    heads: Annotated[Count, INVISIBLE] = 8
    """Attention heads of a block; must divide `width`."""
    width: Annotated[int, Field(gt=0, multiple_of=2)] = 512
    """Size of a token's vector."""
    inner: CountOrZero = 0
    """Hidden units of a block's perceptron; 0: four times `width`."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.1
    """Probability of dropping in the embeddings and the residual branches."""
    smoothing: Annotated[OpenShare, TRAINING_ONLY] = 0.1
    """Share of a label that is spread evenly over the vocabulary while it learns."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split over {self.heads} heads; choose a divisor of it")


class Residual(nn.Module):
    """ln(x + dropout(y))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln, self.drop = nn.LayerNorm(config.width), Dropout(config.dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.ln(x + self.drop(y))


class Block(nn.Module):
    """A block of the encoder or the decoder. Both sentences go through it, one behind the other: (B, S + T, D + 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D, inner = config.width, config.inner or 4 * config.width
        self.lengths = [config.source_length, config.target_length]
        self.attn, self.after_attn = SelfAttention(D, config.heads), Residual(config)
        self.up, self.down, self.after_mlp = nn.Linear(D, inner), nn.Linear(inner, D), Residual(config)

    def mlp(self, x: Tensor) -> Tensor:
        return self.after_mlp(x, self.down(F.relu(self.up(x))))


class EncoderBlock(Block):
    def forward(self, stream: Tensor) -> Tensor:
        both, real = apart(stream)
        x, y = both.split(self.lengths, 1)  # (B, S, D), (B, T, D)
        x = self.mlp(self.after_attn(x, self.attn(x, real[:, : x.shape[1]])))
        return together(torch.cat([x, y], 1), real)


class DecoderBlock(Block):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cross, self.after_cross = CrossAttention(config.width, config.heads), Residual(config)

    def forward(self, stream: Tensor) -> Tensor:
        both, real = apart(stream)
        x, y = both.split(self.lengths, 1)  # (B, S, D), (B, T, D)
        y = self.after_attn(y, self.attn(y, causal=True))  # padding is last: no real place sees it
        y = self.mlp(self.after_cross(y, self.cross(y, x, real[:, : x.shape[1]])))
        return together(torch.cat([x, y], 1), real)


Pair = tuple[Tensor, Tensor]


class Transformer(Learner):
    targets = frozenset({"target"})
    primary, better = "loss", "lower"  # nats per token
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    tensor_plan = {
        "*embedding": "vocab",
        "blocks.*.attn.qkv": "column/3",
        "blocks.*.cross.query": "column",
        "blocks.*.cross.key_value": "column/2",
        "blocks.*.out": "row",
        "blocks.*.up": "column",
        "blocks.*.down": "row",
    }
    chunks_loss, static_criterion = True, False  # as many losses as there are real places

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        sources = config.source_vocabulary
        self.source_embedding = nn.Embedding(sources, config.width) if sources else None
        self.drop = Dropout(config.dropout)
        blocks = [EncoderBlock(config) for _ in range(config.layers)]
        self.blocks = nn.ModuleList([*blocks, *(DecoderBlock(config) for _ in range(config.layers))])
        for name, parameter in self.named_parameters():
            if name.endswith("embedding.weight"):
                nn.init.normal_(parameter, std=config.width**-0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:  # Glorot's, of each of the maps that are fused
                maps = 3 if "qkv" in name else 2 if "key_value" in name else 1
                for part in parameter.detach().chunk(maps):
                    nn.init.xavier_uniform_(part)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        read, key = config.source_vocabulary, "source_vocabulary"
        if not read:
            read, key = config.vocabulary, "vocabulary"
        return {
            "source": Column.tokens(read, (config.source_length,), key=key),
            "target": Column.tokens(config.vocabulary, (config.target_length + 1,)),
        }

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return {"target": Answer("tokens", "the likeliest token at each place", of="target")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        words = self.translate(batch["source"], BEGIN, END)
        return {"target": words.masked_fill((words == PAD) | (words == END), NOTHING)}

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        full = Config(**{key: value for key, value in model.items() if key != "family"})
        heads = 4 if full.heads % 4 == 0 else full.heads
        small = {"layers": min(full.layers, 2), "heads": heads, "width": 8 * heads, "inner": 32 * heads}
        lengths = {name: min(getattr(full, name), 32) for name in ("source_length", "target_length")}
        return {**model, **small, **lengths}

    def splits(self) -> dict[str, dict[str, int]]:
        inner = self.config.inner or 4 * self.config.width
        return {"tensor": {"attention heads": self.config.heads, "units of a perceptron": inner}}

    def inputs(self, batch: Batch) -> Tensor:
        return torch.cat([batch["source"].long(), batch["target"][:, :-1].long()], 1)  # (B, S + T)

    def layers(self) -> list[Layer]:
        languages = [e for e in (self.embedding, self.source_embedding) if e is not None]
        names = [f"{side} {i}" for side in ("encoder", "decoder") for i in range(self.config.layers)]
        return [
            Layer("embedding", self.embed, tuple(languages)),
            *(Layer(name, block, (block,)) for name, block in zip(names, self.blocks)),
            Layer("head", lambda x: x[:, self.config.source_length :, :-1], (self.embedding,)),  # (B, T, D)
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        D, S = self.config.width, self.config.source_length
        source, target = tokens[:, :S], tokens[:, S:]
        words = [(self.source_embedding or self.embedding)(source), self.embedding(target)]
        x = torch.cat([D**0.5 * w + sinusoids(w.shape[1], D).to(w) for w in words], 1)
        return together(self.drop(x), tokens != PAD)  # (B, S + T, D + 1)

    def losses(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What comes out at the real places (N, D), and the cross entropy there (N,)."""
        targets = batch["target"][:, 1:].long()  # (B, T)
        x = output[targets != PAD]
        return x, token_losses(x, self.embedding.weight, targets[targets != PAD], self.loss_chunk_tokens)

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """With e of the label spread over V words, cross entropy grows by e (x E[label] - x mean(E))."""
        x, losses = self.losses(output, batch)
        total = losses.sum()
        if self.config.smoothing and self.training:
            targets = batch["target"][:, 1:].long()
            every = self.embedding(torch.arange(self.config.vocabulary, device=x.device)).float().mean(0)  # (D,)
            surplus = self.embedding(targets[targets != PAD]).float() - every  # (N, D)
            total = total + self.config.smoothing * (x.float() * surplus).sum()
        return total / output.shape[:2].numel(), {"loss": Mean(total.detach(), float(len(losses)))}  # shown: per token

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        _, losses = self.losses(self.through(batch), batch)
        return {"loss": Mean(losses.sum(), float(len(losses)))}

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S), (B, T) -> (B, T, V)"""
        output = self.through({"source": source, "target": F.pad(target, (0, 1))})
        return F.linear(output, self.embedding.weight)

    @torch.no_grad()
    def translate(self, source: Tensor, begin: int, end: int) -> Tensor:
        """(B, S) -> (B, T): the likeliest token at each place, given those before it; padding behind `end`."""
        source = source.long()
        target = source.new_full((source.shape[0], 1 + self.config.target_length), PAD)
        target[:, 0] = begin
        state = target, torch.ones_like(source[:, 0], dtype=torch.bool)
        places = torch.arange(self.config.target_length, device=source.device)[None]  # (1, T)
        if torch.compiler.is_exporting():
            return over_time(partial(self.write, source, end), state, places)[1][0][:, 1:]
        for place in places.T:
            state, going = self.write(source, end, state, place)
            if not going.any():
                break
        return state[0][:, 1:]

    def write(self, source: Tensor, end: int, state: Pair, place: Tensor) -> tuple[Pair, Tensor]:
        """What is written (B, 1 + T) and which rows go on (B,) -> the same with the token that follows the place (1,)."""
        target, going = state
        x = self.embed(torch.cat([source, target[:, :-1]], 1))
        for block in self.blocks:
            x = block(x)
        at = x[:, self.config.source_length :, :-1].index_select(1, place).squeeze(1)  # (B, D)
        word = F.linear(at, self.embedding.weight).argmax(-1).where(going, PAD)
        target = target.scatter(1, (place + 1).expand(target.shape[0], 1), word[:, None])
        going = going & (word != end)
        return (target, going), going


def sinusoids(places: int, width: int) -> Tensor:
    """(T, D): sine and cosine of the place in turn, of wavelengths from 2 pi to 10000 * 2 pi."""
    angle = torch.arange(places)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)  # (T, D/2)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
