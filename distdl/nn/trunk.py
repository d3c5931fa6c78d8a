"""A convolutional trunk: a picture becomes maps of features, for families that go on from there with words."""

from __future__ import annotations

from torch import Tensor, nn

from distdl.nn.batch_norm import BatchNorm
from distdl.nn.googlenet import GoogLeNet


class Trunk(nn.Module):
    """Pictures (B, C, H, W) of 0 to 1 -> maps (B, K, h, w).

    With `widths` it is a 5x5 convolution of stride 2, batch normalisation and ReLU for each of them, K the last; without,
    GoogLeNet up to its average pool (Szegedy et al. 2015), 5,599,904 parameters, K = 1024.
    """

    def __init__(self, image: tuple[int, int, int], widths: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = image
        self.average = not widths
        """Whether `vector` is the average over places: pictures of any size, of which only one thing is to be said."""
        if widths:
            levels = []
            for n_in, n_out in zip((channels, *widths), widths):
                levels += [nn.Conv2d(n_in, n_out, 5, 2, padding=2, bias=False), BatchNorm(n_out), nn.ReLU()]
                height, width = (height + 1) // 2, (width + 1) // 2
            self.maps = nn.Sequential(*levels)
            self.channels = widths[-1]
            places = height * width
        else:
            self.maps, self.channels, places = GoogLeNet(channels, 1, auxiliary=False).trunk, 1024, 1
        self.features = self.channels * places
        """Length of `vector`."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        return self.maps(2 * image - 1)

    def vector(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, features): the average of GoogLeNet's maps; the whole maps of the small trunk, where each
        number keeps its place in the picture."""
        maps = self(image)
        return maps.mean((2, 3)) if self.average else maps.flatten(1)
