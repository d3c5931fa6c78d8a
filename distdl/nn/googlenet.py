"""GoogLeNet: Inception modules side by side (Szegedy et al. 2015, CVPR, "Going deeper with convolutions").

As torchvision builds it: batch normalisation after each convolution, none of the paper's local response normalisation, and
3x3 filters where the paper has 5x5. 6,624,904 parameters for 1000 classes, 13,004,888 with the two auxiliary classifiers.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distdl.layout.noise import Dropout
from distdl.nn.batch_norm import BatchNorm

AFTER = ("inception4a", "inception4d")  # where the auxiliary classifiers look


def convolution(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; the size divided by the stride."""
    layer = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, BatchNorm(n_out, eps=1e-3), nn.ReLU())


class Inception(nn.Module):
    """Four branches beside each other: 1x1; 1x1, 3x3; 1x1, "5x5"; max-pool, 1x1. Sizes as in table 1 of the paper."""

    def __init__(self, n_in: int, n1: int, n3_in: int, n3: int, n5_in: int, n5: int, n_pool: int) -> None:
        super().__init__()
        self.branch1 = convolution(n_in, n1, 1)
        self.branch2 = nn.Sequential(convolution(n_in, n3_in, 1), convolution(n3_in, n3, 3))
        self.branch3 = nn.Sequential(convolution(n_in, n5_in, 1), convolution(n5_in, n5, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), convolution(n_in, n_pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    """A classifier that looks in the middle, so that the lower half gets a gradient of its own."""

    def __init__(self, n_in: int, classes: int) -> None:
        super().__init__()
        self.conv = convolution(n_in, 128, 1)
        self.fc1, self.dropout, self.fc2 = nn.Linear(128 * 4 * 4, 1024), Dropout(0.7), nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)  # (B, 2048)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """Pictures of any size (B, C, H, W) -> logits of the head and, in training, of the auxiliary classifiers."""

    def __init__(self, channels: int, classes: int, auxiliary: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            OrderedDict(
                conv1=convolution(channels, 64, 7, 2),
                pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
                conv2=convolution(64, 64, 1),
                conv3=convolution(64, 192, 3),
                pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
                inception3a=Inception(192, 64, 96, 128, 16, 32, 32),
                inception3b=Inception(256, 128, 128, 192, 32, 96, 64),
                pool3=nn.MaxPool2d(3, 2, ceil_mode=True),
                inception4a=Inception(480, 192, 96, 208, 16, 48, 64),
                inception4b=Inception(512, 160, 112, 224, 24, 64, 64),
                inception4c=Inception(512, 128, 128, 256, 24, 64, 64),
                inception4d=Inception(512, 112, 144, 288, 32, 64, 64),
                inception4e=Inception(528, 256, 160, 320, 32, 128, 128),
                pool4=nn.MaxPool2d(2, 2, ceil_mode=True),
                inception5a=Inception(832, 256, 160, 320, 32, 128, 128),
                inception5b=Inception(832, 384, 192, 384, 48, 128, 128),
            )
        )
        self.dropout, self.head = Dropout(0.2), nn.Linear(1024, classes)
        sizes = dict(zip(AFTER, (512, 528)))
        self.auxiliary = nn.ModuleDict({n: Auxiliary(size, classes) for n, size in sizes.items() if auxiliary})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        more = []
        for name, layer in self.trunk.named_children():
            x = layer(x)
            if self.training and name in self.auxiliary:
                more.append(self.auxiliary[name](x))
        return self.head(self.dropout(x.mean((2, 3)))), *more
