"""Vision Transformer (Dosovitskiy et al. 2021): a picture is a sequence of patches, and a Transformer's encoder reads it.

    z = [class; E patch_1; ...; E patch_N] + positions                      (equation 1)
    z += attn(ln(z));   z += mlp(ln(z))   (pre-norm, L times)               (2, 3)
    logits = W ln(z)[0]                                                     (4)

`task: classify` learns by cross entropy (learner/classifier.py).
`task: mask` learns without labels (SimMIM, Xie et al. 2022): some patches are blanked out, which leaves the bias of E in
their place, and one linear map of ln(z) puts out their pixels; the loss is the mean |error| of those. What it shares with
the classifier has the same names (`start: {weights: RUN, fresh: [head.*, pixels.*]}`).

Every patch of P x P pixels goes through one linear map E, which is a convolution of stride P; class and positions are
learned. The perceptron has the exact GELU. With the default config it is ViT-B/16 with a head of 1,000 classes: 86,567,656
parameters (85,798,656 without the head); B/32 88,224,232, L/16 304,326,632, S/16 22,050,664, Ti/16 5,717,416.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, CountOrZero, ImageShape, OpenShare, Several, StrictShare
from distdl.config.marks import INVISIBLE, TRAINING_ONLY
from distdl.layout import noise
from distdl.layout.noise import Dropout
from distdl.learner import Answer, Batch, Column, Layer
from distdl.learner.answers import CLASSES
from distdl.learner.classifier import Classifier
from distdl.metrics import Metrics, mean
from distdl.nn.attention import SelfAttention
from distdl.nn.images import to_unit
from distdl.nn.watch import shown


@dataclass(frozen=True)
class Config:
    image: ImageShape = (3, 224, 224)
    """Shape of one picture (channels, height, width); uint8 or float32 of 0 to 1."""
    task: Literal["classify", "mask"] = "classify"
    """classify: the column `label`; mask: the pixels of hidden patches, without labels."""
    hide: StrictShare = 0.6
    """Share of the patches that the task mask hides."""
    patch: Count = 16
    """Side of a patch in pixels; must divide height and width."""
    classes: Several = 1000
    """Number of classes."""
    layers: Count = 12
    """Transformer blocks."""
    heads: Annotated[Count, INVISIBLE] = 12
    """Attention heads of a block; must divide `width`."""
    width: Count = 768
    """Size of the residual stream."""
    inner: CountOrZero = 0
    """Hidden units of a block's perceptron; 0: four times `width`."""
    dropout: Annotated[OpenShare, TRAINING_ONLY] = 0.0
    """Probability of dropping in the embedding and the residual branches (the paper: 0.1 on ImageNet alone)."""
    epsilon: Amount = 1e-6
    """Added to the variance by layer norm (the paper's code: 1e-6; transformers: 1e-12)."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split over {self.heads} heads; choose a divisor of it")
        if self.image[1] % self.patch or self.image[2] % self.patch:
            size = f"{self.image[1]}x{self.image[2]}"
            raise ValueError(
                f"a picture of {size} cannot be cut into patches of {self.patch}; choose a divisor of both"
            )

    @property
    def patches(self) -> int:
        """N, the patches of a picture."""
        return (self.image[1] // self.patch) * (self.image[2] // self.patch)


class Patches(nn.Module):
    """A picture as a sequence: the class first, then its patches, each with its place."""

    parameter_kinds = {"cls": "place", "places": "place"}

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch = nn.Conv2d(config.image[0], config.width, config.patch, config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.width))
        self.places = nn.Parameter(torch.empty(1, 1 + config.patches, config.width))
        self.drop = Dropout(config.dropout)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch(image).flatten(2).mT  # (B, C, H, W) -> (B, N, D)
        return self.drop(
            torch.cat([self.cls.expand(image.shape[0], -1, -1), patches], 1) + self.places
        )  # (B, 1 + N, D)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on a residual branch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D, inner = config.width, config.inner or 4 * config.width
        self.ln1, self.attn = nn.LayerNorm(D, config.epsilon), SelfAttention(D, config.heads)
        self.ln2 = nn.LayerNorm(D, config.epsilon)
        self.up, self.down = nn.Linear(D, inner), nn.Linear(inner, D)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.ln1(x)))
        return x + self.drop(self.down(F.gelu(self.up(self.ln2(x)))))  # (B, 1 + N, D)


class ViT(Classifier):
    layouts = frozenset({"torch", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline"})
    tensor_plan = {
        "blocks.*.attn.qkv": "column/3",
        "blocks.*.attn.out": "row",
        "blocks.*.up": "column",
        "blocks.*.down": "row",
    }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = Patches(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.ln = nn.LayerNorm(config.width, config.epsilon)
        if config.task == "classify":
            self.head = nn.Linear(config.width, config.classes)
        else:
            self.pixels = nn.Linear(config.width, config.image[0] * config.patch**2)
            self.primary, self.better = "masked_error", "lower"
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.endswith("cls"):
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        label = {"label": Column.label(config.classes)} if config.task == "classify" else {}
        return {"image": Column.sample(config.image), **label}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return CLASSES if config.task == "classify" else {"embedding": Answer("embedding", "of the whole picture")}

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        if self.config.task == "classify":
            return super().answer(batch)
        x = self.embed(2 * to_unit(batch["image"]) - 1)  # nothing is hidden from it
        for block in self.blocks:
            x = block(x)
        return {"embedding": self.ln(x[:, 0]).float()}

    @staticmethod
    def shrunk(model: Mapping[str, Any]) -> dict[str, Any]:
        full = Config(**{key: value for key, value in model.items() if key != "family"})
        heads = 4 if full.heads % 4 == 0 else full.heads
        side = min(full.patch, 8)  # the data are cut to the first patches
        image = (full.image[0], side * min(full.image[1] // full.patch, 4), side * min(full.image[2] // full.patch, 4))
        small = {"layers": min(full.layers, 4), "heads": heads, "width": 8 * heads, "inner": 32 * heads}
        return {**model, **small, "patch": side, "image": image}

    def splits(self) -> dict[str, dict[str, int]]:
        inner = self.config.inner or 4 * self.config.width
        return {"tensor": {"attention heads": self.config.heads, "units of a perceptron": inner}}

    def inputs(self, batch: Batch) -> Tensor:
        image = 2 * to_unit(batch["image"]) - 1  # (B, C, H, W), -1 to 1
        return image if self.config.task == "classify" else image.masked_fill(self.hidden(image)[1], 0.0)

    def hidden(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden patches (B, N), and their pixels (B, 1, H, W); the same whenever it is asked for one batch."""
        (B, _, height, width), side, N = image.shape, self.config.patch, self.config.patches
        if noise.active():
            noise.layer(-2)  # draws of its own, whoever asks: `inputs` and `criterion` may run on different ranks
            order = noise.uniform(B, N, device=image.device)
        else:
            order = torch.rand(B, N, generator=torch.Generator().manual_seed(0)).to(image.device)
        ranks = order.argsort(dim=1, stable=True).argsort(dim=1)
        patches = ranks < max(1, round(self.config.hide * N))
        grid = patches.view(B, 1, height // side, width // side)
        return patches, grid.repeat_interleave(side, 2).repeat_interleave(side, 3)

    def layers(self) -> list[Layer]:
        if self.config.task == "mask":
            last = Layer("pixels", lambda x: self.pixels(self.ln(x[:, 1:])), (self.ln, self.pixels))  # (B, N, C*P*P)
        else:
            last = Layer("head", lambda x: self.head(self.ln(x[:, 0])), (self.ln, self.head))  # (B, K)
        return [
            Layer("patches", self.embed, (self.embed,)),
            *(Layer(f"block {i}", block, (block,)) for i, block in enumerate(self.blocks)),
            last,
        ]

    def criterion(self, output: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        if self.config.task == "classify":
            return super().criterion(output, batch)
        errors = self.errors(output, batch)
        return errors.mean(), {"masked_error": mean(errors)}

    def seen_again(self, image: Tensor, output: Tensor) -> dict[str, Tensor]:
        """Pictures, what is left of them without the hidden patches, and those filled in."""
        hidden = self.hidden(image)[1]
        patches = F.fold(output.mT, image.shape[-2:], self.config.patch, stride=self.config.patch)
        whole = {"given": image, "damaged": image.masked_fill(hidden, 0.0), "told": patches.where(hidden, image)}
        return {name: (x.clamp(-1, 1) + 1) / 2 for name, x in whole.items()}

    def errors(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean |error| of each sample's hidden pixels (B,), which lie in -1..1."""
        image = 2 * to_unit(batch["image"]) - 1
        patches, _ = self.hidden(image)
        wanted = F.unfold(image, self.config.patch, stride=self.config.patch).mT  # (B, N, C*P*P)
        shown("reconstructions", lambda: self.seen_again(image, output.float()))
        of_patches = (output.float() - wanted).abs().mean(-1)  # (B, N)
        return (of_patches * patches).sum(1) / patches.sum(1)

    def evaluate(self, batch: Batch) -> Metrics:
        if self.config.task == "classify":
            return super().evaluate(batch)
        errors = self.errors(self.through(batch), batch)
        return {"loss": mean(errors), "masked_error": mean(errors)}
