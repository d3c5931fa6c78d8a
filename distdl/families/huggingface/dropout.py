"""Dropout in foreign code, drawn by sample (layout/noise.py): every layout trains the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from distdl.layout import noise


class KeyedDropout(TorchFunctionMode):
    """While it is entered, each dropout draws its mask by sample, wherever in foreign code it is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return noise.Dropout(p)(input) if training else input


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **how: Any
) -> Tensor:
    """Attention whose shares are dropped by sample. (B, H, T, D), (B, H, S, D) twice -> (B, H, T, D)."""
    if how.get("enable_gqa"):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (how.get("scale") or query.shape[-1] ** -0.5)  # (B, H, T, S)
    if how.get("is_causal"):
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return noise.Dropout(dropout_p)(scores.softmax(-1).to(value)) @ value
