"""DeepDream: pictures that a trained network sees more and more in (Mordvintsev, Olah & Tyka 2015, "Inceptionism").

First the carrier learns to classify, by back-propagation. Then its weights rest and the picture x is what learns, by
gradient ascent on the mean of 1/2 a^2 over the activations a of one layer, or on the logit of a class:

    x <- x + rate g / mean|g|,   g = mean over jitters of d objective(roll(x, jitter)) / dx

The roll by a few random pixels keeps the ascent from fitting the raster of the strides; every sample of the batch draws
one, so that the work of a step is shared over the workers. The ascent begins with small pictures and goes on with ones
`scale` times larger (octaves): what was dreamt is enlarged and added to the picture at the new size.

The carrier of the original is GoogLeNet, here in torchvision's form of 6,624,904 parameters, with auxiliary classifiers
13,004,888. What drives a step and which weights it changes follows from the number of the step alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.config.fields import Amount, Count, CountOrZero, Counts, ImageShape, Several
from distdl.layout import noise
from distdl.learner import Answer, Batch, Column, Learner, Verbs, bare, frozen
from distdl.learner.answers import CLASSES, of_logits
from distdl.learner.labels import filled, mean_known, mean_loss, of_classes
from distdl.metrics import Mean, Metrics, mean
from distdl.nn.googlenet import GoogLeNet
from distdl.nn.images import to_unit
from distdl.nn.watch import FEW, shown

AUXILIARY = 0.3  # weight of each auxiliary classifier's loss (Szegedy et al. 2015, section 5)


@dataclass(frozen=True)
class Config:
    image: ImageShape = (3, 224, 224)
    """Shape of one picture (channels, height, width), of the data set and of the dreams; uint8 or float32."""
    classes: Several = 1000
    """Number of classes."""
    carrier: Literal["googlenet", "cnn"] = "googlenet"
    """The network that is dreamt with: the original's, or a few convolutions."""
    widths: Counts = (16, 32, 64)
    """Maps of the convolutions of the carrier cnn, which are its layers conv1, conv2, ..."""
    auxiliary: bool = True
    """Train the carrier googlenet with its two auxiliary classifiers."""
    carrier_steps: CountOrZero = 100000
    """Steps that train the carrier; every later step is one of the ascent."""
    objective: Literal["activation", "class"] = "activation"
    """activation: the mean of half the squared activations of `layer`; class: the logit of class i in dream i."""
    layer: str = "inception4c"
    """Layer whose activations are to grow."""
    dreams: Count = 1
    """Number of pictures that are dreamt side by side."""
    start: Literal["grey", "data"] = "data"
    """What a dream begins with: grey with a little noise, or pictures of the first batch after the carrier's training."""
    rate: Amount = 1.5 / 255
    """Mean change of a pixel (0..1) in one step of the ascent."""
    jitter: CountOrZero = 32
    """Largest number of pixels by which a picture is rolled."""
    octaves: Count = 4
    """Number of sizes."""
    scale: Annotated[float, Field(gt=1)] = 1.4
    """Ratio of two neighbouring sizes."""
    octave_steps: Count = 10
    """Steps of the ascent at each size; those that are left go to the last one."""

    def __post_init__(self) -> None:
        known = [f"conv{i + 1}" for i in range(len(self.widths))]
        if self.carrier == "cnn" and self.objective == "activation" and self.layer not in known:
            raise ValueError(f"the carrier cnn has no layer {self.layer!r}; choose one of {', '.join(known)}")
        if min(self.image[1:]) / self.scale ** (self.octaves - 1) < 4:
            raise ValueError(f"{self.octaves} octaves make pictures below 4 pixels of {self.image}; take fewer")

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width in each octave, the smallest first."""
        ratios = [self.scale**octave for octave in reversed(range(self.octaves))]
        return [(round(self.image[1] / ratio), round(self.image[2] / ratio)) for ratio in ratios]


class CNN(nn.Module):
    """Convolutions with ReLU, a pool between two of them, and the mean of each last map: pictures of any size."""

    def __init__(self, channels: int, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (n_in, n_out) in enumerate(zip((channels, *widths), widths), 1):
            convolution = nn.Conv2d(n_in, n_out, 5 if i == 1 else 3, padding="same")
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers[f"conv{i}"] = nn.Sequential(convolution, nn.ReLU())
            if i < len(widths):
                layers[f"pool{i}"] = nn.MaxPool2d(2, ceil_mode=True)
        self.trunk, self.head = nn.Sequential(layers), nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.head(self.trunk(x).mean((2, 3))),)


class DeepDream(Learner):
    players = ("carrier",)
    learns = "back-propagation, then gradient ascent on the input"
    better = "higher"
    batch_coupled = True  # every sample's jitter enters one step of the same pictures
    class_column = "label"
    layouts = frozenset({"torch", "zero0", "zero1", "zero2"})  # ZeRO-3 has no whole weights for a gradient of our own

    start: Tensor
    detail: Tensor
    dreamt: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.primary = "objective" if config.objective == "activation" else "confidence"
        channels, height, width = config.image
        if config.carrier == "googlenet":
            self.carrier: nn.Module = GoogLeNet(channels, config.classes, config.auxiliary)
        else:
            self.carrier = CNN(channels, config.widths, config.classes)
        if config.objective == "activation" and config.layer not in dict(self.carrier.trunk.named_children()):
            raise ValueError(f"the carrier {config.carrier} has no layer {config.layer!r}")
        grey = 0.5 + 0.01 * torch.randn(config.dreams, channels, height, width)
        self.register_buffer("start", grey)
        self.register_buffer("detail", torch.zeros_like(grey))  # what was dreamt, in the corner of the octave's size
        self.register_buffer("dreamt", torch.zeros((), dtype=torch.int64))  # steps of the ascent so far

    @staticmethod
    def columns(config: Config) -> dict[str, Column]:
        return {"image": Column.sample(config.image), "label": Column.label(config.classes)}

    @staticmethod
    def tells(config: Config) -> dict[str, Answer]:
        return CLASSES

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        return of_logits(bare(self.carrier)(to_unit(batch["image"]))[0])

    def draw(self, n: int) -> Tensor:
        """The first n of the dreams that there are: no more come of a trained carrier without further steps."""
        return self.pictures()[:n]

    def update(self, batch: Batch, engine: Verbs, step: int) -> Metrics:
        if step >= self.config.carrier_steps:
            return self.dream(batch, engine, step - self.config.carrier_steps)
        logits, *auxiliary = self.carrier(to_unit(batch["image"]))
        label = batch["label"]
        losses, metrics = of_classes(logits, label)  # (B,)
        for more in auxiliary:
            losses = losses + AUXILIARY * F.cross_entropy(more, filled(label), reduction="none")
        loss = mean_loss(losses, batch)
        engine.minimize(loss, "carrier")
        return {"loss": mean(loss), **metrics}

    def dream(self, batch: Batch, engine: Verbs, t: int) -> Metrics:
        """Step t of the ascent."""
        config = self.config
        if t == 0 and config.start == "data":
            self.start.copy_(self.first_pictures(batch, engine))
        octave = self.octave(t)
        if octave > self.octave(t - 1):
            self.detail.copy_(self.enlarged(octave - 1, octave))
        height, width = config.sizes()[octave]
        ground, corner = resized(self.start, (height, width)), self.detail[..., :height, :width]
        picture = (ground + corner).requires_grad_()  # (n, C, h, w)
        shifts = (config.jitter * (2 * noise.uniform(len(batch["id"]), 2) - 1)).round().long()  # (B, 2)
        rolled = torch.cat([picture.roll(shift, (2, 3)) for shift in shifts.tolist()])  # (B n, C, h, w)
        with frozen(self.carrier) as net:
            net.eval()  # no dropout, and the running statistics of batch normalisation
            value = self.value(net, rolled)  # (B n,)
            (gradient,) = torch.autograd.grad(value.sum(), picture)
            net.train()
        gradient = engine.all_sum(gradient.double())  # the step below is the same for the sum as for the mean
        size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
        with torch.no_grad():
            corner.copy_((picture + config.rate * (gradient / size).float()).clamp(0, 1) - ground)
            self.dreamt.fill_(t + 1)
        return {"loss": mean(-value), "objective": mean(value)}

    def value(self, net: nn.Module, x: Tensor) -> Tensor:
        """(B n, C, h, w), n dreams after each other -> the objective of each picture (B n,)."""
        if self.config.objective == "class":
            logits = net(x)[0]  # (B n, K)
            wanted = torch.arange(len(x), device=x.device) % self.config.dreams % self.config.classes
            return logits.gather(1, wanted[:, None])[:, 0]
        for name, layer in net.trunk.named_children():  # type: ignore[union-attr]
            x = layer(x)
            if name == self.config.layer:
                break
        return x.square().flatten(1).mean(1) / 2

    def octave(self, t: int) -> int:
        """The octave of step t of the ascent."""
        return min(max(t, 0) // self.config.octave_steps, self.config.octaves - 1)

    def enlarged(self, octave: int, to: int) -> Tensor:
        """What was dreamt until `octave`, at the size of another, in the corner of a whole picture."""
        height, width = self.config.sizes()[octave]
        room = torch.zeros_like(self.detail)
        new_height, new_width = self.config.sizes()[to]
        room[..., :new_height, :new_width] = resized(self.detail[..., :height, :width], (new_height, new_width))
        return room

    def pictures(self) -> Tensor:
        """The dreams so far (n, C, H, W), 0..1."""
        octave = self.octave(int(self.dreamt) - 1)
        return (self.start + self.enlarged(octave, self.config.octaves - 1)).clamp(0, 1)

    def first_pictures(self, batch: Batch, engine: Verbs) -> Tensor:
        """The first n pictures of the batch of all workers, from the beginning again where there are fewer."""
        position, image = batch["position"], to_unit(batch["image"])
        total = engine.all_sum(torch.tensor(len(position), device=image.device))
        wanted = torch.arange(self.config.dreams, device=image.device) % total
        mine = (position % total)[None] == wanted[:, None]  # (n, B)
        return engine.all_sum(torch.einsum("nb,bchw->nchw", mine.to(image.dtype), image))

    def evaluate(self, batch: Batch) -> Metrics:
        """Loss and accuracy of the carrier, and the objective of the dreams, which no held-out sample changes."""
        net, n = bare(self.carrier), len(batch["id"])
        logits, label, pictures = net(to_unit(batch["image"]))[0], batch["label"], self.pictures()
        found = {"objective": self.value(net, pictures).mean()}
        if self.config.objective == "class":
            wanted = torch.arange(len(pictures), device=label.device) % self.config.classes
            found["confidence"] = net(pictures)[0].softmax(-1).gather(1, wanted[:, None]).mean()
        shown("samples", lambda: {"made": pictures[:FEW]})
        losses, metrics = of_classes(logits, label)
        metrics = {"loss": mean_known(losses, label), **metrics}
        return metrics | {name: Mean(value * n, float(n)) for name, value in found.items()}


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, C, h, w) of another size, by straight lines between pixels."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
