"""Crossbars of analog devices: matrices that multiply by Ohm's and Kirchhoff's laws, and learn by pulses.

A weight is the conductance of a device, less that of a reference at its point of symmetry. A pulse moves it by a step that
depends on where it is (low < 0 < high; the linear-step model of IBM's aihwkit, and soft bounds where fade is 1):

    up    w += step (1 - fade_up w / high)            down    w -= step (1 - fade_down w / low)

Both are w += k (W - w), towards W = high / fade or low / fade, so that n equal pulses leave W + (w - W) (1 - k)^n. A step
is uncertain by `noise`, n of them by noise / sqrt(n), and no weight passes its bounds. No two devices are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distdl.layout import noise

UP, DOWN = 0, 1


@dataclass(frozen=True)
class Device:
    """How the weight of a device answers to pulses."""

    step: float
    """Change by a pulse at w = 0."""
    low: float
    """Least weight."""
    high: float
    """Largest weight."""
    fade_up: float
    """Share of the step up that is lost between 0 and `high`; 1: the bound is approached and never reached."""
    fade_down: float
    """The same of the step down, between 0 and `low`."""
    noise: float
    """Deviation of a step from pulse to pulse, as a share of it (one standard deviation, as those below)."""
    spread: float = 0.1
    """Deviation of the step from device to device, as a share of it."""
    spread_bounds: float = 0.05
    """The same of the bounds and the fading."""
    skew: float = 0.01
    """The same of the difference between steps up and down."""

    def gated(self, gate: float) -> Device:
        """A memtransistor whose third terminal is at another voltage, in decades of conductance from the nominal one.

        This parametrisation is ours: the gate changes the conductance of the channel exponentially, by orders of
        magnitude (Sangwan et al. 2018), hence the window of weights and the step alike.
        """
        factor = 10.0**gate
        return replace(self, step=self.step * factor, low=self.low * factor, high=self.high * factor)


DEVICES = {
    # Lithium (Tang et al., IEDM 2018) and metal oxide (Kim et al., IEDM 2019), both as aihwkit fitted them.
    "ecram": Device(0.002, -0.8276, 1.1724, 0.1153, 0.5085, noise=0.3),
    "ecram_oxide": Device(2.8214e-4, -0.8286, 1.1714, 0.4152, 0.7342, noise=2.0),
    # Soft bounds that a hundred pulses go 63 % of the way to: ours, after the curves of Sangwan et al., Nature 554:500.
    "memtransistor": Device(0.01, -1.0, 1.0, 1.0, 1.0, noise=0.5, spread=0.2),
}


@dataclass(frozen=True)
class Periphery:
    """The circuits at the edges of a crossbar."""

    noise: float = 0.06
    """Standard deviation that is added to an output, where the largest input is 1."""
    dac_bits: int = 7
    """Resolution of the inputs, from -1 to 1."""
    adc_bits: int = 9
    """Resolution of the outputs, from -bound to bound."""
    bound: float = 12.0
    """Largest output; more is cut off."""
    pulses: int = 31
    """Longest train of pulses of an update."""

    def multiply(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x (B, I), matrix (O, I) -> (B, O) as the circuits give it. In fp64: rounding must not choose a level."""
        x = x.double()
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-30)
        y = levels(x / scale, self.dac_bits, 1.0) @ matrix.double().T
        y = y + self.noise * noise.normal(*y.shape, device=y.device)
        return levels(y, self.adc_bits, self.bound).clamp(-self.bound, self.bound) * scale


def levels(x: Tensor, bits: int, bound: float) -> Tensor:
    """The nearest of the 2^bits - 1 levels, which lie evenly from -bound to bound."""
    width = 2 * bound / (2**bits - 2)
    return (x / width).round() * width


class Crossbar(nn.Module):
    """A matrix of devices, (outputs O, inputs I), started as torch.nn.Linear would."""

    weight: Tensor
    target: Tensor
    pace: Tensor
    bounds: Tensor

    def __init__(self, inputs: int, outputs: int, device: Device, periphery: Periphery) -> None:
        super().__init__()
        self.device, self.periphery = device, periphery

        def unlike(share: float) -> Tensor:
            """Factors of mean 1 that differ from device to device, and not so much that one of them is below 0."""
            return (1 + share * torch.randn(outputs, inputs)).clamp_min(0.01)

        step, skew = device.step * unlike(device.spread), device.skew / 2 * torch.randn(outputs, inputs)
        fade_up, fade_down = (
            device.fade_up * unlike(device.spread_bounds),
            device.fade_down * unlike(device.spread_bounds),
        )
        low, high = device.low * unlike(device.spread_bounds), device.high * unlike(device.spread_bounds)
        k_up, k_down = step * (1 + skew) * fade_up / device.high, step * (1 - skew) * fade_down / -device.low
        weight = (2 * torch.rand(outputs, inputs) - 1) / inputs**0.5
        self.register_buffer("weight", weight.clamp(low, high))
        self.register_buffer("target", torch.stack([device.high / fade_up, device.low / fade_down]))  # W: (2, O, I)
        self.register_buffer("pace", torch.stack([k_up, k_down]).clamp_max(0.9).neg().log1p())  # log(1 - k): (2, O, I)
        self.register_buffer("bounds", torch.stack([low, high]))  # (2, O, I)

    def read(self, x: Tensor) -> Tensor:
        """Voltages at the rows, currents at the columns: (B, I) -> (B, O)."""
        return self.periphery.multiply(x, self.weight)

    def read_back(self, delta: Tensor) -> Tensor:
        """The other way through the same devices: (B, O) -> (B, I)."""
        return self.periphery.multiply(delta, self.weight.T)

    def trains(self, x: Tensor, delta: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Signed pulses -1, 0, 1 of rows and columns for each sample: (B, T, I), (B, T, O).

        Where two meet, the device moves: T P(row) P(column) step = rate x delta on average (Gokmen & Vlasov 2016). The
        train is as short as the probabilities allow, and the largest ones on either side are alike (Gokmen et al. 2017).
        """
        x, delta = x.double(), delta.double()
        x_max, delta_max = (side.abs().amax(1).clamp_min(1e-30) for side in (x, delta))  # (B,)
        length = (rate * x_max * delta_max / self.device.step).ceil().clamp(1, self.periphery.pulses)
        root = (rate / (self.device.step * length)).sqrt()
        chances = x * (root * (delta_max / x_max).sqrt())[:, None], delta * (root * (x_max / delta_max).sqrt())[:, None]
        T = int(length.max())  # differs from rank to rank; the draws of a sample's first pulses do not depend on it
        sent = torch.arange(T, device=x.device) < length[:, None]  # (B, T)
        rows, columns = (
            (noise.uniform(len(p), T, p.shape[1], device=p.device) < p.abs()[:, None]) * p.sign()[:, None]
            for p in chances
        )
        return (rows * sent[:, :, None]).float(), columns.float()

    def demand(self, x: Tensor, delta: Tensor, rate: float) -> Tensor:
        """Pulses up and down that the samples send each device, whole numbers, to be added up over ranks: (2, O, I)."""
        rows, columns = (train.flatten(0, 1) for train in self.trains(x, delta, rate))  # (B T, I), (B T, O)
        both, difference = columns.abs().T @ rows.abs(), columns.T @ rows
        return torch.stack([both + difference, both - difference]) / 2

    def apply_pulses(self, pulses: Tensor, generator: torch.Generator) -> None:
        """All pulses up, then all pulses down: (2, O, I)."""
        for way in (UP, DOWN):
            change = (self.weight - self.target[way]) * torch.expm1(pulses[way] * self.pace[way])
            luck = torch.randn(change.shape, generator=generator, device=change.device)
            change *= 1 + self.device.noise * luck / pulses[way].clamp_min(1).sqrt()
            self.weight.copy_((self.weight + change).clamp(self.bounds[0], self.bounds[1]))


class Digital(nn.Module):
    """The same matrix in fp64 arithmetic, for comparison."""

    weight: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", (2 * torch.rand(outputs, inputs, dtype=torch.float64) - 1) / inputs**0.5)

    def read(self, x: Tensor) -> Tensor:
        return x.double() @ self.weight.T

    def read_back(self, delta: Tensor) -> Tensor:
        return delta @ self.weight

    def demand(self, x: Tensor, delta: Tensor, rate: float) -> Tensor:
        return rate * delta.T @ x.double()

    def apply_pulses(self, pulses: Tensor, generator: torch.Generator) -> None:
        self.weight += pulses


@torch.no_grad()
def update_curve(device: Device, pulses: int, devices: int, every: int = 1, seed: int = 0) -> Tensor:
    """Weights of some devices through `pulses` up from their lower bounds, and as many down, looked at `every` so often.

    The first row is the start: (2 pulses / every + 1, devices).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        crossbar = Crossbar(1, devices, device, Periphery())
    crossbar.weight.copy_(crossbar.bounds[0])
    generator = torch.Generator().manual_seed(seed)
    path = [crossbar.weight[:, 0].clone()]
    for way in [UP] * (pulses // every) + [DOWN] * (pulses // every):
        sent = torch.zeros(2, devices, 1)
        sent[way] = every
        crossbar.apply_pulses(sent, generator)
        path.append(crossbar.weight[:, 0].clone())
    return torch.stack(path)
