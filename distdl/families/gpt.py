"""GPT, a decoder-only Transformer language model (Radford et al. 2018, 2019: GPT-2; Touvron et al. 2023: Llama).

    h = wte[token] + wpe[position];   h += attn(ln(h));   h += mlp(ln(h))   (pre-norm, L times);   logits = ln(h) wte^T

Causal self-attention (Vaswani et al. 2017, eq. 1), GELU (tanh form), residual projections initialised with std
0.02/sqrt(2L). With the default config it is GPT-2 small: 124,439,808 parameters, the head tied to the embedding. What has
been changed since is a choice each, and together they are the models that people train:

    positions: rotary       queries and keys are turned by their place (nn/rotary.py); there is no wpe
    norm: rms               ln(h) = g h / sqrt(mean h^2 + eps)                           (Zhang & Sennrich 2019)
    feed_forward: swiglu    mlp(h) = W3 (silu(W1 h) * W2 h)                              (Shazeer 2020)
    key_value_heads         fewer heads of keys than of queries, each shared by several  (Ainslie et al. 2023)
    window                  a token attends to the last ones only                        (Beltagy et al. 2020)
    tied: false             a head of its own                                            z_loss (Chowdhery et al. 2023)

Llama, Mistral, Qwen2 and Qwen3 are such, and their weights cross both ways (checkpoint/dialects/llama.py says which choices
make which). With `experts`, every n-th block has a mixture of experts for its perceptron (Lepikhin et al. 2021; see
nn/moe.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.columns import NO_LABEL, language_columns
from distdl.config.fields import Amount, AmountOrZero, Count, CountOrZero, OpenShare, Several
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Layer, Learner
from distdl.learner.answers import NEXT_TOKEN, last_real, window
from distdl.learner.labels import mean_of_counted
from distdl.metrics import Mean, Metrics
from distdl.nn.attention import apart, together
from distdl.nn.decoder import Block, normalised
from distdl.nn.language import Memory, begins_of, logits, places, places_within, token_losses
from distdl.nn.moe import router_loss
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
    """Attention heads of a block; must divide `width`, where `head_width` says nothing else."""
    width: Count = 768
    """Size of the residual stream."""
    positions: Literal["learned", "rotary"] = "learned"
    """A vector for each place of the context, or queries and keys that are turned by their place."""
    rope_theta: Annotated[Amount, INVISIBLE] = 10_000.0
    """rotary: base of the wave lengths; more for longer contexts (Llama 3 has 500,000)."""
    rope_stretch: Annotated[Amount, INVISIBLE] = 1.0
    """rotary: what low frequencies are divided by, for contexts beyond `rope_trained` (Llama 3.1 has 8)."""
    rope_trained: Annotated[Count, INVISIBLE] = 8192
    """rotary: the context before it was stretched."""
    norm: Annotated[Literal["layer", "rms"], INVISIBLE] = "layer"
    """Before each branch and the head: layer norm, or root mean square alone, without mean and bias."""
    norm_eps: Annotated[Amount, INVISIBLE] = 1e-5
    """Added to the variance or the mean square."""
    feed_forward: Literal["gelu", "swiglu"] = "gelu"
    """The perceptron of a block: two maps and GELU, or three and a gate."""
    inner: CountOrZero = 0
    """Units of a block's perceptron; 0: 4 times `width`."""
    biases: Literal["all", "qkv", "none"] = "all"
    """Which linear maps of a block have a bias: all, those of queries, keys and values (Qwen2), or none (Llama)."""
    key_value_heads: Annotated[CountOrZero, INVISIBLE] = 0
    """Heads of keys and values, each for several of queries, in a map of their own; 0: as many as `heads`, in one map."""
    head_width: Annotated[CountOrZero, INVISIBLE] = 0
    """Numbers of a head's query; 0: `width` divided by `heads`."""
    qk_norm: bool = False
    """RMS norm of each head's query and key, with a gain that the heads share (Qwen3)."""
    window: Annotated[CountOrZero, INVISIBLE] = 0
    """The last tokens, itself among them, that a token attends to in a block; 0: all of the context."""
    tied: bool = True
    """The head's weights are those of the embedding."""
    z_loss: Annotated[AmountOrZero, TRAINING_ONLY] = 0.0
    """In training, weight of the squared logarithm of the softmax's denominator in the loss; 1e-4 keeps logits small."""
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
        self._check_block()
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

    def _check_block(self) -> None:
        if self.width % self.heads and not self.head_width:
            raise ValueError(f"width {self.width} cannot be split over {self.heads} heads; choose a divisor of it")
        if self.key_value_heads and self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_value_heads} key_value_heads; take a divisor")
        if self.positions == "rotary" and self.of_head % 2:
            raise ValueError(f"heads are {self.of_head} wide, and rotary positions turn pairs; take an even head_width")
        of_rotary = ("rope_theta", "rope_stretch", "rope_trained")
        if self.positions != "rotary" and (changed := [n for n in of_rotary if getattr(self, n) != getattr(Config, n)]):
            raise ValueError(f"{' and '.join(changed)} without rotary positions; set positions, or leave that out")
        if self.experts and (self.feed_forward != "gelu" or self.inner or self.biases != "all"):
            raise ValueError("experts are perceptrons of GELU, 4 times as wide as width, with biases; leave others out")

    @property
    def of_head(self) -> int:
        """Numbers of a head's query."""
        return self.head_width or self.width // self.heads

    @property
    def hidden(self) -> int:
        """Units of a block's perceptron."""
        return self.inner or 4 * self.width

    def sparse(self, block: int) -> bool:
        """Whether a block has experts."""
        return self.experts > 0 and (block + 1) % self.experts_every == 0


class GPT(Learner):
    targets, any_length = frozenset({"labels"}), frozenset({"tokens", "documents"})
    primary, better = "loss", "lower"  # nats per token
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline", "sequence", "expert"})
    tensor_plan = {
        "wte": "vocab",
        "lm_head": "vocab",
        "blocks.*.attn.qkv": "column/3",
        "blocks.*.attn.q": "column",
        "blocks.*.attn.kv": "column/2",
        "blocks.*.attn.out": "row",
        "blocks.*.gate_up": "column/2",
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
        self.wpe = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, config.sparse(i)) for i in range(config.layers))
        self.ln = normalised(config)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                residual = name.endswith(("attn.out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.layers) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def words(self) -> Tensor:
        """(V, D): what the last stream is compared with; this rank's part of V where the vocabulary is cut."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

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
        return {"next": logits(last_real(x, length), self.words).float().softmax(-1)}

    def memory(self) -> Memory | None:
        """None where tokens compete for experts: what becomes of one hangs on how many are read with it."""
        return None if self.config.experts and self.config.capacity else Memory(self.config.context)

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        full = Config(**{key: value for key, value in model.items() if key != "family"})
        heads = 4 if full.heads % 4 == 0 else full.heads
        small = {"layers": min(full.layers, 4), "heads": heads, "width": 8 * heads, "context": min(full.context, 32)}
        if heads != full.heads and full.key_value_heads:  # two of four, where there were fewer than of queries
            small["key_value_heads"] = math.gcd(full.key_value_heads, 4 if full.key_value_heads == full.heads else 2)
        if full.head_width:
            small["head_width"] = 8
        if full.inner:
            small["inner"] = small["width"] * 2
        if full.window:
            small["window"] = min(full.window, small["context"] // 2)
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
        if self.config.key_value_heads:
            parts["tensor"]["heads of keys and values"] = self.config.key_value_heads
        return parts

    def counted(self, batch: Batch) -> Tensor | None:
        return (batch["labels"][:, 1:] != NO_LABEL).sum() if self.config.labels else None

    def inputs(self, batch: Batch) -> Tensor:
        tokens = batch["tokens"][:, :-1].long()  # (B, T)
        return torch.stack([tokens, begins_of(batch["documents"][:, :-1])], -1) if self.config.documents else tokens

    def layers(self) -> list[Layer]:
        return [
            Layer("embedding", self.embed, (self.wte,) if self.wpe is None else (self.wte, self.wpe)),
            *(Layer(f"block {i}", block, (block,)) for i, block in enumerate(self.blocks)),
            Layer("head", self.head, (self.ln, self.wte if self.lm_head is None else self.lm_head)),
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        tokens, begins = tokens.unbind(-1) if self.config.documents else (tokens, None)
        x = self.wte(tokens)  # (B, T, D)
        if self.wpe is not None:
            x = x + self.wpe(places(tokens) if begins is None else places_within(begins))
        x = self.drop(x)
        return x if begins is None else together(x, begins)  # (B, T, D); D + 1: where a document begins

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
        z, x = self.config.z_loss if self.training else 0.0, output.flatten(0, 1)
        losses = token_losses(x, self.words, targets.clamp(min=0), self.loss_chunk_tokens, z)
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
        return logits(self.through(batch), self.words)
