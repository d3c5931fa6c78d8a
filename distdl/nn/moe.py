"""A mixture of experts in the place of a Transformer's perceptron: every token goes through its best k of E perceptrons.

    p = softmax(W x) in fp32;   y = sum over the k experts e with the largest p of  g_e expert_e(x)
    k = 1: g_e = p_e (Switch, Fedus et al. 2022, eq. 2);  k = 2: g_e = p_e / (p_1st + p_2nd) (GShard, Lepikhin et al. 2021)

An expert takes ceil(k T / E * capacity) tokens of a sequence of T, first choices before second ones and each in token
order; a choice beyond that is dropped and adds nothing to the residual stream. The sequence is the group in which tokens
compete, in the capacity and in the losses, so that a sample's output depends neither on the batch nor on the ranks.

    balance = E sum_e f_e P_e,  f_e: share of the tokens that choose e first, P_e: mean of p_e (Switch, eq. 4)
    z       = mean over the tokens of (log sum_e exp s_e)^2,  s = W x (ST-MoE, Zoph et al. 2022, eq. 5)

Along the expert axis each rank holds E/P of the experts, and an all-to-all brings tokens to them and back.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout.axes import here
from distdl.metrics import Metrics, mean


class Routes(NamedTuple):
    """Where the tokens of B sequences go. The k*T choices of a sequence: all first ones in token order, then all second."""

    expert: Tensor
    """int64 (B, k*T)"""
    gate: Tensor
    """fp32 (B, k*T): weight of the expert's output; 0 for a dropped choice."""
    place: Tensor
    """int64 (B, k*T): place in the expert's queue of this sequence; 0 for a dropped choice."""
    kept: Tensor
    """bool (B, k*T)"""
    capacity: int
    """Length of a queue."""


class RouterLosses(NamedTuple):
    """(B,) each: a sequence's balance loss, its z loss, and the share of its choices that was dropped."""

    balance: Tensor
    z: Tensor
    dropped: Tensor


def route(scores: Tensor, k: int, factor: float) -> tuple[Routes, RouterLosses]:
    """Sends each token to the k experts with the highest of its scores, fp32 (B, T, E). factor 0: no limit to a queue."""
    B, T, E = scores.shape
    probabilities = scores.softmax(-1)
    gates, choices = probabilities.topk(k)  # (B, T, k)
    if k > 1:
        gates = gates / gates.sum(-1, keepdim=True)
    expert = choices.transpose(1, 2).reshape(B, k * T)
    chosen = F.one_hot(expert, E)  # (B, k*T, E)
    place = (chosen.cumsum(1) - 1).gather(2, expert.unsqueeze(-1)).squeeze(-1)  # choices of the same expert before it
    if factor:
        capacity = min(T, math.ceil(k * T / E * factor - 1e-9))
    else:
        capacity = int(here.expert.max(chosen.sum(1).max()))
    kept = place < capacity
    gate = gates.transpose(1, 2).reshape(B, k * T)
    routes = Routes(expert, gate * kept, place * kept, kept, capacity)
    first = chosen[:, :T].to(scores.dtype).mean(1)  # (B, E)
    losses = RouterLosses(
        balance=E * (first * probabilities.mean(1)).sum(-1),
        z=scores.logsumexp(-1).square().mean(1),
        dropped=1 - kept.to(scores.dtype).mean(1),
    )
    return routes, losses


class Router(nn.Module):
    """Scores of the experts, (B, T, D) -> (B, T, E), in fp32 whatever the precision around it (Switch, section 2.4)."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


class Expert(nn.Module):
    """A perceptron of two layers, (N, D) -> (N, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class MixtureOfExperts(nn.Module):
    """(B, T, D) -> (B, T, D), each token by `top_k` of the `count` experts."""

    def __init__(self, width: int, hidden: int, count: int, top_k: int, capacity: float) -> None:
        super().__init__()
        self.count, self.top_k, self.capacity = count, top_k, capacity
        self.router = Router(width, count)
        self.experts = nn.ModuleDict({str(i): Expert(width, hidden) for i in range(count)})
        """By number; where they are cut along an axis, this rank's."""
        for parameter in self.experts.parameters():
            parameter.distdl_expert = True  # type: ignore[attr-defined]
        self.losses: RouterLosses | None = None
        """Those of the last forward pass, until `router_loss` takes them."""

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        routes, losses = route(self.router(x), self.top_k, self.capacity)
        if not _in_backward():
            self.losses = losses
        rows = self._rows(B * routes.capacity, x.device)
        sample = torch.arange(B, device=x.device).unsqueeze(1)
        slot = (routes.expert * rows + sample * routes.capacity + routes.place).flatten()  # (B*k*T,) in the queues
        tokens = x.unsqueeze(1).expand(B, self.top_k, T, D).reshape(-1, D) * routes.kept.view(-1, 1)  # (B*k*T, D)
        # A dropped token is a zero that is added to the first in the queue.
        queues = tokens.new_zeros(self.count * rows, D).index_add(0, slot, tokens)
        out = self._through_experts(queues)[slot] * routes.gate.view(-1, 1)
        return out.view(B, self.top_k, T, D).sum(1).to(x.dtype)

    def _rows(self, rows: int, device: torch.device) -> int:
        """Rows of an expert's queues, the same on all ranks along the axis: in an evaluation their batches may differ."""
        return rows if self.training else int(here.expert.max(torch.tensor(rows, device=device)))

    def _through_experts(self, queues: Tensor) -> Tensor:
        """Each expert over its rows. (E*R, D) -> (E*R, D)"""
        ranks, experts, D = here.expert.size, len(self.experts), queues.shape[1]
        arrived = exchanged(queues).view(ranks, experts, -1, D)  # from each rank, R rows for each expert here
        parts = [expert(arrived[:, i].reshape(-1, D)) for i, expert in enumerate(self.experts.values())]
        out = torch.stack([part.view(ranks, -1, D) for part in parts], 1)  # (P, E/P, R, D)
        return exchanged(out.view(-1, D))


def router_loss(module: nn.Module, balance: float, z: float) -> tuple[Tensor, Metrics]:
    """The weighted losses of the routers in a module's last forward pass, summed over its mixtures of experts and averaged
    over the batch; and as metrics their mean balance loss (1 is even, E is all to one) and share of dropped choices."""
    mixtures = [m for m in module.modules() if isinstance(m, MixtureOfExperts)]
    losses = [m.losses for m in mixtures if m.losses is not None]
    assert len(losses) == len(mixtures) > 0, "a forward pass comes before its losses"
    for mixture in mixtures:
        mixture.losses = None
    total = torch.stack([(balance * each.balance + z * each.z).mean() for each in losses]).sum()
    metrics = {
        "balance": mean(torch.stack([each.balance for each in losses])),
        "dropped": mean(torch.stack([each.dropped for each in losses])),
    }
    return total, metrics


def _in_backward() -> bool:
    """Whether this forward pass is a layer's recomputation: to keep its losses would keep all its activations alive."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _Exchanged(torch.autograd.Function):
    """Block i of the rows goes to rank i of the expert axis, whose block for this rank takes its place: its own inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, x.contiguous(), group=here.expert.group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Exchanged.forward(ctx, grad)


def exchanged(x: Tensor) -> Tensor:
    """All-to-all of P equal blocks of rows along the expert axis, which autograd follows."""
    return _Exchanged.apply(x) if here.expert.size > 1 else x
