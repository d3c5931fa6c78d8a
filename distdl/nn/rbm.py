"""The machine between two layers of a greedy stack (learner/greedy.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout.noise import bernoulli


class RBM(nn.Module):
    """Restricted Boltzmann machine; its forward is the loss whose gradient is contrastive divergence (see families/rbm)."""

    def __init__(self, visible: int, hidden: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, visible))  # (H, V)
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def up(self, v: Tensor) -> Tensor:
        """P(h=1|v): (B, V) -> (B, H)."""
        return torch.sigmoid(F.linear(v, self.weight, self.hidden_bias))

    def down(self, h: Tensor) -> Tensor:
        """P(v=1|h): (B, H) -> (B, V)."""
        return torch.sigmoid(h @ self.weight + self.visible_bias)

    def free_energy(self, v: Tensor) -> Tensor:
        """(B, V) -> (B,) nats."""
        return -(v @ self.visible_bias) - F.softplus(F.linear(v, self.weight, self.hidden_bias)).sum(-1)

    def forward(self, v: Tensor) -> Tensor:
        with torch.no_grad():
            model = v
            for _ in range(self.k):
                model = self.down(bernoulli(self.up(model)))
        return (self.free_energy(v) - self.free_energy(model)).mean()
