"""GPT, a decoder-only Transformer language model (Radford et al. 2018, 2019: GPT-2).

    h = wte[token] + wpe[position];   h += attn(ln(h));   h += mlp(ln(h))   (pre-norm, L times);   logits = ln(h) wte^T

Causal self-attention (Vaswani et al. 2017, eq. 1), GELU (tanh form), residual projections initialised with std
0.02/sqrt(2L). With the default config it is GPT-2 small: 124,439,808 parameters, the head tied to the embedding. With
`experts`, every n-th block has a mixture of experts for its perceptron (Lepikhin et al. 2021; see nn/moe.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.columns import NO_LABEL, language_columns
from distdl.config.fields import AmountOrZero, Count, CountOrZero, OpenShare, Several
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Layer, Learner
from distdl.learner.answers import NEXT_TOKEN, last_real, window
from distdl.learner.labels import mean_of_counted
from distdl.metrics import Mean, Metrics
from distdl.nn.attention import apart, together
from distdl.nn.language import Memory, attend, begins_of, logits, places, places_within, token_losses
from distdl.nn.moe import MixtureOfExperts, router_loss
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    vocabulary: Several = 50257
    """Number of different tokens; 256 for bytes."""
    context: Count = 1024
    """Tokens the model looks back on; a sample holds one more, the last target."""
    layers: Count = 12
    """Transformer blocks."""
    heads: Annotated[Count, INVISIBLE] = 12
    """Attention heads of a block; must divide `width`."""
    width: Count = 768
    """Size of the residual stream."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.0
    """Probability of dropping in the embedding and the residual branches."""
    experts: CountOrZero = 0
    """Experts of a sparse block; 0: every block is dense."""
    experts_top_k: Literal[1, 2] = 1
    """Experts that a token goes through."""
    experts_every: Count = 2
    """Every n-th block is sparse."""
    capacity: AmountOrZero = 1.25
    """Tokens of a sequence that an expert takes, as a multiple of its even share; 0: no limit."""
    labels: Annotated[bool, TRAINING_ONLY] = False
    """The column `labels`, as long as `tokens`, says which token each place has, and -100: none counts there."""
    documents: Annotated[bool, TRAINING_ONLY] = False
    """Documents that share a row, told apart by the column `documents`, do not see each other and begin at place 0."""
    balance_loss: Annotated[AmountOrZero, TRAINING_ONLY] = 0.01
    """Weight of the loss that spreads the tokens evenly over the experts."""
    router_z_loss: Annotated[AmountOrZero, TRAINING_ONLY] = 0.001
    """Weight of the loss that keeps the router's scores small."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split over {self.heads} heads; choose a divisor of it")
        if self.documents and not self.labels:
            raise ValueError("documents without labels: the end of one would learn the next one's begin; set labels")
        if self.documents and self.experts:
            raise ValueError("documents with experts: the tokens of a row compete for them; prepare with packing=none")
        of_experts = ("experts_top_k", "experts_every", "capacity", "balance_loss", "router_z_loss")
        if not self.experts:
            if changed := [name for name in of_experts if getattr(self, name) != getattr(Config, name)]:
                raise ValueError(f"{' and '.join(changed)} without experts; set experts, or leave that out")
        elif self.experts_top_k > self.experts:
            raise ValueError(f"experts_top_k is {self.experts_top_k} and experts is {self.experts}; take more experts")
        elif self.experts_every > self.layers:
            raise ValueError(f"experts_every is {self.experts_every} and layers is {self.layers}: no block has experts")

    def sparse(self, block: int) -> bool:
        """Whether a block has experts."""
        return self.experts > 0 and (block + 1) % self.experts_every == 0


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, begins: Tensor | None = None) -> Tensor:
        """x (B, T, D); `begins` (B, T) is True where a document begins that shares the row with others."""
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, -1, self.head_width).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D/H)
        return self.out(attend(q, k, v, begins).transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


class Block(nn.Module):
    """Attention and a two-layer perceptron (or a mixture of such), each on a residual branch."""

    def __init__(self, config: Config, sparse: bool = False) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(config.width), Attention(config)
        self.ln2 = nn.LayerNorm(config.width)
        self.moe: MixtureOfExperts | None = None
        if sparse:
            sizes = (config.width, 4 * config.width, config.experts)
            self.moe = MixtureOfExperts(*sizes, config.experts_top_k, config.capacity)
        else:
            self.up = nn.Linear(config.width, 4 * config.width)
            self.down = nn.Linear(4 * config.width, config.width)
        self.drop, self.documents = Dropout(config.dropout), config.documents

    def forward(self, x: Tensor) -> Tensor:
        x, begins = apart(x) if self.documents else (x, None)
        x = x + self.drop(self.attn(self.ln1(x), begins))
        x = x + self.drop(self.perceptron(self.ln2(x)))
        return x if begins is None else together(x, begins)  # (B, T, D); D + 1: where a document begins

    def perceptron(self, x: Tensor) -> Tensor:
        if self.moe is not None:
            return self.moe(x)
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class GPT(Learner):
    targets, any_length = frozenset({"labels"}), frozenset({"tokens", "documents"})
    primary, better = "loss", "lower"  # nats per token
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline", "sequence", "expert"})
    tensor_plan = {
        "wte": "vocab",
        "blocks.*.attn.qkv": "column/3",
        "blocks.*.attn.out": "row",
        "blocks.*.up": "column",
        "blocks.*.down": "row",
    }
    sequence_columns = {"tokens": 1}
    chunks_loss = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        if config.labels:
            self.sequence_columns = {"tokens": 1, "labels": 1}
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, config.sparse(i)) for i in range(config.layers))
        self.ln = nn.LayerNorm(config.width)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                residual = name.endswith(("attn.out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.layers) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return language_columns(config.vocabulary, config.context, config.labels, config.documents)

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return NEXT_TOKEN

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """Of each row's last `context` tokens; of its first `length` (B,) where rows are filled up behind."""
        tokens, length = window(batch["tokens"].long(), batch.get("length"), self.config.context)
        documents, _ = window(
            batch.get("documents", torch.zeros_like(tokens)), batch.get("length"), self.config.context
        )
        x = self.through({"tokens": F.pad(tokens, (0, 1)), "documents": F.pad(documents, (0, 1))})
        return {"next": logits(last_real(x, length), self.wte.weight).float().softmax(-1)}

    def memory(self) -> Memory | None:
        """None where tokens compete for experts: what becomes of one hangs on how many are read with it."""
        return None if self.config.experts and self.config.capacity else Memory(self.config.context)

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        full = Config(**{key: value for key, value in model.items() if key != "family"})
        heads = 4 if full.heads % 4 == 0 else full.heads
        small = {"layers": min(full.layers, 4), "heads": heads, "width": 8 * heads, "context": min(full.context, 32)}
        if full.experts:
            small |= {"experts_every": min(full.experts_every, small["layers"])}
        return {**model, **small}

    def splits(self) -> dict[str, dict[str, int]]:
        parts = {"tensor": {"attention heads": self.config.heads}, "sequence": {"tokens": self.config.context}}
        if self.config.experts:  # tokens compete for experts within a sequence; the routers' losses need every block
            parts |= {"sequence": {"routing group": 1}, "pipeline": {"sum of the routers' losses": 1}}
            parts["expert"] = {"experts": self.config.experts}
        if self.config.documents:  # attention over slices has no borders
            parts["sequence"] = {"row with borders between documents": 1}
        return parts

    def counted(self, batch: Batch) -> Tensor | None:
        return (batch["labels"][:, 1:] != NO_LABEL).sum() if self.config.labels else None

    def inputs(self, batch: Batch) -> Tensor:
        tokens = batch["tokens"][:, :-1].long()  # (B, T)
        return torch.stack([tokens, begins_of(batch["documents"][:, :-1])], -1) if self.config.documents else tokens

    def layers(self) -> list[Layer]:
        return [
            Layer("embedding", self.embed, (self.wte, self.wpe)),
            *(Layer(f"block {i}", block, (block,)) for i, block in enumerate(self.blocks)),
            Layer("head", self.head, (self.ln, self.wte)),
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        if not self.config.documents:
            return self.drop(self.wte(tokens) + self.wpe(places(tokens)))  # (B, T, D)
        tokens, begins = tokens.unbind(-1)
        return together(self.drop(self.wte(tokens) + self.wpe(places_within(begins))), begins)  # (B, T, D + 1)

    def head(self, x: Tensor) -> Tensor:
        return self.ln(apart(x)[0] if self.config.documents else x)  # (B, T, D)

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        losses, counts = self.losses(output, batch)
        loss = mean_of_counted(losses, counts, batch) if self.config.labels else losses.mean()
        if not (self.config.experts and self.training):
            return loss, {}
        routing, metrics = router_loss(self.blocks, self.config.balance_loss, self.config.router_z_loss)
        return loss + routing, metrics

    def losses(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B*T,) of every place: the cross entropy, 0 where it does not count, and whether it does."""
        targets = batch["labels" if self.config.labels else "tokens"][:, 1:].long().flatten()
        losses = token_losses(output.flatten(0, 1), self.wte.weight, targets.clamp(min=0), self.loss_chunk_tokens)
        losses = losses.masked_fill(targets == NO_LABEL, 0.0)
        shown("places", lambda: {"losses": losses.view(len(output), -1)})
        return losses, targets != NO_LABEL

    def evaluate(self, batch: Batch) -> Metrics:
        if not self.config.labels:
            return super().evaluate(batch)
        losses, counts = self.losses(self.through(batch), batch)
        return {"loss": Mean(losses.sum(), float(counts.sum()))}

    def logits(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, T, V); where the vocabulary is cut, this rank's part of V. `documents` (B, T), where rows have
        several"""
        documents = torch.zeros_like(tokens) if documents is None else documents
        batch = {"tokens": F.pad(tokens, (0, 1)), "documents": F.pad(documents, (0, 1))}
        return logits(self.through(batch), self.wte.weight)
