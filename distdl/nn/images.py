"""Pictures as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(image: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1; floating-point samples pass unchanged. Any shape."""
    return image.float() / 255 if image.dtype == torch.uint8 else image
