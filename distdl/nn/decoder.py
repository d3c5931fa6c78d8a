"""A decoder's block, as the family gpt's config says it: causal attention and a perceptron, each on a residual branch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout.axes import copied
from distdl.layout.noise import Dropout
from distdl.nn.attention import apart, together
from distdl.nn.language import attend, places, places_within
from distdl.nn.moe import MixtureOfExperts
from distdl.nn.rotary import Rotary


def normalised(config: Any) -> nn.Module:
    return (nn.RMSNorm if config.norm == "rms" else nn.LayerNorm)(config.width, eps=config.norm_eps)


class HeadRMSNorm(nn.RMSNorm):
    """Of each head's query or key (B, H, T, D/H); the heads of all ranks learn its one gain."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, copied(self.weight), self.eps)


class Attention(nn.Module):
    """Causal self-attention of several heads, H of queries and K of keys and values."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.of_head, self.window = config.of_head, config.window if config.window < config.context else 0
        inputs, queries, bias = config.width, config.heads * config.of_head, config.biases != "none"
        self.qkv: nn.Module | None = None
        if config.key_value_heads:
            self.q = nn.Linear(inputs, queries, bias)
            self.kv = nn.Linear(inputs, 2 * config.key_value_heads * config.of_head, bias)
        else:
            self.qkv = nn.Linear(inputs, 3 * queries, bias)
        self.out = nn.Linear(queries, config.width, config.biases == "all")
        self.q_norm, self.k_norm = (
            HeadRMSNorm(config.of_head, eps=config.norm_eps) if config.qk_norm else None for _ in "qk"
        )
        self.rotary: Rotary | None = None
        if config.positions == "rotary":
            self.rotary = Rotary(config.of_head, config.rope_theta, config.rope_stretch, config.rope_trained)

    def forward(self, x: Tensor, begins: Tensor | None = None) -> Tensor:
        """x (B, T, D); `begins` (B, T) is True where a document begins that shares the row with others."""
        B, T, _ = x.shape
        if self.qkv is not None:
            q, k, v = self.qkv(x).view(B, T, 3, -1, self.of_head).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D/H)
        else:
            q = self.q(x).view(B, T, -1, self.of_head).transpose(1, 2)  # (B, H, T, D/H)
            k, v = self.kv(x).view(B, T, 2, -1, self.of_head).permute(2, 0, 3, 1, 4)  # 2 x (B, K, T, D/H)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            place = places(x) if begins is None else places_within(begins)[:, None]  # (T,) or (B, 1, T)
            q, k = self.rotary.turned(q, place), self.rotary.turned(k, place)
        return self.out(attend(q, k, v, begins, self.window).transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


class Block(nn.Module):
    """Attention and a perceptron (or a mixture of such), each on a residual branch."""

    def __init__(self, config: Any, sparse: bool = False) -> None:
        super().__init__()
        self.ln1, self.attn = normalised(config), Attention(config)
        self.ln2 = normalised(config)
        self.moe: MixtureOfExperts | None = None
        self.gate_up: nn.Module | None = None
        bias = config.biases == "all"
        if sparse:
            sizes = (config.width, 4 * config.width, config.experts)
            self.moe = MixtureOfExperts(*sizes, config.experts_top_k, config.capacity)
        elif config.feed_forward == "swiglu":
            self.gate_up = nn.Linear(config.width, 2 * config.hidden, bias)
        else:
            self.up = nn.Linear(config.width, config.hidden, bias)
        if not sparse:
            self.down = nn.Linear(config.hidden, config.width, bias)
        self.drop, self.documents = Dropout(config.dropout), config.documents

    def forward(self, x: Tensor) -> Tensor:
        x, begins = apart(x) if self.documents else (x, None)
        x = x + self.drop(self.attn(self.ln1(x), begins))
        x = x + self.drop(self.perceptron(self.ln2(x)))
        return x if begins is None else together(x, begins)  # (B, T, D); D + 1: where a document begins

    def perceptron(self, x: Tensor) -> Tensor:
        if self.moe is not None:
            return self.moe(x)
        if self.gate_up is not None:
            gate, up = self.gate_up(x).chunk(2, -1)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(self.up(x), approximate="tanh"))
