"""Batch normalisation over the whole batch, whichever ranks hold it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of (B, C, ...) with the statistics of all ranks' samples together.

    torch.nn.BatchNorm takes each rank's part alone, so its numbers change with the number of ranks, and its running
    statistics differ between them; torch.nn.SyncBatchNorm does not run on a CPU. Same formulas and running statistics
    (momentum 0.1, unbiased variance) as torch.nn.BatchNorm2d on one rank. All ranks must have equally many samples.
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
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # sums of a whole batch
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        axes = [axis for axis in range(x.ndim) if axis != 1]
        n = x.numel() // x.shape[1] * ranks  # values of one channel
        mean = _sum(x.sum(axes), ranks) / n  # (C,)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        centred = x - mean.view(shape)
        variance = _sum(centred.square().sum(axes), ranks) / n  # (C,), in two passes: no cancellation
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / max(n - 1, 1)), self.momentum)
        return centred * (self.weight * (variance + self.eps).rsqrt()).view(shape) + self.bias.view(shape)


def _sum(x: Tensor, ranks: int) -> Tensor:
    """The sum over all ranks; its gradient is the sum of theirs."""
    return all_reduce(x) if ranks > 1 else x
