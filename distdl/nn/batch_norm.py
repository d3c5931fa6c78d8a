"""Batch normalisation over the whole batch, whichever ranks hold it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of (B, C, ...) with the statistics of all ranks' samples together.

    torch.nn.BatchNorm takes each rank's part alone, so its numbers change with the number of ranks, and its running
    statistics differ between them; torch.nn.SyncBatchNorm does not run on a CPU. Same formulas and running statistics
    (momentum 0.1, unbiased variance) as torch.nn.BatchNorm2d on one rank. All ranks must have equally many samples.

    One rank takes torch's kernel, one each way; several GPUs take SyncBatchNorm's, CPUs `_Shared`. GPUs normalise bf16 and
    fp16 as they are, with statistics in fp32; on CPUs what comes out is fp32.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p.to(self.running_mean.dtype) for p in (self.weight, self.bias))  # ZeRO's are of half precision
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, eps=self.eps)
        if x.dtype in (torch.bfloat16, torch.float16) and not x.is_cuda:
            x = x.float()  # sums of a whole batch
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        n = x.numel() // x.shape[1] * ranks  # values of one channel
        if ranks == 1 and n > 1:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, True, self.momentum, self.eps)
        if x.is_cuda and n > ranks:
            group = dist.group.WORLD
            x = x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
            return SyncBatchNorm.apply(
                x, weight, bias, self.running_mean, self.running_var, self.eps, self.momentum, group, ranks
            )
        out, mean, variance = _Shared.apply(x, weight, bias, self.eps, ranks)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / max(n - 1, 1)), self.momentum)
        return out


class _Shared(torch.autograd.Function):
    """Normalised by the mean and variance of all ranks' samples: one collective each way, of two numbers a channel.

    Statistics of the ranks' parts, equally many samples each, come together as those of groups do (Chan et al. 1979).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)  # (C,) each
        if ranks > 1:
            own = torch.stack([mean, variance])
            parts = [torch.empty_like(own) for _ in range(ranks)]
            dist.all_gather(parts, own)
            means, variances = torch.stack(parts, 1)  # (ranks, C) each
            between, mean = torch.var_mean(means, 0, correction=0)
            variance = variances.mean(0) + between
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """dx = w/s (dy - mean dy - x^ mean(dy x^)) with x^ = (x - m)/s and the means of all ranks: linear in dy and x."""
        x, weight, mean, inverse = ctx.saved_tensors
        _, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        if not ctx.needs_input_grad[0]:
            return None, d_weight, d_bias, None, None
        sums = torch.stack([d_bias, d_weight])
        if ctx.ranks > 1:
            dist.all_reduce(sums)
        of_dy, of_dy_x = sums / (x.numel() // x.shape[1] * ctx.ranks)  # (C,) each
        per_dy = weight * inverse
        per_x = -per_dy * inverse * of_dy_x
        rest = -per_dy * of_dy - per_x * mean
        per_dy, per_x, rest = (t.view(1, -1, *(1,) * (x.ndim - 2)) for t in (per_dy, per_x, rest))
        return torch.addcmul(rest, grad, per_dy).addcmul_(x, per_x), d_weight, d_bias, None, None
