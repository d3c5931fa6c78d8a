"""Attention of one device as a fused kernel that tells the logarithm of its softmax's denominator, too.

What `F.scaled_dot_product_attention` keeps to itself: with it slices of keys are put together (`sequence.py`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

AMPERE = (8, 0)
"""Compute capability that flash attention needs on GPUs."""
WIDEST = 256
"""Numbers of a head's query that it takes there at most, in multiples of 8."""


class Forward(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, H, S, D) -> output (B, H, T, D), logarithm (B, H, T) in fp32."""


class Backward(Protocol):
    def __call__(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v. `out` and `lse` may be those over more keys than these."""


class Flash(NamedTuple):
    forward: Forward
    backward: Backward


def flash_of(q: Tensor) -> Flash | None:
    """The kernel for such queries; None: there is none."""
    if not q.is_cuda:
        return Flash(_on_cpu, _back_on_cpu)
    fits = q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST
    return Flash(_on_gpu, _back_on_gpu) if fits and torch.cuda.get_device_capability(q.device) >= AMPERE else None


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return out, lse


def _back_on_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return back(grad, q, k, v, out, lse, 0.0, causal)


def _on_gpu(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False)
    return out, lse


def _back_on_gpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    none = q.new_empty(2, dtype=torch.uint64)  # the state of a random generator, which a dropout of 0 does not ask
    back = torch.ops.aten._scaled_dot_product_flash_attention_backward
    return back(grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, none, none)
