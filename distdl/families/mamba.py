"""Mamba, a language model on selective state spaces (Gu & Dao 2023, arXiv 2312.00752).

    x, z = W_in u;   x = silu(conv(x))                       a causal convolution over 4 tokens, each channel by itself
    delta = softplus(W_dt (W_r x) + b_dt);   B, C = W_b x, W_c x                 step and maps chosen by the input (s. 3.2)
    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t           A = -exp(A_log), N states for each of the E = 2D channels
    y_t = C_t h_t + D x_t;    out = W_out (y silu(z))        a block: residual + out(rmsnorm(residual));  tied head

h_t = a_t h_{t-1} + b_t is associative, so that T steps take 2 log2 T rounds instead of T (Blelloch 1990). All a are at most
1: nothing overflows. A sequence is gone through in chunks, whose states are computed again in the backward pass.

With the default config it is Mamba-130m, 129,135,360 parameters. 48 blocks of width 1024 have 371,516,416 (370m), of 1536
793,204,224 (790m), of 2048 1,372,178,432 (1.4b); 64 of 2560 have 2,768,345,600 (2.8b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distdl.config.fields import Count, CountOrZero, Several
from distdl.learner import Answer, Batch, Column, Layer, Learner
from distdl.learner.answers import NEXT_TOKEN, last_real
from distdl.metrics import Metrics, mean
from distdl.nn.language import logits, token_losses
from distdl.nn.recurrence import over_time
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    vocabulary: Several = 50280
    """Number of different tokens; 256 for bytes."""
    context: Count = 2048
    """Tokens of a training sample but the last, which is a target only."""
    layers: Count = 24
    """Mamba blocks."""
    width: Count = 768
    """Size D of the residual stream."""
    states: Count = 16
    """States N of each channel."""
    expand: Count = 2
    """Channels of a block, as a multiple of `width`."""
    convolution: Count = 4
    """Tokens that the convolution sees."""
    delta_rank: CountOrZero = 0
    """Rank of the map to the step sizes; 0: a sixteenth of `width`, rounded up."""
    chunk: Count = 256
    """Tokens whose states, B * chunk * channels * N numbers, exist at a time."""
    answer: CountOrZero = 0
    """Last tokens of a sample that are asked for; 0: every token."""

    def __post_init__(self) -> None:
        if self.answer > self.context:
            raise ValueError(f"answer is {self.answer} and a sample predicts {self.context} tokens; ask for fewer")

    @property
    def rank(self) -> int:
        """Rank of the map to the step sizes."""
        return self.delta_rank or math.ceil(self.width / 16)


class Recurrence(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t along dimension 1, from h_{-1} = 0. The adjoint is the same recurrence, from the end."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        following = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
        db = scan(following.flip(1), grad.flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return db * before, db


def scan(a: Tensor, b: Tensor) -> Tensor:
    """All h_t = a_t h_{t-1} + b_t, (B, T, ...): two steps make one of the same kind, which halves the sequence."""
    T = b.shape[1]
    if T == 1:
        return b
    pairs = T // 2
    a_even, a_odd = a[:, : 2 * pairs : 2], a[:, 1::2]
    b_even, b_odd = b[:, : 2 * pairs : 2], b[:, 1::2]
    h = torch.empty_like(b)
    odd = scan(a_odd * a_even, torch.addcmul(b_odd, a_odd, b_even))  # (B, T/2, ...): h_1, h_3, ...
    h[:, 1::2] = odd
    h[:, 0] = b[:, 0]
    if T > 2:
        evens = (T - 1) // 2  # h_2, h_4, ...
        terms = (b[:, 2::2], a[:, 2::2], odd[:, :evens])
        if torch.compiler.is_compiling():  # which writes into a part of a tensor by an assignment only
            h[:, 2::2] = torch.addcmul(*terms)
        else:
            torch.addcmul(*terms, out=h[:, 2::2])
    return h


def chunk_states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk of T tokens from the state h (B, E, N) on: outputs (B, T, E), last state (B, E, N)."""
    a = (delta.unsqueeze(-1) * A).exp()  # (B, T, E, N)
    b = (delta * x).unsqueeze(-1) * B.unsqueeze(2)  # (B, T, E, N)
    b = torch.cat([(b[:, 0] + a[:, 0] * h).unsqueeze(1), b[:, 1:]], 1)
    states = Recurrence.apply(a, b)
    return (states @ C.unsqueeze(-1)).squeeze(-1), states[:, -1]


def selective_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """y_t = C_t h_t. x, delta (B, T, E); A (E, N); B, C (B, T, N) -> (B, T, E)."""
    h, outputs = x.new_zeros(x.shape[0], *A.shape), []
    if torch.compiler.is_exporting():
        return step_by_step(x, delta, A, B, C, h)
    parts = list(zip(*(t.split(chunk, 1) for t in (x, delta, B, C))))
    for part_x, part_delta, part_B, part_C in parts:
        arguments = (part_x, part_delta, A, part_B, part_C, h)
        if len(parts) > 1 and torch.is_grad_enabled():
            y, h = checkpoint(chunk_states, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = chunk_states(*arguments)
        outputs.append(y)
    return torch.cat(outputs, 1)


def step_by_step(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> Tensor:
    """The same for rows of any length: what halves a sequence is made for one."""
    a = (delta.unsqueeze(-1) * A).exp()  # (B, T, E, N)
    b = (delta * x).unsqueeze(-1) * B.unsqueeze(2)  # (B, T, E, N)

    def step(h: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        h = now[:, 0] * h + now[:, 1]
        return h, h

    states, _ = over_time(step, h, torch.stack([a, b], 2))  # (B, T, E, N)
    return (states @ C.unsqueeze(-1)).squeeze(-1)


class Mixer(nn.Module):
    """The selective state space between its projections."""

    parameter_kinds = {"A_log": "state"}

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, rank = config.expand * config.width, config.rank
        self.sizes, self.chunk = (rank, config.states, config.states), config.chunk
        self.into = nn.Linear(config.width, 2 * channels, bias=False)
        self.conv = nn.Conv1d(channels, channels, config.convolution, groups=channels, padding=config.convolution - 1)
        self.choose = nn.Linear(channels, sum(self.sizes), bias=False)
        self.delta = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, config.states + 1).log().repeat(channels, 1))  # (E, N)
        self.D = nn.Parameter(torch.ones(channels))
        self.out = nn.Linear(channels, config.width, bias=False)
        nn.init.uniform_(self.delta.weight, -(rank**-0.5), rank**-0.5)
        step = torch.exp(torch.rand(channels) * math.log(100) + math.log(1e-3)).clamp(min=1e-4)  # 0.001 .. 0.1
        with torch.no_grad():
            self.delta.bias.copy_(step + torch.log(-torch.expm1(-step)))  # whose softplus is the step
            self.out.weight.div_(config.layers**0.5)

    def forward(self, u: Tensor) -> Tensor:
        x, gate = self.into(u).chunk(2, -1)  # (B, T, E) each
        x = F.silu(self.conv(x.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2))
        low, B, C = self.choose(x).split(self.sizes, -1)  # (B, T, R), (B, T, N), (B, T, N)
        delta = F.softplus(self.delta(low)).float()  # (B, T, E); the recurrence runs in fp32
        A = -self.A_log.float().exp()
        y = selective_scan(x.float(), delta, A, B.float(), C.float(), self.chunk)
        return self.out((y + self.D * x).to(x.dtype) * F.silu(gate))  # (B, T, D)


class Block(nn.Module):
    """A mixer on a residual branch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(config.width, eps=1e-5), Mixer(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class Mamba(Learner):
    any_length = frozenset({"tokens"})
    primary, better = "loss", "lower"  # nats per token
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    # The scan stays whole; what is cut is 9 of 10 weights: the embedding, and the maps into and out of the channels.
    tensor_plan = {"embedding": "vocab", "blocks.*.mixer.into": "gather", "blocks.*.mixer.out": "gather"}
    chunks_loss = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        nn.init.normal_(self.embedding.weight, std=0.02)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"tokens": Column.tokens(config.vocabulary, (config.context + 1,))}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return NEXT_TOKEN

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        x = last_real(self.through_layers(batch["tokens"].long()), batch.get("length"))
        return {"next": logits(x, self.embedding.weight).float().softmax(-1)}

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        full = Config(**{key: value for key, value in model.items() if key != "family"})
        context = min(full.context, 32)
        small = {"layers": min(full.layers, 4), "width": min(full.width, 32), "context": context}
        return {**model, **small, "chunk": min(full.chunk, 8), "answer": min(full.answer, context)}

    def inputs(self, batch: Batch) -> Tensor:
        return batch["tokens"][:, :-1].long()  # (B, T)

    def layers(self) -> list[Layer]:
        return [
            Layer("embedding", self.embedding, (self.embedding,)),
            *(Layer(f"block {i}", block, (block,)) for i, block in enumerate(self.blocks)),
            Layer("head", self.norm, (self.norm, self.embedding)),
        ]

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        asked = self.config.answer or self.config.context
        targets, output = batch["tokens"][:, -asked:].long().flatten(), output[:, -asked:].flatten(0, 1)
        losses = token_losses(output, self.embedding.weight, targets, self.loss_chunk_tokens)
        shown("places", lambda: {"losses": losses.view(-1, asked)})
        if not self.config.answer:
            return losses.mean(), {}
        # The right token has the highest score of all where its loss is below ln 2, and nearly always only there.
        return losses.mean(), {"answered": mean((losses < math.log(2)).float())}

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)"""
        return logits(self.through({"tokens": F.pad(tokens, (0, 1))}), self.embedding.weight)
