"""Random changes to pictures in training: a pure function of seed and sample, so that every layout makes the same."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distdl.config.ways import Augment
from distdl.errors import InputError
from distdl.layout import noise
from distdl.learner import Batch
from distdl.nn.images import to_unit


class Augmentation:
    """What `augment:` says, done to one column of a batch: (B, C, H, W), uint8 or 0..1, -> float32 of the same shape."""

    def __init__(self, config: Augment) -> None:
        """Raises InputError where torchvision is asked for and is not there, or has no such transform."""
        self.config = config
        self.transforms = _torchvision(config.torchvision) if config.torchvision else []

    def __call__(self, batch: Batch) -> Batch:
        image = batch[self.config.column]
        with torch.autocast(image.device.type, enabled=False):  # half precision would place pixels half a pixel off
            return {**batch, self.config.column: self.changed(image)}

    def changed(self, image: Tensor) -> Tensor:
        c, x = self.config, to_unit(image)
        n = len(x)
        if c.shift_pixels or c.rotate_degrees or c.zoom:
            x = self._moved(x)
        for axis, name in ((3, "horizontal"), (2, "vertical")):
            if c.flip in (name, "both"):
                x = torch.where(_draw(x) < 0.5, x, x.flip(axis))
        if c.brightness or c.contrast:
            mean = x.mean((1, 2, 3), keepdim=True)
            x = mean + (x - mean) * (1 + c.contrast * _spread(x)) + c.brightness * _spread(x)
        if c.noise:
            x = x + c.noise * noise.normal(*x.shape, device=x.device)
        if image.dtype == torch.uint8:
            x = x.clamp(0, 1)
        if c.erase:
            x = self._erased(x)
        if self.transforms:
            seeds = noise.bits(torch.Size([n, 1])).flatten().tolist() if noise.active() else range(n)
            x = torch.stack([_with_seed(seed, self.transforms, one) for seed, one in zip(seeds, x)])
        return x

    def _moved(self, x: Tensor) -> Tensor:
        """Turned, scaled and shifted, by one bilinear look-up."""
        c, (height, width) = self.config, x.shape[2:]
        turn = math.radians(c.rotate_degrees) * _spread(x).flatten()  # (B,)
        scale = 1 / (1 + c.zoom * _spread(x).flatten())
        right, down = (c.shift_pixels * _spread(x).flatten() for _ in range(2))
        cos, sin = turn.cos() * scale, turn.sin() * scale
        # where a place of the new picture was in the old one, in units of half a side
        rows = [cos, -sin * height / width, 2 * right / width, sin * width / height, cos, 2 * down / height]
        grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)

    def _erased(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device).view(1, 1, -1, 1)
        columns = torch.arange(width, device=x.device).view(1, 1, 1, -1)
        inside = torch.ones_like(x[:, :1], dtype=torch.bool)
        for places, size in ((rows, height), (columns, width)):
            side = max(1, round(self.config.erase * size))
            first = (_draw(x) * (size - side + 1)).floor()  # (B, 1, 1, 1)
            inside = inside & (places >= first) & (places < first + side)
        return x.masked_fill(inside, 0.0)


def _draw(x: Tensor) -> Tensor:
    """Uniform in (0, 1), one of each picture: (B, 1, 1, 1)."""
    return noise.uniform(len(x), 1, 1, 1, device=x.device)


def _spread(x: Tensor) -> Tensor:
    """Uniform in (-1, 1), one of each picture: (B, 1, 1, 1)."""
    return 2 * _draw(x) - 1


def _with_seed(seed: int, transforms: list[Any], picture: Tensor) -> Tensor:
    """torchvision draws from torch's generator, which is set for this picture alone."""
    with torch.random.fork_rng(devices=[picture.device] if picture.is_cuda else []):
        torch.manual_seed(seed & 0xFFFFFFFF)
        for transform in transforms:
            picture = transform(picture)
    return picture


def _torchvision(asked: tuple[dict[str, dict[str, Any]], ...]) -> list[Any]:
    try:
        v2 = importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        fix = "pip install 'distdl[augment]', a torchvision built for the same device as your torch"
        raise InputError(f"augment.torchvision needs torchvision, which cannot be imported: {error}", fix=fix) from None
    transforms = []
    for one in asked:
        for name, arguments in one.items():
            if not isinstance(getattr(v2, name, None), type) or name.startswith("_"):
                raise InputError(f"augment.torchvision: torchvision.transforms.v2 has no transform {name!r}")
            try:
                transforms.append(getattr(v2, name)(**arguments))
            except (TypeError, ValueError) as error:
                raise InputError(f"augment.torchvision: {name}: {error}") from None
    return transforms
